"""What does following sharpness cost, alone and in a grid?

The same full-batch training (digits, tanh MLP 64-100-100-10, squared loss, GD) is timed in one process: one run and a grid,
each without sharpness, with it every 10 steps, and with it every step to a looser tolerance; also where the next step reuses
the gradient of the measurement. Where PyTorch and SciPy are installed, so is the recipe of the edge-of-stability papers: a loop
in Python, double-backward products, `eigsh` every 10 steps. First calls, which compile, are timed apart; the others are
repeated in turn, so that a noisy machine disturbs all alike, and the ratios are those of medians over the repeats: a single run
of a fifth of a second takes now one time and now another, which medians of ratios within one repeat would follow.

Run: python benchmarks/engine.py [--tiny] [--members 16] [--out engine.json]
With JAX_NUM_CPU_DEVICES=2 the grid is also spread over that many devices of a CPU.
"""

import argparse
import itertools
import statistics
import time
from functools import partial
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from _report import machine, write  # noqa: E402

import jaxsharp as js  # noqa: E402


def main() -> None:
    """Times the four ways and prints and writes their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    images, width, steps, repeats = (50, 8, 20, 1) if options.tiny else (1000, 100, 200, options.repeats)
    members = 2 if options.tiny else options.members

    train, _ = js.data.digits(count=images, drop_constant=False)
    problem = js.problems.supervised(js.models.MLP(widths=(width, width)), train)
    untracked, tracked = ["loss"], ["loss", js.probes.sharpness(tol=1e-2)]
    unguarded = ["loss", js.probes.sharpness(tol=1e-2, guards=0)]
    often = ["loss", js.probes.sharpness(tol=1e-1, guards=0, every=1)]
    reused = ["loss", js.probes.sharpness(tol=1e-2, reuse_gradient=True)]
    often_reused = ["loss", js.probes.sharpness(tol=1e-1, guards=0, every=1, reuse_gradient=True)]

    def alone(probes, length=1):
        return lambda: js.simulate(problem, js.optimizers.gd(0.1), length * steps, probes=probes, every=10)

    def together(probes, devices):
        over = {"learning_rate": np.linspace(0.02, 0.2, members).tolist()}
        options = {"steps": steps, "probes": probes, "every": 10, "devices": devices, "progress": False}
        return lambda: js.sweep(problem, js.optimizers.gd, over, **options)

    alone_on = jax.devices()[:1]
    ways = {
        "one": alone(untracked),
        "one, sharpness every 10": alone(tracked),
        "one, sharpness every 10, no guard": alone(unguarded),
        "one, sharpness every 10, gradient reused": alone(reused),
        "one, five times as long": alone(untracked, 5),
        "one, sharpness every 10, five times as long": alone(tracked, 5),
        "one, sharpness every step, tol 0.1": alone(often),
        "one, sharpness every step, tol 0.1, gradient reused": alone(often_reused),
        "grid": together(untracked, alone_on),
        "grid, sharpness every 10": together(tracked, alone_on),
        "grid, sharpness every 10, gradient reused": together(reused, alone_on),
    }
    bare, spread = "grid, spread over devices", "grid, sharpness every 10, spread over devices"
    if len(jax.devices()) > 1:
        ways |= {bare: together(untracked, jax.devices()), spread: together(tracked, jax.devices())}
    recipes = {f"PyTorch and eigsh on {device}, sharpness every 10": recipe for device, recipe in _recipes(train, width, steps)}
    ways |= recipes
    first, seconds, results = {}, {name: [] for name in ways}, {}
    for name, way in ways.items():
        first[name] = _time(way)[0]
    for repeat in range(repeats):
        for name, way in ways.items():
            if name in recipes and repeat > 2:
                continue  # three tell enough
            took, results[name] = _time(way)
            seconds[name].append(took)

    def ratio(above, below, scale=1.0):
        return scale * statistics.median(seconds[above]) / statistics.median(seconds[below])

    products = results["grid, sharpness every 10"].sharpness_products
    figures = {
        "seconds, median": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds of the first call": first,
        "sharpness every 10 steps / none, one run": ratio("one, sharpness every 10", "one"),
        "the same, five times as long": ratio("one, sharpness every 10, five times as long", "one, five times as long"),
        "the same without guard": ratio("one, sharpness every 10, no guard", "one"),
        "sharpness every 10 steps / none, grid": ratio("grid, sharpness every 10", "grid"),
        "sharpness every 10 steps / none, grid, gradient reused": ratio("grid, sharpness every 10, gradient reused", "grid"),
        "sharpness every 10 steps / none, one run, gradient reused": ratio("one, sharpness every 10, gradient reused", "one"),
        "sharpness every step to 0.1 / none, one run": ratio("one, sharpness every step, tol 0.1", "one"),
        "the same, gradient reused": ratio("one, sharpness every step, tol 0.1, gradient reused", "one"),
        "per member of the grid / one run": ratio("grid", "one", 1 / members),
        "per member of the grid / one run, with sharpness": ratio(
            "grid, sharpness every 10", "one, sharpness every 10", 1 / members
        ),
        "products per measurement after the first": float(products.isel(step=slice(1, None)).mean()),
        "products of the first measurement": float(products.isel(step=0).mean()),
        "products per measurement, every step to 0.1": float(
            results["one, sharpness every step, tol 0.1"].sharpness_products[1:].mean()
        ),
        "all eigenpairs converged": bool(results["grid, sharpness every 10"].sharpness_converged.all()),
    }
    if spread in ways:
        figures["sharpness every 10 steps / none, grid spread over devices"] = ratio(spread, bare)
        figures["per member of the grid spread over devices / one run"] = ratio(bare, "one", 1 / members)
        figures["per member of the grid spread over devices / one run, with sharpness"] = ratio(
            spread, "one, sharpness every 10", 1 / members
        )
    for name in recipes:
        figures[f"{name} / member of the grid"] = ratio(name, "grid, sharpness every 10", members)
        if spread in ways:
            figures[f"{name} / member of the grid spread over devices"] = ratio(name, spread, members)
    setting = {"images": images, "width": width, "steps": steps, "members": members, "repeats": repeats}
    setting["devices"] = len(jax.devices())
    write({"setting": setting, "figures": figures, **machine()}, options.out)


def _time(way) -> tuple[float, object]:
    began = time.perf_counter()
    result = way()  # a Dataset on the host, so everything has been waited for
    return time.perf_counter() - began, result


def _recipes(train, width, steps):
    """The papers' recipe on each device that PyTorch has; nothing where PyTorch or SciPy are missing."""
    try:
        import torch
        from scipy.sparse.linalg import LinearOperator, eigsh
    except ImportError:
        return

    def run(device):
        inputs = torch.tensor(np.asarray(train.inputs, np.float32), device=device)
        labels = torch.nn.functional.one_hot(torch.tensor(np.asarray(train.targets, np.int64), device=device)).float()
        torch.manual_seed(0)
        sizes = [inputs.shape[1], width, width, labels.shape[1]]
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2]).to(device)
        weights = list(model.parameters())
        count = sum(w.numel() for w in weights)

        def loss():
            return 0.5 * ((model(inputs) - labels) ** 2).sum(1).mean()

        def product(vector):
            gradient = torch.cat([g.ravel() for g in torch.autograd.grad(loss(), weights, create_graph=True)])
            direction = torch.tensor(vector.ravel(), dtype=torch.float32, device=device)
            moved = torch.autograd.grad(gradient @ direction, weights)
            return torch.cat([g.ravel() for g in moved]).cpu().numpy()

        found = []
        for step in range(steps + 1):
            if step % 10 == 0:
                found.append(eigsh(LinearOperator((count, count), product, dtype=np.float32), k=1, which="LA")[0][0])
            gradient = torch.autograd.grad(loss(), weights)
            with torch.no_grad():
                for w, g in zip(weights, gradient, strict=True):
                    w -= 0.1 * g
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        yield device, partial(run, device)


if __name__ == "__main__":
    main()
