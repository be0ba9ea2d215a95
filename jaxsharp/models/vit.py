"""A small vision transformer."""

import jax.numpy as jnp
from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.attention import Block, add_positions
from jaxsharp.models.recipe import images, recipe


class ViT(nn.Module):
    """A vision transformer: square patches mapped to vectors, positions added, blocks, the mean over patches of φ(norm(x)).

    With `scale_invariant=True` every weight feeds a normalization without affine map before anything is added to what it makes
    (see `jaxsharp.models.attention.Block`) and the output is normalized too (or fixed), so that f(c w) = f(w) for every c > 0.

    Attributes:
        width: of the patches' vectors.
        depth: number of blocks.
        heads: of the attention, a divisor of the width.
        hidden: width of the perceptrons; None means 4 times the width.
        patch: side of a patch in pixels, a divisor of the image's sides.
        outputs: number of outputs; `jaxsharp.problems.supervised` fills in None.
        norm: a name in `jaxsharp.models.NORMALIZATIONS`; `batch` is over samples and patches, `instance` over patches.
        activation: a name in `jaxsharp.models.ACTIVATIONS`.
        scale_invariant: whether to build the fully scale-invariant form.
        epsilon: of the normalization; None means 1e-5, or 0 in the scale-invariant form.
        groups: of group normalization; None chooses.
        fixed_read_out: whether the last map is a constant matrix with orthonormal columns.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> model = js.models.ViT(width=8, depth=1, heads=2, patch=4, outputs=10)
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((3, 8, 8, 1)))[0].shape
        (3, 10)

    Source: Dosovitskiy et al. 2021; φ before the mean is ours, without which instance normalization would leave a mean of 0.
    """

    width: int = 64
    depth: int = 3
    heads: int = 4
    hidden: int | None = None
    patch: int = 4
    outputs: int | None = None
    norm: str = "layer"
    activation: str = "gelu"
    scale_invariant: bool = False
    epsilon: float | None = None
    groups: int | None = None
    fixed_read_out: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Evaluates the network on images (n, height, width, channels); returns (n, outputs)."""
        make, x = recipe(self), patches(images(x), self.patch)
        x = make.linear(self.width, "embedding")(x)
        positions = self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]), x.dtype)
        x = add_positions(make, x, positions, train)
        hidden = 4 * self.width if self.hidden is None else self.hidden
        for index in range(self.depth):
            x = Block(make, self.heads, hidden, causal=False, name=f"block_{index}")(x, train)
        x = jnp.mean(make.phi(make.normalize("norm_last")(x, train)), axis=1)
        return make.read_out(x, train, index=0)


def patches(x: Array, side: int) -> Array:
    """Cuts images (n, height, width, channels) into vectors (n, patches, side² · channels).

    Raises:
        ValueError: where the patches do not tile the image.
    """
    samples, height, width, channels = x.shape
    if side < 1 or height % side or width % side:
        raise ValueError(f"patch={side} does not divide the sides of images of {height} × {width} pixels.")
    x = x.reshape(samples, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(samples, -1, side * side * channels)
