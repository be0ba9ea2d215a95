"""How much memory does a run with sharpness take, and does the stated model predict it?

Networks of 10³ to 10⁷ parameters train for a few steps with sharpness tracked, each in a process of its own, and the growth of
its resident memory from before the run to its peak is compared with the model

    bytes = programs + itemsize · (D · (4 · rows + 5 + 3 k + 5 guards) + 8 · images · units),    rows = 2 (k + guards) + 4 + 1.

The search holds `rows` directions and their products, and as much again while it replaces full rows by their best; 5 + k + guards
further vectors are the parameters, the gradient and the tracker's memory, 2 (k + guards) the first directions before and after
noise is added, 2 guards their next step; the last term is what the linearized gradient holds. Compiling and holding the programs
takes some 200 MB however small the network is: the smallest network calibrates it, the others are predicted.

Run: python benchmarks/memory.py [--tiny] [--out memory.json]
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from _report import machine, write  # noqa: E402

import jaxsharp as js  # noqa: E402

IMAGES = 100


def main() -> None:
    """Measures each size in a process of its own, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--width", type=int, help="measure one network of this width, here, and print its figures")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.width:
        print(json.dumps(_measure(options.width)))
        return
    widths = (8, 16) if options.tiny else (10, 64, 270, 960, 3100)
    figures, programs = {}, None
    for width in widths:
        found = subprocess.run(
            [sys.executable, __file__, "--width", str(width)], check=True, capture_output=True, text=True
        ).stdout
        figure = json.loads(found.splitlines()[-1])
        if programs is None:
            programs = figure["measured MB"] - figure["arrays by the model, MB"]
        else:
            figure["model MB"] = programs + figure["arrays by the model, MB"]
            figure["measured / model"] = figure["measured MB"] / figure["model MB"]
        figures[f"width {width}"] = figure
    setting = {"images": IMAGES, "k": 1, "guards": 1}
    write({"setting": setting, "programs MB": programs, "figures": figures, **machine()}, options.out)


def arrays(parameters: int, units: int, k: int = 1, guards: int = 1, itemsize: int = 4) -> float:
    """The predicted bytes of arrays."""
    rows = 2 * (k + guards) + 4 + 1
    return itemsize * (parameters * (4 * rows + 5 + 3 * k + 5 * guards) + 8 * IMAGES * units)


def _measure(width):
    train, _ = js.data.digits(count=IMAGES)
    problem = js.problems.supervised(js.models.MLP(widths=(width, width)), train)
    start = jax.jit(lambda key: problem.init(key))(jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(start))
    units = train.inputs.shape[1] + 2 * width + 10
    jax.block_until_ready(jnp.ones(8) @ jnp.ones(8))
    before = _resident()
    ds = js.simulate(problem, js.optimizers.gd(1e-3), 3, probes=["loss", "sharpness"], init=start, every=1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "parameters": count,
        "measured MB": grown / 1e6,
        "arrays by the model, MB": arrays(count, units) / 1e6,
        "products": int(ds.hvps),
    }


def _resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
