"""Operators of a Problem: where a Problem meets `jaxsharp.curvature`, which knows functions only.

All are of the problem's own loss, a mean over samples, or over tokens where each has a label.
"""

import jax
import jax.numpy as jnp

from jaxsharp import curvature
from jaxsharp._types import Array, Params
from jaxsharp.curvature import Operator
from jaxsharp.curvature._batches import check_chunk, count_samples
from jaxsharp.curvature.likelihood import count_losses, loss_of
from jaxsharp.problems import Problem, sample_loss


def hessian(problem: Problem, params: Params, *, chunk: int | None = None, segments: int = 1) -> Operator:
    """Makes the Hessian of a problem's loss at one point.

    Args:
        problem: any; for chunks a supervised one without batch normalization.
        params: the point w.
        chunk: how many samples at a time; all by default.
        segments: into how many stretches to cut the loss, to evaluate them again instead of keeping them.

    Returns:
        An `Operator`. Cost: see `jaxsharp.curvature.hessian_operator`.

    Raises:
        ValueError: for chunks of a problem whose samples depend on each other or are not known, or whose loss is not one for
            each.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> operator = js.operators.hessian(js.problems.valley(), {"u": jnp.array(1.0), "v": jnp.array(0.0)})
        >>> float(js.curvature.trace(operator).value)
        2.0
    """
    if chunk is None:
        return curvature.hessian_operator(problem.loss, params, segments=segments)
    check_chunk(chunk)
    parts = _parts(problem, params, chunk)
    losses = loss_of(parts.loss)
    inputs, targets = parts.data
    count_losses(losses, jax.eval_shape(parts.predict, params, inputs), targets, count_samples(parts.data))

    def loss(w, data):
        inputs, targets = data
        return jnp.mean(losses(parts.predict(w, inputs), targets))

    return curvature.hessian_operator(loss, params, parts.data, chunk=chunk, segments=segments)


def gauss_newton(problem: Problem, params: Params, *, chunk: int | None = None, segments: int = 1) -> Operator:
    """Makes the Gauss–Newton matrix of a supervised problem at one point.

    Args:
        problem: made by `jaxsharp.problems.supervised`.
        params: the point w.
        chunk: how many samples at a time; all by default, and with batch normalization no other choice.
        segments: into how many stretches to cut the model, to evaluate them again instead of keeping them.

    Returns:
        An `Operator`. Cost: see `jaxsharp.curvature.gauss_newton_operator`.

    Raises:
        ValueError: for a problem that is not supervised, or chunks with batch normalization.

    Example:
        >>> import jax, jaxsharp as js
        >>> problem = js.problems.supervised(js.models.MLP(widths=(4,)), js.data.digits(count=20)[0])
        >>> operator = js.operators.gauss_newton(problem, problem.init(jax.random.key(0)))
        >>> bool(js.curvature.trace(operator, max_matvecs=8).value > 0)
        True
    """
    parts = _parts(problem, params, chunk)
    return curvature.gauss_newton_operator(parts.predict, parts.loss, params, parts.data, chunk=chunk, segments=segments)


def fisher(
    problem: Problem,
    params: Params,
    *,
    samples: int | None = None,
    key: Array | None = None,
    chunk: int | None = None,
    segments: int = 1,
) -> Operator:
    """Makes the Fisher information of a supervised problem at one point, exactly or with labels sampled from the model.

    Args:
        problem: made by `jaxsharp.problems.supervised` with the loss `mse` or `cross_entropy`.
        params: the point w.
        samples: how many draws of all targets; None takes the expectation exactly.
        key: PRNG key of the draws; a fixed one by default.
        chunk: how many samples at a time; all by default, and with batch normalization no other choice.
        segments: into how many stretches to cut the model, to evaluate them again instead of keeping them.

    Returns:
        An `Operator`. Cost: see `jaxsharp.curvature.fisher_operator`.

    Raises:
        ValueError: for a problem that is not supervised or has another loss, or chunks with batch normalization.

    Example:
        >>> import jax, jaxsharp as js
        >>> problem = js.problems.supervised(js.models.MLP(widths=(4,)), js.data.digits(count=20)[0], loss="cross_entropy")
        >>> js.operators.fisher(problem, problem.init(jax.random.key(0)), samples=2).shape[0] > 100
        True
    """
    parts = _parts(problem, params, chunk)
    return curvature.fisher_operator(
        parts.predict, parts.loss, params, parts.data, samples=samples, key=key, chunk=chunk, segments=segments
    )


def empirical_fisher(problem: Problem, params: Params, *, chunk: int | None = None, segments: int = 1) -> Operator:
    """Makes the empirical Fisher matrix of a supervised problem at one point.

    Args:
        problem: made by `jaxsharp.problems.supervised`.
        params: the point w.
        chunk: how many samples at a time; all by default, and with batch normalization no other choice.
        segments: into how many stretches to cut the model, to evaluate them again instead of keeping them.

    Returns:
        An `Operator`. Cost: see `jaxsharp.curvature.empirical_fisher_operator`.

    Raises:
        ValueError: for a problem that is not supervised, or chunks with batch normalization.

    Example:
        >>> import jax, jaxsharp as js
        >>> problem = js.problems.supervised(js.models.MLP(widths=(4,)), js.data.digits(count=20)[0])
        >>> js.operators.empirical_fisher(problem, problem.init(jax.random.key(0)), chunk=8).shape[0] > 100
        True
    """
    parts = _parts(problem, params, chunk)
    return curvature.empirical_fisher_operator(parts.predict, parts.loss, params, parts.data, chunk=chunk, segments=segments)


BY_NAME = {"hessian": hessian, "gauss_newton": gauss_newton, "fisher": fisher, "empirical_fisher": empirical_fisher}


def _parts(problem, params, chunk):
    parts = sample_loss(problem, jax.lax.stop_gradient(params))
    if chunk is not None and parts.coupled:
        raise ValueError(
            f"chunk={chunk} would change the operator of {problem.name!r}, since batch normalization makes samples depend on "
            "each other; leave chunk=None and save memory by segments= instead."
        )
    return parts
