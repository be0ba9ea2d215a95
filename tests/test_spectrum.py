"""Trace, diagonal and spectral density against dense truth, with error bars that mean what they say."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import count_compilations, dense_hessian, digits_network, tolerance

import jaxsharp as js
from jaxsharp.curvature.lanczos import quadrature

KEYS = 150


def matrix(spectrum, seed=0):
    size = len(spectrum)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return (basis * spectrum) @ basis.T


SPECTRA = {  # all of 60 parameters, so that they share compiled programs
    "decaying": np.linspace(1, 60, 60) ** -2.0,
    "flat": np.linspace(-1, 2, 60),
    "low rank": np.r_[np.arange(1, 6.0), np.zeros(55)],
    "zero": np.zeros(60),
    "identity": np.ones(60),
    "tiny": 1e-30 * np.linspace(1, 60, 60) ** -2.0,
    "huge": 1e30 * np.linspace(1, 60, 60) ** -2.0,
}


@partial(jax.jit, static_argnames=("method", "max_matvecs"))
def traces(matrix, keys, method, max_matvecs=20):
    return jax.vmap(
        lambda key: js.curvature.trace(lambda v: matrix @ v, matrix[0], method=method, max_matvecs=max_matvecs, key=key)
    )(keys)


@cache
def many_traces(name, method):
    estimate = traces(jnp.asarray(matrix(SPECTRA[name])), jax.random.split(jax.random.key(1), KEYS), method)
    return np.asarray(estimate.value) - SPECTRA[name].sum(), np.asarray(estimate.standard_error), np.asarray(estimate.matvecs)


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
@pytest.mark.parametrize("name", ["decaying", "flat"])
def test_trace_is_unbiased_with_an_error_that_is_its_scatter(name, method):
    errors, claimed, matvecs = many_traces(name, method)
    assert (matvecs == 20).all()
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(KEYS)
    scatter = np.sqrt((errors**2).mean())
    assert 0.75 < np.sqrt((claimed**2).mean()) / scatter < 1.35
    assert (np.abs(errors) < 3 * claimed).mean() > 0.9


def test_hutchinson_scatters_as_predicted():
    dense = matrix(SPECTRA["flat"])
    errors, _, _ = many_traces("flat", "hutchinson")
    predicted = np.sqrt(2 / 20 * np.sum((dense - np.diag(np.diag(dense))) ** 2))
    assert abs(np.sqrt((errors**2).mean()) / predicted - 1) < 4 / np.sqrt(2 * KEYS)


def test_xtrace_gains_on_a_decaying_spectrum():
    accurate, plain = (np.sqrt((many_traces("decaying", method)[0] ** 2).mean()) for method in ("xtrace", "hutchinson"))
    assert accurate < plain / 8


def test_xtrace_gains_from_the_normalization_on_a_flat_spectrum():
    # with A = I + a small matrix every normalized estimate sees the identity exactly
    errors, claimed, _ = many_traces("identity", "xtrace")
    np.testing.assert_allclose(errors, 0, atol=1e-10)
    np.testing.assert_allclose(claimed, 0, atol=1e-10)


@pytest.mark.parametrize("name", ["low rank", "zero"])
def test_xtrace_is_exact_below_its_rank(name):
    errors, claimed, _ = many_traces(name, "xtrace")
    np.testing.assert_allclose(errors, 0, atol=1e-12)
    np.testing.assert_allclose(claimed, 0, atol=1e-12)


@pytest.mark.parametrize("name", ["tiny", "huge"])
def test_trace_and_its_error_do_not_depend_on_the_unit(name, precision):
    dtype = jnp.result_type(float)
    scaled, base = jnp.asarray(matrix(SPECTRA[name]), dtype), jnp.asarray(matrix(SPECTRA["decaying"]), dtype)
    unit = SPECTRA[name][0]
    for method in ("xtrace", "hutchinson"):
        one, other = (traces(m, jax.random.split(jax.random.key(0), KEYS), method) for m in (base, scaled))
        assert one.value.dtype == dtype
        bound = tolerance(dtype, 1e3, 1) if precision == "float64" else tolerance(dtype, 300, 1)
        np.testing.assert_allclose(np.asarray(other.value, np.float64) / unit, one.value, rtol=bound)
        error = np.asarray(other.standard_error, np.float64) / unit
        np.testing.assert_allclose(error, one.standard_error, rtol=tolerance(dtype, 30, 0.5))


def test_products_are_counted_and_batches_change_nothing():
    dense = jnp.asarray(matrix(SPECTRA["flat"]))
    calls = []

    def product(v):
        jax.debug.callback(lambda _: calls.append(1), v[0])
        return dense @ v

    def run(batch):
        trace = js.curvature.trace(product, dense[0], method="xtrace", max_matvecs=9, batch=batch)
        return trace, js.curvature.diagonal(product, dense[0], max_matvecs=9, batch=batch)

    results = []
    for batch in (1, 4):
        calls.clear()
        results.append(jax.block_until_ready(jax.jit(run, static_argnums=0)(batch)))
        jax.effects_barrier()
        assert len(calls) == 8 + 9
        assert [int(result.matvecs) for result in results[-1]] == [8, 9]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), *results)


@jax.jit
def diagonals(matrix, keys):
    product = lambda v: matrix @ v  # noqa: E731
    return jax.vmap(lambda key: js.curvature.diagonal(product, matrix[0], max_matvecs=10, key=key, batch=4))(keys)


def test_diagonal_is_unbiased_with_an_error_that_is_its_scatter():
    dense = matrix(SPECTRA["flat"])
    keys = jax.random.split(jax.random.key(1), KEYS)

    estimate = diagonals(jnp.asarray(dense), keys)
    errors = np.asarray(estimate.value) - np.diag(dense)[None]
    predicted = np.sqrt(np.sum((dense - np.diag(np.diag(dense))) ** 2, axis=1) / 10)
    scores = errors.mean(axis=0) / (predicted / np.sqrt(KEYS))
    assert np.abs(scores).max() < 4.5
    np.testing.assert_allclose(np.sqrt((errors**2).mean(axis=0)) / predicted, 1, atol=0.35)
    np.testing.assert_allclose(np.sqrt((np.asarray(estimate.standard_error) ** 2).mean(axis=0)) / predicted, 1, atol=0.35)


def test_few_parameters_are_done_exactly(precision):
    del precision
    tree = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    dense = jnp.asarray(matrix(np.linspace(-1, 2, 7)), jnp.result_type(float))
    flat, unravel = jax.flatten_util.ravel_pytree(tree)

    @jax.jit
    def run():
        operator = js.curvature.Operator(lambda v: unravel(dense @ jax.flatten_util.ravel_pytree(v)[0]), tree)
        return js.curvature.trace(operator), js.curvature.diagonal(operator)

    total, entries = run()
    assert int(total.matvecs) == int(entries.matvecs) == flat.size
    np.testing.assert_allclose(total.value, np.trace(dense), rtol=tolerance(flat.dtype, 10, 1))
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(entries.value)[0], np.diag(dense), rtol=tolerance(flat.dtype, 1, 1))
    assert total.standard_error == 0
    assert entries.value["a"].shape == entries.standard_error["a"].shape == (2, 2)


def test_squared_gradients_are_the_diagonals_they_estimate():
    rng = np.random.default_rng(3)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3))), "b": jnp.asarray(rng.normal(size=3))}
    data = jnp.asarray(rng.normal(size=(13, 4))), jnp.asarray(rng.integers(0, 3, 13))
    loss = js.curvature.LIKELIHOODS["cross_entropy"].loss

    def predict(w, x):
        return x @ w["w"] + w["b"][None, :]

    @jax.jit
    def run(params, key):
        whole = js.curvature.squared_gradient(lambda w: jnp.mean(loss(predict(w, data[0]), data[1])), params)
        squares = [js.curvature.sample_squared_gradients(predict, "cross_entropy", params, data, chunk=c) for c in (None, 5)]
        draw = partial(js.curvature.fisher_diagonal, predict, "cross_entropy", params, data, samples=300, chunk=5)
        return whole, squares, jax.vmap(lambda key: draw(key=key))(jax.random.split(key, 40))

    whole, squares, drawn = run(params, jax.random.key(0))
    inputs = np.asarray(data[0])
    outputs = inputs @ np.asarray(params["w"]) + np.asarray(params["b"])
    probabilities = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    scores = probabilities - np.eye(3)[np.asarray(data[1])]
    np.testing.assert_allclose(whole["w"], (inputs.T @ scores / 13) ** 2, rtol=1e-11)
    for square in squares:
        np.testing.assert_allclose(square["w"], (inputs**2).T @ scores**2 / 13, rtol=1e-11)
        np.testing.assert_allclose(square["b"], (scores**2).mean(axis=0), rtol=1e-11)
    fisher = {"w": (inputs**2).T @ (probabilities * (1 - probabilities)) / 13}
    fisher["b"] = (probabilities * (1 - probabilities)).mean(axis=0)
    for name, exact in fisher.items():
        errors = np.asarray(drawn.value[name]) - exact[None]
        claimed = np.sqrt(np.mean(np.square(drawn.standard_error[name]), axis=0))
        assert np.abs(errors.mean(axis=0) * np.sqrt(40) / claimed).max() < 4.5
        np.testing.assert_allclose(errors.std(axis=0) / claimed, 1, atol=0.4)


@jax.jit
def densities(matrix, keys, grid, width):
    def density(key):
        return js.curvature.spectral_density(
            lambda v: matrix @ v, matrix[0], samples=6, steps=60, grid=grid, width=width, key=key
        )

    return jax.vmap(density)(keys)


GRID, WIDTH = np.linspace(-3, 7, 101), 0.3


def forty_densities(dense):
    return densities(jnp.asarray(dense), jax.random.split(jax.random.key(2), 40), jnp.asarray(GRID), WIDTH)


def smoothed(spectrum, grid, width):
    kernel = np.exp(-0.5 * ((grid[:, None] - spectrum[None]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return kernel.mean(axis=1)


@pytest.mark.parametrize("name", ["decaying", "flat", "low rank", "zero", "identity"])
def test_density_is_the_smoothed_dense_one_within_its_error(name):
    spectrum = SPECTRA[name]
    many = forty_densities(matrix(spectrum))
    assert (many.matvecs == 360).all()
    errors = np.asarray(many.density) - smoothed(spectrum, GRID, WIDTH)[None]
    # the mean over 40 estimates has 1/√40 of the error of one
    error = np.sqrt((np.asarray(many.standard_error) ** 2).mean(axis=0) / 40)
    assert (np.abs(errors.mean(axis=0)) < 4.5 * error + 1e-10).all()
    ratio = np.sqrt((errors**2).mean()) / np.sqrt((np.asarray(many.standard_error) ** 2).mean())
    assert 0.8 < ratio < 1.25 or np.abs(errors).max() < 1e-10
    powers = np.stack([(spectrum**k).mean() for k in range(1, 5)])
    scores = np.asarray(many.moments).mean(axis=0) - powers
    assert (np.abs(scores) < 4.5 * np.sqrt((np.asarray(many.moments_error) ** 2).mean(axis=0) / 40) + 1e-10).all()


def test_density_has_integral_one_on_its_own_grid_in_float32():
    with jax.enable_x64(False):
        dense = jnp.asarray(matrix(SPECTRA["flat"]), jnp.float32)
        spectrum = jax.jit(lambda m: js.curvature.spectral_density(lambda v: m @ v, m[0], samples=3, steps=20))(dense)
    assert spectrum.density.dtype == jnp.float32
    np.testing.assert_allclose(np.trapezoid(spectrum.density, spectrum.grid), 1, rtol=1e-3)
    np.testing.assert_allclose(np.sum(spectrum.weights, axis=1), 1, rtol=tolerance(np.float32, 10, 1))
    assert -1.5 < spectrum.grid[0] < -1 < 2 < spectrum.grid[-1] < 2.5


@pytest.mark.parametrize("spectrum", [[-3.0], [2.0, -1.0], [5.0, 2.0, -1.0]], ids=len)
def test_density_of_few_parameters_is_exact_in_every_moment(spectrum):
    dense = jnp.asarray(matrix(spectrum))
    run = jax.jit(lambda m: js.curvature.spectral_density(lambda v: m @ v, m[0], samples=2000, steps=3, moments=7))
    found = run(dense)
    powers = np.array([np.mean(np.power(spectrum, k)) for k in range(1, 8)])
    # with as many steps as parameters each vector's own moments are exact, so those of one vector are zᵀ Aᵏ z / D
    scores = (np.asarray(found.moments) - powers) / (np.asarray(found.moments_error) + 1e-10)
    assert np.abs(scores).max() < 4
    signs = np.stack([np.ones(len(spectrum)), np.r_[-1.0, np.ones(len(spectrum) - 1)]])
    nodes, weights = jax.vmap(lambda z: quadrature(lambda v: dense @ v, z, len(spectrum)))(signs / len(spectrum) ** 0.5)
    for k in range(1, 8):
        exact = np.einsum("si,ij,sj->s", signs, np.linalg.matrix_power(dense, k), signs) / len(spectrum)
        np.testing.assert_allclose((weights * nodes**k).sum(axis=1), exact, rtol=1e-12)


def test_density_of_few_parameters_in_a_run():
    ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=4, probes=["spectral_density"], every=2)
    assert ds.sizes["moment"] == 4
    assert np.isfinite(ds.spectral_density).all()
    np.testing.assert_allclose(np.trapezoid(ds.spectral_density, ds.spectral_density_at), 1, rtol=1e-3)


def test_moments_beyond_the_range_are_infinite_and_not_nan():
    with jax.enable_x64(False):
        product = lambda v: 1e20 * jnp.array([1.0, -0.5] * 20, jnp.float32) * v  # noqa: E731
        found = jax.jit(lambda: js.curvature.spectral_density(product, jnp.zeros(40, jnp.float32), samples=3))()
        alone = jax.jit(lambda scale: js.curvature.spectral_density(lambda v: scale * v, jnp.zeros(1, jnp.float32), samples=2))
        none, large = alone(jnp.float32(0)), alone(jnp.float32(-(2.0**100)))
    np.testing.assert_allclose(found.moments, [0.25e20, np.inf, np.inf, np.inf], rtol=1e-5)
    assert not np.isnan(found.moments_error).any()
    assert (np.asarray(none.moments) == 0).all()
    np.testing.assert_array_equal(large.moments, [-(2.0**100), np.inf, -np.inf, np.inf])
    np.testing.assert_array_equal(large.moments_error, 0)


@jax.jit
def gauss(matrix, start):
    return quadrature(lambda v: matrix @ v, start, 12)


@pytest.mark.parametrize("name", ["decaying", "flat", "low rank", "identity", "zero", "tiny", "huge"])
def test_quadrature_is_exact_to_its_degree_whatever_the_spectrum(name):
    dense = matrix(SPECTRA[name])
    start = np.random.default_rng(4).normal(size=60)
    start = start / np.linalg.norm(start)
    nodes, weights = (np.asarray(value) for value in gauss(jnp.asarray(dense), jnp.asarray(start)))
    unit = np.abs(SPECTRA[name]).max() or 1.0
    vector = start
    for degree in range(24):  # 2 · 12 − 1 is the last
        exact = start @ vector
        np.testing.assert_allclose(weights @ (nodes / unit) ** degree, exact, atol=1e-12)
        vector = dense @ vector / unit
    assert (weights >= 0).all()
    # a node with weight lies within the spectrum
    seen = nodes[weights > 1e-12] / unit
    assert (seen > SPECTRA[name].min() / unit - 1e-12).all()
    assert (seen < SPECTRA[name].max() / unit + 1e-12).all()


def test_reorthogonalization_leaves_no_ghosts():
    spectrum = np.r_[np.linspace(0, 1, 59), 1e4]
    start = np.ones(60) / np.sqrt(60)
    nodes, weights = jax.jit(lambda m: quadrature(lambda v: m @ v, jnp.asarray(start), 60))(jnp.asarray(matrix(spectrum)))
    assert (np.asarray(nodes) > 2).sum() == 1
    overlap = (np.linalg.eigh(matrix(spectrum))[1][:, -1] @ start) ** 2
    np.testing.assert_allclose(np.asarray(weights)[np.asarray(nodes) > 2], overlap, rtol=1e-8)
    # after all 60 steps every eigenvalue has been found
    np.testing.assert_allclose(np.sort(nodes), spectrum, atol=1e-6)


def test_nan_gives_nan():
    broken = jnp.full((60, 60), jnp.nan)
    keys = jax.random.split(jax.random.key(1), KEYS)
    for method in ("xtrace", "hutchinson"):
        assert np.isnan(traces(broken, keys, method).value).all()
    assert np.isnan(diagonals(broken, keys).value).all()
    spectrum = forty_densities(broken)
    for result in (spectrum.density, spectrum.standard_error, spectrum.moments, spectrum.nodes):
        assert np.isnan(result).all()


def test_other_matrices_and_keys_compile_nothing():
    forty_densities(matrix(SPECTRA["flat"]))
    with count_compilations() as compiled:
        forty_densities(matrix(SPECTRA["zero"]))
    assert not compiled


def test_probes_are_labelled_and_right():
    problem = digits_network(widths=(3,), count=20, loss="cross_entropy")
    probes = [
        js.probes.trace(max_matvecs=24),
        js.probes.spectral_density(operator="fisher", samples=2, steps=6, points=30, moments=2, every=2),
    ]
    start = problem.init(jax.random.key(0))

    total = jax.jit(lambda problem, start: probes[0].evaluate(problem, start, None))(problem, start)
    spectrum = jax.eval_shape(lambda: probes[1].evaluate(problem, start, None))
    for probe, values in zip(probes, (total, spectrum), strict=True):
        assert set(values) == set(probe.variables)
        assert {name: len(label.dims) for name, label in probe.variables.items()} == {n: v.ndim for n, v in values.items()}
        assert [probe.variables[name].role for name in values if name.endswith("products")] == ["products"]
    exact = np.trace(dense_hessian(problem.loss, start))
    assert abs(float(total["trace"]) - exact) < 4 * float(total["trace_error"])
    assert float(total["trace_error"]) < 0.2 * exact
    assert int(total["trace_products"]) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width=0.0 must be a positive"),
        ({"width": -1}, "width=-1 must be a positive"),
        ({"width": np.inf}, "width=inf must be a positive"),
        ({"width": np.ones(2)}, "width=.* must be a positive number"),
        ({"grid": 1.0}, r"grid must be a list .* got shape \(\)"),
        ({"grid": ()}, r"grid must be a list .* got shape \(0,\)"),
        ({"points": 1}, "points=1 make no grid; give at least 2"),
        ({"moments": -1}, "moments=-1 is negative"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_a_density_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        js.curvature.spectral_density(lambda v: v, jnp.ones(50), **options)
    with pytest.raises(ValueError, match=message):
        js.probes.spectral_density(**options)


def test_a_traced_width_that_is_not_positive_gives_nan():
    @jax.jit
    def density(width):
        return js.curvature.spectral_density(lambda v: v, jnp.ones(50), steps=3, width=width)

    for width in (0.0, -1.0, np.nan):
        found = density(width)
        assert np.isnan(found.density).all()
        np.testing.assert_allclose(found.moments, 1, rtol=1e-12)
    with pytest.raises(ValueError, match="width=-1"):
        js.curvature.smoothed_density(found.nodes, found.weights, jnp.ones(3), jnp.array(-1.0))


def test_misuse_names_the_argument():
    like, product = jnp.ones(50), lambda v: v
    with pytest.raises(ValueError, match="method='best'"):
        js.curvature.trace(product, like, method="best")
    with pytest.raises(ValueError, match="max_matvecs=3"):
        js.curvature.trace(product, like, method="xtrace", max_matvecs=3)
    with pytest.raises(ValueError, match="max_matvecs=1"):
        js.curvature.diagonal(product, like, max_matvecs=1)
    with pytest.raises(ValueError, match="samples=1"):
        js.curvature.spectral_density(product, like, samples=1)
    with pytest.raises(ValueError, match="moments=4"):
        js.curvature.spectral_density(product, like, steps=2)
    for function in (js.curvature.trace, js.curvature.spectral_density):
        with pytest.raises(ValueError, match="at least one parameter"):
            function(product, {})
    with pytest.raises(ValueError, match="batch must be"):
        js.curvature.trace(product, like, batch=0)
    with pytest.raises(ValueError, match="operator='hessien'"):
        js.probes.trace(operator="hessien")
    with pytest.raises(ValueError, match="xtrace"):
        js.probes.trace(method="xtrace", max_matvecs=2)
    with pytest.raises(ValueError, match="samples=1"):
        js.probes.spectral_density(samples=1)
