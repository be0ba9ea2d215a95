"""One value for all members of a grid: what a `cond` may decide on without becoming a choice for each member."""

import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxsharp._types import Array, Count


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
