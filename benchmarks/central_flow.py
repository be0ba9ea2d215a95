"""What does a unit of flow time cost at the edge of stability, alone and side by side?

GD first takes a network on digits to its edge (tanh 64-100-100-10, 1000 images, squared loss; rate 0.5). From there each flow
goes on for some steps, one member and 16 of as many seeds; seconds and products are per unit of flow time, one optimizer step,
and per member. A gradient of the same problem is timed beside. A peer's central flow with k = 5, 4 substeps and a convex solver
on the host took 1.9 s per unit on this network, on 2 CPU cores, and cannot be batched. The tiny setting runs the edge flow only.

Run: python benchmarks/central_flow.py [--tiny] [--members 16] [--repeats 3] [--out central_flow.json]
"""

import argparse
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from _report import machine, timed, write  # noqa: E402

import jaxsharp as js  # noqa: E402

RATE = 0.5

PEER_SECONDS = 1.9


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    images, width, burn, steps = (30, 4, 2, 1) if options.tiny else (1000, 100, 300, 5)
    members, repeats = (2, 1) if options.tiny else (options.members, options.repeats)
    train, _ = js.data.digits(count=images)
    problem = js.problems.supervised(js.models.MLP(widths=(width, width)), train)
    gd = js.optimizers.gd(RATE)
    flows = {"central, k = 5, 4 substeps": js.flows.central(gd, k=5)}
    if options.tiny:
        flows = {"edge": js.flows.edge(RATE)}
    else:
        flows["central, corrected, k = 5, 1 substep"] = js.flows.central(gd, k=5, substeps=1, corrected=True)
        flows["edge"] = js.flows.edge(RATE)

    def start(key):
        dynamics = js.as_dynamics(gd)
        small = jax.tree.map(lambda leaf: 0.5 * leaf, problem.init(key))  # at full size GD starts past its edge, and may diverge
        return dynamics.advance(problem, dynamics.init(problem, small), jnp.asarray(burn)).params

    points = jax.jit(lambda keys: jax.lax.map(start, keys))(jax.random.split(jax.random.key(0), members))
    first = jax.tree.map(lambda leaf: leaf[0], points)
    gradient = jax.jit(jax.grad(problem.loss))
    seconds = timed(lambda: gradient(first), 5 * repeats)[2]
    figures = {"gradient": {"seconds": seconds}}
    for name, flow in flows.items():
        figures[name] = {"alone": _measure(problem, flow, jax.tree.map(lambda leaf: leaf[:1], points), steps, repeats)}
        figures[name][f"{members} members"] = _measure(problem, flow, points, steps, repeats)
    if not options.tiny:
        figures["peer / central alone"] = PEER_SECONDS / figures["central, k = 5, 4 substeps"]["alone"]["seconds"]
    write({"setting": {"steps": steps, "burn": burn, "rate": RATE}, "figures": figures, **machine()}, options.out)


def _measure(problem, flow, points, steps, repeats):
    """Seconds and products per member and unit of flow time; one member is not batched."""
    count = len(jax.tree.leaves(points)[0])
    over = jax.vmap if count > 1 else (lambda f: lambda tree: f(jax.tree.map(lambda leaf: leaf[0], tree)))
    states = jax.jit(over(lambda w: flow.init(problem, w)))(points)
    batched = jax.vmap if count > 1 else (lambda f: f)
    advance = jax.jit(batched(lambda state: flow.advance(problem, state, jnp.asarray(steps))))
    after, compiling, seconds = timed(lambda: advance(states), repeats)
    active = getattr(after.inner, "active", jnp.zeros(()))
    return {
        "seconds": seconds / steps / count,
        "products": float(jnp.mean(after.hvps - states.hvps)) / steps,
        "compile_seconds": compiling - seconds,
        "active_directions": float(jnp.mean(active)),
        "failed": int(jnp.sum((after.status & 31) != 0)),
    }


if __name__ == "__main__":
    main()
