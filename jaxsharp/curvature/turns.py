"""How the members of a batch share the work of a search: on a CPU in turns, on an accelerator side by side."""

from collections.abc import Callable

import jax
from jax.extend.core import jaxpr_as_fun

from jaxsharp._members import one_after_another
from jaxsharp._types import PyTree

MEMBERS_ON_CPU = 1
"""Members of a batch that search side by side on a CPU. One at a time each takes its own number of rounds and its own branches,
and none waits for the slowest; side by side large networks take up to a fifth longer, small ones up to a seventh less
(`benchmarks/grid.py`)."""

MEMBERS_ON_ACCELERATOR = 64
"""Members of a batch that search side by side on a GPU or TPU."""


def at_once(size: int) -> int:
    """How many members of a batch of so many search side by side."""
    return min(MEMBERS_ON_CPU if jax.default_backend() == "cpu" else MEMBERS_ON_ACCELERATOR, size)


def in_turns(function: Callable, *args: PyTree) -> PyTree:
    """Calls a function; under `vmap` on a CPU for one member after the other, else as usual.

    For a whole measurement, so that each member's gradient is linearized just before it is multiplied by, and its intermediate
    values held for one member at a time: a grid of 16 networks of 17,610 parameters takes about 5 % less time (by hand), one of
    some thousand parameters as much more.

    Args:
        function: of so many pytrees of arrays; it may close over others.
        *args: the pytrees.

    Returns:
        What the function returns, a pytree of arrays.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.vmap(lambda a: in_turns(lambda a: 2 * a, a))(jnp.arange(3.0)).tolist()
        [0.0, 2.0, 4.0]
    """
    program, shape = jax.make_jaxpr(function, return_shape=True)(*args)

    def run(constants, arrays):
        return tuple(jaxpr_as_fun(program.replace(consts=constants))(*arrays))

    @jax.custom_batching.custom_vmap
    def call(constants, arrays):
        return run(constants, arrays)

    @call.def_vmap
    def _(size, batched, constants, arrays):
        if at_once(size) == 1:
            return one_after_another(call, batched, constants, arrays)
        axes = jax.tree.map(lambda has: 0 if has else None, batched)
        values = jax.vmap(run, tuple(axes), axis_size=size)(constants, arrays)
        return values, jax.tree.map(lambda _: True, values)

    values = call(tuple(program.consts), tuple(jax.tree.leaves(args)))
    return jax.tree.unflatten(jax.tree.structure(shape), values)
