"""What the two transformers share: positions and blocks that stay scale-invariant where asked."""

import jax.numpy as jnp
from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.recipe import Recipe


def add_positions(make: Recipe, x: Array, positions: Array, train: bool) -> Array:
    """Adds a trained vector for each position (1, positions, width) to embedded tokens or patches (n, positions, width).

    In the scale-invariant form both are normalized first, since in a plain sum the scale of one would weigh it against the
    other: as features are, or each vector by itself where the normalization acts on weights.
    """
    if make.exact:
        kind = {"weight": "rms", "weight_standardization": "layer"}.get(make.norm, make.norm)
        x = make.normalize("norm_embedding", kind)(x, train)
        positions = make.normalize("norm_positions", kind)(positions, train)
    return x + jnp.broadcast_to(positions, x.shape)


class Block(nn.Module):
    """A transformer block on (n, positions, width): attention, then a perceptron, each added to what it reads.

    Plain, x ← x + A(norm(x)) with A(h) = W_o attention(W_q h, W_k h, W_v h), then x ← x + W₂ φ(W₁ norm(x)). Scale-invariant,
    x ← x + norm(W_o attention(norm(W_q h), norm(W_k h), W_v h)) and x ← x + norm(W₂ φ(norm(W₁ h))), h = norm(x): queries and
    keys are normalized since the softmax is not homogeneous, values need no norm of their own since the attention is linear in
    them, and a norm ends each branch before it is added.

    Attributes:
        make: the choices of the model.
        heads: number of heads, a divisor of the width.
        hidden: width of the perceptron.
        causal: whether a position sees only itself and those before it.
    """

    make: Recipe
    heads: int
    hidden: int
    causal: bool

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Returns the block's output, in the shape of x."""
        make, (samples, length, width) = self.make, x.shape
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={width}; pass a divisor.")

        def exactly(name, y):
            return make.normalize(name)(y, train) if make.exact else y

        def split(y):
            return y.reshape(samples, length, self.heads, width // self.heads)

        h = make.normalize("norm_attention")(x, train)
        query = exactly("norm_query", make.linear(width, "query")(h))
        key = exactly("norm_key", make.linear(width, "key")(h))
        value = make.linear(width, "value")(h)
        mask = nn.make_causal_mask(jnp.ones((1, length)), dtype=bool) if self.causal else None
        y = nn.dot_product_attention(split(query), split(key), split(value), mask=mask, dtype=x.dtype)
        y = make.linear(width, "attention_out")(y.reshape(x.shape))
        x = x + exactly("norm_attention_out", y)
        h = make.normalize("norm_perceptron")(x, train)
        y = make.phi(exactly("norm_hidden", make.linear(self.hidden, "hidden")(h)))
        y = make.linear(width, "perceptron_out", after=make.activation)(y)
        return x + exactly("norm_perceptron_out", y)
