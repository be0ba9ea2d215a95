"""RMSProp with one second moment for all coordinates."""

from jaxsharp._types import ScalarLike
from jaxsharp.optimizers.optimizer import Optimizer
from jaxsharp.optimizers.rmsprop import make


def scalar_rmsprop(
    learning_rate: ScalarLike,
    beta2: ScalarLike = 0.99,
    eps: ScalarLike = 0.0,
    *,
    initial: ScalarLike = 0.0,
    bias_correction: bool = True,
    eps_in_root: bool = False,
) -> Optimizer:
    """Scalar RMSProp, ν ← β2 ν + (1 − β2) ‖∇L(w)‖², w ← w − η ∇L(w) / (√ν̂ + ε).

    As `rmsprop` with one ν; the step uses ν after its update, where `scheduled_gd` uses it before.

    Args:
        learning_rate: η ≥ 0.
        beta2: β2 in (0, 1).
        eps: ε ≥ 0.
        initial: ν before the first step.
        bias_correction: whether to correct ν for its start, ν̂ = ν / (1 − β2ᵗ).
        eps_in_root: whether the divisor is √(ν̂ + ε) in place of √ν̂ + ε.

    Returns:
        An `Optimizer`. Cost: 1 gradient a step.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> rule = js.optimizers.scalar_rmsprop(0.1)
        >>> updates, _ = rule.update(jnp.array([3.0, -4.0]), rule.init(jnp.zeros(2)))
        >>> [round(float(x), 4) for x in updates]
        [-0.06, 0.08]

    Source: Cohen, Damian et al. 2024.
    """
    return make(False, learning_rate, beta2, eps, initial, bias_correction, eps_in_root)
