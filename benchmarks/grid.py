"""How many members should run side by side?

For networks of several sizes, training is timed for several batch sizes in one process, with sharpness every 10 steps and with
none. "auto" is what `sweep(batch_size="auto")` takes from the counted operations of a gradient (`jaxsharp/_cost.py`):
"auto / best" near 1 says that it chose well, "auto / one at a time" at most 1 that a grid is never slower. With several devices
(on a CPU: JAX_NUM_CPU_DEVICES=2) the members are also spread over these. Last, with the batch that "auto" takes, the
eigen-searches of its members run side by side instead of in turns.

Each way is timed by turns with the others; times are medians over the repeats.

Run: python benchmarks/grid.py [--tiny] [--members 16] [--repeats 7] [--out grid.json]
"""

import argparse
import json
from functools import partial
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from _report import by_turns, machine, write  # noqa: E402

import jaxsharp as js  # noqa: E402
from jaxsharp import grid  # noqa: E402
from jaxsharp._cost import burden_of  # noqa: E402
from jaxsharp.curvature import turns  # noqa: E402


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    members = 2 if options.tiny else options.members
    names = ["MLP, 30 images, width 4"] if options.tiny else list(PROBLEMS)
    batches = [1, 2] if options.tiny else [1, 4, members]
    steps, repeats = (10, 1) if options.tiny else (100, options.repeats)
    setting = {"members": members, "steps": steps, "repeats": repeats, "devices": len(jax.devices())}
    figures = {}
    for name in names:
        problem = PROBLEMS[name]()
        for kind, probes in (("with sharpness", ["loss", "sharpness"]), ("without", ["loss"])):
            figures[f"{name}, {kind}"] = _measure(problem, probes, members, batches, steps, repeats)
            if options.out:
                options.out.write_text(json.dumps({"setting": setting, "figures": figures, **machine()}, indent=1) + "\n")
        jax.clear_caches()
    write({"setting": setting, "figures": figures, **machine()}, options.out)


def _mlp(images, width, norm="none"):
    train, _ = js.data.digits(count=images, drop_constant=False)
    return js.problems.supervised(js.models.MLP(widths=(width, width), norm=norm), train)


def _cnn(images):
    train, _ = js.data.digits(count=images, flatten=False)
    return js.problems.supervised(js.models.CNN(widths=(8, 8), norm="batch"), train)


PROBLEMS = {
    "MLP, 10 images, width 2": partial(_mlp, 10, 2),
    "MLP, 30 images, width 4": partial(_mlp, 30, 4),
    "MLP, 50 images, width 16": partial(_mlp, 50, 16),
    "MLP, 200 images, width 32, batch normalization": partial(_mlp, 200, 32, "batch"),
    "MLP, 200 images, width 100": partial(_mlp, 200, 100),
    "MLP, 1000 images, width 100": partial(_mlp, 1000, 100),
    "CNN, 5 images, batch normalization": partial(_cnn, 5),
    "CNN, 100 images, batch normalization": partial(_cnn, 100),
}
"""Networks by name, from tiny ones to such as fill the cores alone."""


def _measure(problem, probes, members, batches, steps, repeats):
    rates = np.linspace(0.02, 0.2, members).tolist()
    burden = burden_of(jax.make_jaxpr(lambda p, key: jax.grad(p.loss)(p.init(key)))(problem, jax.random.key(0)).jaxpr)
    auto = grid.batch_length("auto", members, 1, burden)
    several = len(jax.devices()) > 1

    def run(batch, devices):
        return js.sweep(
            problem,
            js.optimizers.gd,
            {"learning_rate": rates},
            steps=steps,
            every=10,
            probes=probes,
            batch_size=batch,
            devices=devices,
            progress=False,
        )

    one_device = jax.devices()[:1]
    ways = {f"batch of {batch}": (batch, one_device) for batch in sorted({*batches, auto})}
    if several:
        ways["spread over devices"] = ("auto", None)
    each = _milliseconds({name: partial(run, *way) for name, way in ways.items()}, members, repeats)
    if "sharpness" in probes and auto > 1:
        turns.MEMBERS_ON_CPU, in_turns = members, turns.MEMBERS_ON_CPU
        jax.clear_caches()
        each |= _milliseconds({"searches side by side": partial(run, auto, one_device)}, members, repeats)
        turns.MEMBERS_ON_CPU = in_turns
        jax.clear_caches()
    return {
        "burden of a gradient": burden,
        "ms per member": each,
        "auto": auto,
        "auto / best": each[f"batch of {auto}"] / min(value for name, value in each.items() if name.startswith("batch")),
        "auto / one at a time": each[f"batch of {auto}"] / each["batch of 1"],
    }


def _milliseconds(ways, members, repeats):
    """Median time per member of each way."""
    return {name: 1e3 * seconds / members for name, seconds in by_turns(ways, repeats).items()}


if __name__ == "__main__":
    main()
