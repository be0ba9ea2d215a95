"""RMSProp, with the places where its definitions differ as switches."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsharp import sphere
from jaxsharp._types import Count, PyTree, ScalarLike
from jaxsharp.optimizers.optimizer import Optimizer, check_rates
from jaxsharp.preconditioning import SecondMoment


class RMSPropState(NamedTuple):
    """Memory of `rmsprop` and `scalar_rmsprop`.

    Attributes:
        second_moment: ν, a pytree like the parameters, or one scalar.
        count: steps taken.
    """

    second_moment: PyTree
    count: Count


@dataclass(frozen=True)
class RMSPropRule:
    """The rule of `rmsprop` and `scalar_rmsprop`; what a flow has to know about it is `preconditioning`."""

    preconditioning: SecondMoment

    @property
    def __name__(self) -> str:
        """For labels."""
        return "rmsprop" if self.preconditioning.per_coordinate else "scalar_rmsprop"

    def __call__(self, learning_rate, beta2, eps, initial):
        """Makes the optax transformation."""
        kind = self.preconditioning

        def init(params):
            leaves = jax.tree.leaves(params)
            if kind.per_coordinate:
                moment = jax.tree.map(lambda leaf: jnp.full(leaf.shape, initial, leaf.dtype), params)
            else:
                moment = jnp.asarray(initial, leaves[0].dtype)
            return RMSPropState(moment, jnp.zeros((), jnp.int32))

        def update(gradient, state, params=None):
            del params
            count = state.count + 1
            square = jax.tree.map(jnp.square, gradient) if kind.per_coordinate else sphere.norm(gradient) ** 2
            moment = jax.tree.map(lambda old, new: beta2 * old + (1 - beta2) * new, state.second_moment, square)

            def divisor(nu):
                if kind.bias_correction:
                    nu = nu / (1 - beta2 ** count.astype(nu.dtype))
                return jnp.sqrt(nu + eps) if kind.eps_in_root else jnp.sqrt(nu) + eps

            scale = jax.tree.map(divisor, moment)
            if not kind.per_coordinate:
                scale = jax.tree.map(lambda g: scale, gradient)
            return jax.tree.map(lambda g, s: -learning_rate * g / s, gradient, scale), RMSPropState(moment, count)

        return optax.GradientTransformation(init, update)


def rmsprop(
    learning_rate: ScalarLike,
    beta2: ScalarLike = 0.99,
    eps: ScalarLike = 1e-8,
    *,
    initial: ScalarLike = 0.0,
    bias_correction: bool = True,
    eps_in_root: bool = False,
) -> Optimizer:
    """RMSProp, ν ← β2 ν + (1 − β2) ∇L(w)², w ← w − η ∇L(w) / (√ν̂ + ε), all per coordinate.

    The step uses ν after its update; ν̂ = ν / (1 − β2ᵗ) with bias correction, else ν.

    Args:
        learning_rate: η ≥ 0.
        beta2: β2 in (0, 1).
        eps: ε ≥ 0.
        initial: ν before the first step; with bias correction the number 0 is the one that makes sense.
        bias_correction: whether to correct ν for its start.
        eps_in_root: whether the divisor is √(ν̂ + ε) in place of √ν̂ + ε.

    Returns:
        An `Optimizer`. Cost: 1 gradient a step.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> rule = js.optimizers.rmsprop(0.1)
        >>> updates, _ = rule.update(jnp.array([2.0, -4.0]), rule.init(jnp.zeros(2)))
        >>> [round(float(x), 4) for x in updates]
        [-0.1, 0.1]

    Source: Tieleman and Hinton 2012; in this form Cohen, Damian et al. 2024.
    """
    return make(True, learning_rate, beta2, eps, initial, bias_correction, eps_in_root)


def make(per_coordinate, learning_rate, beta2, eps, initial, bias_correction, eps_in_root) -> Optimizer:
    """Makes the Optimizer of either form, with its numbers checked."""
    check_rates(learning_rate=learning_rate, beta2=beta2, eps=eps, initial=initial)
    if isinstance(beta2, (int, float)) and not 0 < beta2 < 1:
        raise ValueError(f"beta2 must be above 0 and below 1, got {beta2}.")
    hyperparams = {"learning_rate": learning_rate, "beta2": beta2, "eps": eps, "initial": initial}
    return Optimizer(RMSPropRule(SecondMoment(per_coordinate, bias_correction, eps_in_root)), hyperparams)
