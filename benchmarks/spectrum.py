"""Trace, diagonal and spectral density: products, time and error against the dense Hessian, beside Matfree where it is installed.

A digits MLP is trained for some steps of GD, so that its Hessian has the few large eigenvalues and the bulk at zero that Hessians
have. Each estimate is made from several keys; "error" is the root mean square over keys relative to the truth, "claimed" the same
of its own error estimate, so that claimed / error near 1 is honest. The density is compared with the smoothed dense one: the mean
absolute difference over the grid, relative to the mean density. Then the algorithms alone, on two matrices that are harder than
they look: one in a unit of 1e-8, in float32, and one whose eigenvalues are all equal.

Run: python benchmarks/spectrum.py [--tiny] [--out spectrum.json]     (peers: pip install matfree)
"""

import argparse
from functools import partial
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _report import machine, timed, write  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

import jaxsharp as js  # noqa: E402

try:
    import matfree
    from matfree import decomp, stochtrace
except ImportError:
    matfree = None


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    images, width, steps, keys, repeats, products = (30, 3, 5, 2, 1, 12) if options.tiny else (500, 24, 300, 20, 3, 32)
    train, _ = js.data.digits(count=images)
    problem = js.problems.supervised(js.models.MLP(widths=(width,)), train)
    params = _trained(problem, steps)
    dense = np.asarray(_dense(problem, params), np.float64)
    operator = jax.jit(js.operators.hessian)(problem, params)
    seeds = jax.random.split(jax.random.key(0), keys)
    figures = {
        "parameters": operator.size,
        "trace": _traces(operator, dense, seeds, products, repeats),
        "diagonal": _diagonals(operator, dense, seeds, products, repeats),
        "density": _densities(operator, dense, seeds, repeats, *((4, 8) if options.tiny else (8, 40))),
        "hard cases": _hard_cases(),
    }
    setting = {"images": images, "width": width, "steps": steps, "keys": keys, "repeats": repeats, "products": products}
    write({"setting": setting, "matfree": _version(), "figures": figures, **machine()}, options.out)


@partial(jax.jit, static_argnames="steps")
def _trained(problem, steps):
    descend = lambda _, w: jax.tree.map(lambda a, g: a - 0.2 * g, w, jax.grad(problem.loss)(w))  # noqa: E731
    return jax.lax.fori_loop(0, steps, descend, problem.init(jax.random.key(0)))


@jax.jit
def _dense(problem, params):
    operator = js.operators.hessian(problem, params)
    unravel = ravel_pytree(params)[1]
    return jax.lax.map(lambda row: ravel_pytree(operator(unravel(row)))[0], jnp.eye(operator.size))


def _way(make, operator, seeds, repeats):
    """Runs `make(operator, key)` for every key; returns the results and how long one takes."""
    run = jax.jit(make)
    _, first, each = timed(lambda: run(operator, seeds[0]), repeats)
    results = [run(operator, key) for key in seeds]
    return results, {"first ms": 1e3 * first, "ms": 1e3 * each}


def _relative(errors, claimed, scale):
    error = float(np.sqrt(np.mean(np.square(errors))))
    return {"error": error / scale, "claimed": float(np.sqrt(np.mean(np.square(claimed)))) / scale}


def _traces(operator, dense, seeds, products, repeats):
    exact = np.trace(dense)
    ways = {
        f"jaxsharp {method}": (lambda op, key, m=method: js.curvature.trace(op, method=m, max_matvecs=products, key=key)[:2])
        for method in ("hutchinson", "xtrace")
    }
    if matfree:
        like = operator.like

        def peer_plain(op, key):
            sampler = stochtrace.sampler_signs(like, num=products)
            return stochtrace.estimator_monte_carlo_mean_and_sem(stochtrace.monte_carlo_trace(), sampler)(op, key)

        def peer_xtrace(op, key):
            sampler = stochtrace.sampler_normal(like, num=products // 2)
            return stochtrace.estimator_leave_one_out_mean_and_sem(stochtrace.leave_one_out_xtrace(), sampler)(op, key)

        ways |= {"matfree hutchinson": peer_plain, "matfree xtrace": peer_xtrace}
    table = {}
    for name, way in ways.items():
        results, times = _way(way, operator, seeds, repeats)
        values, errors = (np.array([float(result[i]) for result in results]) for i in (0, 1))
        table[name] = {"products": products, **times, **_relative(values - exact, errors, abs(exact))}
    return table


def _diagonals(operator, dense, seeds, products, repeats):
    exact = np.diag(dense)
    ways = {"jaxsharp": lambda op, key: js.curvature.diagonal(op, max_matvecs=products, key=key)[:2]}
    if matfree:

        def peer(op, key):
            sampler = stochtrace.sampler_signs(op.like, num=products)
            return stochtrace.estimator_monte_carlo_mean_and_sem(stochtrace.monte_carlo_diagonal(), sampler)(op, key)

        ways["matfree"] = peer
    table = {}
    for name, way in ways.items():
        results, times = _way(way, operator, seeds, repeats)
        values, errors = (np.stack([np.asarray(ravel_pytree(result[i])[0]) for result in results]) for i in (0, 1))
        scale = float(np.sqrt(np.mean(exact**2)))
        table[name] = {"products": products, **times, **_relative(values - exact[None], errors, scale)}
    return table


def _densities(operator, dense, seeds, repeats, samples, steps):
    eigenvalues = np.linalg.eigvalsh(dense)
    width = 0.01 * np.ptp(eigenvalues)
    grid = np.linspace(eigenvalues[0] - 4 * width, eigenvalues[-1] + 4 * width, 400)
    kernel = np.exp(-0.5 * ((grid[:, None] - eigenvalues[None]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    exact = kernel.mean(axis=1)
    on = jnp.asarray(grid, jnp.result_type(float))

    def ours(op, key):
        spectrum = js.curvature.spectral_density(op, samples=samples, steps=steps, grid=on, width=width, key=key)
        return spectrum.density, spectrum.standard_error

    ways = {"jaxsharp": ours}
    if matfree:
        lanczos = decomp.tridiag_sym(steps)

        def peer(op, key):  # its tridiagonalization, smoothed by our function
            _, unravel = ravel_pytree(op.like)
            product = lambda v: ravel_pytree(op(unravel(v)))[0]  # noqa: E731
            signs = jax.random.rademacher(key, (samples, op.size), on.dtype)

            def quadrature(z):
                values, vectors = jnp.linalg.eigh(lanczos(product, z)[1])
                return values, vectors[0] ** 2

            nodes, weights = jax.vmap(quadrature)(signs)
            return js.curvature.smoothed_density(nodes, weights, on, jnp.asarray(width, on.dtype))

        ways["matfree tridiag_sym"] = peer
    table = {}
    for name, way in ways.items():
        results, times = _way(way, operator, seeds, repeats)
        densities, errors = (np.stack([np.asarray(result[i], np.float64) for result in results]) for i in (0, 1))
        scale = exact.mean()
        table[name] = {
            "products": samples * steps,
            **times,
            "mean absolute error": float(np.abs(densities - exact[None]).mean() / scale),
            "claimed": float(errors.mean() / scale),
        }
    return table


def _hard_cases():
    """Relative error and claimed error of XTrace, and the range of Lanczos nodes, where scales or ranks are unusual; float32."""
    size = 300
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    small = jnp.asarray((basis * (1e-8 * np.arange(1.0, size + 1) ** -1.5)) @ basis.T, jnp.float32)
    same = jnp.eye(size, dtype=jnp.float32)
    exact = float(np.trace(np.asarray(small, np.float64)))
    key = jax.random.key(1)
    estimate = js.curvature.trace(lambda v: small @ v, small[0], method="xtrace", key=key)
    spectrum = js.curvature.spectral_density(lambda v: same @ v, same[0], steps=20, key=key)
    seen = np.asarray(spectrum.nodes)[np.asarray(spectrum.weights) > 0]
    table = {
        "jaxsharp": {
            "xtrace, unit 1e-8: error": (float(estimate.value) - exact) / exact,
            "xtrace, unit 1e-8: claimed": float(estimate.standard_error) / exact,
            "Lanczos, all eigenvalues 1: nodes": [float(seen.min()), float(seen.max())],
        }
    }
    if matfree:
        sampler = stochtrace.sampler_normal(small[0], num=16)
        value, error = stochtrace.estimator_leave_one_out_mean_and_sem(stochtrace.leave_one_out_xtrace(), sampler)(
            lambda v: small @ v, key
        )
        nodes = np.linalg.eigvalsh(np.nan_to_num(decomp.tridiag_sym(20)(lambda v: same @ v, jnp.ones(size, jnp.float32))[1]))
        table["matfree"] = {
            "xtrace, unit 1e-8: error": (float(value) - exact) / exact,
            "xtrace, unit 1e-8: claimed": float(error) / exact,
            "Lanczos, all eigenvalues 1: nodes": [float(nodes[0]), float(nodes[-1])],
        }
    return table


def _version():
    if matfree is None:
        return None
    from importlib import metadata

    return metadata.version("matfree")


if __name__ == "__main__":
    main()
