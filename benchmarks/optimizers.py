"""What do SAM and IRE cost over the optimizer they wrap, in time and memory, alone and in a grid?

The same full-batch training (digits, tanh MLP 64-100-100-10, squared loss, float32) is timed with each rule in one process:
first calls, which compile, apart; the others in turn, several times, and each round's ratios taken before the median, so that a
noisy machine disturbs all alike. Memory: bytes of optimizer state, and the temporary memory of one compiled step.

Run: python benchmarks/optimizers.py [--tiny] [--members 8] [--out optimizers.json]
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
import optax  # noqa: E402

import jaxsharp as js  # noqa: E402
from jaxsharp.optimizers import Eigenspace, Hutchinson, from_factory, gd, ire, sam  # noqa: E402

GD, ADAMW = gd(0.05, momentum=0.9), from_factory(optax.adamw, learning_rate=1e-3)

RULES = {
    "gd with momentum": GD,
    "adamw": ADAMW,
    "sam": sam(GD, 0.05),
    "average-direction sam": sam(GD, 0.05, ascent="random"),
    "sam, groups of 100": sam(GD, 0.05, group=100),
    "ire, squared gradient": ire(GD, 1.0, 0.8),
    "ire, fisher, ema": ire(GD, 1.0, 0.8, estimator="fisher", ema=0.9),
    "ire, hutchinson": ire(GD, 1.0, 0.8, estimator=Hutchinson()),
    "ire, hutchinson, every step": ire(GD, 1.0, 0.8, 1, estimator=Hutchinson()),
    "ire, top 2 eigenvectors": ire(GD, 1.0, None, estimator=Eigenspace(2)),
    "ire, squared gradient, of adamw": ire(ADAMW, 1.0, 0.8),
    "ire, squared gradient, of sam": ire(sam(GD, 0.05), 1.0, 0.8),
}

BASES = {
    "gd with momentum": "gd with momentum",
    "adamw": "adamw",
    "ire, squared gradient, of adamw": "adamw",
    "ire, squared gradient, of sam": "sam",
}
"""What a rule is compared with where it is not GD with momentum."""

GRIDS = ("gd with momentum", "ire, squared gradient", "ire, hutchinson", "ire, hutchinson, every step")


def main() -> None:
    """Times every rule and prints and writes ratios to its base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    images, width, steps, repeats = (100, 8, 11, 1) if options.tiny else (1000, 100, 200, 7)
    members = 2 if options.tiny else options.members
    names = list(RULES) if not options.tiny else ["gd with momentum", "sam", "ire, squared gradient"]
    grids = list(GRIDS) if not options.tiny else ["gd with momentum"]

    train, _ = js.data.digits(count=images, drop_constant=False)
    problem = js.problems.supervised(js.models.MLP(widths=(width, width)), train)
    params = problem.init(jax.random.key(0))

    def alone(name):
        return lambda: js.simulate(problem, RULES[name], steps, every=steps)

    def together(name):
        return lambda: js.sweep(problem, RULES[name], seeds=members, steps=steps, every=steps, progress=False)

    ways = {name: alone(name) for name in names} | {f"grid: {name}": together(name) for name in grids}
    first, seconds, results = {}, {name: [] for name in ways}, {}
    for name, way in ways.items():
        first[name] = _time(way)[0]
    for _ in range(repeats):
        for name, way in ways.items():
            took, results[name] = _time(way)
            seconds[name].append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(name, base):
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))

    memory = {name: _memory(problem, RULES[name], params) for name in names}
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    figures = {
        "seconds, median": median,
        "seconds of the first call": first,
        "time / time of the base": {
            name: ratio(name, BASES.get(name, "gd with momentum")) for name in names if BASES.get(name) != name
        },
        "grid: time / time of the base in a grid": {
            name: median[f"grid: {name}"] / median[f"grid: {grids[0]}"] for name in grids
        },
        "per member of the grid / one run": {name: ratio(f"grid: {name}", name) / members for name in grids},
        "bytes of state beyond the base, per parameter": {
            name: (memory[name]["state"] - memory[BASES.get(name, "gd with momentum")]["state"]) / size
            for name in names
            if BASES.get(name) != name
        },
        "temporary bytes of a step / those of the base": {
            name: memory[name]["temporary"] / memory[BASES.get(name, "gd with momentum")]["temporary"]
            for name in names
            if BASES.get(name) != name
        },
        "no run failed": all(bool((result.status == 0).all()) for result in results.values()),
    }
    setting = {"images": images, "width": width, "parameters": size, "steps": steps, "members": members, "repeats": repeats}
    report = {"setting": setting, "figures": figures, **_machine()}
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _time(way) -> tuple[float, object]:
    began = time.perf_counter()
    result = way()  # a Dataset on the host, so everything has been waited for
    return time.perf_counter() - began, result


def _memory(problem, rule, params) -> dict:
    """Bytes of optimizer state, and temporary bytes of one compiled step of the engine."""
    dynamics = js.as_dynamics(rule)
    typed = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dynamics)
    state = jax.jit(lambda dynamics, params: dynamics.init(problem, params))(typed, params)
    step = jax.jit(lambda problem, dynamics, state: dynamics.step(problem, state)).lower(problem, typed, state).compile()
    analysis = step.memory_analysis()
    return {
        "state": sum(leaf.nbytes for leaf in jax.tree.leaves(state.inner)),
        "temporary": int(analysis.temp_size_in_bytes) if analysis is not None else 0,
    }


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
