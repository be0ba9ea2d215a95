"""Sums of top eigenvalues as differentiable functions that know where they have no derivative."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsharp._types import Array, MatVec, PyTree, Scalar
from jaxsharp.curvature._batches import map_batched
from jaxsharp.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from jaxsharp.curvature.operator import as_operator, flat_product, frozen
from jaxsharp.curvature.separation import derivative_unless, separation


class EigenvalueSum(NamedTuple):
    """λ1 + … + λk, with what is needed to trust its derivative.

    Attributes:
        value: the sum, differentiable.
        gap: λk − λ(k+1), inf where k is the number of parameters.
        angle: bound on the sine of the angle between the computed and the true space of the k eigenvectors, ‖A V − V Λ‖ over the
            gap; the relative error of the derivative is of this order.
        reliable: whether `angle` is small enough for the derivative to be trusted.
        pairs: the k + 1 largest eigenpairs, constants of differentiation.
    """

    value: Scalar
    gap: Scalar
    angle: Scalar
    reliable: Array
    pairs: Eigenpairs


def top_eigenvalue_sum(
    matvec: MatVec,
    like: PyTree | None = None,
    k: int = 1,
    guess: PyTree | None = None,
    *,
    tol: float | None = None,
    max_matvecs: int = 200,
    max_angle: float = 0.1,
    strict: bool = True,
    key: Array | None = None,
) -> EigenvalueSum:
    """Evaluates λ1 + … + λk of a symmetric operator, differentiably in whatever its products depend on.

    By the envelope rule ∂ Σ λᵢ = Σ vᵢᵀ (∂A) vᵢ at fixed vᵢ, which sees only the space that the vᵢ span. So the derivative exists
    as long as λk > λ(k+1), even where eigenvalues cross among the first k. Where the gap closes, or the eigenvectors have not
    converged, failure is a value: `reliable` is False and the derivative is NaN, so that it cannot pass unseen; the value stays.

    Args:
        matvec: an `Operator`, or v -> A v on pytrees like `like`.
        like: any pytree with the shapes of one vector; not needed for an Operator.
        k: how many eigenvalues; 1 is the sharpness.
        guess: eigenvectors of a nearby point, a pytree with a leading axis k + 1 (k where that is the number of parameters).
        tol: relative residual of the eigenpairs; by default 1e-6 in float64 and 1e-3 in float32.
        max_matvecs: bound on the products of the eigenvectors.
        max_angle: up to which `angle` the derivative is reliable.
        strict: whether an unreliable derivative becomes NaN; otherwise it is the envelope rule's, at an exact crossing one of the
            generalized derivatives (Clarke), with `reliable` to tell.
        key: PRNG key of the random start.

    Returns:
        `EigenvalueSum`. Cost: `pairs.matvecs` + k + 1 products; its gradient about 3 k more. A derivative of a derivative would
        miss the motion of the eigenvectors: do not take one.

    Raises:
        ValueError: for k below 1 or above the number of parameters, or a bound on products below 2 k + 2.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> loss = lambda w: jnp.sum(w**4)
        >>> total = lambda w: js.curvature.top_eigenvalue_sum(js.curvature.hessian_operator(loss, w), k=2)
        >>> gradient, at = jax.grad(lambda w: (total(w).value, total(w)), has_aux=True)(jnp.array([2.0, 2.0, 1.0]))
        >>> round(float(at.value), 3), bool(at.reliable), [round(float(g), 2) for g in gradient]
        (96.0, True, [48.0, 48.0, 0.0])

    Source: derived; the bound on the angle is that of Davis and Kahan 1970.
    """
    operator = as_operator(matvec, like)
    product, template, _ = flat_product(operator)
    if not 1 <= k <= template.size:
        raise ValueError(f"k={k} eigenvalues were asked for, but there are {template.size} parameters; choose 1 <= k.")
    if max_matvecs < 2 * min(k + 1, template.size):
        raise ValueError(
            f"max_matvecs={max_matvecs} allows no iteration for k={k} eigenvalues and the next; give at least {2 * k + 2}."
        )
    if tol is None:
        tol = 1e-6 if template.dtype == jnp.float64 else 1e-3
    count = min(k + 1, template.size)
    constant = frozen(operator)
    pairs = top_eigenpairs(constant, None, count, jax.lax.stop_gradient(guess), tol, max_matvecs, key=key)
    pairs = jax.lax.stop_gradient(pairs)
    vectors = jax.vmap(lambda row: jax.flatten_util.ravel_pytree(row)[0])(pairs.vectors)
    images = map_batched(product, vectors[:k], 1)
    value = jnp.sum(vectors[:k] * images)
    gap, angle = separation(flat_product(constant)[0], vectors, jax.lax.stop_gradient(images), k)
    reliable = angle <= max_angle
    return EigenvalueSum(derivative_unless(value, reliable) if strict else value, gap, angle, reliable, pairs)
