"""A decoder-only transformer of the Llama family."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.linear import Linear
from jaxsharp.models.normalization import Normalize


class Llama(nn.Module):
    """A Llama-style decoder: root-mean-square norms before each branch, rotary positions, gated perceptrons, no biases.

    x ← x + W_o attention(R W_q h, R W_k h, W_v h) and x ← x + W₂ (silu(W_g h) ⊙ W₁ h) with h = norm(x), R the rotation of
    `rotate`; then a norm and a linear output at each position. Its V d + D (4 d² + 3 d H + 2 d) + d + d V parameters, with
    vocabulary and outputs V, width d, depth D, hidden H, are what `parameters` counts.

    Attributes:
        vocabulary: number of tokens; `jaxsharp.problems.supervised` fills in None.
        width: of the tokens' vectors.
        depth: number of blocks.
        heads: of the attention; the width is a multiple of twice as many.
        hidden: width of the gated perceptrons; None means 8/3 of the width, rounded up to a multiple of 8.
        outputs: number of outputs; `jaxsharp.problems.supervised` fills in None.
        epsilon: of the norms.
        period: base of the rotary frequencies.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> model = js.models.Llama(vocabulary=5, width=8, depth=1, heads=2, outputs=5)
        >>> model.init_with_output(jax.random.key(0), jnp.zeros((3, 6), jnp.int32))[0].shape
        (3, 6, 5)

    Source: Touvron et al. 2023; rotary positions, Su et al. 2021; gated perceptrons, Shazeer 2020.
    """

    vocabulary: int | None = None
    width: int = 64
    depth: int = 2
    heads: int = 4
    hidden: int | None = None
    outputs: int | None = None
    epsilon: float = 1e-5
    period: float = 10_000.0

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Evaluates the network on integer tokens (n, length), in the precision of the run; returns (n, length, outputs)."""
        if self.vocabulary is None or self.outputs is None:
            raise ValueError("vocabulary and outputs are not set; pass them, or let js.problems.supervised set them.")
        if self.heads < 1 or self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} must be a multiple of 2 heads={2 * self.heads}, since rotations act on pairs.")
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers of shape (n, length), got {tokens.dtype} of shape {tokens.shape}.")
        dtype, hidden = jnp.result_type(float), gated_width(self.width) if self.hidden is None else self.hidden
        x = nn.Embed(self.vocabulary, self.width, dtype=dtype, param_dtype=dtype, name="embedding")(tokens)
        for index in range(self.depth):
            x = LlamaBlock(self.heads, hidden, self.epsilon, self.period, name=f"block_{index}")(x)
        x = Normalize("rms", True, self.epsilon, None, name="norm_last")(x)
        return Linear(self.outputs, use_bias=False, name="read_out")(x)

    @staticmethod
    def parameters(vocabulary: int, width: int, depth: int, hidden: int | None = None) -> int:
        """Counts the parameters of a model with as many outputs as tokens.

        Example:
            >>> Llama.parameters(vocabulary=128, width=128, depth=5)
            1022336
        """
        hidden = gated_width(width) if hidden is None else hidden
        return 2 * vocabulary * width + depth * (4 * width**2 + 3 * width * hidden + 2 * width) + width


class LlamaBlock(nn.Module):
    """A block of `Llama` on (n, positions, width).

    Attributes:
        heads: number of heads.
        hidden: width of the gated perceptron.
        epsilon: of the norms.
        period: base of the rotary frequencies.
    """

    heads: int
    hidden: int
    epsilon: float
    period: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the block's output, in the shape of x."""
        samples, length, width = x.shape

        def linear(features, name):
            return Linear(features, use_bias=False, name=name)

        def split(y):
            return y.reshape(samples, length, self.heads, width // self.heads)

        h = Normalize("rms", True, self.epsilon, None, name="norm_attention")(x)
        query, key = (rotate(split(linear(width, name)(h)), self.period) for name in ("query", "key"))
        mask = nn.make_causal_mask(jnp.ones((1, length)), dtype=bool)
        y = nn.dot_product_attention(query, key, split(linear(width, "value")(h)), mask=mask, dtype=x.dtype)
        x = x + linear(width, "attention_out")(y.reshape(x.shape))
        h = Normalize("rms", True, self.epsilon, None, name="norm_perceptron")(x)
        y = jax.nn.silu(linear(self.hidden, "gate")(h)) * linear(self.hidden, "hidden")(h)
        return x + linear(width, "perceptron_out")(y)


def rotate(x: Array, period: float = 10_000.0) -> Array:
    """Rotates each pair (xⱼ, xⱼ₊ₛ/₂) of a head of size s at position p by the angle p · period^(−2j/s).

    Lengths stay, and the inner product of a rotated query and a rotated key depends on their positions through the difference
    alone.

    Args:
        x: (n, positions, heads, size), size even.
        period: base of the frequencies.

    Returns:
        An array like x.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(y), 4) for y in rotate(jnp.ones((1, 2, 1, 2)))[0, 1, 0]]  # cos 1 − sin 1, sin 1 + cos 1
        [-0.3012, 1.3818]

    Source: Su et al. 2021, in the arrangement of halves.
    """
    length, half = x.shape[1], x.shape[-1] // 2
    frequencies = jnp.asarray(period, x.dtype) ** (-jnp.arange(half, dtype=x.dtype) / half)
    angles = jnp.outer(jnp.arange(length, dtype=x.dtype), frequencies)[None, :, None, :]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)


def gated_width(width: int) -> int:
    """Returns 8/3 of a width, rounded up to a multiple of 8: as many parameters as a plain perceptron of 4 times the width.

    Example:
        >>> gated_width(128), gated_width(512)
        (344, 1368)
    """
    return 8 * -(-width // 3)
