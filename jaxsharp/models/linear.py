"""The trainable linear map of every model: dense or convolutional, with its weights normalized where asked."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.normalization import WEIGHT_NORMALIZATIONS


class Linear(nn.Module):
    """A linear map of the last axis, y = x K + b, or a convolution of images with a square window, zero-padded.

    With `norm="weight"` each output has the weights γ v/‖v‖, and with `norm="weight_standardization"` the weights
    γ (v − mean v)/(√N std v), N the number of weights v of one output: both depend on the direction of v alone. γ starts at
    `gain` and is trained, one for each output, unless `fixed_gain`.

    Attributes:
        features: number of outputs.
        norm: `weight`, `weight_standardization`, or any other name for plain weights.
        window: side of the window of a convolution, odd; None for a dense layer.
        stride: of the window.
        use_bias: whether to add b.
        gain: the initial or fixed γ.
        fixed_gain: whether γ is a constant.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> layer = js.models.Linear(2, norm="weight", fixed_gain=True, use_bias=False)
        >>> v = jnp.array([[3.0, 0.0], [4.0, 2.0]])
        >>> layer.apply({"params": {"kernel": v}}, jnp.eye(2)).round(4).tolist()
        [[0.6..., 0.0], [0.8..., 1.0]]

    Source: Salimans, Kingma 2016 (weight); Qiao et al. 2019 and, for its scaling, Brock, De, Smith 2021
    (weight_standardization).
    """

    features: int
    norm: str = "none"
    window: int | None = None
    stride: int = 1
    use_bias: bool = True
    gain: float = 1.0
    fixed_gain: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns (..., features), of images (n, ⌈height/stride⌉, ⌈width/stride⌉, features)."""
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            raise ValueError(f"window={self.window} must be odd, so that a pixel has a centre.")
        square = () if self.window is None else (self.window, self.window)
        shape = (*square, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, x.dtype)
        if self.norm in WEIGHT_NORMALIZATIONS:
            kernel = self._normalized(kernel)
        if self.window is None:
            x = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        else:
            x = convolve(x, kernel, self.stride)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
            x = x + jnp.expand_dims(bias, range(x.ndim - 1))
        return x

    def _normalized(self, kernel):
        axes, count = tuple(range(kernel.ndim - 1)), kernel.size // kernel.shape[-1]
        least = 3 if self.norm == "weight_standardization" else 2
        if count < least:
            raise ValueError(f"norm={self.norm!r} needs at least {least} weights for each output, and a layer here has {count}.")
        if self.norm == "weight_standardization":
            kernel = kernel - jnp.mean(kernel, axis=axes, keepdims=True)
        kernel = kernel / jnp.sqrt(jnp.sum(kernel**2, axis=axes, keepdims=True))
        if self.fixed_gain:
            return kernel * jnp.asarray(self.gain, kernel.dtype)
        gain = self.param("gain", nn.initializers.constant(self.gain), (self.features,), kernel.dtype)
        return kernel * jnp.expand_dims(gain, axes)


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolves images with a square window whose middle runs over every stride-th pixel, zero outside the image.

    Args:
        x: images (n, height, width, channels).
        kernel: (side, side, channels, features), side odd.
        stride: step of the window.

    Returns:
        (n, ⌈height/stride⌉, ⌈width/stride⌉, features).

    Example:
        >>> import jax.numpy as jnp
        >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), stride=2)[0, ..., 0].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    half = kernel.shape[0] // 2
    padding = [(half, half)] * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
