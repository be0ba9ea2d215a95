"""Gradient descent with weight decay and momentum."""

import optax

from jaxsharp._types import ScalarLike
from jaxsharp.optimizers.optimizer import Optimizer, check_rates
from jaxsharp.preconditioning import Constant


def _gd(learning_rate, weight_decay):
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale(-learning_rate))


def _heavy_ball(learning_rate, weight_decay, momentum):
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(decay=momentum), optax.scale(-learning_rate))


_gd.preconditioning = _heavy_ball.preconditioning = Constant()  # what a central flow has to know


def gd(learning_rate: ScalarLike, weight_decay: ScalarLike = 0.0, momentum: ScalarLike = 0.0) -> Optimizer:
    """Gradient descent with weight decay, w ← (1 − η̂ λ̂) w − η̂ ∇L(w).

    With momentum μ (heavy ball, decay inside as L2 regularization): m ← μ m + ∇L(w) + λ̂ w, w ← w − η̂ m.

    Args:
        learning_rate: η̂ ≥ 0.
        weight_decay: λ̂ ≥ 0.
        momentum: μ ≥ 0; the number 0 keeps no momentum buffer.

    Returns:
        An `Optimizer`. Cost: 1 gradient a step.

    Raises:
        ValueError: for a negative or non-finite number.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.5), steps=20, probes=["loss"], every=10)
        >>> dict(ds.sizes), bool(ds.loss[-1] < ds.loss[0])
        ({'step': 3}, True)

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    check_rates(learning_rate=learning_rate, weight_decay=weight_decay, momentum=momentum)
    hyperparams = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    if isinstance(momentum, (int, float)) and momentum == 0:
        return Optimizer(_gd, hyperparams)
    return Optimizer(_heavy_ball, {**hyperparams, "momentum": momentum})
