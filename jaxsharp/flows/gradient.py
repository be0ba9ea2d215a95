"""Gradient flow."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsharp._types import ScalarLike
from jaxsharp.flows.flow import Flow, Velocity


@dataclass(frozen=True)
class _Gradient:
    def time_per_step(self, hyperparams):
        return hyperparams["learning_rate"]

    def start(self, problem, hyperparams, params):
        del problem, hyperparams
        return params, {}, jnp.zeros((), jnp.int32)

    def velocity(self, problem, hyperparams, params, memory):
        gradient = jax.grad(problem.loss)(params)
        decay = hyperparams["weight_decay"]
        down = jax.tree.map(lambda g, w: -g - decay * w, gradient, params)
        return Velocity(down, memory, jnp.zeros((), jax.tree.leaves(params)[0].dtype))

    def settle(self, problem, params, memory):
        del problem, memory
        return params, jnp.zeros((), jnp.int32)

    def rate(self, hyperparams, params, memory):
        del hyperparams, params, memory


def gradient(
    learning_rate: ScalarLike, weight_decay: ScalarLike = 0.0, *, tolerance: float | None = None, max_steps: int = 10_000
) -> Flow:
    """Gradient flow dw/ds = −∇L(w) − λ̂ w, with s = η t and t in steps of the optimizer it is compared with.

    Args:
        learning_rate: η, the flow time that passes in one step.
        weight_decay: λ̂ ≥ 0.
        tolerance: local error per integration step relative to ‖w‖; by default 1e-6 in float64, 1e-4 in float32.
        max_steps: bound on integration steps between two measurements; beyond it the member stops with STEP_LIMIT.

    Returns:
        A `Flow`. Cost: 6 gradients per integration step, whose length error and stability limit to about 3/λ1.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.flows.gradient(0.5), steps=10, probes=["loss"], every=10)
        >>> bool(ds.loss[1] < ds.loss[0])
        True
    """
    hyperparams = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return Flow(hyperparams, tolerance, _Gradient(), max_steps)
