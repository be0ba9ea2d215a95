"""Projected gradient descent on the unit sphere."""

import jax
import optax

from jaxsharp import sphere
from jaxsharp._types import ScalarLike
from jaxsharp.optimizers.optimizer import Optimizer, check_rates


def _projected_gd(learning_rate):
    def init(params):
        del params
        return optax.EmptyState()

    def update(gradient, state, params=None):
        if params is None:
            raise ValueError("projected_gd needs the parameters; pass them as the third argument of update.")
        target = sphere.normalize(jax.tree.map(lambda w, g: w - learning_rate * g, params, gradient))
        return jax.tree.map(lambda new, old: new - old, target, params), state

    return optax.GradientTransformation(init, update)


def projected_gd(learning_rate: ScalarLike) -> Optimizer:
    """Projected gradient descent on the unit sphere, θ ← Π(θ − η̃ ∇L(θ)) with Π(w) = w / ‖w‖.

    The direction of GD with weight decay on a scale-invariant loss does this with the effective learning rate.

    Args:
        learning_rate: η̃ ≥ 0.

    Returns:
        An `Optimizer`; after its first step the parameters have unit norm. Cost: 1 gradient a step.

    Raises:
        ValueError: for a negative or non-finite number.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> rule = js.optimizers.projected_gd(0.1)
        >>> w = jnp.array([1.0, 0.0])
        >>> updates, _ = rule.update(jnp.array([0.0, 10.0]), rule.init(w), w)
        >>> [round(float(x), 4) for x in w + updates]
        [0.7071, -0.7071]

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    check_rates(learning_rate=learning_rate)
    return Optimizer(_projected_gd, {"learning_rate": learning_rate})
