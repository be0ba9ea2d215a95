"""A decoder-only transformer."""

import jax.numpy as jnp
from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.attention import Block, add_positions
from jaxsharp.models.recipe import recipe


class Transformer(nn.Module):
    """A decoder-only transformer: embedded tokens plus positions, causal blocks, a norm, a linear output at each position.

    With `scale_invariant=True` every weight feeds a normalization without affine map before anything is added to what it makes
    (see `jaxsharp.models.attention.Block`) and the output is normalized too (or fixed), so that f(c w) = f(w) for every c > 0.
    With `norm="batch"` the statistics are over samples and positions, so that on the training set a prediction sees what comes
    after it through them; on the test set it does not.

    Attributes:
        vocabulary: number of tokens; `jaxsharp.problems.supervised` fills in None.
        width: of the tokens' vectors.
        depth: number of blocks.
        heads: of the attention, a divisor of the width.
        hidden: width of the perceptrons; None means 4 times the width.
        outputs: number of outputs; `jaxsharp.problems.supervised` fills in None.
        norm: a name in `jaxsharp.models.NORMALIZATIONS`; not `instance`, which would look ahead.
        activation: a name in `jaxsharp.models.ACTIVATIONS`.
        scale_invariant: whether to build the fully scale-invariant form.
        epsilon: of the normalization; None means 1e-5, or 0 in the scale-invariant form.
        groups: of group normalization; None chooses.
        fixed_read_out: whether the last map is a constant matrix with orthonormal columns.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> model = js.models.Transformer(vocabulary=5, width=8, depth=1, heads=2, outputs=5)
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((3, 6), jnp.int32))[0].shape
        (3, 6, 5)

    Source: Radford et al. 2019 for the plain form with `norm="layer"`; the scale-invariant form is derived.
    """

    vocabulary: int | None = None
    width: int = 64
    depth: int = 2
    heads: int = 4
    hidden: int | None = None
    outputs: int | None = None
    norm: str = "layer"
    activation: str = "gelu"
    scale_invariant: bool = False
    epsilon: float | None = None
    groups: int | None = None
    fixed_read_out: bool = False

    @nn.compact
    def __call__(self, tokens: Array, train: bool = True) -> Array:
        """Evaluates the network on integer tokens (n, length), in the precision of the run; returns (n, length, outputs)."""
        if self.vocabulary is None:
            raise ValueError("vocabulary is not set; pass vocabulary=, or let js.problems.supervised set it.")
        if self.norm == "instance":
            raise ValueError("norm='instance' takes statistics over later positions, too; use 'layer', 'rms' or another norm.")
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers of shape (n, length), got {tokens.dtype} of shape {tokens.shape}.")
        make, dtype = recipe(self), jnp.result_type(float)
        x = nn.Embed(self.vocabulary, self.width, dtype=dtype, param_dtype=dtype, name="embedding")(tokens)
        positions = self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]), x.dtype)
        x = add_positions(make, x, positions, train)
        hidden = 4 * self.width if self.hidden is None else self.hidden
        for index in range(self.depth):
            x = Block(make, self.heads, hidden, causal=True, name=f"block_{index}")(x, train)
        x = make.normalize("norm_last")(x, train)
        return make.read_out(x, train, index=0, after="identity")
