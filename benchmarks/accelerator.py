"""How near to its limits does an accelerator come?

Three questions. How many operations a second do gradients and Hessian-vector products reach on networks that fill the device,
beside a product of two matrices in the same precision: single precision ("highest", what `simulate` takes by default), and the
faster one of the matrix units ("tensorfloat32")? How many members of a grid does it train in the time of one, with sharpness
every 10 steps and without? A call has fixed costs on the host, so this is told of whole runs and of each further step, from runs
of two lengths that share their program. And in a batch of searches, how many should run side by side, and how many directions of
one; what does a small eigenproblem cost, as it is and given twice?

Runs on a CPU as well, where the answers are known from `grid.py` and `tracker.py`. On a GPU most of the time goes into compiling:
run the parts once, side by side, with JAX_COMPILATION_CACHE_DIR set, and then again one after the other.

Run: python benchmarks/accelerator.py [--tiny] [--part throughput | members | searches] [--out accelerator.json]
"""

import argparse
import itertools
import json
from functools import partial
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _price import price  # noqa: E402
from _report import by_turns, machine, timed, write  # noqa: E402

import jaxsharp as js  # noqa: E402
from jaxsharp.curvature import turns  # noqa: E402

PRECISIONS = ("highest", "tensorfloat32")


def main() -> None:
    """Measures, prints and writes; what is done is on disk at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--part", choices=("throughput", "members", "searches"), help="one question only")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    figures = {}
    networks = {"50 images, width 16": (50, 16), "1000 images, width 100": (1000, 100)}
    if options.tiny:
        networks = {"4 images, width 4": (4, 4)}
    problems = {
        name: js.problems.supervised(js.models.MLP(widths=(width,) * 2), js.data.digits(count=images, drop_constant=False)[0])
        for name, (images, width) in networks.items()
    }
    lengths = (10, 20) if options.tiny else (650, 1260)
    members, chunks = ((2,), (2,)) if options.tiny else ((16, 32, 64, 256), (16, 64, 256))
    setting = {"networks": list(networks), "steps": lengths}
    parts = {
        "throughput": partial(_throughput, options.tiny),
        "members": partial(_members, problems, lengths, members),
        "searches": partial(_searches, problems, lengths[0], members[-1], chunks),
    }
    for title, rows in itertools.chain.from_iterable(parts[name]() for name in ([options.part] if options.part else parts)):
        figures.setdefault(title, {}).update(rows)
        if options.out:
            options.out.write_text(json.dumps({"setting": setting, "figures": figures, **machine()}, indent=1) + "\n")
    write({"setting": setting, "figures": figures, **machine()}, options.out)


def _throughput(tiny):
    """TFLOP/s of gradients and products, and their share of what a product of square matrices reaches."""
    count, widths, channels, side = (20, (8, 8), (), 64) if tiny else (1700, (4096, 4096), (256, 256), 8192)
    flat, _ = js.data.digits(count=count, drop_constant=False)
    problems = {f"MLP {widths}, {count} images": js.problems.supervised(js.models.MLP(widths=widths), flat)}
    if not tiny:
        pictures, _ = js.data.digits(count=count, flatten=False)
        problems[f"CNN {channels}, {count} images"] = js.problems.supervised(js.models.CNN(widths=channels), pictures)
    for precision in PRECISIONS[: 1 if tiny else None]:
        with jax.default_matmul_precision(precision):
            rate = _matrix_rate(side)
            rows = {"product of two matrices, TFLOP/s": rate}
            for name, problem in problems.items():
                found = price(problem, (1,), 1 if tiny else 5)
                gradient = found["operations of a gradient"]
                for way, work in {
                    "gradient": gradient,
                    "product, linearized once per ten and folded": gradient * found["operations of a product / of a gradient"],
                    "product, folded, each further one": gradient * found["operations of a product / of a gradient"],
                }.items():
                    reached = work / (1e-3 * found[f"{way}, 1 members, ms each"]) / 1e12
                    rows[f"{name}: {way}, TFLOP/s"] = reached
                    rows[f"{name}: {way}, share of two matrices"] = reached / rate
                    rows[f"{name}: {way}, ms"] = found[f"{way}, 1 members, ms each"]
        yield f"precision {precision}", rows
        jax.clear_caches()


def _matrix_rate(side, repeats=10):
    """TFLOP/s of multiplying two random square matrices, in a loop that cannot be shortened."""
    matrix = jax.random.normal(jax.random.key(0), (side, side)) / jnp.sqrt(side)
    program = jax.jit(lambda a: jax.lax.fori_loop(0, repeats, lambda _, b: a @ b, a))
    return repeats * 2 * side**3 / timed(lambda: program(matrix), 3)[2] / 1e12


def _members(problems, lengths, counts):
    """Milliseconds of grids of so many members, whole and per further step, and these over those of a run alone."""
    for network, problem in problems.items():
        for name, probes in (("without sharpness", ["loss"]), ("with sharpness every 10", ["loss", "sharpness"])):
            ways = {}
            for steps in lengths:
                ways["alone", steps] = partial(js.simulate, problem, js.optimizers.gd(0.1), steps, probes=probes, every=10)
                ways |= {(f"{count} members", steps): partial(_sweep, problem, steps, probes, count) for count in counts}
            each, (short, long) = _milliseconds(ways, 3), lengths
            rows = {way: (ms, (each[way, long] - ms) / (long - short)) for (way, steps), ms in each.items() if steps == short}
            figures = {
                way: {
                    f"{short} steps, ms": whole,
                    "each further step, ms": step,
                    f"{short} steps, over the time of one": whole / rows["alone"][0],
                    "each further step, over the time of one": step / rows["alone"][1],
                }
                for way, (whole, step) in rows.items()
            }
            yield f"{network}, {name}", figures
            jax.clear_caches()


def _sweep(problem, steps, probes, count):
    over = {"learning_rate": np.linspace(0.02, 0.2, count).tolist()}
    options = {"steps": steps, "probes": probes, "every": 10, "batch_size": count, "devices": jax.devices()[:1]}
    return js.sweep(problem, js.optimizers.gd, over, progress=False, **options)


def _searches(problems, steps, members, chunks):
    """Milliseconds of grids with so many searches side by side; and of a run with its directions side by side or in turn."""
    name = "MEMBERS_ON_CPU" if jax.default_backend() == "cpu" else "MEMBERS_ON_ACCELERATOR"
    usual, title = getattr(turns, name), "searches, ms"
    for network, problem in problems.items():
        for chunk in chunks:
            setattr(turns, name, chunk)
            jax.clear_caches()
            way = f"{network}, {members} members, {chunk} searches side by side"
            yield title, _milliseconds({way: partial(_sweep, problem, steps, ["sharpness"], members)}, 3)
    setattr(turns, name, usual)
    jax.clear_caches()

    def follow(block, k, problem, w):
        tracker = js.curvature.EigenTracker(k, block=block)

        def measure(carry, _):
            w, memory = carry
            w = jax.lax.fori_loop(0, 10, lambda _, w: jax.tree.map(lambda a, b: a - 0.1 * b, w, jax.grad(problem.loss)(w)), w)
            memory, pairs = tracker.measure(js.curvature.hessian_operator(problem.loss, w), memory)
            return (w, memory), pairs.matvecs

        return jax.lax.scan(measure, (w, tracker.init(w)), length=max(steps // 10, 2))[1]

    for k in (1, 5):  # of the last network
        ways = {f"k={k}, {block} directions side by side": partial(follow, block, k) for block in (1, k + 1)}
        programs = {way: partial(jax.jit(function), problem, problem.init(jax.random.key(0))) for way, function in ways.items()}
        with jax.default_matmul_precision("highest"):
            yield title, _milliseconds(programs, 5)
            yield title, {f"{way}, products": float(program().mean()) for way, program in programs.items()}
    for size in (5, 17):
        matrix = jax.random.normal(jax.random.key(0), (size, size))
        programs = {copies: partial(jax.jit(partial(_eigenproblems, copies)), matrix) for copies in (1, 2)}
        each = _milliseconds(programs, 3)
        yield title, {f"a hundred eigenproblems of {size} rows, each given {copies} times": ms for copies, ms in each.items()}


def _eigenproblems(copies, matrix):
    """A hundred, one after another, each the last put together again."""

    def put_together(_, matrix):
        values, vectors = jnp.linalg.eigh(jnp.stack([matrix] * copies))
        return (vectors[0] * values[0]) @ vectors[0].T

    return jax.lax.fori_loop(0, 100, put_together, matrix + matrix.T)


def _milliseconds(ways, repeats):
    return {name: 1e3 * seconds for name, seconds in by_turns(ways, repeats).items()}


if __name__ == "__main__":
    main()
