"""Gradient descent with a scalar RMSProp schedule, in R^D or on the sphere."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsharp import sphere
from jaxsharp._types import Scalar, ScalarLike
from jaxsharp.optimizers.optimizer import Optimizer, check_rates


class ScheduledState(NamedTuple):
    """Memory of `scheduled_gd`.

    Attributes:
        second_moment: ṽ, the running mean of squared gradient norms.
        rate: η̃ of the next step.
    """

    second_moment: Scalar
    rate: Scalar


def _rule(on_sphere):
    def transformation(learning_rate, beta, initial):
        def remember(second_moment):
            return ScheduledState(second_moment, jnp.asarray(learning_rate, second_moment.dtype) / jnp.sqrt(second_moment))

        def init(params):
            dtype = jax.tree.leaves(params)[0].dtype
            return remember(jnp.asarray(initial, dtype))

        def update(gradient, state, params=None):
            squared = sphere.norm(gradient) ** 2
            moved = jax.tree.map(lambda g: -state.rate * g, gradient)
            if on_sphere:
                if params is None:
                    raise ValueError(
                        "scheduled_gd on the sphere needs the parameters; pass them as the third argument of update."
                    )
                target = sphere.normalize(jax.tree.map(jnp.add, params, moved))
                moved = jax.tree.map(jnp.subtract, target, params)
            return moved, remember(beta * state.second_moment + (1 - beta) * squared)

        return optax.GradientTransformation(init, update)

    return transformation


_scheduled_gd = _rule(False)
_scheduled_gd_on_sphere = _rule(True)


def scheduled_gd(learning_rate: ScalarLike, beta: ScalarLike, *, initial: ScalarLike = 1.0, on_sphere: bool = False) -> Optimizer:
    """Gradient descent with the scalar RMSProp schedule η̃ = η / √ṽ, ṽ ← β ṽ + (1 − β) ‖∇L(w)‖².

    The step uses ṽ before its update. On the sphere, θ ← Π(θ − η̃ ∇L(θ)): with η = η_in = √(2 η̂ λ̂) and β = (1 − η̂ λ̂)⁴ this
    follows the direction of GD with weight decay up to O(η_in⁴) a step.

    Args:
        learning_rate: η ≥ 0.
        beta: β in [0, 1).
        initial: ṽ before the first step, > 0; (η / η̃)² starts with the rate η̃.
        on_sphere: whether to project to the unit sphere after each step.

    Returns:
        An `Optimizer`. Cost: 1 gradient a step.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> rule = js.optimizers.scheduled_gd(0.1, beta=0.9)
        >>> updates, state = rule.update(jnp.array([2.0]), rule.init(jnp.zeros(1)))
        >>> round(float(updates[0]), 3), round(float(state.second_moment), 3)
        (-0.2, 1.3)

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    check_rates(learning_rate=learning_rate, beta=beta, initial=initial)
    if isinstance(beta, float) and not beta < 1:
        raise ValueError(f"beta must be below 1, got {beta}.")
    if isinstance(initial, float) and initial == 0:
        raise ValueError("initial must be positive: the first rate is learning_rate / sqrt(initial).")
    rule = _scheduled_gd_on_sphere if on_sphere else _scheduled_gd
    return Optimizer(rule, {"learning_rate": learning_rate, "beta": beta, "initial": initial})
