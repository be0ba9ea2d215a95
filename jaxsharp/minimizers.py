"""Geometry of minimizer manifolds Γ = {r(w) = 0}: tangent projection, return, and the gradient of log-sharpness along them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax
from jax.flatten_util import ravel_pytree

from jaxsharp import sphere as _sphere
from jaxsharp._factorizations import qr, svd
from jaxsharp._precision import dot, in_full_precision
from jaxsharp._types import Array, Params, PyTree, Scalar, ScalarLike
from jaxsharp.curvature import Eigenpairs, default_tolerance, frozen_eigenpairs, rayleigh_quotient
from jaxsharp.problems import Problem

DENSE_LIMIT = 500
"""Most residuals for which the Jacobian is formed; above, LSMR uses its products alone."""


class Retraction(NamedTuple):
    """A point returned to the minimizer manifold.

    Attributes:
        params: the point.
        correction: relative length of the last Gauss–Newton step taken, max(‖Δw‖, ‖r‖/‖J‖)/‖w‖.
        converged: whether that step was so short that the next would be at rounding.
    """

    params: Params
    correction: Scalar
    converged: Array


class LogSharpness(NamedTuple):
    """The log-sharpness along the minimizer manifold.

    Attributes:
        value: λ1 itself.
        gradient: ∇_Γ log λ1, a pytree like params, tangent to the manifold (and to the sphere).
        pairs: the two largest eigenpairs of the Hessian (one where there is one parameter).
    """

    value: Scalar
    gradient: Params
    pairs: Eigenpairs


@in_full_precision
def project_tangent(
    problem: Problem, params: Params, v: PyTree, *, sphere: bool | None = None, dense_limit: int = DENSE_LIMIT
) -> PyTree:
    """Projects a vector on the tangent space of the minimizer manifold, P_Γ v = v − Jᵀ (J Jᵀ)⁺ J v.

    J is the Jacobian of the residuals; dependent rows are allowed. Up to `dense_limit` residuals J is formed and factored
    (QR, then a small SVD); above, LSMR fits v by Jᵀ x through products.

    Args:
        problem: with residuals (m,).
        params: a point on the manifold, or near it.
        v: a pytree like params.
        sphere: whether also to remove the component along w; by default where the problem is scale-invariant.
        dense_limit: most residuals for which J is formed.

    Returns:
        A pytree like params. Cost: dense, m transposed products of J and O(m² D) operations; matrix-free, one product of J and
        one of Jᵀ per iteration, at most 4 m of them.

    Raises:
        ValueError: for a problem without residuals.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> one = jnp.array(1.0)
        >>> tangent = js.minimizers.project_tangent(js.problems.valley(), {"u": one, "v": 0 * one}, {"u": one, "v": one})
        >>> float(tangent["u"]), abs(float(tangent["v"])) < 1e-12
        (1.0, True)

    Source: derived, see theory §4.
    """
    w, unravel = ravel_pytree(params)
    vector = ravel_pytree(v)[0]
    _, _, normal_part, _ = _normal_space(problem, w, unravel, dense_limit)
    for _ in range(2):  # the second pass removes what rounding left
        vector = vector - normal_part(vector)
    if _on_sphere(problem, sphere):
        direction = w / jnp.linalg.norm(w)
        vector = vector - dot(direction, vector) * direction
    return unravel(vector)


@in_full_precision
def retraction(
    problem: Problem, params: Params, *, sphere: bool | None = None, dense_limit: int = DENSE_LIMIT, max_steps: int = 10
) -> Retraction:
    """Returns a point to the minimizer manifold by minimum-norm Gauss–Newton steps, w ← w − Jᵀ (J Jᵀ)⁺ r.

    Args:
        problem: with residuals (m,).
        params: a point near the manifold.
        sphere: whether to end on the unit sphere; by default where the problem is scale-invariant.
        dense_limit: most residuals for which J is formed.
        max_steps: bound on the number of steps.

    Returns:
        A `Retraction`. It has converged when a step, and the residuals over the size of J, are shorter than the square root of
        the dtype's resolution relative to ‖w‖; the steps shrink quadratically. Cost: as one `project_tangent` per
        step, usually 1 to 3 steps.

    Raises:
        ValueError: for a problem without residuals.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> back = js.minimizers.retraction(js.problems.valley(), {"u": jnp.array(1.0), "v": jnp.array(0.1)})
        >>> bool(back.converged), abs(float(back.params["v"])) < 1e-5
        (True, True)

    Source: derived, see theory §4.
    """
    w, unravel = ravel_pytree(params)
    short = jnp.asarray(jnp.finfo(w.dtype).eps ** 0.5, w.dtype)
    on_sphere = _on_sphere(problem, sphere)

    def unfinished(carry):
        _, correction, steps = carry
        return (correction > short) & (steps < max_steps)

    def step(carry):
        w, _, steps = carry
        residuals, size, _, solve = _normal_space(problem, w, unravel, dense_limit)
        change = solve(residuals)
        length = jnp.linalg.norm(w)
        # Where J has lost rank a short step leaves the residuals; these, over the size of J, are a distance too.
        correction = jnp.maximum(jnp.linalg.norm(change), jnp.linalg.norm(residuals) / size) / length
        w = w - change
        return (w / jnp.linalg.norm(w) if on_sphere else w), correction, steps + 1

    start = (w / jnp.linalg.norm(w) if on_sphere else w, jnp.asarray(jnp.inf, w.dtype), jnp.zeros((), jnp.int32))
    w, correction, _ = jax.lax.while_loop(unfinished, step, start)
    return Retraction(unravel(w), correction, correction <= short)


def retract(problem: Problem, params: Params, **options) -> Params:
    """Returns a point to the minimizer manifold; `retraction` without its report.

    Args:
        problem: with residuals.
        params: a point near the manifold.
        **options: of `retraction`.

    Returns:
        A pytree like params.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> back = js.minimizers.retract(js.problems.valley(), {"u": jnp.array(1.0), "v": jnp.array(0.1)})
        >>> abs(float(back["v"])) < 1e-5
        True

    Source: derived, see theory §4.
    """
    return retraction(problem, params, **options).params


def log_sharpness_gradient(
    problem: Problem,
    params: Params,
    guess: PyTree | None = None,
    *,
    sphere: bool | None = None,
    tol: float | None = None,
    max_matvecs: int = 200,
    dense_limit: int = DENSE_LIMIT,
) -> LogSharpness:
    """Evaluates ∇_Γ log λ1 = P_Γ ∇λ1 / λ1 with ∇λ1 = ∇_w (v1ᵀ H(w) v1) at fixed v1.

    Args:
        problem: with residuals.
        params: a point on the minimizer manifold (of unit norm for a scale-invariant problem).
        guess: eigenvectors of a nearby point, a pytree with a leading axis 2.
        sphere: whether the manifold is cut with the sphere; by default where the problem is scale-invariant.
        tol: relative residual of the eigenpairs; by default 1e-6 in float64 and 1e-3 in float32.
        max_matvecs: bound on products.
        dense_limit: see `project_tangent`.

    Returns:
        `LogSharpness`. The gradient is meaningful where λ1 > λ2 and the eigenpairs converged: check `pairs`. Cost:
        `pairs.matvecs` products, a third derivative (about 3 products), one `project_tangent`.

    Raises:
        ValueError: for a problem without residuals.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> at = js.minimizers.log_sharpness_gradient(js.problems.valley(), {"u": jnp.array(1.0), "v": jnp.array(0.0)})
        >>> round(float(at.value), 5), round(float(at.gradient["u"]), 5)
        (2.0, 1.0)

    Source: Lyu, Li, Arora 2022; theory §2.
    """
    tol = default_tolerance(params) if tol is None else tol
    count = min(2, sum(leaf.size for leaf in jax.tree.leaves(params)))
    pairs = frozen_eigenpairs(problem.loss, params, count, guess, tol=tol, max_matvecs=max_matvecs)
    top = jax.tree.map(lambda rows: rows[0], pairs.vectors)
    value, gradient = jax.value_and_grad(lambda w: rayleigh_quotient(problem.loss, w, top))(params)
    gradient = jax.tree.map(lambda leaf: leaf / value.astype(leaf.dtype), gradient)
    tangent = project_tangent(problem, params, gradient, sphere=sphere, dense_limit=dense_limit)
    return LogSharpness(value, tangent, pairs)


def edge_of_stability_start(
    problem: Problem, params: Params, learning_rate: ScalarLike, weight_decay: ScalarLike, **options
) -> Params:
    """Places GD with weight decay at its equilibrium at the edge of stability over a point of the minimizer manifold.

    w = ‖w‖ Π(φ + x v1) with ‖w‖² = η̂ λ1 / (2 (1 − η̂ λ̂)), so that η̃ λ1 = 2, and
    x² = 2 η̂ λ̂ / (4 + ‖∇_Γ log λ1‖²), the amplitude at which the norm stays in balance.

    Args:
        problem: scale-invariant, with residuals.
        params: a point φ on the minimizer manifold, of any norm.
        learning_rate: η̂.
        weight_decay: λ̂.
        **options: of `log_sharpness_gradient`.

    Returns:
        Parameters w, a pytree like params. Cost: one `log_sharpness_gradient`.

    Raises:
        ValueError: for a problem that is not scale-invariant or has no residuals.

    Example:
        >>> import jax, numpy as np, jaxsharp as js
        >>> rng = np.random.default_rng(0)
        >>> problem = js.problems.bn_linear_regression(rng.normal(size=(5, 8)), rng.normal(size=5))
        >>> point = js.problems.interpolant(problem, jax.random.key(0), angle=1.0)
        >>> start = js.minimizers.edge_of_stability_start(problem, point, 0.1, 1e-3)
        >>> ratio = js.sphere.effective_learning_rate(start, 0.1, 1e-3) * js.sphere.spherical_sharpness(problem.loss, point) / 2
        >>> round(float(ratio), 4)
        1.0

    Source: Lyu, Li, Arora 2022; theory §2.
    """
    if not problem.scale_invariant:
        raise ValueError(f"edge_of_stability_start needs a scale-invariant problem, and {problem.name!r} is not one.")
    point = _sphere.normalize(params)
    at = log_sharpness_gradient(problem, point, **options)
    product = learning_rate * weight_decay
    amplitude = jnp.sqrt(2 * product / (4 + _sphere.norm(at.gradient) ** 2))
    length = jnp.sqrt(learning_rate * at.value / (2 * (1 - product)))
    shifted = jax.tree.map(lambda leaf, rows: leaf + amplitude.astype(leaf.dtype) * rows[0], point, at.pairs.vectors)
    return jax.tree.map(lambda leaf: length.astype(leaf.dtype) * leaf, _sphere.normalize(shifted))


def _on_sphere(problem, sphere):
    return problem.scale_invariant if sphere is None else sphere


def _normal_space(problem, w, unravel, dense_limit):
    """Residuals r, the size of J, the map v -> Jᵀ(JJᵀ)⁺J v, and the map r -> Jᵀ(JJᵀ)⁺ r, on flat vectors."""

    def residuals(w):
        return problem.residuals(unravel(w)).ravel()

    values, push = jax.linearize(residuals, w)
    transpose = jax.linear_transpose(push, w)
    noise = jax.random.normal(jax.random.key(0), w.shape, w.dtype)
    size = jnp.linalg.norm(push(noise))  # estimates the Frobenius norm of J
    if values.size <= dense_limit:
        return values, size, *_dense_normal_space(residuals, w)

    def pull(x):
        return transpose(x)[0]

    eps = float(jnp.finfo(w.dtype).eps)
    solver = lineax.LSMR(rtol=10 * eps, atol=10 * eps, max_steps=4 * values.size, conlim=0.1 / eps)

    def least_squares(function, right, like):
        shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
        operator = lineax.FunctionLinearOperator(function, shape)
        return lineax.linear_solve(operator, right, solver, throw=False).value

    def normal_part(v):  # the least-squares fit of v by Jᵀ x
        return pull(least_squares(pull, v, values))

    return values, size, normal_part, lambda r: least_squares(push, r, w)


def _dense_normal_space(residuals, w):
    jacobian = jax.jacrev(residuals)(w)
    if jacobian.shape[0] > jacobian.shape[1]:
        raise ValueError(
            f"there are more residuals ({jacobian.shape[0]}) than parameters ({jacobian.shape[1]}), so their zeros form no "
            "manifold; "
            "use a larger model or fewer samples."
        )
    orthonormal, triangle = qr(jacobian.T)
    left, singular, right = svd(triangle)
    cutoff = singular[0] * max(jacobian.shape) * jnp.finfo(w.dtype).eps
    kept = singular > cutoff
    normal = dot(orthonormal, left) * kept.astype(w.dtype)[None, :]  # (D, m), zero columns for dependent rows
    inverse = jnp.where(kept, 1 / jnp.where(kept, singular, 1), 0)
    return lambda v: dot(normal, dot(normal.T, v)), lambda r: dot(normal, inverse * dot(right, r))
