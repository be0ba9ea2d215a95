"""Gradient descent on the root of the loss."""

import jax
import jax.numpy as jnp
import optax

from jaxsharp._types import ScalarLike
from jaxsharp.optimizers.optimizer import Optimizer, check_rates


def _sqrt_loss_gd(learning_rate):
    def init(params):
        del params
        return optax.EmptyState()

    def update(gradient, state, params=None, *, value=None, **extra):
        del params, extra
        if value is None:
            raise ValueError("sqrt_loss_gd needs the loss; pass it as value= to update.")
        root = jnp.sqrt(jnp.maximum(value, 0))
        scale = learning_rate / (2 * jnp.where(root > 0, root, jnp.ones_like(root)))
        return jax.tree.map(lambda g: -scale * g, gradient), state

    return optax.GradientTransformationExtraArgs(init, update)


def sqrt_loss_gd(learning_rate: ScalarLike) -> Optimizer:
    """Gradient descent on the root of the loss, w ← w − η ∇√L(w) = w − η ∇L(w) / (2 √L(w)).

    Near a minimizer manifold it oscillates with an amplitude of order η and drifts to flatter minimizers;
    `jaxsharp.flows.sqrt_loss_gd` predicts the drift. Where the loss is zero it stays.

    Args:
        learning_rate: η ≥ 0.

    Returns:
        An `Optimizer`; its `update` needs the loss as `value=`. Cost: 1 gradient a step.

    Raises:
        ValueError: for a negative or non-finite number, or an update without the loss.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> rule = js.optimizers.sqrt_loss_gd(0.1)
        >>> w = jnp.array([3.0, 4.0])
        >>> updates, _ = rule.update(w, rule.init(w), w, value=jnp.array(6.25))
        >>> [round(float(x), 3) for x in updates]
        [-0.06, -0.08]

    Source: Arora, Li, Panigrahi 2022; theory §2.
    """
    check_rates(learning_rate=learning_rate)
    return Optimizer(_sqrt_loss_gd, {"learning_rate": learning_rate})
