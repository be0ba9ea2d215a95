"""Sharpness as a differentiable function of the parameters."""

import jax
import jax.numpy as jnp

from jaxsharp._precision import in_full_precision, vdot
from jaxsharp._types import Array, Loss, Params, PyTree, Scalar
from jaxsharp.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from jaxsharp.curvature.products import hessian_operator, hvp


@in_full_precision
def frozen_eigenpairs(
    loss: Loss, params: Params, k: int = 1, guess: PyTree | None = None, *, guards: int = 0, **options
) -> Eigenpairs:
    """Finds the top eigenpairs of the Hessian of a loss, as constants of differentiation.

    Without guards unless asked: derivatives need far smaller residuals than measurements, and what needs the gap to the next
    eigenvalue asks for k + 1.

    Args:
        loss: `(params) -> scalar`, twice differentiable.
        params: the point w.
        k: how many pairs.
        guess: eigenvectors of a nearby point, leading axis k.
        guards: as in `top_eigenpairs`.
        **options: of `top_eigenpairs`.

    Returns:
        `Eigenpairs` through which no derivative flows, whatever the loss closes over. Cost: `matvecs` products.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> pairs = js.curvature.frozen_eigenpairs(lambda w: jnp.sum(w**4), jnp.array([1.0, 2.0]))
        >>> round(float(pairs.values[0]), 3)
        48.0
    """
    fixed, constants = jax.closure_convert(lambda w: loss(w), params)
    constants = jax.lax.stop_gradient(constants)
    params = jax.lax.stop_gradient(params)
    matvec = hessian_operator(lambda w: fixed(w, *constants), params)
    return top_eigenpairs(matvec, params, k, jax.lax.stop_gradient(guess), guards=guards, **options)


def rayleigh_quotient(loss: Loss, params: Params, v: PyTree) -> Scalar:
    """Evaluates vᵀ H(w) v for a fixed vector; its gradient in w is the third derivative ∇(vᵀ H v).

    Args:
        loss: `(params) -> scalar`, three times differentiable where the gradient is taken.
        params: the point w.
        v: a pytree like params, of unit norm for an eigenvalue.

    Returns:
        A scalar. Cost: 1 product; its gradient about 3 more.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> v = jnp.array([1.0, 0.0])
        >>> jax.grad(lambda w: js.curvature.rayleigh_quotient(lambda w: jnp.sum(w**4), w, v))(jnp.ones(2)).tolist()
        [24.0, 0.0]
    """
    product = hvp(loss, params, v)
    return sum(vdot(a, b) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(product), strict=True))


def sharpness(
    loss: Loss,
    params: Params,
    *,
    guess: PyTree | None = None,
    tol: float | None = None,
    max_matvecs: int = 200,
    key: Array | None = None,
) -> Scalar:
    """Evaluates the sharpness λ1(H(w)), the largest eigenvalue of the Hessian, differentiably.

    By the envelope rule ∇λ1 = ∇_w (v1ᵀ H(w) v1) at fixed v1, exact where λ1 is simple and v1 has converged; the error of the
    gradient is of first order in the error of v1. Where λ1 = λ2 the sharpness has no gradient and this returns the one along
    one of the eigenvectors; `top_eigenvalue_sum` with k=1 says so, at the price of a second eigenpair. A second derivative
    through this function would miss the motion of v1: do not take one.

    Args:
        loss: `(params) -> scalar`, three times differentiable.
        params: the point w.
        guess: eigenvector of a nearby point, a pytree with a leading axis 1.
        tol: relative residual of the eigenpair; by default 1e-6 in float64 and 1e-3 in float32.
        max_matvecs: bound on products; where it is reached the value is a lower estimate of λ1 and no flag is raised, so use
            `top_eigenpairs` where one is needed.
        key: PRNG key of the random start.

    Returns:
        A scalar. Cost: about 10 to 50 products cold, 2 to 8 from a guess; its gradient about 3 more.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> loss = lambda w: jnp.sum(w**4)
        >>> w = jnp.array([1.0, 2.0])
        >>> value, gradient = jax.value_and_grad(lambda w: js.curvature.sharpness(loss, w))(w)
        >>> round(float(value), 2), [round(float(g), 1) for g in gradient]
        (48.0, [0.0, 48.0])

    Source: the gradient by the envelope rule; derived, see theory §2.
    """
    tol = default_tolerance(params) if tol is None else tol
    pairs = frozen_eigenpairs(loss, params, 1, guess, tol=tol, max_matvecs=max_matvecs, key=key)
    return rayleigh_quotient(loss, params, jax.tree.map(lambda rows: rows[0], pairs.vectors))


def log_sharpness(loss: Loss, params: Params, **options) -> Scalar:
    """Evaluates log λ1(H(w)), differentiably: ∇ log λ1 = ∇λ1 / λ1, the direction in which the flows on minimizers move.

    Args:
        loss: `(params) -> scalar`, three times differentiable.
        params: the point w.
        **options: of `sharpness`.

    Returns:
        A scalar, NaN where λ1 is negative. Cost: that of `sharpness`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> gradient = jax.grad(lambda w: js.curvature.log_sharpness(lambda w: jnp.sum(w**4), w))(jnp.array([1.0, 2.0]))
        >>> [round(float(g), 3) for g in gradient]
        [0.0, 1.0]

    Source: theory §2.
    """
    return jnp.log(sharpness(loss, params, **options))


def default_tolerance(params: Params) -> float:
    """Returns the relative residual that eigenvectors need for derivatives: 1e-6 in float64, 1e-3 in float32 and below."""
    return 1e-6 if all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params)) else 1e-3
