"""The diagonal of an operator, and squared gradients as estimates of one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsharp._precision import in_full_precision
from jaxsharp._types import Array, Loss, MatVec, Params, PyTree
from jaxsharp.curvature._batches import SIDE_BY_SIDE, check_chunk, count_samples, map_batched, mean_over_chunks
from jaxsharp.curvature.estimate import Estimate
from jaxsharp.curvature.gauss_newton import draw_targets
from jaxsharp.curvature.likelihood import Likelihood, count_losses, likelihood_of, loss_of
from jaxsharp.curvature.operator import as_operator, flat_product
from jaxsharp.curvature.trace import mean_and_error, signs, unit


def diagonal(
    matvec: MatVec, like: PyTree | None = None, *, max_matvecs: int = 32, key: Array | None = None, batch: int | None = None
) -> Estimate:
    """Estimates the diagonal of a symmetric operator by z ⊙ A z over random signs z, with a standard error for each entry.

    The variance of entry i is Σ_{j≠i} A_ij² / m with m products. Where max_matvecs reaches the number of parameters the diagonal
    is computed exactly.

    Args:
        matvec: an `Operator`, or v -> A v on pytrees like `like`.
        like: any pytree with the shapes of one vector; not needed for an Operator.
        max_matvecs: number of products.
        key: PRNG key; a fixed one by default.
        batch: how many products side by side; by default 1 on a CPU and 16 elsewhere.

    Returns:
        `Estimate` of pytrees like params. Cost: `matvecs` products; memory for a few vectors per product side by side.

    Raises:
        ValueError: where the bound allows no error estimate.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> js.curvature.diagonal(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3)).value.tolist()
        [3.0, 1.0, -5.0]

    Source: Bekas, Kokiopoulou, Saad 2007.
    """
    product, template, unravel = flat_product(as_operator(matvec, like))
    size, dtype = template.size, template.dtype
    if max_matvecs >= size:
        entries = map_batched(lambda index: product(unit(template, index))[index], jnp.arange(size), batch)
        return Estimate(unravel(entries), unravel(jnp.zeros_like(template)), jnp.asarray(size, jnp.int32))
    if max_matvecs < 2:
        raise ValueError(f"max_matvecs={max_matvecs} gives no error estimate; give at least 2.")

    def sample(key):
        z = signs(key, template)
        return z * product(z)

    keys = jax.random.split(jax.random.key(0) if key is None else key, max_matvecs)
    if batch is None:
        batch = 1 if jax.default_backend() == "cpu" else SIDE_BY_SIDE
    first = 1 + (max_matvecs - 1) % batch  # the rest is a whole number of batches
    rows = map_batched(sample, keys[:first], batch)
    largest = jnp.max(jnp.abs(rows))
    scale = jnp.where(largest > 0, largest, 1)  # so that squares neither vanish nor overflow

    def add(moments, keys):
        return _merge(*moments, map_batched(sample, keys, batch) / scale), None

    nothing = jnp.zeros_like(template)
    moments = _merge(nothing, nothing, jnp.zeros((), dtype), rows / scale)
    if first < max_matvecs:
        moments, _ = jax.lax.scan(add, moments, keys[first:].reshape(-1, batch))
    mean, squares, _ = moments
    error = jnp.sqrt(squares / (max_matvecs * (max_matvecs - 1)))
    return Estimate(unravel(mean * scale), unravel(error * scale), jnp.asarray(max_matvecs, jnp.int32))


def _merge(mean, squares, count, rows):
    """Adds rows to a running mean and a running sum of squared deviations."""
    more = jnp.asarray(rows.shape[0], count.dtype)
    block = jnp.mean(rows, axis=0)
    shift, total = block - mean, count + more
    within = jnp.sum((rows - block[None]) ** 2, axis=0)
    return mean + shift * (more / total), squares + within + shift**2 * (count * more / total), total


@in_full_precision
def squared_gradient(loss: Loss, params: Params) -> Params:
    """Evaluates (∇L)² entry by entry, the estimate of curvature that Adam and RMSProp follow.

    It vanishes at a minimizer whatever the curvature there; see `fisher_diagonal` for one that does not.

    Args:
        loss: `(params) -> scalar`.
        params: the point w.

    Returns:
        A pytree like params. Cost: 1 gradient.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> js.curvature.squared_gradient(lambda w: jnp.sum(w**2), jnp.array([1.0, 2.0])).tolist()
        [4.0, 16.0]
    """
    return jax.tree.map(jnp.square, jax.grad(loss)(params))


@in_full_precision
def sample_squared_gradients(
    predict: Callable,
    loss: str | Callable | Likelihood,
    params: Params,
    data: tuple[PyTree, PyTree],
    *,
    chunk: int | None = None,
) -> Params:
    """Evaluates (1/n) Σᵢ (∇ℓᵢ)² entry by entry, exactly the diagonal of the empirical Fisher matrix.

    With a loss for each target (token), (n, T) of them, the mean is over all n T squares (∇ℓᵢₜ)².

    Args:
        predict: `(params, inputs) -> outputs (n, ...)`; the output of a sample must not depend on the others.
        loss: as for `gauss_newton_operator`.
        params: the point w.
        data: (inputs, targets), all with the samples on their leading axis.
        chunk: how many gradients of samples to hold at a time; all n by default, which is n times the parameters. The T of one
            sample follow one another.

    Returns:
        A pytree like params. Cost: about 1 gradient, less parallel; with T targets T backward derivatives.

    Raises:
        ValueError: as for `gauss_newton_operator`.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> data = (jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([3.0, 2.0]))
        >>> js.curvature.sample_squared_gradients(lambda w, x: x @ w, "mse", jnp.zeros(2), data).tolist()
        [4.5, 8.0]
    """
    check_chunk(chunk)
    losses_of = loss_of(loss)
    count_losses(losses_of, jax.eval_shape(predict, params, data[0]), data[1], count_samples(data))

    def one(sample):
        inputs, targets = jax.tree.map(lambda leaf: leaf[None], sample)
        losses, pull = jax.vjp(lambda w: losses_of(predict(w, inputs), targets).ravel(), params)

        def add(total, index):
            return jax.tree.map(lambda sum, leaf: sum + leaf**2, total, pull(unit(losses, index))[0]), None

        total = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), jnp.arange(losses.size))[0]
        return jax.tree.map(lambda leaf: leaf / losses.size, total)

    def average(part):
        return jax.tree.map(lambda rows: jnp.mean(rows, axis=0), jax.vmap(one)(part))

    return mean_over_chunks(average, data, chunk)


@in_full_precision
def fisher_diagonal(
    predict: Callable,
    loss: str | Likelihood,
    params: Params,
    data: tuple[PyTree, PyTree],
    *,
    samples: int = 2,
    key: Array | None = None,
    chunk: int | None = None,
) -> Estimate:
    """Estimates the diagonal of the Fisher information by n (∇L(ŷ))² with all targets ŷ drawn from the model.

    The scores of different samples are independent and of mean zero, so the square of one gradient of the whole does what n
    gradients of samples would. With a loss for each target (token) n counts them all, and L is their mean.

    Args:
        predict: `(params, inputs) -> outputs (n, ...)`.
        loss: `mse`, `cross_entropy`, or a `Likelihood`.
        params: the point w.
        data: (inputs, targets); only the inputs matter.
        samples: how many draws of all targets.
        key: PRNG key; a fixed one by default.
        chunk: how many samples at a time; all by default.

    Returns:
        `Estimate` of pytrees like params; its `matvecs` counts gradients, one a draw. With one draw the errors are NaN.

    Raises:
        ValueError: for a loss that is no distribution, data without samples, or outputs of a shape that does not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> data = (jnp.ones((4, 1)), jnp.zeros(4))
        >>> estimate = js.curvature.fisher_diagonal(lambda w, x: x[:, 0] * w, "mse", jnp.array(0.0), data, samples=500)
        >>> abs(float(estimate.value) - 1) < 4 * float(estimate.standard_error)
        True

    Source: the estimator of Wang et al. 2024 (IRE), theory §7; Liu et al. 2024 (Sophia).
    """
    check_chunk(chunk)
    likelihood = likelihood_of(loss)
    inputs, _ = data
    targets = draw_targets(predict, likelihood, params, inputs, samples=samples, key=key, chunk=chunk)
    outputs = jax.eval_shape(predict, params, inputs)
    count = count_losses(likelihood.loss, outputs, targets[:, 0], count_samples(inputs))

    def gradient(drawn):
        def mean_gradient(part):
            return jax.grad(lambda w: jnp.mean(likelihood.loss(predict(w, part[0]), part[1])))(params)

        whole = mean_over_chunks(mean_gradient, (inputs, drawn), chunk)
        return jax.tree.map(lambda leaf: count * leaf**2, whole)

    rows = map_batched(gradient, jnp.moveaxis(targets, 1, 0), 1)
    pairs = jax.tree.map(lambda leaf: mean_and_error(leaf) if samples > 1 else (leaf[0], leaf[0] * jnp.nan), rows)
    value, error = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0)), pairs)
    return Estimate(value, error, jnp.asarray(samples, jnp.int32))
