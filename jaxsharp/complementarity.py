"""The small semidefinite complementarity problem that says how far each direction oscillates at the edge of stability."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._factorizations import cholesky, eigvalsh, solve_lower, solve_lower_transposed, svd
from jaxsharp._types import Array, Count, Scalar

MAX_ITERATIONS = 60
"""Bound on Newton steps; a well-posed problem takes 8 to 20."""


STALLED = 15
"""Newton steps without a smaller residual after which rounding is taken to be in the way."""

FRACTION = 0.95
"""How far to go towards the boundary of the cone; a point on it has no scaling."""


class Solution(NamedTuple):
    """An X with its certificate; all residuals are relative, so that scaling α or β does not change them.

    Attributes:
        value: X, (k, k), symmetric positive semidefinite, zero on masked directions.
        slack: α + β[X], (k, k), zero on masked directions.
        primal: how negative the smallest eigenvalue of X is, over ‖X‖.
        dual: how negative the smallest eigenvalue of the slack is, over ‖α‖ + ‖β[X]‖.
        complementarity: |⟨X, α + β[X]⟩| over ‖X‖ (‖α‖ + ‖β[X]‖).
        iterations: Newton steps taken.
        converged: whether the three residuals are at most the tolerance.
    """

    value: Array
    slack: Array
    primal: Scalar
    dual: Scalar
    complementarity: Scalar
    iterations: Count
    converged: Array


class _Iterate(NamedTuple):
    factor: Array  # G with G⁻¹ X G⁻ᵀ = Gᵀ S G = diag(d)
    inverse: Array  # G⁻¹
    point: Array  # d
    best: Array  # the X of the smallest residual so far
    error: Scalar  # that residual
    stalled: Count  # steps since it fell
    iterations: Count


def svec(matrix: Array) -> Array:
    """Writes a symmetric matrix as a vector, ⟨svec A, svec B⟩ = tr(A B).

    Args:
        matrix: (k, k), symmetric.

    Returns:
        (k (k + 1) / 2,), the upper triangle row by row, off-diagonal entries times √2.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(x), 3) for x in svec(jnp.array([[1.0, 2.0], [2.0, 3.0]]))]
        [1.0, 2.828, 3.0]
    """
    rows, columns, weights = _triangle(matrix.shape[0])
    return matrix[rows, columns] * jnp.asarray(weights, matrix.dtype)


def smat(vector: Array) -> Array:
    """Reads a symmetric matrix from a vector; the inverse of `svec`.

    Args:
        vector: (k (k + 1) / 2,).

    Returns:
        (k, k), symmetric.

    Example:
        >>> import jax.numpy as jnp
        >>> smat(svec(jnp.array([[1.0, 2.0], [2.0, 3.0]]))).round(3).tolist()
        [[1.0, 2.0], [2.0, 3.0]]
    """
    k = int((np.sqrt(8 * vector.size + 1) - 1) / 2)
    rows, columns, weights = _triangle(k)
    upper = jnp.zeros((k, k), vector.dtype).at[rows, columns].set(vector / jnp.asarray(weights, vector.dtype))
    return upper + upper.T - jnp.diag(jnp.diag(upper))


@jax.default_matmul_precision("highest")
def solve(
    alpha: Array, beta: Array, mask: Array | None = None, *, tol: float | None = None, max_iterations: int = MAX_ITERATIONS
) -> Solution:
    """Finds X ⪰ 0 with α + β[X] ⪰ 0 and ⟨X, α + β[X]⟩ = 0.

    For β symmetric positive semidefinite this minimizes ½⟨X, β[X]⟩ + ⟨α, X⟩ over X ⪰ 0. A primal-dual interior-point method with
    Nesterov–Todd scaling and Mehrotra's corrector. X and the slack S are kept as one factor G with G⁻¹XG⁻ᵀ = GᵀSG diagonal, and
    each step is solved in these coordinates, (I + Ĝᵀ β Ĝ) ΔX̃ = …; so X and S may approach singular matrices without loss of
    digits, which is what makes single precision work. Where α ⪰ 0, X is exactly zero; for k = 1 it is max(0, −α/β).

    Args:
        alpha: (k, k), symmetric.
        beta: (m, m) with m = k (k + 1) / 2, symmetric positive semidefinite, acting on `svec` coordinates.
        mask: (k,), which directions may oscillate; the others are left out of the problem. All by default.
        tol: bound on the residuals; by default 1e-9 in float64 and 1e-5 in float32.
        max_iterations: bound on Newton steps.

    Returns:
        `Solution`; where the problem has no solution, or rounding prevents one, `converged` is False and X is the best found.
        Cost: usually 8 to 20 Newton steps, each O(m³).

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> found = solve(jnp.diag(jnp.array([-2.0, 1.0])), jnp.eye(3))
        >>> found.value.round(4).tolist(), bool(found.converged)
        ([[2.0, 0.0], [0.0, 0.0]], True)

    Source: Nesterov and Todd 1997; Mehrotra 1992; theory §5. The implementation is our own.
    """
    alpha, beta = jnp.asarray(alpha), jnp.asarray(beta)
    k = alpha.shape[0]
    m = k * (k + 1) // 2
    if alpha.shape != (k, k) or beta.shape != (m, m):
        raise ValueError(
            f"alpha must be (k, k) and beta (k(k+1)/2, k(k+1)/2), got {alpha.shape} and {beta.shape}; write beta in the "
            "coordinates of jaxsharp.complementarity.svec."
        )
    dtype = alpha.dtype
    tol = default_tolerance(dtype) if tol is None else tol
    mask = jnp.ones((k,), bool) if mask is None else mask
    pair = mask[:, None] & mask[None, :]
    rows, columns, _ = _triangle(k)
    pairs = pair[rows, columns]
    alpha = jnp.where(pair, 0.5 * (alpha + alpha.T), 0)
    beta = jnp.where(pairs[:, None] & pairs[None, :], 0.5 * (beta + beta.T), 0)
    size_alpha, size_beta = _largest(alpha), _largest(beta)
    unit_alpha, unit_beta = alpha / size_alpha, beta / size_beta
    if k == 1:
        scaled, iterations = jnp.maximum(0, -unit_alpha) / jnp.where(unit_beta > 0, unit_beta, jnp.inf), jnp.zeros((), jnp.int32)
    else:
        scaled, iterations = _interior_point(unit_alpha, unit_beta, mask, tol, max_iterations)
    scaled = jnp.where(pair, scaled, 0)
    slack, primal, dual, complementarity = _residuals(unit_alpha, unit_beta, scaled)
    worst = jnp.maximum(jnp.maximum(primal, dual), complementarity)
    value = scaled * (size_alpha / size_beta)
    return Solution(value, slack * size_alpha, primal, dual, complementarity, iterations, worst <= tol)


def default_tolerance(dtype) -> float:
    """Returns the bound on relative residuals: 1e-9 in float64, 1e-5 in float32."""
    return 1e-9 if dtype == jnp.float64 else 1e-5


def _triangle(k):
    rows, columns = np.triu_indices(k)
    return rows, columns, np.where(rows == columns, 1.0, np.sqrt(2.0))


def _largest(matrix):
    """The largest entry, a scale that cannot overflow; 1 for a zero matrix."""
    size = jnp.max(jnp.abs(matrix))
    return jnp.where(size > 0, size, jnp.ones_like(size))


def _residuals(alpha, beta, x):
    image = smat(beta @ svec(x))
    slack = alpha + image
    size_x, size_s = jnp.linalg.norm(x), jnp.linalg.norm(alpha) + jnp.linalg.norm(image)
    safe = lambda size: jnp.where(size > 0, size, jnp.ones_like(size))  # noqa: E731
    primal = jnp.maximum(0, -eigvalsh(x)[0]) / safe(size_x)
    dual = jnp.maximum(0, -eigvalsh(slack)[0]) / safe(size_s)
    return slack, primal, dual, jnp.abs(jnp.sum((x / safe(size_x)) * (slack / safe(size_s))))


def _congruence(factor):
    """The matrix of V -> G V Gᵀ in svec coordinates."""
    rows, columns, weights = _triangle(factor.shape[0])
    weights = jnp.asarray(weights, factor.dtype)
    left, right = factor[rows], factor[columns]
    both = left[:, rows] * right[:, columns] + left[:, columns] * right[:, rows]
    return 0.5 * both * weights[:, None] * weights[None, :]


def _interior_point(original_alpha, original_beta, mask, tol, max_iterations):
    """X and the number of Newton steps; none where α ⪰ 0."""
    alpha, beta = original_alpha, original_beta
    k, dtype = alpha.shape[0], alpha.dtype
    one = jnp.ones((), dtype)
    rows, columns, _ = _triangle(k)
    # X = E X̃ E, so that directions of somewhat unlike size are solved alike well; measured: more than tenfold does harm
    own = jnp.diag(beta)[np.flatnonzero(rows == columns)]
    unlike = jnp.where(own > 0, jnp.maximum(own, 0.1), one) ** -0.25
    alpha = alpha * unlike[:, None] * unlike[None, :]
    weight = unlike[rows] * unlike[columns]
    beta = beta * weight[:, None] * weight[None, :]
    ratio = _largest(alpha)
    alpha = alpha / ratio
    undo = unlike[:, None] * unlike[None, :] * ratio
    alpha = jnp.where(jnp.diag(~mask), one, alpha)  # a direction left out is one that is stable for sure
    nothing = eigvalsh(alpha)[0] >= -k * jnp.finfo(dtype).eps
    eye = jnp.eye(k, dtype=dtype)
    plus = lambda vector: vector[:, None] + vector[None, :]  # noqa: E731

    def unfinished(it):
        return (it.error > 0.3 * tol) & (it.iterations < max_iterations) & (it.stalled < STALLED)

    def step(it):
        g, inverse, d = it.factor, it.inverse, it.point
        x = (g * d[None, :]) @ g.T
        s = (inverse.T * d[None, :]) @ inverse
        infeasible = s - alpha - smat(beta @ svec(x))
        push = _congruence(g)
        system = jnp.eye(push.shape[0], dtype=dtype) + push.T @ beta @ push
        chol = cholesky(0.5 * (system + system.T))
        off = g.T @ infeasible @ g

        def direction(right):  # d_x + d_s = right in scaled coordinates, and the slack becomes feasible
            dx = smat(solve_lower_transposed(chol, solve_lower(chol, svec(right + off))))
            return dx, right - dx

        def longest(dx, ds):  # largest step along which both stay positive, in the coordinates where both are diag(d)
            root = jnp.sqrt(d)
            scale = root[:, None] * root[None, :]
            low = jnp.minimum(eigvalsh(dx / scale)[0], eigvalsh(ds / scale)[0])
            return 1 / jnp.maximum(-low, jnp.finfo(dtype).tiny)

        mu = jnp.sum(d**2) / k
        dx, ds = direction(-jnp.diag(d))
        reach = jnp.minimum(one, longest(dx, ds))
        after = jnp.maximum(jnp.sum((jnp.diag(d) + reach * dx) * (jnp.diag(d) + reach * ds)) / k, 0)
        centre = jnp.minimum((after / mu) ** 2 * (after / mu), one)
        product = 0.5 * (dx @ ds + ds @ dx)
        right = 2 * (centre * mu * eye - jnp.diag(d**2) - product) / plus(d)
        dx, ds = direction(right)
        reach = jnp.minimum(one, jnp.asarray(FRACTION, dtype) * longest(dx, ds))
        x_factor = cholesky(jnp.diag(d) + reach * dx)
        s_factor = cholesky(jnp.diag(d) + reach * ds)
        u, fresh, vt = svd(s_factor.T @ x_factor)
        fresh = jnp.maximum(fresh, jnp.finfo(dtype).tiny)
        root = jnp.sqrt(fresh)
        factor = g @ (x_factor @ vt.T) / root[None, :]
        back = (u.T @ s_factor.T) @ inverse / root[:, None]
        x = (factor * fresh[None, :]) @ factor.T
        largest = jnp.max(jnp.abs(x))
        x = x * undo
        _, primal, dual, complementarity = _residuals(original_alpha, original_beta, x)
        error = jnp.maximum(jnp.maximum(primal, dual), complementarity)
        sound = jnp.isfinite(error) & jnp.isfinite(factor).all() & jnp.isfinite(back).all()
        # An X beyond the bound would hide any violation behind its own size; a problem that asks for it has no solution.
        better = sound & (error < it.error) & (largest < 0.1 / default_tolerance(dtype))
        keep = lambda new, old: jnp.where(sound, new, old)  # noqa: E731
        return _Iterate(
            keep(factor, g),
            keep(back, inverse),
            keep(fresh, d),
            jnp.where(better, x, it.best),
            jnp.where(better, error, it.error),
            jnp.where(better, 0, it.stalled + jnp.where(sound, 1, 100)).astype(jnp.int32),
            it.iterations + 1,
        )

    zero = jnp.zeros((), jnp.int32)
    error = jnp.where(nothing, 0, jnp.inf).astype(dtype)
    start = _Iterate(eye, eye, jnp.full((k,), k, dtype), jnp.zeros_like(alpha), error, zero, zero)
    end = jax.lax.while_loop(unfinished, step, start)
    return end.best, end.iterations
