"""A plain convolutional network."""

from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.recipe import images, pool, recipe


class CNN(nn.Module):
    """A convolutional network: convolution, norm, φ and 2 × 2 pooling for each width, then a linear output.

    With `scale_invariant=True` no layer has a bias or an affine map and the output is normalized too (or fixed), with ε = 0,
    so that f(c w) = f(w) for every c > 0.

    Attributes:
        widths: channels of each convolution.
        outputs: number of outputs; `jaxsharp.problems.supervised` fills in None.
        norm: a name in `jaxsharp.models.NORMALIZATIONS`, before each activation.
        activation: a name in `jaxsharp.models.ACTIVATIONS`.
        scale_invariant: whether to build the fully scale-invariant form.
        epsilon: of the normalization; None means 1e-5, or 0 in the scale-invariant form.
        groups: of group normalization; None chooses.
        fixed_read_out: whether the last map is a constant matrix with orthonormal columns.
        window: side of the convolutions' windows, odd.
        pooling: `average` or `max`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> model = js.models.CNN(widths=(4, 8), outputs=10, norm="batch")
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((3, 8, 8, 1)))[0].shape
        (3, 10)
    """

    widths: tuple[int, ...] = (32, 32)
    outputs: int | None = None
    norm: str = "none"
    activation: str = "tanh"
    scale_invariant: bool = False
    epsilon: float | None = None
    groups: int | None = None
    fixed_read_out: bool = False
    window: int = 3
    pooling: str = "average"

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Evaluates the network on images (n, height, width, channels); returns (n, outputs)."""
        make, x, after = recipe(self), images(x), "identity"
        for index, width in enumerate(self.widths):
            x = make.linear(width, f"conv_{index}", after=after, window=self.window)(x)
            x = pool(make.phi(make.normalize(f"norm_{index}")(x, train)), self.pooling)
            after = self.activation
        return make.read_out(x.reshape(x.shape[0], -1), train, index=len(self.widths), after=after)
