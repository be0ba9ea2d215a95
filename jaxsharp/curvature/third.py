"""Third derivatives of a loss contracted with pairs of directions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxsharp._members import one_after_another
from jaxsharp._types import Block, Count, Loss, Vector
from jaxsharp.curvature.products import hvp


def third_derivatives(loss: Loss, point: Vector, rows: Block, count: Count | int) -> Block:
    """Evaluates ∇_w (rᵢᵀ H(w) rⱼ) at fixed rᵢ, rⱼ, for all pairs of the first `count` rows.

    The pairs stand as in the upper triangle read row by row: (0, 0), (0, 1), …, (0, k − 1), (1, 1), …
    By polarization from Q(r) = ∇_w (rᵀ H(w) r), ∇_w (rᵢᵀ H rⱼ) = ½ [Q(rᵢ + rⱼ) − Q(rᵢ) − Q(rⱼ)]: with the same direction twice
    half of what the two derivatives evaluate is the same, which took a third off the time. Under `vmap` on a CPU the members of
    a batch take turns, each with its own count.

    Args:
        loss: `(vector) -> scalar`, three times differentiable.
        point: the point w, (D,).
        rows: (k, D).
        count: how many rows to use, may be traced; pairs with others stay zero and cost nothing.

    Returns:
        (k (k + 1) / 2, D). Cost: count (count + 1) / 2 third derivatives, each about 2 products, and memory for the result.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> js.curvature.third_derivatives(lambda w: jnp.sum(w**4), jnp.ones(2), jnp.eye(2), 2).tolist()
        [[24.0, 0.0], [0.0, 0.0], [0.0, 24.0]]
    """
    closed = jax.make_jaxpr(lambda point, direction: _twice(loss, point, direction))(point, rows[0])

    def alone(constants, point, rows, count):
        return _table(jaxpr_as_fun(closed.replace(consts=constants)), point, rows, count)

    @jax.custom_batching.custom_vmap
    def table(constants, point, rows, count):
        return alone(constants, point, rows, count)

    @table.def_vmap
    def _(size, batched, *arguments):
        if jax.default_backend() == "cpu":
            return one_after_another(table, batched, *arguments)
        axes = jax.tree.map(lambda has: 0 if has else None, batched)
        return jax.vmap(alone, in_axes=tuple(axes))(*arguments), True

    return table(tuple(closed.consts), point, rows, jnp.asarray(count))


def _table(derivative, point, rows, count):
    k, size = rows.shape
    first, second = np.triu_indices(k)

    def with_row(j, table):
        def with_pair(i, table):
            (found,) = derivative(point, rows[j] + jnp.where(i == j, 0, rows[i]))
            # row i of the triangle starts after those above it; (i, j) with i ≤ j
            return table.at[i * k - i * (i - 1) // 2 + j - i].set(found)

        return jax.lax.fori_loop(0, j + 1, with_pair, table)

    table = jax.lax.fori_loop(0, count, with_row, jnp.zeros((k * (k + 1) // 2, size), point.dtype))
    squares = table[np.flatnonzero(first == second)]
    mixed = ((first != second) & (second < count))[:, None]
    return jnp.where(mixed, 0.5 * (table - squares[first] - squares[second]), table)


def _twice(loss, point, direction):
    """Q(r), the second derivative of the gradient along one direction."""
    return jax.jvp(lambda w: hvp(loss, w, direction), (point,), (direction,))[1]
