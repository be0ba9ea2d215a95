"""The members of a grid: one value for all, on which a `cond` may decide without becoming a choice for each; and one in turn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxsharp._types import Array, Count, PyTree


@custom_vmap
def common_count(count: Count) -> Count:
    """Returns a count that all members of a grid share, as one number also under `vmap`.

    Members that still move have taken the same number of steps; a stopped one has taken fewer. A `cond` on the result stays a
    `cond` under `vmap`, so that what is due every n steps costs nothing between.

    Args:
        count: completed steps of one member.

    Returns:
        The largest count of the members, not batched.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> int(jax.vmap(common_count, out_axes=None)(jnp.array([3, 7])))
        7
    """
    return count


@common_count.def_vmap
def _(size, batched, count):
    del size
    return common_count(jnp.max(count, axis=0) if batched[0] else count), False


@custom_vmap
def any_member(flag: Array) -> Array:
    """Returns whether a flag is set in any member of a grid, as one value also under `vmap`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> bool(jax.vmap(any_member, out_axes=None)(jnp.array([False, True])))
        True
    """
    return flag


@any_member.def_vmap
def _(size, batched, flag):
    del size
    return any_member(jnp.any(flag, axis=0) if batched[0] else flag), False


def one_after_another(call: Callable, batched: PyTree, *args: PyTree) -> tuple[PyTree, PyTree]:
    """Calls a function for one member of a batch after the other; what is not batched is not copied.

    Args:
        call: of so many arguments, for one member.
        batched: for each leaf of the arguments whether it has a leading axis of members.
        *args: the arguments.

    Returns:
        The values with a leading axis of members, and for each leaf of them True, as the rule of a `custom_vmap` returns them.
    """
    leaves, structure = jax.tree.flatten(args)
    has_axis = jax.tree.leaves(batched)

    def member(own):
        own = iter(own)
        return call(
            *jax.tree.unflatten(structure, [next(own) if has else leaf for leaf, has in zip(leaves, has_axis, strict=True)])
        )

    values = jax.lax.map(member, [leaf for leaf, has in zip(leaves, has_axis, strict=True) if has])
    return values, jax.tree.map(lambda _: True, values)
