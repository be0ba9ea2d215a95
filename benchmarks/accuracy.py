"""How far is a converged eigenvalue from the truth, and is it the one of its rank?

Four times: cold searches on random symmetric matrices of six kinds of spectrum, with 1 and with 5 values asked for; three values
tracked along gradient descent on a small network at a rate at which the spectrum moves fast, several seeds, beside the dense
Hessian in float64 at every measurement; planted crossings, in which an eigenvalue overtakes the tracked one from a direction
orthogonal to all that are followed: measurements until it is noticed; and several eigenvalues that rise together among those
followed, which enter one after the other: measurements in a row with a value that is not that of its rank. A residual promises
that some eigenvalue is within the tolerance; one wants it to be that of the rank.

Run: python benchmarks/accuracy.py [--tiny] [--out accuracy.json]
"""

import argparse
import itertools
from functools import partial
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _report import machine, write  # noqa: E402

import jaxsharp as js  # noqa: E402

TOLERANCE = 1e-2


def main() -> None:
    """Compares, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    cases, sizes, seeds, steps = (12, (20,), 1, 6) if options.tiny else (1800, (40, 150), 8, 90)
    figures = {f"{cases} random matrices of {size} dimensions, k={k}": _random(cases, size, k) for size in sizes for k in (1, 5)}
    figures[f"k=3 along {steps} steps, {seeds} seeds"] = _tracked(seeds, steps)
    figures |= _crossings(*((30, 2) if options.tiny else (300, 100)))
    figures |= _risers(*((30, 2, ((2, 2),)) if options.tiny else (200, 20, ((1, 1), (5, 1), (5, 3), (5, 5), (20, 5)))))
    write({"setting": {"tolerance": TOLERANCE}, "figures": figures, **machine()}, options.out)


def _spectrum(rng, kind, size):
    """Bulks with and without outliers, dense and decaying ones, shifted, negative, and of low rank."""
    return [
        lambda: rng.normal(size=size),
        lambda: rng.random(size) ** rng.uniform(1, 8),
        lambda: np.r_[rng.random(5) + 1, 0.2 * rng.random(size - 5) - 0.1],
        lambda: np.exp(-rng.uniform(0, 6) * np.linspace(0, 3, size)) + rng.uniform(-2, 2),
        lambda: np.r_[rng.uniform(0.5, 1, 3), -rng.random(size - 3) * rng.uniform(0, 10)],
        lambda: np.r_[np.ones(rng.integers(1, 4)), np.zeros(size)][:size] * rng.uniform(-1, 1),
    ][kind]()


def _random(cases, size, k):
    rng = np.random.default_rng(0)
    spectra = np.sort(np.stack([_spectrum(rng, case % 6, size) for case in range(cases)]))[:, ::-1]
    bases = np.linalg.qr(rng.normal(size=(cases, size, size)))[0]

    @jax.jit
    @jax.vmap
    def solve(spectrum, basis, key):
        pairs = js.curvature.top_eigenpairs(
            lambda v: basis @ (spectrum * (basis.T @ v)), spectrum, k, tol=TOLERANCE, key=key, max_matvecs=600
        )
        return pairs.values, pairs.converged, pairs.matvecs

    arrays = (jnp.asarray(spectra, jnp.float32), jnp.asarray(bases, jnp.float32))
    values, converged, products = solve(*arrays, jax.random.split(jax.random.key(0), cases))
    return _judged(np.asarray(values), spectra, np.asarray(converged)) | {"products": float(np.mean(products))}


def _tracked(seeds, steps):
    train, _ = js.data.digits(count=40)
    problem = js.problems.supervised(js.models.MLP(widths=(6,)), train)
    probes = [js.probes.sharpness(k=3, tol=TOLERANCE), "parameters"]
    ds = js.sweep(problem, js.optimizers.gd, {"learning_rate": [0.7]}, seeds=range(seeds), steps=steps, probes=probes, every=3)
    like = problem.init(jax.random.key(0))
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, float) if jnp.issubdtype(x.dtype, jnp.floating) else x, problem)
        unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, float), like))[1]
        dense = jax.jit(lambda w: jax.hessian(lambda flat: double.loss(unravel(flat)))(w))
        points = ds.parameters.values.reshape(-1, ds.parameters.shape[-1]).astype(float)
        exact = np.stack([np.linalg.eigvalsh(np.asarray(dense(w)))[::-1] for w in points])
    values = ds.sharpness.values.reshape(-1, 3)
    later = ds.sharpness_products.isel(step=slice(1, None))
    found = _judged(values, exact, ds.sharpness_converged.values.ravel())
    return found | {"products per value and measurement, later": float(later.mean()) / 3}


def _judged(values, exact, converged):
    scale = np.abs(exact).max(axis=1)[:, None]
    nearest = np.abs(values[:, :, None] - exact[:, None, :]).min(axis=2) / scale
    ranked = np.abs(values - exact[:, : values.shape[1]]) / scale
    sure = converged[:, None] & np.ones(values.shape, bool)
    return {
        "values": int(sure.sum()),
        "not converged": int((~converged).sum()),
        "off every eigenvalue by more than the tolerance": int((nearest > TOLERANCE)[sure].sum()),
        "off the eigenvalue of the rank by more, by rank": [int(wrong) for wrong in ((ranked > TOLERANCE) & sure).sum(axis=0)],
        "median error": float(np.median(ranked[sure])),
    }


def _crossings(size, seeds):
    """Measurements from an overtaking to the last wrong value, over seeds of the guard's noise."""
    rng = np.random.default_rng(0)
    basis = jnp.asarray(np.linalg.qr(rng.normal(size=(size, size)))[0])
    rest = 0.3 * rng.random(size - 3) ** 2 - 0.02
    heights = {
        "from 0.5 to 1.5 in 80 measurements": np.linspace(0.5, 1.5, 81),
        "from 0.1 to 1.5 at once": np.r_[np.full(5, 0.1), np.full(60, 1.5)],
        "from 0.9 to 1.1 in 200 measurements": np.linspace(0.9, 1.1, 201),
    }
    trackers = {
        "as it is": js.curvature.EigenTracker(k=1),
        "guard looked at every time": js.curvature.EigenTracker(k=1, guard_every=1),
        "two guards": js.curvature.EigenTracker(k=1, guards=2),
        "no guard": js.curvature.EigenTracker(k=1, guards=0),
    }

    @partial(jax.jit, static_argnums=0)
    def follow(tracker, spectra, count):
        def measure(memory, spectrum):
            memory, pairs = tracker.measure(lambda v: basis @ (spectrum * (basis.T @ v)), memory)
            return memory, (pairs.values[0], pairs.matvecs)

        memory = tracker.init(basis[0])
        memory = memory._replace(vectors=basis.T[: tracker.k + tracker.guards] * 1.0, count=count)
        return jax.lax.scan(measure, memory, spectra)[1]

    figures = {}
    for path, height in heights.items():
        # the first is tracked, the guards know bulk eigenvectors, and the one that rises is orthogonal to both
        spectra = jnp.asarray(np.stack([np.r_[1.0, rest[:2], h, 0.8, rest[2:]] for h in height]), basis.dtype)
        truth, overtaken = np.maximum(height, 1.0), int(np.argmax(height > 1.0))
        for name, tracker in trackers.items():
            delays, products = [], []
            for seed in range(seeds):
                values, spent = follow(tracker, spectra, jnp.asarray(1 + 1000 * seed, jnp.int32))
                wrong = np.flatnonzero(np.abs(np.asarray(values) - truth) > TOLERANCE * truth)
                delays.append(max(int(wrong[-1]) + 1 - overtaken, 0) if wrong.size else 0)
                products.append(float(spent.mean()))
            figures[f"overtaken {path}, {name}"] = {
                "measurements until noticed, median": float(np.median(delays)),
                "of 9 in 10 at most": float(np.quantile(delays, 0.9)),
                "of all at most": int(np.max(delays)),
                "measurements after the overtaking": int(height.size - overtaken),
                "products per measurement": float(np.mean(products)),
            }
    return figures


def _risers(size, seeds, cases):
    """Longest stretch of measurements in which a value is not that of its rank, as `count` eigenvalues rise among k together."""
    rng = np.random.default_rng(0)
    basis = jnp.asarray(np.linalg.qr(rng.normal(size=(size, size)))[0])

    @partial(jax.jit, static_argnums=0)
    def follow(tracker, spectra):
        def measure(memory, spectrum):
            memory, pairs = tracker.measure(lambda v: basis @ (spectrum * (basis.T @ v)), memory)
            return memory, (pairs.values, pairs.converged, pairs.matvecs)

        def one(count):
            return jax.lax.scan(measure, tracker.init(basis[0])._replace(count=count), spectra)[1]

        return jax.lax.map(one, 1000 * jnp.arange(seeds, dtype=jnp.int32))

    figures = {}
    for k, count in cases:
        bulk = rng.uniform(-0.1, 0.5, size - k - count)
        for apart in (0.01, 0.3):
            height = np.r_[np.linspace(0, 1, 40), np.ones(80)]
            rising = 0.5 + 3 * height[:, None] + apart * np.arange(count)
            fixed = np.linspace(3, 2, k)
            spectra = np.stack([np.r_[fixed, row, bulk] for row in rising])
            exact = -np.sort(-spectra, axis=1)[:, :k]
            for name, alert in {"as it is": {}, "no alert": {"alert": 0}}.items():
                tracker = js.curvature.EigenTracker(k=k, **alert)
                values, converged, products = map(np.asarray, follow(tracker, jnp.asarray(spectra, basis.dtype)))
                wrong = np.abs(values - exact) > TOLERANCE * exact[:, :1]
                stretches = [_longest(member) for member in wrong.any(axis=2)]
                figures[f"{count} rise together, {apart} apart, among k={k} from 2 to 3, {name}"] = {
                    "measurements in a row with a wrong value, median": float(np.median(stretches)),
                    "the same, of all seeds at most": int(np.max(stretches)),
                    "the same for the first value, at most": int(max(_longest(member) for member in wrong[:, :, 0])),
                    "all converged": bool(converged.all()),
                    "products per value and measurement, later": float(products[:, 1:].mean() / k),
                }
    return figures


def _longest(wrong):
    """The longest run of True."""
    return max((len(list(run)) for value, run in itertools.groupby(wrong) if value), default=0)


if __name__ == "__main__":
    main()
