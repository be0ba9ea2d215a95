"""The multilayer perceptron."""

from collections.abc import Callable

import jax
from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.normalization import Normalize

ACTIVATIONS: dict[str, Callable] = {
    "tanh": jax.numpy.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "identity": lambda x: x,
}


class MLP(nn.Module):
    """A multilayer perceptron, x ← φ(norm(W x + b)) for each width, then a linear output.

    With `scale_invariant=True` no layer has a bias or an affine map and the output is normalized too, with ε = 0, so that
    f(c w) = f(w) for every c > 0 applied to all weights at once.

    Attributes:
        widths: hidden widths.
        outputs: number of outputs; `jaxsharp.problems.supervised` fills in None.
        norm: `none`, `batch` or `layer`, before each activation.
        activation: a name in `ACTIVATIONS`.
        scale_invariant: whether to build the fully scale-invariant form.
        epsilon: of the normalization; None means 1e-5, or 0 in the scale-invariant form.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> model = js.models.MLP(widths=(10,), outputs=3, norm="layer")
        >>> variables = model.init(jax.random.key(0), jnp.ones((5, 4)))
        >>> model.apply(variables, jnp.ones((5, 4))).shape
        (5, 3)
    """

    widths: tuple[int, ...] = (100, 100)
    outputs: int | None = None
    norm: str = "none"
    activation: str = "tanh"
    scale_invariant: bool = False
    epsilon: float | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Evaluates the network on inputs (n, ...), flattened per sample; returns (n, outputs)."""
        if self.outputs is None:
            raise ValueError("outputs is not set; pass outputs=, or let js.problems.supervised set it.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}.")
        if self.scale_invariant and self.norm == "none":
            raise ValueError("scale_invariant=True needs a normalization; pass norm='batch' or norm='layer'.")
        if self.scale_invariant and self.norm == "layer" and self.outputs < 3:
            raise ValueError(
                "scale_invariant=True with norm='layer' normalizes over the outputs, so it needs at least 3 of them."
            )
        exact = self.scale_invariant
        epsilon = self.epsilon if self.epsilon is not None else (0.0 if exact else 1e-5)
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate((*self.widths, self.outputs)):
            last = index == len(self.widths)
            x = nn.Dense(width, use_bias=not exact, param_dtype=x.dtype, dtype=x.dtype, name=f"dense_{index}")(x)
            if exact or not last:
                norm = Normalize(self.norm, affine=not exact, epsilon=epsilon, name=f"norm_{index}")
                x = norm(x, train)
            if not last:
                x = ACTIVATIONS[self.activation](x)
        return x
