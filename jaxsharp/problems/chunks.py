"""Functions of many samples, evaluated a chunk at a time so that memory does not grow with their number."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsharp._types import Array, PyTree, Scalar


def total(function: Callable[[PyTree], Scalar], table: PyTree, chunk: int) -> Scalar:
    """Sums a function over chunks of samples, Σ_c f(table_c); derivatives recompute what happens inside a chunk.

    Args:
        function: of a part of the table, itself a sum over samples.
        table: arrays with a leading axis of n samples.
        chunk: samples in each part; the last part may have fewer.

    Returns:
        A scalar. Cost: one evaluation; a derivative evaluates once more than without chunks.

    Example:
        >>> import jax.numpy as jnp
        >>> float(total(jnp.sum, jnp.arange(5.0), 2))
        10.0
    """
    function = jax.checkpoint(function)
    parts, rest = _split(table, chunk)
    found = []
    if parts is not None:
        like = jax.eval_shape(lambda parts: function(jax.tree.map(lambda leaf: leaf[0], parts)), parts)
        start = jnp.zeros((), like.dtype)
        found.append(jax.lax.scan(lambda sum, part: (sum + function(part), None), start, parts)[0])
    if rest is not None:
        found.append(function(rest))
    return sum(found[1:], found[0])


def each(function: Callable[[PyTree], Array], table: PyTree, chunk: int | None) -> Array:
    """Evaluates a function of samples chunk by chunk and joins what it returns along the leading axis.

    Args:
        function: of a part of the table; returns an array with the same leading axis.
        table: arrays with a leading axis of n samples.
        chunk: samples in each part; None evaluates all at once.

    Returns:
        An array with the leading axis n. Cost: one evaluation.

    Example:
        >>> import jax.numpy as jnp
        >>> each(lambda x: 2 * x, jnp.arange(5.0), 2).tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if chunk is None:
        return function(table)
    function = jax.checkpoint(function)
    parts, rest = _split(table, chunk)
    found = []
    if parts is not None:
        values = jax.lax.map(function, parts)
        found.append(values.reshape(-1, *values.shape[2:]))
    if rest is not None:
        found.append(function(rest))
    return jnp.concatenate(found)


def _split(table, chunk):
    """Full chunks with a leading axis, and the samples left over; None for either that is empty."""
    count = jax.tree.leaves(table)[0].shape[0]
    full = count // chunk * chunk
    parts = jax.tree.map(lambda leaf: leaf[:full].reshape(-1, chunk, *leaf.shape[1:]), table) if full else None
    return parts, jax.tree.map(lambda leaf: leaf[full:], table) if full < count else None
