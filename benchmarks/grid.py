"""How many members should run side by side?

For networks of several sizes, training with sharpness every 10 steps is timed for several batch sizes in one process. "auto" is
what `sweep(batch_size="auto")` takes from the counted operations of a gradient (`jaxsharp/_cost.py`); "auto / best" near 1 says
that it chose well. With several devices (on a CPU: JAX_NUM_CPU_DEVICES=2) the members are also spread over these.

Run: python benchmarks/grid.py [--tiny] [--members 16] [--out grid.json]
"""

import argparse
import statistics
import time
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from _report import machine, write  # noqa: E402

import jaxsharp as js  # noqa: E402
from jaxsharp import grid  # noqa: E402
from jaxsharp._cost import operations  # noqa: E402


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    members = 2 if options.tiny else options.members
    sizes = [(30, 4, "none")] if options.tiny else [(50, 16, "none"), (200, 32, "batch"), (200, 100, "none"), (1000, 100, "none")]
    batches = [1, 2] if options.tiny else [1, 4, members]
    figures = {}
    for images, width, norm in sizes:
        train, _ = js.data.digits(count=images, drop_constant=False)
        problem = js.problems.supervised(js.models.MLP(widths=(width, width), norm=norm), train)
        name = f"{images} images, width {width}, {norm}"
        figures[name] = _measure(problem, members, batches, 10 if options.tiny else 100, 1 if options.tiny else 3)
    write({"setting": {"members": members, "devices": len(jax.devices())}, "figures": figures, **machine()}, options.out)


def _measure(problem, members, batches, steps, repeats):
    rates = np.linspace(0.02, 0.2, members).tolist()
    cost = operations(jax.make_jaxpr(lambda p, key: jax.grad(p.loss)(p.init(key)))(problem, jax.random.key(0)).jaxpr)
    auto = grid.batch_length("auto", members, 1, cost)
    several = len(jax.devices()) > 1

    def run(batch, devices):
        return js.sweep(
            problem,
            js.optimizers.gd,
            {"learning_rate": rates},
            steps=steps,
            every=10,
            probes=["loss", "sharpness"],
            batch_size=batch,
            devices=devices,
            progress=False,
        )

    ways = {f"batch of {batch}": (batch, jax.devices()[:1]) for batch in sorted({*batches, auto})}
    if several:
        ways["spread over devices"] = ("auto", None)
    seconds = {name: [] for name in ways}
    for way in ways.values():
        run(*way)  # compiles
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            run(*way)
            seconds[name].append(time.perf_counter() - began)
    each = {name: 1e3 * statistics.median(values) / members for name, values in seconds.items()}
    return {
        "operations of a gradient": cost,
        "ms per member": each,
        "auto": auto,
        "auto / best": each[f"batch of {auto}"] / min(each.values()),
        "auto / one at a time": each[f"batch of {auto}"] / each["batch of 1"],
    }


if __name__ == "__main__":
    main()
