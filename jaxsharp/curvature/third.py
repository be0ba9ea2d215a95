"""Third derivatives of a loss contracted with pairs of directions."""

import jax
import jax.numpy as jnp

from jaxsharp._types import Block, Count, Loss, Vector
from jaxsharp.curvature.products import hvp


def third_derivatives(loss: Loss, point: Vector, rows: Block, count: Count | int) -> Block:
    """Evaluates ∇_w (rᵢᵀ H(w) rⱼ) at fixed rᵢ, rⱼ, for all pairs of the first `count` rows.

    The pairs stand as in the upper triangle read row by row: (0, 0), (0, 1), …, (0, k − 1), (1, 1), …

    Args:
        loss: `(vector) -> scalar`, three times differentiable.
        point: the point w, (D,).
        rows: (k, D).
        count: how many rows to use, may be traced; pairs with others stay zero and cost nothing.

    Returns:
        (k (k + 1) / 2, D). Cost: count (count + 1) / 2 third derivatives, each about 3 products, and memory for the result.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> js.curvature.third_derivatives(lambda w: jnp.sum(w**4), jnp.ones(2), jnp.eye(2), 2).tolist()
        [[24.0, 0.0], [0.0, 0.0], [0.0, 24.0]]
    """
    k, size = rows.shape

    def with_row(j, table):
        contract = jax.linearize(lambda w: hvp(loss, w, rows[j]), point)[1]

        def with_pair(i, table):
            # row i of the triangle starts after those above it; (i, j) with i ≤ j
            return table.at[i * k - i * (i - 1) // 2 + j - i].set(contract(rows[i]))

        return jax.lax.fori_loop(0, j + 1, with_pair, table)

    return jax.lax.fori_loop(0, count, with_row, jnp.zeros((k * (k + 1) // 2, size), point.dtype))
