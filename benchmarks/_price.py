"""What the benchmarks share: the price of a Hessian-vector product, beside a gradient and beside its arithmetic."""

from functools import partial

import jax
from _report import by_turns

import jaxsharp as js
from jaxsharp._cost import operations
from jaxsharp.curvature.folding import folded


def price(problem, counts, repeats: int) -> dict:
    """Milliseconds per member, each inside a loop, so that dispatch does not count; the ways take turns.

    Of products the first ten after a linearization, which is counted in, and the ten after those.
    """

    def loop(way):
        def run(p, w):
            shrink = lambda v: jax.tree.map(lambda a, b: 0.1 * a + 1e-3 * b, v, way(p, v, w))  # noqa: E731
            return jax.lax.fori_loop(0, 10, lambda _, v: shrink(v), w)

        return run

    def linearized(p, w):
        product = js.curvature.hessian_operator(p.loss, w)
        return jax.lax.fori_loop(0, 10, lambda _, v: jax.tree.map(lambda a: 0.1 * a, product(v)), w)

    def searched(length):
        """Products as a search applies them."""

        def run(p, w):
            linear = js.curvature.hessian_operator(p.loss, w)
            structure = jax.tree.structure(w)

            def flat(*leaves):
                return jax.tree.leaves(linear(jax.tree.unflatten(structure, leaves)))

            factors, product = folded(jax.make_jaxpr(flat)(*jax.tree.leaves(w)))
            shrunk = lambda v: [0.1 * a for a in product(factors, *v)]  # noqa: E731
            return jax.lax.fori_loop(0, length, lambda _, v: shrunk(v), jax.tree.leaves(w))

        return run

    programs = {
        "gradient": loop(lambda p, w, v: jax.grad(p.loss)(w)),
        "product, forward over reverse": loop(lambda p, w, v: js.curvature.hvp(p.loss, w, v)),
        "product, linearized once per ten": linearized,
        "product, linearized once per ten and folded": searched(10),
        "twenty": searched(20),
    }
    start = problem.init(jax.random.key(1))
    linear = js.curvature.hessian_operator(problem.loss, start)
    gradient, product = (operations(jax.make_jaxpr(f)(start).jaxpr) for f in (jax.grad(problem.loss), linear))
    figures = {"operations of a gradient": gradient, "operations of a product / of a gradient": product / gradient}
    for members in counts:
        points = jax.vmap(problem.init)(jax.random.split(jax.random.key(1), members)) if members > 1 else start
        mapped = {
            name: jax.jit(jax.vmap(program, in_axes=(None, 0)) if members > 1 else program) for name, program in programs.items()
        }
        runs = {name: partial(program, problem, points) for name, program in mapped.items()}
        each = {name: 1e3 * seconds / 10 / members for name, seconds in by_turns(runs, repeats).items()}
        each["product, folded, each further one"] = each.pop("twenty") - each["product, linearized once per ten and folded"]
        figures |= {f"{name}, {members} members, ms each": value for name, value in each.items()}
        figures |= {f"{name} / gradient, {members} members": value / each["gradient"] for name, value in each.items()}
        del figures[f"gradient / gradient, {members} members"]
    return figures
