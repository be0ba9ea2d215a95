"""The VGG networks in their form for small images."""

from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.recipe import images, pool, recipe

POOL = "pool"
VGG11_PLAN = (1, POOL, 2, POOL, 4, 4, POOL, 8, 8, POOL, 8, 8, POOL)
"""Channels of the 8 convolutions over those of the first, and where the images are halved."""


class VGG(nn.Module):
    """A VGG network in its CIFAR form: 3 × 3 convolutions with norm and φ, halved images, one linear output.

    Once an image has a single pixel, pooling leaves it as it is, so that 8 × 8 images pass as well as 32 × 32 (`instance` then
    raises, having no pixels to normalize over). With `scale_invariant=True` as for `CNN`.

    Attributes:
        plan: channels of each convolution in units of `width`, and `pool` for a 2 × 2 pooling.
        width: channels of the first convolution.
        outputs: number of outputs; `jaxsharp.problems.supervised` fills in None.
        norm: a name in `jaxsharp.models.NORMALIZATIONS`, before each activation.
        activation: a name in `jaxsharp.models.ACTIVATIONS`.
        scale_invariant: whether to build the fully scale-invariant form.
        epsilon: of the normalization; None means 1e-5, or 0 in the scale-invariant form.
        groups: of group normalization; None chooses.
        fixed_read_out: whether the last map is a constant matrix with orthonormal columns.
        pooling: `max` or `average`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> model = js.models.VGG(plan=(1, "pool", 2), width=4, outputs=10, norm="layer")
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((3, 8, 8, 3)))[0].shape
        (3, 10)

    Source: Simonyan, Zisserman 2015.
    """

    plan: tuple[int | str, ...] = VGG11_PLAN
    width: int = 64
    outputs: int | None = None
    norm: str = "none"
    activation: str = "relu"
    scale_invariant: bool = False
    epsilon: float | None = None
    groups: int | None = None
    fixed_read_out: bool = False
    pooling: str = "max"

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Evaluates the network on images (n, height, width, channels); returns (n, outputs)."""
        make, x, after, index = recipe(self), images(x), "identity", 0
        for entry in self.plan:
            if entry == POOL:
                x = pool(x, self.pooling)
                continue
            x = make.linear(entry * self.width, f"conv_{index}", after=after, window=3)(x)
            x = make.phi(make.normalize(f"norm_{index}")(x, train))
            after, index = self.activation, index + 1
        return make.read_out(x.reshape(x.shape[0], -1), train, index=index, after=after)


def VGG11(width: int = 64, **fields) -> VGG:
    """Makes VGG-11 in its CIFAR form: 8 convolutions of 64 to 512 channels and one linear output.

    Args:
        width: channels of the first convolution.
        **fields: of `VGG`.

    Returns:
        A `VGG`.

    Example:
        >>> import jaxsharp as js
        >>> js.models.VGG11(norm="batch").width
        64
    """
    return VGG(VGG11_PLAN, width, **fields)
