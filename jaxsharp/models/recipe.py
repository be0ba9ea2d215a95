"""What the architectures share: how a model's fields turn into its linear maps, normalizations and read-out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import jax.numpy as jnp
import numpy as np

from jaxsharp._types import Array
from jaxsharp.models.activations import ACTIVATIONS, gain
from jaxsharp.models.linear import Linear
from jaxsharp.models.normalization import NORMALIZATIONS, WEIGHT_NORMALIZATIONS, Normalize


@dataclass(frozen=True)
class Recipe:
    """The choices every architecture shares; its methods make submodules of the model that calls them.

    In the scale-invariant form nothing has a bias or an affine map, gains of normalized weights are constants, and ε = 0. An
    architecture is then exactly scale-invariant when every weight feeds a normalization (or is normalized itself) before
    anything is added to what it makes and before an activation.

    Attributes:
        norm: a name in `jaxsharp.models.NORMALIZATIONS`.
        exact: whether to build the scale-invariant form.
        activation: a name in `ACTIVATIONS`.
        epsilon: of the normalizations.
        groups: of group normalization.
        outputs: number of outputs.
        fixed_read_out: whether the last map is a constant.
    """

    norm: str
    exact: bool
    activation: str
    epsilon: float
    groups: int | None
    outputs: int
    fixed_read_out: bool

    @property
    def on_weights(self) -> bool:
        """Whether the normalization acts on weights rather than on features."""
        return self.norm in WEIGHT_NORMALIZATIONS

    @property
    def phi(self) -> Callable:
        """The activation function."""
        return ACTIVATIONS[self.activation]

    def linear(self, features: int, name: str, *, after: str = "identity", window: int | None = None, stride: int = 1) -> Linear:
        """Makes a trainable linear map; `after` names the activation that its inputs come out of."""
        size = gain(after, centred=self.norm == "weight_standardization") if self.on_weights else 1.0
        return Linear(features, self.norm, window, stride, not self.exact, size, fixed_gain=self.exact, name=name)

    def normalize(self, name: str, kind: str | None = None) -> Normalize:
        """Makes a normalization of features."""
        return Normalize(self.norm if kind is None else kind, not self.exact, self.epsilon, self.groups, name=name)

    def read_out(self, x: Array, train: bool, *, index: int, after: str | None = None) -> Array:
        """Maps features (..., features) to (..., outputs): by a constant matrix, or trained, and normalized where exact.

        Normalized outputs have mean 0 and variance 1 over the samples (`batch`) or over the outputs (all others, but mean
        square 1 with `rms`); with normalized weights they need no normalization.
        """
        after = self.activation if after is None else after
        if self.fixed_read_out:
            return x @ jnp.asarray(orthonormal(x.shape[-1], self.outputs), x.dtype)
        x = self.linear(self.outputs, f"dense_{index}", after=after)(x)
        if self.exact and not self.on_weights:
            kind = "layer" if self.norm in ("group", "instance") else self.norm
            x = self.normalize(f"norm_{index}", kind)(x, train)
        return x


def recipe(model) -> Recipe:
    """Reads and checks the shared fields of a model.

    Args:
        model: a module with the fields norm, activation, scale_invariant, epsilon, groups, outputs and fixed_read_out.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: for an unknown name, unset outputs, or a scale-invariant form that does not exist.
    """
    if model.outputs is None:
        raise ValueError("outputs is not set; pass outputs=, or let js.problems.supervised set it.")
    if model.activation not in ACTIVATIONS:
        raise ValueError(f"activation={model.activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}.")
    if model.norm not in NORMALIZATIONS:
        raise ValueError(f"norm={model.norm!r} is unknown; use one of {', '.join(NORMALIZATIONS)}.")
    exact, trained = model.scale_invariant, not model.fixed_read_out
    if exact and model.norm == "none":
        raise ValueError(
            f"scale_invariant=True needs a normalization; pass norm= one of {', '.join(NORMALIZATIONS[1:])}, or put any problem "
            "on the sphere with js.problems.scale_invariant."
        )
    if exact and trained and model.norm in ("layer", "group", "instance") and model.outputs < 3:
        raise ValueError(
            f"scale_invariant=True with norm={model.norm!r} normalizes over the outputs, so it needs at least 3 of them; pass "
            "fixed_read_out=True for fewer."
        )
    epsilon = model.epsilon if model.epsilon is not None else (0.0 if exact else 1e-5)
    return Recipe(model.norm, exact, model.activation, epsilon, model.groups, model.outputs, model.fixed_read_out)


def orthonormal(rows: int, columns: int) -> np.ndarray:
    """Returns a fixed matrix (rows, columns) with orthonormal columns, or rows where these are fewer.

    Example:
        >>> import numpy as np
        >>> bool(np.allclose(orthonormal(5, 3).T @ orthonormal(5, 3), np.eye(3)))
        True
    """
    noise = np.random.default_rng(0).normal(size=(max(rows, columns), min(rows, columns)))
    matrix = np.linalg.qr(noise)[0]
    return matrix if rows >= columns else matrix.T


def pool(x: Array, kind: str, side: int = 2) -> Array:
    """Pools images over squares without overlap, by their mean or their largest value; incomplete squares are dropped.

    Args:
        x: images (n, height, width, channels); one of a single pixel is returned as it is.
        kind: `average` or `max`.
        side: of the squares; more than an image has becomes what it has.

    Returns:
        (n, height // side, width // side, channels).

    Raises:
        ValueError: for another kind.

    Example:
        >>> import jax.numpy as jnp
        >>> float(pool(jnp.arange(4.0).reshape(1, 2, 2, 1), "average")[0, 0, 0, 0])
        1.5
    """
    if kind not in ("average", "max"):
        raise ValueError(f"pooling={kind!r} is unknown; use 'average' or 'max'.")
    samples, height, width, channels = x.shape
    tall, wide = min(side, height), min(side, width)
    rows, columns = height // tall, width // wide
    x = x[:, : rows * tall, : columns * wide].reshape(samples, rows, tall, columns, wide, channels)
    if kind == "average":
        return jnp.mean(x, axis=(2, 4))
    # Not jnp.max: its derivative finds the largest by equality, and where a compiler computes x twice with other roundings none
    # is found and the derivative is 0/0, as seen in second derivatives on CPU.
    return reduce(_larger, [x[:, :, i, :, j] for i in range(tall) for j in range(wide)])


def _larger(a, b):
    return jnp.where(a >= b, a, b)


def images(x: Array) -> Array:
    """Returns images (n, height, width, channels), adding the channel to (n, height, width).

    Raises:
        ValueError: for another number of axes.
    """
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise ValueError(
            f"this model needs images (n, height, width, channels), got inputs of shape {x.shape}; for the digits pass "
            "flatten=False."
        )
    return x
