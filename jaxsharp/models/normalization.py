"""Normalization layers for full-batch training, as flax modules built by name."""

import math

from flax import linen as nn

from jaxsharp._types import Array

WEIGHT_NORMALIZATIONS = ("weight", "weight_standardization")
"""Those that act on the weights, in `jaxsharp.models.Linear`, and leave features as they are."""

NORMALIZATIONS = ("none", "batch", "layer", "group", "instance", "rms", *WEIGHT_NORMALIZATIONS)

MOST_GROUPS = 32
LEAST_GROUP_SIZE = 4


class Normalize(nn.Module):
    """Normalizes features by name: (x − mean) / √(var + ε), then an optional affine map with one scale and shift a feature.

    Features are the last axis of x: vectors (n, features), sequences (n, positions, features) or images (n, height, width,
    features). Mean and variance are taken over

    - `batch`: every axis but the last. With `train=True` they are left in the collection `batch_stats` exactly as computed,
      without averaging over time; with `train=False` the layer uses what the collection holds.
    - `layer`: the features of a sample, of an image with all its pixels, of a sequence one position at a time.
    - `group`: as `layer`, but over each of several groups of features by itself.
    - `instance`: the positions or pixels of one feature of a sample.
    - `rms`: as `layer`, with the mean square in place of the variance, and no mean or shift: x / √(mean(x²) + ε).

    `none`, `weight` and `weight_standardization` leave x as it is.

    Attributes:
        kind: one of `NORMALIZATIONS`.
        affine: whether a trainable scale and shift follow.
        epsilon: ε; 0 makes the layer exactly scale-invariant.
        groups: of `group`; None takes the largest divisor of the number of features that is at most 32 and leaves at least 4
            features to a group.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> layer = js.models.Normalize("rms", affine=False, epsilon=0.0)
        >>> [round(float(x), 4) for x in layer.apply({}, jnp.array([[3.0, 4.0, 0.0, 0.0]]))[0]]
        [1.2, 1.6, 0.0, 0.0]

    Source: Ioffe, Szegedy 2015 (batch); Ba, Kiros, Hinton 2016 (layer); Wu, He 2018 (group); Ulyanov, Vedaldi, Lempitsky 2016
    (instance); Zhang, Sennrich 2019 (rms).
    """

    kind: str
    affine: bool = True
    epsilon: float = 1e-5
    groups: int | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Returns the normalized features, in the shape and dtype of x."""
        if self.kind not in NORMALIZATIONS:
            raise ValueError(f"norm={self.kind!r} is unknown; use one of {', '.join(NORMALIZATIONS)}.")
        common = {
            "epsilon": self.epsilon,
            "use_scale": self.affine,
            "dtype": x.dtype,
            "param_dtype": x.dtype,
            "use_fast_variance": False,
            "force_float32_reductions": False,
            "name": self.kind,
        }
        features, positions = x.shape[-1], math.prod(x.shape[1:-1])
        axes = (1, 2, 3) if x.ndim == 4 else (-1,)
        over = features * positions if x.ndim == 4 else features
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.0, use_bias=self.affine, **common)(x)
        if self.kind == "layer":
            self._enough(over)
            return nn.LayerNorm(use_bias=self.affine, reduction_axes=axes, **common)(x)
        if self.kind == "group":
            groups = default_groups(features) if self.groups is None else self.groups
            if groups < 1 or features % groups:
                raise ValueError(f"groups={groups} does not divide the {features} features; pass a divisor, or None.")
            self._enough(over // groups)
            return nn.GroupNorm(num_groups=groups, use_bias=self.affine, reduction_axes=axes, **common)(x)
        if self.kind == "instance":
            self._enough(positions)
            return nn.InstanceNorm(use_bias=self.affine, **common)(x)
        if self.kind == "rms":
            self._enough(over, least=2)
            return nn.RMSNorm(reduction_axes=axes, **common)(x)
        return x

    def _enough(self, count, least=3):
        """Fewer normalized values have nothing left to vary: one is always 0, two are always −1 and 1 where ε = 0."""
        least = least if self.epsilon == 0 else least - 1
        if count < least:
            raise ValueError(
                f"norm={self.kind!r} would normalize over {count} value{'s' * (count != 1)}, and needs at least {least}; use "
                "larger images, more features, fewer groups, or another norm ('instance' needs images or sequences)."
            )


def default_groups(features: int) -> int:
    """Returns the largest divisor of a number of features that is at most 32 and leaves at least 4 features to a group.

    Example:
        >>> default_groups(64), default_groups(100), default_groups(6)
        (16, 25, 1)
    """
    most = max(1, min(MOST_GROUPS, features // LEAST_GROUP_SIZE))
    return next(groups for groups in range(most, 0, -1) if features % groups == 0)
