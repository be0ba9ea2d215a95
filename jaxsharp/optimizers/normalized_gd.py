"""Normalized gradient descent."""

import jax
import jax.numpy as jnp
import optax

from jaxsharp import sphere
from jaxsharp._types import ScalarLike
from jaxsharp.optimizers.optimizer import Optimizer, check_rates


def _normalized_gd(learning_rate):
    def init(params):
        del params
        return optax.EmptyState()

    def update(gradient, state, params=None, **extra):
        del params, extra
        size = sphere.norm(gradient)
        scale = learning_rate / jnp.where(size > 0, size, jnp.ones_like(size))
        return jax.tree.map(lambda g: -scale * g, gradient), state

    return optax.GradientTransformationExtraArgs(init, update)


def normalized_gd(learning_rate: ScalarLike) -> Optimizer:
    """Normalized gradient descent, w ← w − η ∇L(w) / ‖∇L(w)‖.

    Near a minimizer manifold it oscillates with an amplitude of order η and drifts to flatter minimizers;
    `jaxsharp.flows.normalized_gd` predicts the drift. Where the gradient is zero it stays.

    Args:
        learning_rate: η ≥ 0, the length of each step.

    Returns:
        An `Optimizer`. Cost: 1 gradient a step.

    Raises:
        ValueError: for a negative or non-finite number.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> rule = js.optimizers.normalized_gd(0.1)
        >>> w = jnp.array([3.0, 4.0])
        >>> updates, _ = rule.update(w, rule.init(w), w)
        >>> [round(float(x), 3) for x in updates]
        [-0.06, -0.08]

    Source: Arora, Li, Panigrahi 2022; theory §2.
    """
    check_rates(learning_rate=learning_rate)
    return Optimizer(_normalized_gd, {"learning_rate": learning_rate})
