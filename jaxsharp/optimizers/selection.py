"""The smallest entries of a pytree, exactly as many as asked for."""

import itertools

import jax
import jax.numpy as jnp

from jaxsharp._types import Count, PyTree, ScalarLike


def smallest_fraction(tree: PyTree, fraction: ScalarLike) -> PyTree:
    """Marks the round(fraction · D) smallest entries over all D entries of a pytree.

    The count is rounded to the nearest whole number, halves to the even one (as Python's `round`), in the dtype of the
    fraction; it is exact as long as D · fraction is, in float32 up to about 4 million entries and beyond that to 1e-7 D. Of
    equal entries those come first whose index is lower, in the order of `ravel_pytree`. NaN counts as largest, −0 as 0.

    Args:
        tree: real arrays.
        fraction: from 0 to 1, may be traced.

    Returns:
        A pytree of booleans like the tree. Cost: 32 passes over the tree (64 in float64) of one comparison an entry, without
        sorting, so that arrays which are sharded stay so.

    Example:
        >>> import jax.numpy as jnp
        >>> smallest_fraction({"a": jnp.array([3.0, 1.0]), "b": jnp.array([1.0, 2.0])}, 0.5)["a"].tolist()
        [False, True]
        >>> smallest_fraction(jnp.array([3.0, 1.0, 1.0, 1.0]), 0.5).tolist()
        [False, True, True, False]
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(tree))
    fraction = jnp.asarray(fraction)
    if not jnp.issubdtype(fraction.dtype, jnp.floating):
        fraction = fraction.astype(jnp.result_type(float))
    wanted = jnp.round(fraction * jnp.asarray(size, fraction.dtype))
    return smallest(tree, jnp.clip(wanted, 0, size).astype(jnp.int32))


def smallest(tree: PyTree, count: Count) -> PyTree:
    """Marks the `count` smallest entries of a pytree; see `smallest_fraction`."""
    leaves, structure = jax.tree.flatten(tree)
    wide = any(leaf.dtype == jnp.float64 for leaf in leaves)
    keys = [_ordered(leaf, wide) for leaf in leaves]
    unsigned = keys[0].dtype
    bits = jnp.iinfo(unsigned).bits

    def below(threshold):
        return sum(jnp.sum(key < threshold, dtype=jnp.int32) for key in keys)

    def next_bit(index, threshold):
        candidate = threshold | (jnp.ones((), unsigned) << (bits - 1 - index).astype(unsigned))
        return jnp.where(below(candidate) < count, candidate, threshold)

    # the largest number with fewer than `count` entries below it is the `count`-th smallest entry
    threshold = jax.lax.fori_loop(0, bits, next_bit, jnp.zeros((), unsigned))
    missing = count - below(threshold)
    ties = [key == threshold for key in keys]
    before = itertools.accumulate((jnp.sum(tie, dtype=jnp.int32) for tie in ties), initial=jnp.zeros((), jnp.int32))
    chosen = [
        (key < threshold) | (tie & (passed + _rank(tie) <= missing)) for key, tie, passed in zip(keys, ties, before, strict=False)
    ]
    return jax.tree.unflatten(structure, chosen)


def _rank(tie):
    return jnp.cumsum(tie.ravel(), dtype=jnp.int32).reshape(tie.shape)


def _ordered(leaf, wide):
    """Unsigned integers in the order of the floating numbers."""
    floating, unsigned = (jnp.float64, jnp.uint64) if wide else (jnp.float32, jnp.uint32)
    leaf = leaf.astype(floating)
    leaf = jnp.where(leaf == 0, 0, leaf)
    bits = jax.lax.bitcast_convert_type(leaf, unsigned)
    top = jnp.ones((), unsigned) << jnp.asarray(jnp.iinfo(unsigned).bits - 1, unsigned)
    ordered = jnp.where(bits >= top, ~bits, bits | top)
    return jnp.where(jnp.isnan(leaf), ~jnp.zeros((), unsigned), ordered)
