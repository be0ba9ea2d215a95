"""What does following sharpness cost, alone and in a grid?

The same full-batch training (digits, tanh MLP 64-100-100-10, squared loss, GD) is timed four ways in one process: one run and
a grid, each with and without sharpness every 10 steps. First calls, which compile, are timed apart; the others are repeated
in turn and their medians compared, so that a noisy machine disturbs all alike.

Run: python benchmarks/engine.py [--tiny] [--members 16] [--out engine.json]
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402

import jaxsharp as js  # noqa: E402


def main() -> None:
    """Times the four ways and prints and writes their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    images, width, steps, repeats = (50, 8, 20, 1) if options.tiny else (1000, 100, 200, 3)
    members = 2 if options.tiny else options.members

    train, _ = js.data.digits(count=images, drop_constant=False)
    problem = js.problems.supervised(js.models.MLP(widths=(width, width)), train)
    tracked = ["loss", js.probes.sharpness(tol=1e-2)]

    def alone(probes):
        return lambda: js.simulate(problem, js.optimizers.gd(0.1), steps, probes=probes, every=10)

    def together(probes):
        over = {"learning_rate": np.linspace(0.02, 0.2, members).tolist()}
        return lambda: js.sweep(problem, js.optimizers.gd, over, steps=steps, probes=probes, every=10, progress=False)

    ways = {
        "one": alone(["loss"]),
        "one with sharpness": alone(tracked),
        "grid": together(["loss"]),
        "grid with sharpness": together(tracked),
    }
    first, seconds, results = {}, {name: [] for name in ways}, {}
    for name, way in ways.items():
        first[name] = _time(way)[0]
    for _ in range(repeats):
        for name, way in ways.items():
            took, results[name] = _time(way)
            seconds[name].append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    products = results["grid with sharpness"].sharpness_products
    figures = {
        "seconds, median": median,
        "seconds of the first call": first,
        "with sharpness / without, one run": median["one with sharpness"] / median["one"],
        "with sharpness / without, grid": median["grid with sharpness"] / median["grid"],
        "per member of the grid / one run": median["grid"] / members / median["one"],
        "per member of the grid / one run, with sharpness": median["grid with sharpness"]
        / members
        / median["one with sharpness"],
        "products per measurement after the first": float(products.isel(step=slice(1, None)).mean()),
        "products of the first measurement": float(products.isel(step=0).mean()),
        "all eigenpairs converged": bool(results["grid with sharpness"].sharpness_converged.all()),
    }
    setting = {"images": images, "width": width, "steps": steps, "members": members, "repeats": repeats}
    report = {"setting": setting, "figures": figures, **_machine()}
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _time(way) -> tuple[float, object]:
    began = time.perf_counter()
    result = way()  # a Dataset on the host, so everything has been waited for
    return time.perf_counter() - began, result


def _machine() -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
        "jaxsharp": js.__version__,
        "x64": bool(jax.config.jax_enable_x64),
        "commit": commit,
    }


if __name__ == "__main__":
    main()
