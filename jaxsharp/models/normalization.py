"""Normalization layers for full-batch training, as flax modules built by name."""

from flax import linen as nn

from jaxsharp._types import Array

NORMALIZATIONS = ("none", "batch", "layer")


class Normalize(nn.Module):
    """Normalizes features by name: (x − mean) / √(var + ε), then an optional affine map.

    `batch` takes mean and variance over every axis but the last and, with `train=True`, leaves them in the collection
    `batch_stats` exactly as computed, without averaging over time; with `train=False` it uses what the collection holds.
    `layer` takes them over the last axis of each sample.

    Attributes:
        kind: one of `NORMALIZATIONS`.
        affine: whether a trainable scale and shift follow.
        epsilon: ε; 0 makes the layer exactly scale-invariant.
    """

    kind: str
    affine: bool = True
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Returns the normalized features, in the shape and dtype of x."""
        if self.kind not in NORMALIZATIONS:
            raise ValueError(f"norm={self.kind!r} is unknown; use one of {', '.join(NORMALIZATIONS)}.")
        common = {
            "epsilon": self.epsilon,
            "use_scale": self.affine,
            "use_bias": self.affine,
            "dtype": x.dtype,
            "param_dtype": x.dtype,
            "use_fast_variance": False,
            "force_float32_reductions": False,
        }
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.0, name="batch", **common)(x)
        if self.kind == "layer":
            return nn.LayerNorm(name="layer", **common)(x)
        return x
