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
def test_trace_does_not_depend_on_the_unit(name, precision):
    dtype = jnp.result_type(float)
    scaled, base = jnp.asarray(matrix(SPECTRA[name]), dtype), jnp.asarray(matrix(SPECTRA["decaying"]), dtype)
    unit = SPECTRA[name][0]
    for method in ("xtrace", "hutchinson"):
        one, other = (traces(m, jax.random.split(jax.random.key(0), 3), method) for m in (base, scaled))
        assert one.value.dtype == dtype
        np.testing.assert_allclose(np.asarray(other.value, np.float64) / unit, one.value, rtol=tolerance(dtype, 100, 1))
        error = np.asarray(other.standard_error, np.float64) / unit
        np.testing.assert_allclose(error, one.standard_error, rtol=tolerance(dtype, 10, 0.5))


def counting(matrix):
    """A product that counts its calls."""
    calls = []

    def product(v):
        jax.debug.callback(lambda _: calls.append(1), v[0])
        return matrix @ v

    return product, calls


def test_products_are_counted_and_batches_change_nothing():
    dense = jnp.asarray(matrix(SPECTRA["flat"]))

    def run(batch):
        product, calls = counting(dense)
        algorithms = {
            "xtrace": lambda: js.curvature.trace(product, dense[0], max_matvecs=9, batch=batch),
            "diagonal": lambda: js.curvature.diagonal(product, dense[0], max_matvecs=9, batch=batch),
            "density": lambda: js.curvature.spectral_density(product, dense[0], samples=4, steps=5, points=5, batch=batch),
        }
        results = jax.block_until_ready(jax.jit(lambda: {name: algorithm() for name, algorithm in algorithms.items()})())
        jax.effects_barrier()
        assert len(calls) == 8 + 9 + 20
        assert {name: int(result.matvecs) for name, result in results.items()} == {
            "xtrace": 8,
            "diagonal": 9,
            "density": 20,
        }
        return results

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), run(1), run(4))


def test_diagonal_is_unbiased_with_an_error_that_is_its_scatter():
    dense = matrix(SPECTRA["flat"])
    keys = jax.random.split(jax.random.key(1), KEYS)

    @jax.jit
    def many(matrix, keys):
        return jax.vmap(lambda key: js.curvature.diagonal(lambda v: matrix @ v, matrix[0], max_matvecs=10, key=key, batch=4))(
            keys
        )

    estimate = many(jnp.asarray(dense), keys)
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


def per_sample_problem():
    rng = np.random.default_rng(3)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3))), "b": jnp.asarray(rng.normal(size=3))}
    data = jnp.asarray(rng.normal(size=(13, 4))), jnp.asarray(rng.integers(0, 3, 13))
    return (lambda w, x: jnp.tanh(x @ w["w"]) + w["b"][None, :]), params, data


def test_squared_gradients_are_the_diagonals_they_estimate():
    predict, params, data = per_sample_problem()

    @jax.jit
    def run(params):
        empirical = js.curvature.empirical_fisher_operator(predict, "cross_entropy", params, data)
        fisher = js.curvature.fisher_operator(predict, "cross_entropy", params, data)
        whole = js.curvature.squared_gradient(
            lambda w: jnp.mean(js.curvature.LIKELIHOODS["cross_entropy"].loss(predict(w, data[0]), data[1])), params
        )
        squares = [js.curvature.sample_squared_gradients(predict, "cross_entropy", params, data, chunk=c) for c in (None, 5)]
        draw = partial(js.curvature.fisher_diagonal, predict, "cross_entropy", params, data, samples=300)
        drawn = jax.vmap(lambda key: draw(key=key))(jax.random.split(jax.random.key(0), 40))
        chunked = draw(key=jax.random.split(jax.random.key(0), 40)[0], chunk=5)
        exact = [js.curvature.diagonal(operator).value for operator in (empirical, fisher)]
        return whole, squares, drawn, chunked, exact

    whole, squares, drawn, chunked, (empirical, fisher) = run(params)
    for name in params:
        for square in squares:
            np.testing.assert_allclose(square[name], empirical[name], rtol=1e-12)
        errors = np.asarray(drawn.value[name] - fisher[name][None])
        claimed = np.sqrt(np.mean(np.square(drawn.standard_error[name]), axis=0))
        assert np.abs(errors.mean(axis=0) * np.sqrt(40) / claimed).max() < 4.5
        np.testing.assert_allclose(errors.std(axis=0) / claimed, 1, atol=0.4)
        np.testing.assert_allclose(chunked.value[name], drawn.value[name][0], rtol=1e-11)
    outputs = np.asarray(predict(params, data[0]))
    scores = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True) - np.eye(3)[np.asarray(data[1])]
    np.testing.assert_allclose(whole["b"], scores.mean(axis=0) ** 2, rtol=1e-11)


@jax.jit
def density(matrix, key, grid, width):
    return js.curvature.spectral_density(
        lambda v: matrix @ v, matrix[0], samples=6, steps=60, grid=grid, width=width, moments=4, key=key
    )


def smoothed(spectrum, grid, width):
    kernel = np.exp(-0.5 * ((grid[:, None] - spectrum[None]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return kernel.mean(axis=1)


@pytest.mark.parametrize("name", ["decaying", "flat", "low rank", "zero", "identity"])
def test_density_is_the_smoothed_dense_one_within_its_error(name):
    spectrum = SPECTRA[name]
    grid, width = np.linspace(-3, 7, 101), 0.3
    keys = jax.random.split(jax.random.key(2), 40)
    many = jax.jit(jax.vmap(density, (None, 0, None, None)))(jnp.asarray(matrix(spectrum)), keys, jnp.asarray(grid), width)
    assert (many.matvecs == 360).all()
    errors = np.asarray(many.density) - smoothed(spectrum, grid, width)[None]
    # the mean over 40 estimates has 1/√40 of the error of one
    error = np.sqrt((np.asarray(many.standard_error) ** 2).mean(axis=0) / 40)
    assert (np.abs(errors.mean(axis=0)) < 4.5 * error + 1e-10).all()
    ratio = np.sqrt((errors**2).mean()) / np.sqrt((np.asarray(many.standard_error) ** 2).mean())
    assert 0.8 < ratio < 1.25 or np.abs(errors).max() < 1e-10
    powers = np.stack([(spectrum**k).mean() for k in range(1, 5)])
    scores = np.asarray(many.moments).mean(axis=0) - powers
    assert (np.abs(scores) < 4.5 * np.sqrt((np.asarray(many.moments_error) ** 2).mean(axis=0) / 40) + 1e-10).all()


def test_density_has_integral_one_on_its_own_grid(precision):
    del precision
    dense = jnp.asarray(matrix(SPECTRA["flat"]), jnp.result_type(float))
    spectrum = jax.jit(lambda m: js.curvature.spectral_density(lambda v: m @ v, m[0], samples=3, steps=20))(dense)
    np.testing.assert_allclose(np.trapezoid(spectrum.density, spectrum.grid), 1, rtol=1e-3)
    np.testing.assert_allclose(np.sum(spectrum.weights, axis=1), 1, rtol=tolerance(dense.dtype, 10, 1))
    assert spectrum.grid[0] < -1 < 2 < spectrum.grid[-1]
    assert float(spectrum.grid[-1]) < 2.5


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
    @jax.jit
    def run():
        product = lambda v: v.at[3].set(jnp.nan)  # noqa: E731
        like = jnp.ones(50)
        results = [js.curvature.trace(product, like, method=method, max_matvecs=6).value for method in ("xtrace", "hutchinson")]
        results.append(js.curvature.diagonal(product, like, max_matvecs=4).value[3])
        spectrum = js.curvature.spectral_density(product, like, samples=2, steps=4)
        return [*results, spectrum.density, spectrum.standard_error, spectrum.moments, spectrum.grid, spectrum.nodes]

    for result in run():
        assert np.isnan(result).all()


def test_batched_estimates_equal_single_ones_and_compile_once():
    matrices = jnp.stack([jnp.asarray(matrix(SPECTRA[name], seed)) for seed, name in enumerate(("flat", "decaying"))])

    @jax.jit
    def run(m):
        product = lambda v: m @ v  # noqa: E731
        spectrum = js.curvature.spectral_density(product, m[0], samples=2, steps=8, points=5)
        return js.curvature.trace(product, m[0]), spectrum._replace(nodes=0, weights=0)

    first = run(matrices[0])
    with count_compilations() as compiled:
        second = run(matrices[1])
    assert not compiled
    together = jax.jit(jax.vmap(run))(matrices)
    alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), together, alone)


def test_probes_are_labelled_and_right():
    problem = digits_network(widths=(3,), count=20, loss="cross_entropy")
    probes = [
        js.probes.trace(max_matvecs=24),
        js.probes.spectral_density(operator="fisher", samples=2, steps=6, points=30, moments=2, every=2),
    ]
    start = problem.init(jax.random.key(0))
    ds = js.simulate(problem, js.optimizers.gd(0.1), 3, init=start, probes=probes, every=3)
    assert ds.trace.dims == ("step",)
    assert ds.spectral_density.dims == ds.spectral_density_at.dims == ("step_2", "density_point")
    assert ds.spectral_moments.dims == ("step_2", "moment")
    assert int(ds.hvps) == 2 * 24 + 3 * 12
    exact = np.trace(dense_hessian(problem.loss, start))
    assert abs(float(ds.trace[0]) - exact) < 4 * float(ds.trace_error[0])
    assert float(ds.trace_error[0]) < 0.2 * exact
    fisher = js.operators.fisher(problem, start)
    mean = jax.jit(lambda: js.curvature.trace(fisher, max_matvecs=10_000).value / fisher.size)()
    assert abs(float(ds.spectral_moments[0, 0]) - mean) < 20 * float(ds.spectral_moments_error[0, 0])


def test_misuse_names_the_argument():
    like, product = jnp.ones(50), lambda v: v
    with pytest.raises(ValueError, match="method='best'"):
        js.curvature.trace(product, like, method="best")
    with pytest.raises(ValueError, match="max_matvecs=3"):
        js.curvature.trace(product, like, max_matvecs=3)
    with pytest.raises(ValueError, match="max_matvecs=1"):
        js.curvature.diagonal(product, like, max_matvecs=1)
    with pytest.raises(ValueError, match="samples=1"):
        js.curvature.spectral_density(product, like, samples=1)
    with pytest.raises(ValueError, match="moments=4"):
        js.curvature.spectral_density(product, like, steps=2)
    with pytest.raises(ValueError, match="batch must be"):
        js.curvature.trace(product, like, batch=0)
    with pytest.raises(ValueError, match="operator='hessien'"):
        js.probes.trace(operator="hessien")
    with pytest.raises(ValueError, match="xtrace"):
        js.probes.trace(max_matvecs=2)
    with pytest.raises(ValueError, match="samples=1"):
        js.probes.spectral_density(samples=1)
