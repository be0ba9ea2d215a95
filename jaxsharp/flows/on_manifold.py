"""Descent of sharpness or of the Hessian's trace along a minimizer manifold, which several optimizers share."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxsharp import minimizers
from jaxsharp.curvature import hvp
from jaxsharp.flows.flow import Flow, Velocity
from jaxsharp.flows.sharpness_reduction import _SharpnessReduction
from jaxsharp.status import Status

SPEEDS = {
    "normalized_gd": lambda learning_rate: learning_rate**2 / 4,
    "sqrt_loss_gd": lambda learning_rate: learning_rate**2 / 8,
    "sam": lambda learning_rate, rho: learning_rate * rho**2 / 2,
    "label_noise": lambda learning_rate, noise: learning_rate**2 * noise / 4,
}
"""What an optimizer does in one step: this much flow time."""


@dataclass(frozen=True)
class Descent:
    """The law dφ/ds = −∇_Γ f(φ) with f the sharpness λ1, its logarithm, or tr H; s is the optimizer's speed times its steps.

    Attributes:
        speed: key of `SPEEDS`.
        quantity: `sharpness`, `log_sharpness` or `trace`.
        top: follows the top eigenpairs and returns to the manifold.
    """

    speed: str
    quantity: str
    top: _SharpnessReduction = field(default_factory=lambda: _SharpnessReduction(None, 1e-3, None, 200, minimizers.DENSE_LIMIT))

    def time_per_step(self, hyperparams):
        """Evaluates the optimizer's speed."""
        return SPEEDS[self.speed](**hyperparams)

    def start(self, problem, hyperparams, params):
        """Returns to the manifold."""
        if self.quantity == "trace":
            point = minimizers.retract(problem, params, sphere=self.top.on_sphere, dense_limit=self.top.dense_limit)
            return point, {}, jnp.zeros((), jnp.int32)
        return self.top.start(problem, hyperparams, params)

    def velocity(self, problem, hyperparams, params, memory):
        """Evaluates −∇_Γ f."""
        if self.quantity == "trace":
            gradient = jax.grad(lambda w: self._trace(problem, w, params))(params)
            tangent = minimizers.project_tangent(
                problem, params, gradient, sphere=self.top.on_sphere, dense_limit=self.top.dense_limit
            )
            down = jax.tree.map(jnp.negative, tangent)
            return Velocity(down, memory, jnp.ones((), jax.tree.leaves(params)[0].dtype))
        # the reduction with c_b = ∞ has the velocity −½ ∇_Γ log λ1
        found = self.top.velocity(problem, {"c_b": jnp.inf}, params, memory)
        factor = 2.0 if self.quantity == "log_sharpness" else 2.0 * found.memory.values[0]
        return found._replace(params=jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), found.params))

    def _trace(self, problem, w, at):
        """The trace of H on the manifold as c ‖J‖², with c = vᵀHv / ‖Jv‖² for the squared loss; as a function of w only there."""
        probe = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype), at)
        product = hvp(problem.loss, at, probe)
        bend = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(probe), jax.tree.leaves(product), strict=True))
        pushed = jax.jvp(lambda w: problem.residuals(w).ravel(), (at,), (probe,))[1]
        constant = jax.lax.stop_gradient(bend / jnp.sum(pushed**2))
        residuals, pull = jax.vjp(lambda w: problem.residuals(w).ravel(), w)

        def squared_row(index):
            row = pull(jnp.zeros_like(residuals).at[index].set(1))[0]
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(row))

        count = residuals.size
        if count <= self.top.dense_limit:
            return constant * jnp.sum(jax.vmap(squared_row)(jnp.arange(count)))
        return constant * jnp.sum(jax.lax.map(jax.checkpoint(squared_row), jnp.arange(count)))

    def settle(self, problem, params, memory):
        """Returns to the manifold."""
        if self.quantity == "trace":
            back = minimizers.retraction(problem, params, sphere=self.top.on_sphere, dense_limit=self.top.dense_limit)
            return back.params, jnp.where(back.converged, 0, int(Status.OFF_MANIFOLD)).astype(jnp.int32)
        return self.top.settle(problem, params, memory)

    def rate(self, hyperparams, params, memory):
        """Sets no rate."""
        del hyperparams, params, memory


def descent(speed, quantity, hyperparams, on_sphere, tolerance, eigen_tolerance, gap, max_steps) -> Flow:
    """Makes a Flow of the law with the common settings."""
    top = _SharpnessReduction(on_sphere, gap, eigen_tolerance, 200, minimizers.DENSE_LIMIT)
    return Flow(hyperparams, tolerance, Descent(speed, quantity, top), max_steps)
