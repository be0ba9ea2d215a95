"""Products, eigenpairs and sharpness against dense float64 Hessians, finite differences and matrices of known spectrum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from support import dense_hessian, digits_network, flat, tanh_network, tolerance

import jaxsharp as js


@pytest.fixture(scope="module", params=["none", "batch", "layer"])
def network(request):
    rng = np.random.default_rng(1)
    model = js.models.MLP(widths=(7, 5), norm=request.param)
    problem = js.problems.supervised(model, (rng.normal(size=(30, 4)), rng.integers(0, 3, 30)), loss="cross_entropy")
    return problem, problem.init(jax.random.key(2))


def test_hvp_is_the_dense_hessian_times_the_vector(network):
    problem, w = network
    hessian = dense_hessian(problem.loss, w)
    direction = np.random.default_rng(0).normal(size=hessian.shape[0])
    v = ravel_pytree(w)[1](jnp.asarray(direction))
    product = flat(js.curvature.hvp(problem.loss, w, v))
    np.testing.assert_allclose(product, hessian @ direction, rtol=0, atol=1e-12 * np.linalg.norm(hessian @ direction))
    linearized = flat(js.curvature.hessian_operator(problem.loss, w)(v))
    np.testing.assert_allclose(linearized, product, rtol=0, atol=1e-13 * np.linalg.norm(product))


def test_hvp_matches_finite_differences_of_the_gradient(network):
    problem, w = network
    vector, unravel = ravel_pytree(w)
    direction = jnp.asarray(np.random.default_rng(3).normal(size=vector.size))
    gradient = jax.jit(lambda x: ravel_pytree(jax.grad(problem.loss)(unravel(x)))[0])
    errors = []
    for step in (1e-3, 1e-4):
        difference = (gradient(vector + step * direction) - gradient(vector - step * direction)) / (2 * step)
        product = ravel_pytree(js.curvature.hvp(problem.loss, w, unravel(direction)))[0]
        errors.append(float(jnp.linalg.norm(difference - product)))
    assert errors[1] < errors[0] / 30  # central differences are of second order


def test_top_eigenpairs_match_dense(network):
    problem, w = network
    exact = np.linalg.eigvalsh(dense_hessian(problem.loss, w))[::-1]
    pairs = jax.jit(lambda p, w: js.curvature.frozen_eigenpairs(p.loss, w, 4, tol=1e-9, max_matvecs=400))(problem, w)
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, exact[:4], rtol=1e-10)
    vectors = jax.vmap(lambda row: ravel_pytree(row)[0])(pairs.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-12)


def test_sharpness_gradient_is_the_gradient_of_the_dense_eigenvalue(network):
    problem, w = network
    vector, unravel = ravel_pytree(w)
    gradient = ravel_pytree(jax.jit(jax.grad(lambda w: js.curvature.sharpness(problem.loss, w, tol=1e-10)))(w))[0]
    direction = jnp.asarray(np.random.default_rng(4).normal(size=vector.size))
    hessian = jax.jit(jax.hessian(lambda x: problem.loss(unravel(x))))
    top = lambda x: np.linalg.eigvalsh(hessian(x))[-1]  # noqa: E731
    step = 1e-5
    difference = (top(vector + step * direction) - top(vector - step * direction)) / (2 * step)
    np.testing.assert_allclose(gradient @ direction, difference, rtol=1e-6)


def test_sharpness_can_be_differentiated_in_what_the_loss_closes_over():
    point = jnp.array([1.0, 2.0])
    slope = jax.grad(lambda a: js.curvature.sharpness(lambda w: a * jnp.sum(w**4), point))(2.0)
    np.testing.assert_allclose(slope, 48.0, rtol=1e-9)


def test_sharpness_of_a_scale_invariant_network_in_both_precisions(precision):
    del precision
    train, _ = js.data.digits(count=40)
    model = js.models.MLP(widths=(8,), norm="batch", scale_invariant=True)
    problem = js.problems.supervised(model, train)
    w = problem.init(jax.random.key(0))
    dtype = jax.tree.leaves(w)[0].dtype
    value = jax.jit(lambda p, w: js.curvature.sharpness(p.loss, w))(problem, w)
    assert value.dtype == dtype == jnp.result_type(float)
    exact = np.linalg.eigvalsh(dense_hessian(problem.loss, w).astype(np.float64))[-1]
    np.testing.assert_allclose(value, exact, rtol=tolerance(dtype))


SPECTRA = {
    "spread": np.linspace(0, 1, 120),
    "negative definite": np.linspace(-5, -1, 120),
    "zero": np.zeros(30),
    "one value only": np.full(30, 3.0),
    "five equal on top": np.r_[np.zeros(80), np.full(5, 3.0)],
    "cluster on top": np.r_[np.linspace(0, 1, 80), 2 + 1e-6 * np.arange(4)],
    "huge negative tail": np.r_[-1e3 * np.arange(1, 30), 1.0, 2.0],
    "tiny": 1e-30 * np.arange(40),
    "huge": 1e30 * np.arange(40),
    "two parameters": np.array([1.0, 2.0]),
}
EXTREME = {"squares vanish": 1e-200 * np.arange(40), "squares overflow": 1e200 * np.arange(40)}
"""For float64, as "tiny" and "huge" are for float32."""
HARD = [*((name, precision) for name in SPECTRA for precision in ("float64", "float32")), *((n, "float64") for n in EXTREME)]


def _matrix(spectrum, seed=0):
    size = len(spectrum)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return (basis * spectrum) @ basis.T


@partial(jax.jit, static_argnums=1)
def _solve_two(matrix, tol):
    return js.curvature.top_eigenpairs(lambda v: matrix @ v, matrix[0], 2, tol=tol, max_matvecs=600)


@pytest.mark.parametrize(("name", "precision"), HARD, indirect=["precision"])
def test_hard_spectra(name, precision):
    spectrum = {**SPECTRA, **EXTREME}[name]
    tol = {"float64": 1e-7, "float32": 1e-5}[precision]
    pairs = _solve_two(jnp.asarray(_matrix(spectrum)), tol)
    scale = np.abs(spectrum).max()
    assert pairs.converged
    np.testing.assert_allclose(np.asarray(pairs.values, float), np.sort(spectrum)[::-1][:2], rtol=0, atol=tol * scale)
    assert np.isfinite(flat(pairs.vectors)).all()


def test_a_scale_is_only_a_scale(precision):
    """The search in another power of two takes the same steps: vectors, residuals and products are equal to the bit."""
    matrix = _matrix(np.linspace(-1, 2, 60))
    exponent = {"float64": 600, "float32": 70}[precision]
    solve = jax.jit(lambda m: js.curvature.top_eigenpairs(lambda v: m @ v, m[0], 2, tol=1e-3))
    one, small, large = (solve(jnp.asarray(np.ldexp(matrix, shift), precision)) for shift in (0, -exponent, exponent))
    for other, shift in ((small, -exponent), (large, exponent)):
        np.testing.assert_array_equal(np.ldexp(np.asarray(other.values, float), -shift), np.asarray(one.values, float))
        np.testing.assert_array_equal(other.vectors, one.vectors)
        np.testing.assert_array_equal(other.onward, one.onward)
        np.testing.assert_array_equal(other.residuals, one.residuals)
        assert int(other.matvecs) == int(one.matvecs)


REFUSED = {
    "whole numbers": (lambda: ({"a": jnp.ones(2), "b": jnp.ones(2, int)}, lambda v: v), "floating-point numbers, got int"),
    "complex numbers": (lambda: (jnp.ones(2, complex), lambda v: v), "got complex"),
    "half precision": (lambda: (jnp.ones(2, jnp.bfloat16), lambda v: v), "float32 or float64, got bfloat16"),
    "nothing": (lambda: ({}, lambda v: v), "like has no entries"),
    "another length": (lambda: (jnp.ones(3), lambda v: v[:2]), r"array \(3,\) float.*returns array \(2,\)"),
    "another precision": (lambda: (jnp.ones(3, jnp.float32), lambda v: v.astype(float)), "float32, but returns array .* float64"),
    "another tree": (lambda: ({"a": jnp.ones(2)}, lambda v: {"b": v["a"]}), r"\['a'\] .* returns \['b'\]"),
    "as large a tree": (
        lambda: ({"a": jnp.ones(2), "b": jnp.ones(3)}, lambda v: {"a": v["b"], "b": v["a"]}),
        r"\['a'\] \(2,\) .* returns \['a'\] \(3,\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_operator_on_real_vectors_is_refused(name):
    make, words = REFUSED[name]
    like, product = make()
    with pytest.raises(ValueError, match=words):
        js.curvature.top_eigenpairs(product, like)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 0}, "k >= 1"),
        ({"which": "top"}, "largest"),
        ({"guards": -1}, "guards"),
        ({"tol": -1.0}, "tol must be 0 or more"),
        ({"tol": float("nan")}, "tol must be 0 or more, got nan"),
        ({"max_matvecs": 3, "k": 2}, "at least 4"),
        ({"chunk": 0}, "chunk"),
        ({"alert": -1}, "alert must be at least 0"),
    ],
)
def test_a_tracker_of_settings_that_make_no_sense_is_refused_when_it_is_made(settings, words):
    with pytest.raises(ValueError, match=words):
        js.curvature.EigenTracker(**settings)


def test_more_pairs_than_parameters_are_refused_before_a_run():
    with pytest.raises(ValueError, match=r"k=5 eigenpairs .* 3 parameters"):
        js.curvature.EigenTracker(k=5).init(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"k=5 eigenpairs .* 2 parameters"):
        js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=2, probes=[js.probes.sharpness(k=5)])


def test_residuals_are_what_they_say(precision):
    del precision
    matrix = jnp.asarray(_matrix(np.linspace(-1, 2, 60)))
    pairs = jax.jit(lambda m: js.curvature.top_eigenpairs(lambda v: m @ v, m[0], 3, tol=1e-3))(matrix)
    vectors = np.asarray(pairs.vectors, np.float64)
    residuals = np.linalg.norm(vectors @ np.asarray(matrix, np.float64) - np.asarray(pairs.values)[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals / 2, pairs.residuals, rtol=0.02, atol=tolerance(matrix.dtype, 10, 1))
    assert pairs.converged


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), decay=st.floats(0.0, 3.0), shift=st.floats(-2.0, 2.0), budget=st.sampled_from([4, 10, 20, 40]))
def test_never_converged_with_a_wrong_residual(seed, decay, shift, budget):
    spectrum = np.exp(-decay * np.linspace(0, 3, 40)) + shift
    matrix = jnp.asarray(_matrix(spectrum, seed))
    pairs = _solve_within(matrix, budget)
    assert int(pairs.matvecs) <= budget
    assert bool(pairs.converged) == bool((pairs.residuals <= 1e-3).all())
    vectors, values = np.asarray(pairs.vectors), np.asarray(pairs.values)
    residuals = np.linalg.norm(vectors @ np.asarray(matrix) - values[:, None] * vectors, axis=1)
    assert (residuals <= pairs.residuals * np.abs(spectrum).max() * (1 + 1e-6) + 1e-14).all()
    if pairs.converged:
        distance = np.abs(np.asarray(pairs.values)[:, None] - spectrum[None]).min(axis=1)
        assert (distance <= 1e-3 * np.abs(spectrum).max() * (1 + 1e-9)).all()


@partial(jax.jit, static_argnums=1)
def _solve_within(matrix, budget):
    return js.curvature.top_eigenpairs(lambda v: matrix @ v, matrix[0], 2, tol=1e-3, max_matvecs=budget)


def test_a_budget_that_is_too_small_is_reported():
    matrix = jnp.asarray(_matrix(np.linspace(0, 1, 200)))
    pairs = js.curvature.top_eigenpairs(lambda v: matrix @ v, matrix[0], 1, tol=1e-8, max_matvecs=5)
    assert not pairs.converged
    assert float(pairs.residuals[0]) > 1e-8
    assert int(pairs.matvecs) <= 5


def test_nan_ends_the_search_unconverged():
    pairs = js.curvature.top_eigenpairs(lambda v: v * jnp.nan, jnp.ones(5), 1)
    assert not pairs.converged
    assert int(pairs.matvecs) <= 2


def test_a_guess_saves_products_and_zero_rows_start_cold():
    matrix = jnp.asarray(_matrix(np.linspace(0, 1, 100) ** 3))
    solve = jax.jit(lambda guess: js.curvature.top_eigenpairs(lambda v: matrix @ v, matrix[0], 2, guess, tol=1e-3, guards=0))
    cold = solve(jnp.zeros((2, 100)))
    warm = solve(cold.vectors)
    assert int(warm.matvecs) == 2
    assert int(cold.matvecs) > 10
    np.testing.assert_allclose(warm.values, cold.values, rtol=1e-6)


def test_vmap_equals_loop():
    matrices = jnp.stack([jnp.asarray(_matrix(np.linspace(0, 1, 30) ** p, p)) for p in (1, 2, 5)])
    solve = lambda m: js.curvature.top_eigenpairs(lambda v: m @ v, m[0], 2, tol=1e-6)  # noqa: E731
    together = jax.jit(jax.vmap(solve))(matrices)
    single = jax.jit(solve)
    for index, matrix in enumerate(matrices):
        alone = single(matrix)
        np.testing.assert_allclose(together.values[index], alone.values, rtol=1e-12)
        assert int(together.matvecs[index]) == int(alone.matvecs)


def test_batched_hvp_of_the_tanh_network_equals_single():
    problem, _ = tanh_network()
    points = jax.vmap(problem.init)(jax.random.split(jax.random.key(1), 3))
    product = lambda w: js.curvature.hvp(problem.loss, w, jax.tree.map(jnp.ones_like, w))  # noqa: E731
    together = jax.jit(jax.vmap(product))(points)
    alone = jax.jit(product)(jax.tree.map(lambda leaf: leaf[1], points))
    np.testing.assert_allclose(flat(jax.tree.map(lambda leaf: leaf[1], together)), flat(alone), rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"k": 0}, "k=0"), ({"k": 6}, "5 parameters"), ({"k": 2, "max_matvecs": 3}, "max_matvecs=3")],
)
def test_misuse_names_the_argument(arguments, words):
    with pytest.raises(ValueError, match=words):
        js.curvature.top_eigenpairs(lambda v: v, jnp.ones(5), **arguments)


def test_curvature_of_a_real_network_against_dense():
    problem = digits_network(widths=(6,), count=50)
    w = problem.init(jax.random.key(0))
    pairs = jax.jit(lambda p, w: js.curvature.frozen_eigenpairs(p.loss, w, 3, tol=1e-6))(problem, w)
    exact = np.linalg.eigvalsh(dense_hessian(problem.loss, w))[::-1][:3]
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, exact, rtol=1e-9)
