"""What does a member of a grid of deep networks cost, in time and memory, with and without its sharpness followed?

VGG-11 and ResNet-20 on noise in the shape of CIFAR-10, a ViT on digits and a decoder-only transformer on the sorting task, each
with its usual normalization, train by full-batch gradient descent: one run alone, and a grid over seeds in one compiled program.
Every figure comes from a process of its own. Times are differences between a longer and a shorter run of the same program,
without what each run costs once (its start, the first search from random directions). "MB of arrays" is by how much the process
grows at its peak when what is compiled already runs once more, to within a few MB; "MB with programs" by how much it has grown in
all (Linux only).

Run: JAX_NUM_CPU_DEVICES=2 python benchmarks/models.py [--tiny] [--out models.json]
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _report import machine, timed, write  # noqa: E402

import jaxsharp as js  # noqa: E402
from jaxsharp import grid  # noqa: E402
from jaxsharp._cost import burden_of  # noqa: E402

EVERY = 5

LENGTHS = {"ViT": (80, 150), "transformer": (80, 150)}
"""Steps of the shorter and the longer run; both record into buffers of one size, so that they share a program."""

MMAP_THRESHOLD = -3
"""The C library's name of the size from which memory is mapped."""


def main() -> None:
    """Measures each network alone and in a grid, each in a process of its own, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--measure", nargs=3, metavar=("NETWORK", "MEMBERS", "IMAGES"), help="measure here, print figures")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.measure:
        name, *numbers = options.measure
        print(json.dumps(_measure(name, *map(int, numbers))))
        return
    setting = {"members": 2, "images": 4} if options.tiny else {"members": 4, "images": 20}
    figures = {}
    for name in ["MLP"] if options.tiny else [name for name in PROBLEMS if name != "MLP"]:
        alone, together = (_in_a_process(name, members, setting) for members in (1, setting["members"]))
        print(f"{name} is measured", file=sys.stderr, flush=True)
        each = setting["members"]
        figures[name] = {
            "parameters": alone["parameters"],
            "ms a step alone": alone["plain ms"],
            "ms a step alone, with sharpness": alone["followed ms"],
            "with sharpness / without, alone": alone["followed ms"] / alone["plain ms"],
            "ms a step and member in the grid": together["plain ms"] / each,
            "ms a step and member in the grid, with sharpness": together["followed ms"] / each,
            "grid, a member / alone": together["plain ms"] / each / alone["plain ms"],
            "grid, a member / alone, with sharpness": together["followed ms"] / each / alone["followed ms"],
            "seconds to compile": alone["compile s"],
            "seconds to compile the grid": together["compile s"],
            "members side by side": together["side by side"],
            "MB of arrays, alone": alone["plain MB"],
            "MB of arrays, alone, with sharpness": alone["followed MB"],
            "MB of arrays a member in the grid": together["plain MB"] / together["side by side"],
            "MB of arrays a member in the grid, with sharpness": together["followed MB"] / together["side by side"],
            "MB with programs, alone": alone["MB"],
            "MB with programs, grid": together["MB"],
            "products a measurement": alone["products a measurement"],
            "steps": alone["steps"],
        }
        report = {"setting": setting | {"every": EVERY}, "figures": figures, "devices": jax.device_count(), **machine()}
        if options.out:  # after each network, since deep ones take minutes to compile
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    write(report, options.out)


def _images(model, images):
    rng = np.random.default_rng(0)
    return js.problems.supervised(model, (rng.normal(size=(images, 32, 32, 3)), np.arange(images) % 10), loss="cross_entropy")


def _digits(model, images):
    return js.problems.supervised(model, js.data.digits(count=images, flatten=False)[0], loss="cross_entropy")


def _sorting(model, images):
    return js.problems.supervised(model, js.data.sorting(images, 2, length=8, values=8)[0], loss="cross_entropy")


PROBLEMS = {
    "MLP": lambda images: js.problems.supervised(js.models.MLP(widths=(8,)), js.data.digits(count=images)[0]),
    "ViT": lambda images: _digits(js.models.ViT(width=32, depth=3, patch=2), images),
    "transformer": lambda images: _sorting(js.models.Transformer(width=32, depth=3), images),
    "VGG-11": lambda images: _images(js.models.VGG11(width=8, norm="batch"), images),
    "ResNet-20": lambda images: _images(js.models.ResNet20(width=8), images),
}
"""Networks by name, each as a problem of so many samples; the perceptron is for `--tiny` alone."""


def _in_a_process(name, members, setting):
    arguments = [name, str(members), str(setting["images"])]
    found = subprocess.run([sys.executable, __file__, "--measure", *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def _measure(name, members, images):
    problem = PROBLEMS[name](images)
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    burden = burden_of(jax.make_jaxpr(lambda p, key: jax.grad(p.loss)(p.init(key)))(problem, jax.random.key(0)).jaxpr)
    jax.block_until_ready(jnp.ones(8) @ jnp.ones(8))
    before = _memory("VmRSS")
    figures = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "side by side": grid.batch_length("auto", members, min(jax.device_count(), members), burden),
    }
    shorter, longer = figures["steps"] = LENGTHS.get(name, (5, 10))
    repeats = 1 if name == "ResNet-20" else 3  # a run of it takes a minute

    def run(probes, steps):
        return js.sweep(
            problem,
            js.optimizers.gd,
            {"learning_rate": [1e-2]},
            seeds=list(range(members)),
            steps=steps,
            every=EVERY,
            probes=probes,
            progress=False,
        )

    kinds = {"plain": ["loss"], "followed": ["loss", "sharpness"]}
    for kind, probes in kinds.items():
        some, first, few = timed(partial(run, probes, shorter), repeats)
        ds, _, many = timed(partial(run, probes, longer), repeats)
        figures[f"{kind} ms"] = 1e3 * (many - few) / (longer - shorter)
    figures["compile s"] = first - few
    figures["products a measurement"] = float((ds.hvps - some.hvps).mean()) * EVERY / (longer - shorter)
    figures["MB"] = _memory("VmHWM") - before
    for kind, probes in kinds.items():  # last, since it changes how memory is given back
        figures[f"{kind} MB"] = _peak(partial(run, probes, shorter))
    return figures


def _peak(run):
    """By how many MB the process grows at its peak during a call."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(MMAP_THRESHOLD, 2**16)  # larger arrays are given back as soon as they are freed
    run()
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory("VmRSS")
    run()
    return _memory("VmHWM") - before


def _memory(name):
    """MB that the process holds (VmRSS) or has held at most (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
