"""The complementarity solver: against a trusted convex solver, planted solutions, and its own certificate taken in NumPy."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import count_compilations

from jaxsharp import complementarity

KINDS = ("random", "rank-deficient", "rank one", "strict", "not strict", "stable", "barely unstable", "ill-conditioned", "graded")

solve_all = jax.jit(jax.vmap(complementarity.solve))


def triangle(k):
    rows, columns = np.triu_indices(k)
    return rows, columns, np.where(rows == columns, 1.0, np.sqrt(2.0))


def svec(matrix):
    rows, columns, weights = triangle(matrix.shape[0])
    return matrix[rows, columns] * weights


def smat(vector, k):
    rows, columns, weights = triangle(k)
    upper = np.zeros((k, k))
    upper[rows, columns] = vector / weights
    return upper + np.triu(upper, 1).T


def draw(rng, k, kind):
    """α, β with a solution; a degenerate β gets an α for which one exists."""
    m = k * (k + 1) // 2
    rank = {"rank-deficient": max(1, m // 2), "rank one": 1}.get(kind, 2 * m)
    root = rng.normal(size=(m, rank)) / np.sqrt(rank)
    if kind == "ill-conditioned":
        root = root * 10.0 ** rng.uniform(-4, 0, size=rank)
    beta = root @ root.T
    alpha = rng.normal(size=(k, k))
    alpha = (alpha + alpha.T) / 2
    if kind == "stable":
        alpha = alpha @ alpha.T
    elif kind == "barely unstable":
        alpha = np.diag(rng.uniform(0.5, 1, size=k))
        alpha[0, 0] = -1e-3
    elif kind == "graded":
        scales = 10.0 ** rng.uniform(-2, 0, size=k)
        alpha = alpha * scales[:, None] * scales[None, :]
        grade = svec(np.outer(scales, scales) / np.sqrt(2)) * np.sqrt(2)
        beta = beta * grade[:, None] * grade[None, :]
    elif kind != "random":
        value, slack = plant(rng, k, kind == "not strict")
        alpha = slack - smat(beta @ svec(value), k)
    return alpha, beta


def plant(rng, k, degenerate):
    basis = np.linalg.qr(rng.normal(size=(k, k)))[0]
    split = rng.integers(0, k + 1)
    x, s = rng.exponential(size=k), rng.exponential(size=k)
    x[split:] = 0
    s[:split] = 0
    if degenerate:
        at = rng.integers(k)
        x[at] = s[at] = 0
    return (basis * x) @ basis.T, (basis * s) @ basis.T


@cache
def batch(k, kind, count):
    rng = np.random.default_rng([k, KINDS.index(kind)])
    alphas, betas = zip(*(draw(rng, k, kind) for _ in range(count)), strict=True)
    return np.stack(alphas), np.stack(betas)


def worst_residuals(alpha, beta, value):
    """The certificate again, in float64 NumPy."""
    k = alpha.shape[0]
    image = smat(beta @ svec(value), k)
    slack = alpha + image
    size_x = np.linalg.norm(value) or 1.0
    size_s = np.linalg.norm(alpha) + np.linalg.norm(image) or 1.0
    primal = max(0.0, -np.linalg.eigvalsh(value)[0]) / size_x
    dual = max(0.0, -np.linalg.eigvalsh(slack)[0]) / size_s
    return primal, dual, abs(np.sum(value * slack)) / (size_x * size_s)


COUNTS = {1: 200, 2: 400, 5: 100}


@pytest.mark.parametrize(("k", "count"), COUNTS.items())
@pytest.mark.parametrize("kind", KINDS)
def test_certificates_hold_in_thousands_of_cases(k, count, kind, precision):
    alpha, beta = batch(k, kind, count)
    dtype = jnp.dtype(precision)
    found = solve_all(jnp.asarray(alpha, dtype), jnp.asarray(beta, dtype))
    assert found.value.dtype == dtype
    if precision == "float64":
        assert found.converged.all()
    else:
        assert found.converged.mean() > 0.97  # rounding of α and β may leave a degenerate or graded problem unsolvable
    bound = 2 * complementarity.default_tolerance(dtype)
    rounded = np.asarray(jnp.asarray(alpha, dtype), float), np.asarray(jnp.asarray(beta, dtype), float)
    for index in np.flatnonzero(found.converged):
        residuals = worst_residuals(rounded[0][index], rounded[1][index], np.asarray(found.value[index], float))
        assert max(residuals) < bound


def test_twenty_directions(precision):
    for kind in ("random", "not strict"):
        alpha, beta = batch(20, kind, 2)
        found = solve_all(jnp.asarray(alpha), jnp.asarray(beta))
        assert found.converged.all()
        for index in range(2):
            values = np.asarray(alpha[index], precision), np.asarray(beta[index], precision)
            residuals = worst_residuals(*(v.astype(float) for v in values), np.asarray(found.value[index], float))
            assert max(residuals) < 3 * complementarity.default_tolerance(found.value.dtype)


def trusted(alpha, beta):
    """min ½⟨X, β[X]⟩ + ⟨α, X⟩ over X ⪰ 0 by Clarabel, whose triangle runs column by column."""
    clarabel = pytest.importorskip("clarabel")
    sparse = pytest.importorskip("scipy.sparse")
    k = alpha.shape[0]
    rows, columns, _ = triangle(k)
    order = np.lexsort((rows, columns))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    cone = sparse.csc_matrix(-np.eye(len(rows))[order])
    quadratic = sparse.csc_matrix(np.triu(beta))
    solver = clarabel.DefaultSolver(quadratic, svec(alpha), cone, np.zeros(len(rows)), [clarabel.PSDTriangleConeT(k)], settings)
    solution = solver.solve()
    return np.asarray(solution.x), str(solution.status)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_meets_a_trusted_convex_solver(k, kind):
    alpha, beta = batch(k, kind, COUNTS[k])  # the shapes of the test before, so the same program
    found = solve_all(jnp.asarray(alpha), jnp.asarray(beta))
    compared = 0
    for index in range(20):
        theirs, status = trusted(alpha[index], beta[index])
        if "Solved" not in status:
            continue
        compared += 1
        ours = svec(np.asarray(found.value[index]))
        objective = lambda x, i=index: 0.5 * x @ beta[i] @ x + svec(alpha[i]) @ x  # noqa: E731
        forces = np.linalg.norm(svec(alpha[index])) + np.linalg.norm(beta[index] @ theirs)
        size = 1e-3 + forces * max(np.linalg.norm(ours), np.linalg.norm(theirs))
        np.testing.assert_allclose(objective(ours) / size, objective(theirs) / size, atol=1e-8)
        # where β is positive definite the solution is unique; the objective determines it to the root of its error
        if kind in ("random", "strict", "not strict", "barely unstable"):
            np.testing.assert_allclose(ours, theirs, atol=1e-3 * (1e-2 + np.abs(theirs).max()))
    assert compared >= 18


def test_one_direction_is_the_closed_form(precision):
    alpha = jnp.array([[[-3.0]], [[2.0]], [[0.0]], [[-1e-30]]])
    beta = jnp.array([[[2.0]], [[1.0]], [[1.0]], [[1e-30]]])
    found = solve_all(alpha, beta)
    np.testing.assert_allclose(found.value[:, 0, 0], [1.5, 0, 0, 1], rtol=1e-6)
    assert found.converged.all()
    assert found.value.dtype == precision


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e18])
def test_scales_do_not_matter(scale, precision):
    alpha, beta = batch(5, "random", 100)
    plain = solve_all(jnp.asarray(alpha), jnp.asarray(beta))
    scaled = solve_all(jnp.asarray(scale * alpha), jnp.asarray(beta / np.sqrt(scale)))
    assert scaled.converged.all()
    size = jnp.max(jnp.abs(plain.value), axis=(1, 2), keepdims=True)
    bound = 1e-4 if precision == "float64" else 2e-2  # a certificate of 1e-9 or 1e-5 determines X to about its root
    gap = np.abs(np.asarray(scaled.value, float) / scale**1.5 - np.asarray(plain.value, float)) / np.asarray(size, float)
    assert gap.max() < bound


def test_masked_directions_are_left_out():
    alpha, beta = batch(5, "random", 100)
    mask = np.array([False, True, False, True, False])
    solve = jax.jit(jax.vmap(complementarity.solve, in_axes=(0, 0, None)))
    found = solve(jnp.asarray(alpha), jnp.asarray(beta), jnp.asarray(mask))
    kept = np.flatnonzero(mask)
    rows, columns, _ = triangle(5)
    pairs = np.flatnonzero(mask[rows] & mask[columns])
    small = solve_all(
        jnp.asarray(np.resize(alpha[:, kept][:, :, kept], (400, 2, 2))),
        jnp.asarray(np.resize(beta[:, pairs][:, :, pairs], (400, 3, 3))),
    )
    assert not np.asarray(found.value)[:, ~mask].any()
    assert np.abs(small.value).max() > 1
    np.testing.assert_allclose(np.asarray(found.value)[:, kept][:, :, kept], small.value[:100], atol=2e-4)
    assert found.converged.all()
    nothing = solve(jnp.asarray(alpha), jnp.asarray(beta), jnp.zeros(5, bool))
    assert not nothing.value.any()
    assert nothing.converged.all()


def test_a_stable_problem_does_not_oscillate_at_all():
    alpha, beta = batch(5, "stable", 100)
    found = solve_all(jnp.asarray(alpha), jnp.asarray(beta))
    assert not found.value.any()
    assert int(found.iterations.max()) == 0


def test_a_problem_without_solution_is_flagged_and_finite():
    alpha, beta = (values.copy() for values in batch(2, "random", 400))
    alpha[0] = [[-1.0, 0.0], [0.0, 1.0]]
    beta[0] = np.diag([0.0, 0.0, 1.0])  # no X moves the first slack
    alpha[1] = np.nan
    found = solve_all(jnp.asarray(alpha), jnp.asarray(beta))
    assert found.converged.tolist() == [False, False] + 398 * [True]
    assert jnp.isfinite(found.value).all()


def test_alone_equals_in_a_batch_and_does_not_compile_again():
    alpha, beta = batch(2, "strict", 400)
    together = solve_all(jnp.asarray(alpha), jnp.asarray(beta))
    alone = jax.jit(complementarity.solve)
    first = alone(jnp.asarray(alpha[0]), jnp.asarray(beta[0]))
    np.testing.assert_allclose(first.value, together.value[0], atol=1e-8)
    with count_compilations() as compiled:
        second = alone(jnp.asarray(alpha[1]), jnp.asarray(beta[1]))
    assert not compiled
    np.testing.assert_allclose(second.value, together.value[1], atol=1e-8)


def test_coordinates_keep_the_inner_product():
    rng = np.random.default_rng(0)
    a, b = (x + x.T for x in rng.normal(size=(2, 4, 4)))
    np.testing.assert_allclose(complementarity.svec(jnp.asarray(a)) @ complementarity.svec(jnp.asarray(b)), np.trace(a @ b))
    np.testing.assert_allclose(complementarity.smat(complementarity.svec(jnp.asarray(a))), a, rtol=1e-14)
    with pytest.raises(ValueError, match="svec"):
        complementarity.solve(jnp.eye(3), jnp.eye(3))
