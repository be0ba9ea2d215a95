"""The multilayer perceptron."""

from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.models.recipe import recipe


class MLP(nn.Module):
    """A multilayer perceptron, x ← φ(norm(W x + b)) for each width, then a linear output.

    With `scale_invariant=True` no layer has a bias or an affine map and the output is normalized too, with ε = 0, so that
    f(c w) = f(w) for every c > 0 applied to all weights at once (and to any single one).

    Attributes:
        widths: hidden widths.
        outputs: number of outputs; `jaxsharp.problems.supervised` fills in None.
        norm: a name in `jaxsharp.models.NORMALIZATIONS`, before each activation; not `instance`, which needs positions.
        activation: a name in `jaxsharp.models.ACTIVATIONS`.
        scale_invariant: whether to build the fully scale-invariant form.
        epsilon: of the normalization; None means 1e-5, or 0 in the scale-invariant form.
        groups: of group normalization; None chooses.
        fixed_read_out: whether the last map is a constant matrix with orthonormal columns.

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
    groups: int | None = None
    fixed_read_out: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Evaluates the network on inputs (n, ...), flattened per sample; returns (n, outputs)."""
        make, after = recipe(self), "identity"
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.widths):
            x = make.linear(width, f"dense_{index}", after=after)(x)
            x = make.phi(make.normalize(f"norm_{index}")(x, train))
            after = self.activation
        return make.read_out(x, train, index=len(self.widths), after=after)
