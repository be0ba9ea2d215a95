"""What does a unit of flow time cost at the edge of stability, alone and side by side, and how far is it from the floor?

GD first takes a network on digits to its edge (tanh 64-100-100-10, 1000 images, squared loss; rate 0.5). From there each flow
goes on for some steps, one member and 16 of as many seeds; seconds, products and third derivatives are per unit of flow time,
one optimizer step, and per member. A gradient, a product and a third derivative of the same problem are timed beside, and the
floor is what a unit would take if nothing else cost time and no eigenpair needed more than its one product a substep. The error
is the distance from the same flow with many substeps in float64, over how far that went. A peer's central flow with k = 5, 4
substeps and a convex solver on the host took 1.9 s per unit on this network, on 2 CPU cores, and cannot be batched. The tiny
setting runs the edge flow only.

Run: python benchmarks/central_flow.py [--tiny] [--members 16] [--repeats 3] [--out central_flow.json]
"""

import argparse
from pathlib import Path

from jaxsharp import selfcheck

selfcheck.apply_flag_to_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _report import machine, timed, write  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

import jaxsharp as js  # noqa: E402

RATE = 0.5

PEER_SECONDS = 1.9

K = 5

TOLERANCE = 3e-3
"""Relative residual of the eigenpairs; at 4 substeps the end is then as near to the reference as with 1e-3 (2.1 % and 2.1 %)."""


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a setting of seconds, to see that this still runs")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--reference", type=int, default=32, help="substeps of the flow that errors are measured from; 0 for none"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    images, width, burn, steps = (30, 4, 2, 1) if options.tiny else (1000, 100, 300, 5)
    members, repeats = (2, 1) if options.tiny else (options.members, options.repeats)
    train, _ = js.data.digits(count=images)
    problem = js.problems.supervised(js.models.MLP(widths=(width, width)), train)
    gd = js.optimizers.gd(RATE)
    flows = {"central, 4 substeps": (js.flows.central(gd, k=K, eigen_tolerance=TOLERANCE), 4)}
    if options.tiny:
        flows = {"edge": (js.flows.edge(RATE), 4)}
    else:
        flows["central, corrected, 1 substep"] = js.flows.central(gd, K, substeps=1, corrected=True, eigen_tolerance=TOLERANCE), 1
        flows["edge"] = js.flows.edge(RATE), 4

    def start(key):
        dynamics = js.as_dynamics(gd)
        small = jax.tree.map(lambda leaf: 0.5 * leaf, problem.init(key))  # at full size GD starts past its edge, and may diverge
        return dynamics.advance(problem, dynamics.init(problem, small), jnp.asarray(burn)).params

    points = jax.jit(lambda keys: jax.lax.map(start, keys))(jax.random.split(jax.random.key(0), members))
    first = jax.tree.map(lambda leaf: leaf[0], points)
    costs = _pieces(problem, first, 5 * repeats)
    figures = {"pieces, seconds": costs}
    for name, (flow, substeps) in flows.items():
        figures[name] = {"alone": _measure(problem, flow, jax.tree.map(lambda leaf: leaf[:1], points), steps, repeats)}
        figures[name][f"{members} members"] = _measure(problem, flow, points, steps, repeats)
        if name.startswith("central"):
            alone, pairs = figures[name]["alone"], figures[name]["alone"]["third_derivatives"]
            alone["floor_seconds"] = substeps * (3 * costs["gradient"] + K * costs["product"]) + pairs * costs["third derivative"]
            alone["seconds / gradient"] = alone["seconds"] / costs["gradient"]
            alone["peer / seconds"] = PEER_SECONDS / alone["seconds"]
            if options.reference:
                corrected = "corrected" in name
                alone["relative_error"] = _error(problem, width, train, flow, corrected, first, steps, options.reference)
    write({"setting": {"steps": steps, "burn": burn, "rate": RATE, "k": K}, "figures": figures, **machine()}, options.out)


def _pieces(problem, params, repeats):
    """Seconds of a gradient, of a product where the gradient is linearized already, and of a third derivative."""
    w, unravel = ravel_pytree(params)
    loss = lambda w: problem.loss(unravel(w))  # noqa: E731
    v = w / jnp.linalg.norm(w)

    @jax.jit
    def products(w, v):
        hessian = js.curvature.hessian_operator(loss, w)
        return jax.lax.fori_loop(0, 10, lambda _, v: hessian(v) / jnp.linalg.norm(v), v)

    @jax.jit
    def thirds(w, v):
        return js.curvature.third_derivatives(loss, w, jnp.stack([v, v[::-1], jnp.roll(v, 1)]), 3)

    gradient = jax.jit(jax.grad(loss))
    alone = timed(lambda: gradient(w), repeats)[2]
    return {
        "gradient": alone,
        "product": (timed(lambda: products(w, v), repeats)[2] - alone) / 10,
        "third derivative": timed(lambda: thirds(w, v), repeats)[2] / 6,
    }


def _measure(problem, flow, points, steps, repeats):
    """Seconds and counts per member and unit of flow time; one member is not batched."""
    count = len(jax.tree.leaves(points)[0])
    over = jax.vmap if count > 1 else (lambda f: lambda tree: f(jax.tree.map(lambda leaf: leaf[0], tree)))
    states = jax.jit(over(lambda w: flow.init(problem, w)))(points)
    batched = jax.vmap if count > 1 else (lambda f: f)
    advance = jax.jit(batched(lambda state: flow.advance(problem, state, jnp.asarray(steps))))
    after, compiling, seconds = timed(lambda: advance(states), repeats)
    active = np.asarray(getattr(after.inner, "active", 0.0))
    pairs = active * (active + 1) / 2 * getattr(flow, "substeps", 1) if hasattr(flow, "eigen_tolerance") else 0 * active
    return {
        "seconds": seconds / steps / count,
        "products": float(jnp.mean(after.hvps - states.hvps)) / steps,
        "third_derivatives": float(pairs.mean()),  # as of the last substep
        "active_directions": float(active.mean()),
        "compile_seconds": compiling - seconds,
        "failed": int(jnp.sum((after.status & 31) != 0)),
    }


def _error(problem, width, train, flow, corrected, params, steps, substeps):
    """Distance of the end from that of a flow with many substeps in float64, over how far that one went.

    The correction belongs to one substep a step, so the corrected flow has itself in float64 with tight eigenpairs for reference.
    """

    def end(problem, flow, params):
        found = jax.jit(lambda w: flow.advance(problem, flow.init(problem, w), jnp.asarray(steps)))(params)
        return np.asarray(ravel_pytree(found.params)[0], float)

    near = end(problem, flow, params)
    with jax.enable_x64(True):
        exact = js.flows.central(
            js.optimizers.gd(RATE), k=K + 3, substeps=1 if corrected else substeps, corrected=corrected, eigen_tolerance=1e-7
        )
        double = js.problems.supervised(js.models.MLP(widths=(width, width)), train)
        start = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        far = end(double, exact, start)
        gone = np.linalg.norm(far - np.asarray(ravel_pytree(start)[0]))
    return float(np.linalg.norm(near - far) / gone)


if __name__ == "__main__":
    main()
