"""The residual networks in their form for small images."""

import jax.numpy as jnp
from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.recipe import Recipe, images, recipe

STAGES = 3


class ResNet(nn.Module):
    """A residual network in its CIFAR form: x ← φ(shortcut(x) + norm(K₂ φ(norm(K₁ x)))), 6 n + 2 layers.

    A convolution, three stages of n blocks with 1, 2 and 4 times the width, each of the last two halving the image, the mean
    over pixels, a linear output. A shortcut into a stage takes every second pixel and fills the new channels with zeros, so it
    has no parameters. With `scale_invariant=True` every convolution feeds a normalization without affine map before anything
    is added to it and the output is normalized too (or fixed), so that f(c w) = f(w) for every c > 0.

    Attributes:
        depth: 6 n + 2.
        width: channels of the first stage.
        outputs: number of outputs; `jaxsharp.problems.supervised` fills in None.
        norm: a name in `jaxsharp.models.NORMALIZATIONS`, after each convolution.
        activation: a name in `jaxsharp.models.ACTIVATIONS`.
        scale_invariant: whether to build the fully scale-invariant form.
        epsilon: of the normalization; None means 1e-5, or 0 in the scale-invariant form.
        groups: of group normalization; None chooses.
        fixed_read_out: whether the last map is a constant matrix with orthonormal columns.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> model = js.models.ResNet(depth=8, width=4, outputs=10, norm="layer")
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((3, 8, 8, 3)))[0].shape
        (3, 10)

    Source: He, Zhang, Ren, Sun 2016, its section on CIFAR-10.
    """

    depth: int = 20
    width: int = 16
    outputs: int | None = None
    norm: str = "batch"
    activation: str = "relu"
    scale_invariant: bool = False
    epsilon: float | None = None
    groups: int | None = None
    fixed_read_out: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Evaluates the network on images (n, height, width, channels); returns (n, outputs)."""
        blocks, rest = divmod(self.depth - 2, 2 * STAGES)
        if blocks < 1 or rest:
            raise ValueError(f"depth={self.depth} must be 6 n + 2, for example 8, 14, 20 or 32.")
        make, x = recipe(self), images(x)
        x = make.linear(self.width, "conv_0", window=3)(x)
        x = make.phi(make.normalize("norm_0")(x, train))
        index = 1
        for stage in range(STAGES):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _block(make, x, train, index, self.width * 2**stage, stride)
                index += 2
        return make.read_out(jnp.mean(x, axis=(1, 2)), train, index=index)


def _block(make: Recipe, x, train, index, width, stride):
    y = make.linear(width, f"conv_{index}", after=make.activation, window=3, stride=stride)(x)
    y = make.phi(make.normalize(f"norm_{index}")(y, train))
    y = make.linear(width, f"conv_{index + 1}", after=make.activation, window=3)(y)
    y = make.normalize(f"norm_{index + 1}")(y, train)
    if stride > 1:
        more = width - x.shape[-1]
        x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
    return make.phi(x + y)


def ResNet20(width: int = 16, **fields) -> ResNet:
    """Makes ResNet-20 in its CIFAR form.

    Args:
        width: channels of the first stage.
        **fields: of `ResNet`.

    Returns:
        A `ResNet`.

    Example:
        >>> import jaxsharp as js
        >>> js.models.ResNet20(norm="group").depth
        20
    """
    return ResNet(20, width, **fields)
