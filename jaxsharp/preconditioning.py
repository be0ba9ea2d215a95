"""How an optimizer turns gradients into motion, averaged over its oscillation: what a flow has to know about its rule.

A rule w ← w − P(ν, t)⁻¹ ∇L(w) with memory ν ← ν + F(ν, ∇L) is described by P, F and the second derivative of F in the gradient.
All vectors are flat; ν and P are (D,) or, where one number serves all coordinates, scalars.
"""

from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp

from jaxsharp._types import Array, Scalar, Vector


class Preconditioning(Protocol):
    """A frozen dataclass of settings that compares by value; hyper-parameters come as a dictionary."""

    @property
    def per_coordinate(self) -> bool:
        """Says whether ν and P have an entry for each coordinate."""

    def start(self, hyperparams: dict, gradient: Vector) -> Array:
        """Returns ν of the first step, after it has seen the first gradient."""

    def stiffness(self, hyperparams: dict, memory: Array, time: Scalar, factor: Scalar) -> Array:
        """Returns P(ν, t), with the learning rate times the factor of a schedule."""

    def forgetting(self, hyperparams: dict) -> Scalar:
        """Returns c in dν/dt = c (∇L² − ν) and in ½ ⟨∂²F/∂g², C⟩ = c diag C (or c tr C), C the covariance of the gradient."""

    def edge(self, hyperparams: dict) -> Scalar:
        """Returns the ratio ρ for which motion becomes unstable at H = 2 ρ P."""


@dataclass(frozen=True)
class Constant:
    """Gradient descent, P = (1 − μ) / η: the heavy ball moves as by η / (1 − μ), but is stable up to H = 2 (1 + μ) / η."""

    per_coordinate = False

    def start(self, hyperparams, gradient):
        """Keeps no memory."""
        del hyperparams
        return jnp.zeros((), gradient.dtype)

    def stiffness(self, hyperparams, memory, time, factor):
        """Evaluates (1 − μ) / (η factor)."""
        del time
        rate = jnp.asarray(hyperparams["learning_rate"], memory.dtype) * factor
        return (1 - jnp.asarray(hyperparams.get("momentum", 0.0), memory.dtype)) / rate

    def forgetting(self, hyperparams):
        """Nothing to forget."""
        del hyperparams
        return 0.0

    def edge(self, hyperparams):
        """Evaluates (1 + μ) / (1 − μ)."""
        momentum = hyperparams.get("momentum", 0.0)
        return (1 + momentum) / (1 - momentum)


@dataclass(frozen=True)
class SecondMoment:
    """RMSProp, P = (√ν̂ + ε) / η or √(ν̂ + ε) / η, dν/dt = ((1 − β2) / β2) (∇L² − ν), ν for each coordinate or one for all.

    With bias correction ν̂ = ν / b(t), b = 1 − β2 e^{−(1 − β2) t / β2}, so that a constant gradient has ν̂ = ∇L² at all times.

    Attributes:
        per_coordinate: RMSProp, or its scalar form with ‖∇L‖² in place of ∇L².
        bias_correction: whether ν is divided by b.
        eps_in_root: whether ε stands inside the root.
    """

    per_coordinate: bool
    bias_correction: bool
    eps_in_root: bool

    def start(self, hyperparams, gradient):
        """Evaluates β2 initial + (1 − β2) ∇L²."""
        beta2 = jnp.asarray(hyperparams["beta2"], gradient.dtype)
        initial = jnp.asarray(hyperparams["initial"], gradient.dtype)
        square = gradient**2 if self.per_coordinate else jnp.sum(gradient**2)
        return beta2 * initial + (1 - beta2) * square

    def stiffness(self, hyperparams, memory, time, factor):
        """Evaluates P(ν, t)."""
        beta2, eps, rate = (jnp.asarray(hyperparams[name], memory.dtype) for name in ("beta2", "eps", "learning_rate"))
        if self.bias_correction:
            memory = memory / (1 - beta2 * jnp.exp(-(1 - beta2) / beta2 * time))
        memory = jnp.maximum(memory, 0)  # what a Runge-Kutta stage may overshoot
        root = jnp.sqrt(memory + eps) if self.eps_in_root else jnp.sqrt(memory) + eps
        return root / (rate * factor)

    def forgetting(self, hyperparams):
        """Evaluates (1 − β2) / β2."""
        return (1 - hyperparams["beta2"]) / hyperparams["beta2"]

    def edge(self, hyperparams):
        """Stable up to H = 2 P."""
        del hyperparams
        return 1.0


def of(optimizer) -> Preconditioning:
    """Looks up how an optimizer preconditions.

    Args:
        optimizer: of `jaxsharp.optimizers`.

    Returns:
        Its `Preconditioning`.

    Raises:
        ValueError: for an optimizer that has none.

    Example:
        >>> import jaxsharp as js
        >>> of(js.optimizers.gd(0.1))
        Constant()
    """
    found = getattr(getattr(optimizer, "rule", None), "preconditioning", None)
    if found is None:
        raise ValueError(
            f"no averaged law is known for {optimizer!r}; use js.optimizers.gd, scalar_rmsprop or rmsprop, called "
            "with its numbers."
        )
    return found
