"""The trace of an operator that is known only by its products."""

import jax
import jax.numpy as jnp

from jaxsharp._factorizations import qr, solve_lower
from jaxsharp._precision import dot
from jaxsharp._types import Array, MatVec, PyTree
from jaxsharp.curvature._batches import map_batched
from jaxsharp.curvature.estimate import Estimate
from jaxsharp.curvature.operator import as_operator, flat_product

METHODS = {"hutchinson": 2, "xtrace": 4}
"""The methods, and the fewest products that give each an error estimate."""


def trace(
    matvec: MatVec,
    like: PyTree | None = None,
    *,
    method: str = "hutchinson",
    max_matvecs: int = 32,
    key: Array | None = None,
    batch: int | None = None,
) -> Estimate:
    """Estimates tr A of a symmetric operator, with a standard error.

    `hutchinson` averages zᵀAz over random signs z: error √(2/m) ‖A − diag A‖_F with m products, memory of one vector. `xtrace`
    finds the dominant range Q from half of the products and samples the rest outside it, leaving each random vector out of its
    own Q in turn; memory of 3/2 m vectors. It is exact for a rank below m/2 and far better where eigenvalues decay fast (as
    1/i², say). The Hessians of small digits networks decay too slowly for it: with 16 to 128 products it was seldom better than
    `hutchinson`, and at 128 its own error estimate was up to 1.7 times too small. Where max_matvecs reaches the number of
    parameters D the trace is computed exactly.

    Differentiable in whatever the products depend on, by the rule of frozen probes: the random vectors and Q stay fixed, and the
    value is linear in A, so its derivative is an unbiased estimate of that of the trace. A derivative of a derivative would miss
    the motion of Q: do not take one with `xtrace`. The standard error has derivative 0 where it is 0.

    Args:
        matvec: an `Operator`, or v -> A v on pytrees like `like`.
        like: any pytree with the shapes of one vector; not needed for an Operator.
        method: `hutchinson` or `xtrace`.
        max_matvecs: bound on the number of products, which `xtrace` rounds down to even.
        key: PRNG key; a fixed one by default.
        batch: how many products side by side; by default 1 on a CPU and 16 elsewhere.

    Returns:
        `Estimate` of scalars. Cost: `matvecs` products; a derivative about 3 times as much.

    Raises:
        ValueError: for an unknown method, a bound too small for an error estimate, or no parameters.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> estimate = js.curvature.trace(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3))
        >>> float(estimate.value), float(estimate.standard_error), int(estimate.matvecs)
        (-1.0, 0.0, 3)

    Source: Hutchinson 1989; Epperly, Tropp, Webber 2024 (XTrace, with the normalization of their section on it).
    """
    operator = as_operator(matvec, like)
    product, template, _ = flat_product(operator)
    size = template.size
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {', '.join(METHODS)}.")
    if max_matvecs >= size:
        entries = map_batched(lambda index: product(unit(template, index))[index], jnp.arange(size), batch)
        return Estimate(jnp.sum(entries), jnp.zeros((), template.dtype), jnp.asarray(size, jnp.int32))
    if max_matvecs < METHODS[method]:
        raise ValueError(f"max_matvecs={max_matvecs} gives {method} no error estimate; give at least {METHODS[method]}.")
    key = jax.random.key(0) if key is None else key
    if method == "hutchinson":
        samples = map_batched(lambda k: _quadratic_form(product, signs(k, template)), jax.random.split(key, max_matvecs), batch)
        return Estimate(*mean_and_error(samples), jnp.asarray(max_matvecs, jnp.int32))
    samples = _xtrace(product, jax.random.normal(key, (max_matvecs // 2, size), template.dtype), batch)
    return Estimate(*mean_and_error(samples), jnp.asarray(max_matvecs // 2 * 2, jnp.int32))


def unit(template: Array, index) -> Array:
    """The unit vector of one coordinate."""
    return jnp.zeros_like(template).at[index].set(1)


def signs(key: Array, template: Array) -> Array:
    """A vector of random signs."""
    return jax.random.rademacher(key, template.shape, template.dtype)


def mean_and_error(samples: Array) -> tuple[Array, Array]:
    """Mean over the leading axis, and its standard error, of derivative 0 where it is 0; no square overflows or vanishes."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(samples), axis=0, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1)
    variance = jnp.var(samples / scale, axis=0, ddof=1)
    deviation = jnp.where(variance == 0, 0, jnp.sqrt(jnp.where(variance == 0, 1, variance))) * scale[0]
    return jnp.mean(samples, axis=0), deviation / jnp.sqrt(jnp.asarray(samples.shape[0], samples.dtype))


def _quadratic_form(product, z):
    return dot(z, product(z))


def _xtrace(product, tests, batch):
    """One estimate for each of the k test vectors (rows), left out of the range that deflates it.

    Everything is linear in the products A Ω and A Q; what Q and Ω alone determine is frozen.
    """
    k, size = tests.shape
    tested = map_batched(product, tests, batch)
    basis, triangle = qr(jax.lax.stop_gradient(tested).T)
    products = map_batched(product, basis.T, batch)  # A Q, a row each
    outside = _left_out(triangle)  # column i: the direction of Q that only test vector i brought
    coordinates = dot(basis.T, tests.T)
    kept = coordinates - outside * jnp.sum(outside * coordinates, axis=0, keepdims=True)  # of test i in the range without it
    squares = jnp.sum(tests**2, axis=1) - jnp.sum(kept**2, axis=0)
    scale = (size - k + 1) / jnp.where(squares > 0, squares, 1)
    inner = dot(products, basis)
    inside = jnp.trace(inner) - jnp.sum(outside * dot(inner, outside), axis=0)
    cross = jnp.sum(kept * dot(products, tests.T), axis=0)
    rest = jnp.sum(tests * tested, axis=1) - 2 * cross + jnp.sum(kept * dot(inner, kept), axis=0)
    return inside + scale * rest


def _left_out(triangle):
    """Unit columns sᵢ orthogonal to every column of R but the i-th: those of R^(−T). Where R has lost rank any will do."""
    k = triangle.shape[0]
    largest = jnp.max(jnp.abs(triangle))
    triangle = triangle / jnp.where(largest > 0, largest, 1)
    floor = 10 * k * float(jnp.finfo(triangle.dtype).eps)
    lost = jnp.abs(jnp.diag(triangle)) <= floor
    identity = jnp.eye(k, dtype=triangle.dtype)
    columns = solve_lower(jnp.where(lost[:, None], floor * identity, triangle).T, identity)
    return columns / jnp.linalg.norm(columns, axis=0, keepdims=True)
