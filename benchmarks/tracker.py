"""How many products and how much time does a measurement of sharpness take, beside the solvers that people use today?

Points along full-batch GD (digits, tanh MLP 64-100-100-10, squared loss) are measured one after another: by the tracker, with and
without a guard, and with vectors that are not moved on; by `lobpcg_standard` of JAX started from its last vectors; by SciPy's
`eigsh`, started from its last vector, on the same compiled product, to the same tolerance and to machine precision; and by
PyHessian's power iteration on the same network in PyTorch, cold, as it always is. Error is relative to `eigsh` at machine
precision. Also the price of a product: gradient, forward-over-reverse product, linearized product, and the same with its factors
folded, as a search applies it, alone and in batches, and what each further one costs once the loss is linearized; beside it how
many multiplications of matrices a product has for each that a gradient has.

Run: python benchmarks/tracker.py [--tiny] [--out tracker.json]     (peers: pip install scipy torch pyhessian)
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from _price import price  # noqa: E402
from _report import machine, timed, write  # noqa: E402
from jax.experimental.sparse.linalg import lobpcg_standard  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402
from scipy.sparse.linalg import LinearOperator, eigsh  # noqa: E402

import jaxsharp as js  # noqa: E402


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    images, width, points, repeats = (50, 8, 4, 1) if options.tiny else (1000, 100, 25, 5)
    train, _ = js.data.digits(count=images, drop_constant=False)
    problem = js.problems.supervised(js.models.MLP(widths=(width, width)), train)
    start = problem.init(jax.random.key(0))
    paths = {"lr 0.1, every 10 steps": (0.1, 10), "lr 0.5, every 10 steps": (0.5, 10), "lr 0.5, every step": (0.5, 1)}
    counts = (1,) if options.tiny else (1, 5, 20)
    figures = {"price of a product": price(problem, (1, 2) if options.tiny else (1, 4, 16), 3 * repeats)}
    if not options.tiny:
        pictures, _ = js.data.digits(count=20, flatten=False)
        tokens, _ = js.data.sorting(20, 2, length=8, values=8)
        vit = js.problems.supervised(js.models.ViT(width=32, depth=3, patch=2), pictures, loss="cross_entropy")
        transformer = js.problems.supervised(js.models.Transformer(width=32, depth=3), tokens, loss="cross_entropy")
        figures["price of a product, ViT of 39,178 parameters, 20 images"] = price(vit, (1,), 3 * repeats)
        figures["price of a product, transformer of 39,176 parameters, 20 sequences"] = price(transformer, (1,), 3 * repeats)
    for name, (rate, every) in list(paths.items())[: 1 if options.tiny else None]:
        path = _path(problem, start, rate, points, every)
        for k in counts if every > 1 else (1,):
            figures[f"{name}, k={k}"] = _follow(problem, path, k, repeats)
    pyhessian = _pyhessian(train, width)
    if pyhessian is not None:
        figures["PyHessian, cold, k=1"] = pyhessian
    setting = {"images": images, "width": width, "points": points, "repeats": repeats}
    write({"setting": setting, "figures": figures, **machine()}, options.out)


@partial(jax.jit, static_argnums=(3, 4))
def _path(problem, start, rate, points, every):
    def step(w):
        return jax.tree.map(lambda a, b: a - rate * b, w, jax.grad(problem.loss)(w))

    def visit(w, _):
        return jax.lax.fori_loop(0, every, lambda _, w: step(w), w), w

    return jax.lax.scan(visit, start, length=points)[1]


def _follow(problem, path, k, repeats):
    like = jax.tree.map(lambda leaf: leaf[0], path)
    flat, unravel = ravel_pytree(like)
    flats = np.asarray(jax.vmap(lambda w: ravel_pytree(w)[0])(path))
    product = jax.jit(lambda p, w, v: ravel_pytree(js.curvature.hvp(p.loss, unravel(w), unravel(v)))[0])

    def scipy(tol):
        values, products, guess = [], [], None
        for w in flats:
            count = 0

            def multiply(v, w=w):
                nonlocal count
                count += 1
                return np.asarray(product(problem, w, v.ravel().astype(w.dtype)))

            operator = LinearOperator((flat.size, flat.size), multiply, dtype=flats.dtype)
            found, vectors = eigsh(operator, k=k, which="LA", tol=tol, v0=guess)
            guess = vectors.sum(axis=1)
            values.append(np.sort(found)[::-1])
            products.append(count)
        return np.asarray(values), np.asarray(products)

    @partial(jax.jit, static_argnums=(0, 3))
    def track(tracker, problem, path, still=False):
        def measure(memory, w):
            memory, pairs = tracker.measure(js.curvature.hessian_operator(problem.loss, w), memory)
            if still:
                memory = memory._replace(trust=0 * memory.trust)
            return memory, (pairs.values, pairs.matvecs, pairs.converged)

        return jax.lax.scan(measure, tracker.init(like), path)[1]

    @jax.jit
    def lobpcg(problem, path):
        def measure(guess, w):
            matvec = js.curvature.hessian_operator(problem.loss, w)
            multiply = jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0], in_axes=1, out_axes=1)
            values, vectors, iterations = lobpcg_standard(multiply, guess, 200, 1e-2 / flat.size / 10)  # undoes its scaling
            return vectors, (values, iterations * 4 * k)

        return jax.lax.scan(measure, jax.random.normal(jax.random.key(0), (flat.size, k)), path)[1]

    exact = None
    figures = {}
    rows = {
        "eigsh, machine precision": lambda: scipy(0),
        "eigsh, 1e-2": lambda: scipy(1e-2),
        "tracker": lambda: track(js.curvature.EigenTracker(k), problem, path),
        "tracker, no guard": lambda: track(js.curvature.EigenTracker(k, guards=0), problem, path),
        "tracker, not moved on": lambda: track(js.curvature.EigenTracker(k), problem, path, True),
    }
    if k * 5 < flat.size and k < 20:
        rows["lobpcg_standard"] = lambda: lobpcg(problem, path)
    for name, row in rows.items():
        few = 1 if "eigsh" in name else repeats
        result, first, seconds = timed(row, few)
        values, products = np.asarray(result[0]), np.asarray(result[1])
        exact = values if exact is None else exact
        figures[name] = {
            "products, first": int(products[0]),
            "products per vector and measurement, later": float(products[1:].mean() / k),
            "most products, later": int(products[1:].max()),
            "ms per measurement": 1e3 * seconds / len(flats),
            "largest error": float((np.abs(values - exact) / exact[:, :1]).max()),
            "seconds of the first call": first,
        }
        if len(result) > 2:
            figures[name]["all converged"] = bool(np.asarray(result[2]).all())
    return figures


def _pyhessian(train, width):
    """Seconds of a cold top eigenvalue by PyHessian, or None where it is missing."""
    try:
        import torch
        from pyhessian import hessian
    except ImportError:
        return None
    inputs = torch.tensor(np.asarray(train.inputs, np.float32))
    labels = torch.nn.functional.one_hot(torch.tensor(np.asarray(train.targets, np.int64))).float()
    tanh, linear = torch.nn.Tanh, torch.nn.Linear
    model = torch.nn.Sequential(
        linear(inputs.shape[1], width), tanh(), linear(width, width), tanh(), linear(width, labels.shape[1])
    )
    criterion = lambda outputs, targets: 0.5 * ((outputs - targets) ** 2).sum(1).mean()  # noqa: E731
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        hessian(model, criterion, data=(inputs, labels), cuda=False).eigenvalues(maxIter=100, tol=1e-3, top_n=1)
        seconds.append(time.perf_counter() - began)
    return {"ms per measurement": 1e3 * statistics.median(seconds)}


if __name__ == "__main__":
    main()
