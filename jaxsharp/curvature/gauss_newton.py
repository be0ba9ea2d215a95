"""Operators Jᵀ M J of a model's outputs: Gauss–Newton, Fisher and empirical Fisher."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxsharp._precision import in_full_precision
from jaxsharp._types import Array, Params, PyTree
from jaxsharp.curvature._batches import check_chunk, concatenate_over_chunks, count_samples, mean_over_chunks
from jaxsharp.curvature.likelihood import Likelihood, check_rows, count_losses, likelihood_of, loss_of
from jaxsharp.curvature.operator import Operator
from jaxsharp.curvature.rematerialize import rematerialized


def gauss_newton_operator(
    predict: Callable,
    loss: str | Callable | Likelihood,
    params: Params,
    data: tuple[PyTree, PyTree],
    *,
    chunk: int | None = None,
    segments: int = 1,
) -> Operator:
    """Makes the (generalized) Gauss–Newton matrix G = (1/n) Σᵢ Jᵢᵀ ∇²ℓᵢ Jᵢ, the Hessian without the curvature of the model.

    Jᵢ is the Jacobian of the outputs of sample i, ∇²ℓᵢ the Hessian of its loss in them. For `mse` G = JᵀJ/n; for `cross_entropy`
    G is the Fisher information. A loss that returns (n, T), as `cross_entropy` does for labels (n, T), has one loss ℓᵢₜ for each
    target (token), and the mean is over all n T of them: G is that of the mean loss.

    Args:
        predict: `(params, inputs) -> outputs (n, ...)`.
        loss: `mse`, `cross_entropy`, both over the last axis of the outputs, a `Likelihood`, or a function
            `(outputs, targets) -> (n,)`, or `-> (n, T)`.
        params: the point w.
        data: (inputs, targets), all with the samples on their leading axis.
        chunk: how many samples at a time; all by default. Not with batch normalization, which makes samples depend on each other.
        segments: into how many stretches to cut `predict`, see `rematerialized`.

    Returns:
        An `Operator`, positive semidefinite for a loss convex in the outputs. Cost: a linearization, then one forward and one
        backward derivative of the model per product, about 1 gradient; with chunks both in each product.

    Raises:
        ValueError: for an unknown loss, arrays of different lengths or without samples, outputs, targets or losses of a shape
            that does not fit, or labels that no output stands for (where they are known: not under `jax.jit`).

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> predict = lambda w, x: x @ w
        >>> data = (jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros(2))
        >>> js.curvature.gauss_newton_operator(predict, "mse", jnp.ones(2), data)(jnp.ones(2)).tolist()
        [0.5, 2.0]

    Source: Schraudolph 2002.
    """
    function = loss_of(loss)
    return _operator(predict, function, partial(_loss_hessian, function), params, data, chunk, segments)


def fisher_operator(
    predict: Callable,
    loss: str | Likelihood,
    params: Params,
    data: tuple[PyTree, PyTree],
    *,
    samples: int | None = None,
    key: Array | None = None,
    chunk: int | None = None,
    segments: int = 1,
) -> Operator:
    """Makes the Fisher information F = (1/n) Σᵢ E_y[∇ℓᵢ(y) ∇ℓᵢ(y)ᵀ], y drawn from the model's own distribution.

    With a loss for each target (token), outputs (n, T, classes), each is a sample of its own and the mean is over all n T scores.

    Args:
        predict: `(params, inputs) -> outputs (n, ...)`.
        loss: `mse` (a Gaussian of unit variance), `cross_entropy` (a softmax), or a `Likelihood`.
        params: the point w.
        data: (inputs, targets); only the inputs matter.
        samples: how many draws of all targets; None takes the expectation exactly. The draws are made once, here, so the
            operator is one fixed linear map, and do not depend on `chunk`.
        key: PRNG key of the draws; a fixed one by default.
        chunk: how many samples at a time; all by default.
        segments: into how many stretches to cut `predict`, see `rematerialized`.

    Returns:
        An `Operator`, positive semidefinite. Cost: as `gauss_newton_operator`, whatever the number of draws.

    Raises:
        ValueError: for a loss that is no distribution, an exact expectation that has no closed form, data without samples, or
            outputs of a shape that does not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> data = (jnp.ones((4, 1)), jnp.zeros(4, int))
        >>> predict = lambda w, x: jnp.stack([x[:, 0] * w, 0 * x[:, 0]], axis=1)
        >>> float(js.curvature.fisher_operator(predict, "cross_entropy", jnp.array(0.0), data)(jnp.array(1.0)))
        0.25

    Source: Amari 1998; sampled labels after Martens 2020.
    """
    likelihood = likelihood_of(loss)
    check_chunk(chunk)
    if samples is None:
        if likelihood.information is None:
            raise ValueError("this Likelihood has no closed form of its information; pass samples= to draw targets.")
        return _operator(
            predict, partial(_drawn_losses, likelihood), partial(_information, likelihood), params, data, chunk, segments
        )
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be a whole number, at least 1, or None, got {samples!r}.")
    labels = draw_targets(predict, likelihood, params, data[0], samples=samples, key=key, chunk=chunk)
    metric = partial(_second_moment, jax.vmap(likelihood.loss, in_axes=(None, 1), out_axes=1))
    return _operator(predict, partial(_first_losses, likelihood), metric, params, (data[0], labels), chunk, segments)


def empirical_fisher_operator(
    predict: Callable,
    loss: str | Callable | Likelihood,
    params: Params,
    data: tuple[PyTree, PyTree],
    *,
    chunk: int | None = None,
    segments: int = 1,
) -> Operator:
    """Makes the empirical Fisher matrix E = (1/n) Σᵢ ∇ℓᵢ ∇ℓᵢᵀ, the second moment of the gradients at the given targets.

    Not the Fisher information and no approximation of the Hessian far from a fit; it is what squared-gradient methods see. With a
    loss for each target (token) the mean is over all n T gradients ∇ℓᵢₜ.

    Args:
        predict: `(params, inputs) -> outputs (n, ...)`.
        loss: as for `gauss_newton_operator`.
        params: the point w.
        data: (inputs, targets), all with the samples on their leading axis.
        chunk: how many samples at a time; all by default.
        segments: into how many stretches to cut `predict`, see `rematerialized`.

    Returns:
        An `Operator`, positive semidefinite. Cost: as `gauss_newton_operator`; no gradient of a sample is formed.

    Raises:
        ValueError: as for `gauss_newton_operator`.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> data = (jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([3.0, 2.0]))
        >>> js.curvature.empirical_fisher_operator(lambda w, x: x @ w, "mse", jnp.zeros(2), data)(jnp.ones(2)).tolist()
        [4.5, 8.0]

    Source: see Kunstner, Hennig, Balles 2019 for its limits.
    """
    function = loss_of(loss)
    return _operator(predict, function, partial(_second_moment, function), params, data, chunk, segments)


@in_full_precision
def draw_targets(
    predict: Callable,
    loss: str | Likelihood,
    params: Params,
    inputs: PyTree,
    *,
    samples: int = 1,
    key: Array | None = None,
    chunk: int | None = None,
) -> Array:
    """Draws targets from the model's own distribution, constants of differentiation.

    Args:
        predict: `(params, inputs) -> outputs (n, ...)`.
        loss: `mse`, `cross_entropy`, or a `Likelihood`.
        params: the point w.
        inputs: with the samples on the leading axis.
        samples: how many draws of all targets.
        key: PRNG key; a fixed one by default.
        chunk: how many samples to evaluate at a time; the draws do not depend on it.

    Returns:
        Targets with the axes (n, samples, ...). Cost: 1 evaluation of the model.

    Raises:
        ValueError: for a loss that is no distribution, inputs without samples, or outputs of a shape that does not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> js.curvature.draw_targets(lambda w, x: x * w, "cross_entropy", 1.0, jnp.ones((5, 3)), samples=2).shape
        (5, 2)
    """
    likelihood = likelihood_of(loss)

    def evaluate(part):
        outputs = predict(params, part)
        check_rows(outputs, count_samples(part))
        return outputs

    outputs = concatenate_over_chunks(evaluate, inputs, chunk)
    keys = jax.random.split(jax.random.key(0) if key is None else key, samples)
    return jax.lax.stop_gradient(jnp.moveaxis(jax.vmap(lambda k: likelihood.sample(k, outputs))(keys), 0, 1))


@in_full_precision
def _operator(predict, losses, metric, params, data, chunk, segments):
    """Jᵀ M J with M = metric(outputs, targets) that of the mean of losses(outputs, targets).

    It is linearized once, or evaluated in each product to save memory.
    """
    check_chunk(chunk)
    count = count_samples(data)
    inputs, targets = data
    backward = rematerialized(predict, segments)
    if chunk is not None or segments > 1:
        count_losses(losses, jax.eval_shape(predict, params, inputs), targets, count)
        return Operator(Partial(partial(_chunked_product, predict, backward, metric, chunk), params, data), params)
    outputs, push = jax.linearize(lambda w: predict(w, inputs), params)
    count_losses(losses, outputs, targets, count)
    return Operator(Partial(_linearized_product, push, metric(outputs, targets)), params)


def _linearized_product(push, metric, v):
    return jax.linear_transpose(push, v)(metric(push(v)))[0]


def _chunked_product(predict, backward, metric, chunk, params, data, v):
    def product(part):
        inputs, targets = part
        outputs, u = jax.jvp(lambda w: predict(w, inputs), (params,), (v,))
        _, pull = jax.vjp(lambda w: backward(w, inputs), params)
        return pull(metric(outputs, targets)(u))[0]

    return mean_over_chunks(product, data, chunk)


def _loss_hessian(losses, outputs, targets):
    return jax.linearize(jax.grad(lambda f: jnp.mean(losses(f, targets))), outputs)[1]


def _drawn_losses(likelihood, outputs, targets=None):
    """Losses of one draw, for their shape."""
    del targets
    return likelihood.loss(outputs, likelihood.sample(jax.random.key(0), outputs))


def _first_losses(likelihood, outputs, targets):
    """Losses of the first of several draws."""
    return likelihood.loss(outputs, targets[:, 0])


def _information(likelihood, outputs, targets):
    del targets
    count = jax.eval_shape(partial(_drawn_losses, likelihood), outputs).size
    return Partial(partial(_mean_information, likelihood.information, count), outputs)


def _mean_information(information, count, outputs, u):
    return information(outputs, u) / count


def _second_moment(losses, outputs, targets):
    """The mean of g gᵀ over the scores g = ∇ℓ of all losses in the outputs, of which none is formed."""
    return Partial(_squared, jax.linearize(lambda f: losses(f, targets), outputs)[1])


def _squared(push, u):
    slopes = push(u)
    return jax.linear_transpose(push, u)(slopes / slopes.size)[0]
