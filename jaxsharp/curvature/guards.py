"""The guards of a search: directions that are watched, so that an eigenvalue that overtakes is noticed."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxsharp._precision import dot
from jaxsharp._types import Array, Block, Count, PyTree
from jaxsharp.curvature.search import Found, overlaps

CLEAR = 8
"""Every so many steps one without momentum clears away the noise that those with it keep."""


class Guards(NamedTuple):
    """What the guards remember from one search to the next.

    Attributes:
        vectors: pytree with a leading axis of guards, where they were before their last step.
        weights: (guards,) of these in the next step; 0 where nothing is known.
        steps: how often they have moved.
    """

    vectors: PyTree
    weights: Array
    steps: Count


def stepped(found: Found, wanted: int, start: Block, before: Guards) -> tuple[Block, Guards]:
    """Moves the guards on by one step of the power method with momentum, which costs no product since theirs are known.

    With θ the value of a guard u, u₋ where it was before, s by how much it grew then, and σ the bottom, the step is that of
    Chebyshev's polynomials, u₊ ∝ (2/e) (H − c) u − u₋ / s with c = (θ + σ) / 2 and e = (θ − σ) / 2: what lies between σ and θ
    keeps its size, and a part with an eigenvalue λ above grows by x + √(x² − 1), x = (λ − c) / e, where the power method lets it
    grow by λ / θ: at λ = 1.2 θ and σ = 0 by 2.38 instead of 1.2. Noise keeps its size as well, which blurs θ; so every eighth
    step is one of the power method, u₊ ∝ (H − σ) u, after which the momentum starts anew.

    Args:
        found: a search that has ended, with flat vectors.
        wanted: how many of its pairs are not guards.
        start: (guards, D) where the guards started.
        before: what they remembered, with flat vectors.

    Returns:
        (guards, D) where the guards start next time, unit vectors, and what they remember. A guard that was not multiplied stays
        where it was.
    """
    vectors, products, values = found.vectors[wanted:], found.products[wanted:], found.values[wanted:]
    seen = ~jnp.isneginf(values)
    sigma = found.bottom
    half = jnp.where(seen, values - sigma, 0) / 2
    half = jnp.where(before.steps % CLEAR == 0, 0, half)
    remembered = dot(overlaps(vectors, start), before.vectors)  # in the mixture, and with the sign, that the guards have now
    moved = 2 * (products - (sigma + half)[:, None] * vectors) - (half * before.weights)[:, None] * remembered
    lengths = jnp.linalg.norm(moved, axis=1)
    grows = seen & (lengths > 0)
    divisor = jnp.where(grows, lengths, 1)
    moved = jnp.where(grows[:, None], moved / divisor[:, None], jnp.where(seen[:, None], vectors, start))
    weights = jnp.where(grows, half / divisor, jnp.where(seen, 0, before.weights))
    kept = jnp.where(seen[:, None], vectors, before.vectors)
    return moved, Guards(jnp.where(jnp.isfinite(kept), kept, 0), weights, before.steps + seen.any().astype(before.steps.dtype))
