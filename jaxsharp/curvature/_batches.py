"""Over chunks of data, and over random vectors: how much is done side by side."""

import jax
import jax.numpy as jnp

from jaxsharp._types import Array, PyTree

SIDE_BY_SIDE = 16
"""How many products an accelerator does at once unless told otherwise."""


def map_batched(function, xs: PyTree, batch: int | None):
    """Applies a function along the leading axis, `batch` at a time.

    By default one after the other on a CPU, where that is smaller and faster, and SIDE_BY_SIDE at once elsewhere. The body is
    rematerialized, so that a derivative through it keeps its arguments alone.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    if batch is None:
        batch = 1 if jax.default_backend() == "cpu" else SIDE_BY_SIDE
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be a whole number, at least 1, got {batch!r}.")
    function = jax.checkpoint(function, prevent_cse=False)
    if batch >= count > 1:
        return jax.vmap(function)(xs)
    return jax.lax.map(function, xs, batch_size=batch if batch > 1 else None)


def count_samples(data: PyTree) -> int:
    """Returns the length of the leading axis that all leaves share, at least 1."""
    sizes = {leaf.shape[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"every array of data must have the samples on its leading axis, got leading axes {sizes}.")
    count = sizes.pop()
    if count == 0:
        raise ValueError("data has no samples; give at least one.")
    return count


def check_chunk(chunk) -> None:
    """Raises where chunk is not a number of samples."""
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk must be a whole number of samples, at least 1, or None, got {chunk!r}.")


def mean_over_chunks(function, data: PyTree, chunk: int | None) -> PyTree:
    """Returns Σ (n_c / n) function(data_c) over chunks of at most `chunk` samples, the last of which may be short."""
    count = count_samples(data)
    if chunk is None or chunk >= count:
        return function(data)
    whole = count // chunk
    function = jax.checkpoint(function, prevent_cse=False)

    def weighted(part, size):
        return jax.tree.map(lambda leaf: leaf * jnp.asarray(size / count, leaf.dtype), function(part))

    def add(total, index):
        part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index * chunk, chunk), data)
        return jax.tree.map(jnp.add, total, weighted(part, chunk)), None

    rest = jax.tree.map(lambda leaf: leaf[whole * chunk :], data)
    blank = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[:chunk], data))
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), blank)
    if whole * chunk < count:
        total = weighted(rest, count - whole * chunk)
    return jax.lax.scan(add, total, jnp.arange(whole))[0]


def concatenate_over_chunks(function, data: PyTree, chunk: int | None) -> Array:
    """Returns the rows of function(data_c) of all chunks, in order."""
    count = count_samples(data)
    if chunk is None or chunk >= count:
        return function(data)
    whole = count // chunk
    parts = jax.lax.map(
        lambda index: function(jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index * chunk, chunk), data)),
        jnp.arange(whole),
    )
    rows = parts.reshape(whole * chunk, *parts.shape[2:])
    if whole * chunk == count:
        return rows
    return jnp.concatenate([rows, function(jax.tree.map(lambda leaf: leaf[whole * chunk :], data))])
