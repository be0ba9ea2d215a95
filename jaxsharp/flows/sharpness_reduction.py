"""The sharpness-reduction flow on the minimizer manifold."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsharp import minimizers, sphere
from jaxsharp._types import Array, Params, Scalar, ScalarLike
from jaxsharp.flows.flow import Flow, Velocity
from jaxsharp.status import Status


class Memory(NamedTuple):
    """Memory of the flow: the two largest eigenpairs at the last evaluation, all as floating arrays.

    Attributes:
        vectors: eigenvectors, a pytree like the parameters with a leading axis 2.
        values: eigenvalues (2,).
        converged: 1 where both eigenpairs converged.
        overlap: |⟨v1, v1 of the last accepted step⟩|; far from 1 when the top eigenvector was exchanged.
    """

    vectors: Params
    values: Array
    converged: Scalar
    overlap: Scalar


@dataclass(frozen=True)
class _SharpnessReduction:
    on_sphere: bool | None
    gap: float
    eigen_tolerance: float | None
    max_matvecs: int
    dense_limit: int

    def time_per_step(self, hyperparams):
        if "weight_decay" in hyperparams:
            return hyperparams["learning_rate"] * hyperparams["weight_decay"]
        return hyperparams["learning_rate"] ** 2 / 2

    def _slope(self, problem, params, guess):
        return minimizers.log_sharpness_gradient(
            problem,
            params,
            guess,
            sphere=self.on_sphere,
            tol=self.eigen_tolerance,
            max_matvecs=self.max_matvecs,
            dense_limit=self.dense_limit,
        )

    def start(self, problem, hyperparams, params):
        del hyperparams
        point = minimizers.retract(problem, params, sphere=self.on_sphere, dense_limit=self.dense_limit)
        count = min(2, sum(leaf.size for leaf in jax.tree.leaves(point)))
        nothing = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), point)
        pairs = self._slope(problem, point, nothing).pairs
        one = jnp.ones((), pairs.values.dtype)
        return point, Memory(pairs.vectors, pairs.values, pairs.converged.astype(one.dtype), one), pairs.matvecs

    def velocity(self, problem, hyperparams, params, memory):
        at = self._slope(problem, params, memory.vectors)
        constant = hyperparams.get("c_b", 2.0)
        scale = -2 / (4 + (2 / constant) * sphere.norm(at.gradient) ** 2)
        along = jax.tree.map(lambda new, old: jnp.vdot(new[0], old[0]), at.pairs.vectors, memory.vectors)
        overlap = jnp.abs(sum(jax.tree.leaves(along)))
        dtype = at.value.dtype
        memory = Memory(at.pairs.vectors, at.pairs.values, at.pairs.converged.astype(dtype), overlap)
        down = jax.tree.map(lambda leaf: scale.astype(leaf.dtype) * leaf, at.gradient)
        return Velocity(down, memory, at.pairs.matvecs.astype(dtype))

    def settle(self, problem, params, memory):
        back = minimizers.retraction(problem, params, sphere=self.on_sphere, dense_limit=self.dense_limit)
        lost = memory.overlap < 0.5
        if memory.values.size > 1:
            lost = lost | (memory.values[0] - memory.values[1] < self.gap * jnp.abs(memory.values[0]))
        bits = jnp.where(lost, int(Status.EIGENGAP_LOST), 0)
        bits = bits | jnp.where(memory.converged < 0.5, int(Status.FLOW_EIGENPAIR_UNCONVERGED), 0)
        bits = bits | jnp.where(back.converged, 0, int(Status.OFF_MANIFOLD))
        return back.params, bits.astype(jnp.int32)

    def rate(self, hyperparams, params, memory):
        del hyperparams, params
        return 2 / memory.values[0]


def sharpness_reduction(
    learning_rate: ScalarLike,
    weight_decay: ScalarLike | None = None,
    *,
    c_b: ScalarLike | None = None,
    on_sphere: bool | None = None,
    gap: float = 1e-3,
    tolerance: float | None = None,
    eigen_tolerance: float | None = None,
    max_matvecs: int = 200,
    max_steps: int = 10_000,
    dense_limit: int = minimizers.DENSE_LIMIT,
) -> Flow:
    """The slow motion of GD with weight decay at the edge of stability, on the minimizer manifold Γ.

    With weight decay, on Γ ∩ sphere and in the time τ = η̂ λ̂ t: dζ/dτ = −2 ∇_Γ log λ1 / (4 + ‖∇_Γ log λ1‖²). In general, for
    GD with rate η/√ṽ and the scalar RMSProp schedule 1 − β = C_b η², in the time τ = η² t / 2:
    dφ/dτ = −2 ∇_Γ log λ1 / (4 + (2/C_b) ‖∇_Γ log λ1‖²). C_b = ∞ gives normalized GD.

    The start is first returned to Γ (and to the sphere); so is every accepted step.

    Args:
        learning_rate: η̂ of GD+WD, or η of the schedule.
        weight_decay: λ̂; when given, C_b is 2 and must not be passed.
        c_b: C_b > 0 of the schedule; needed when there is no weight decay.
        on_sphere: whether Γ is cut with the unit sphere; by default where the problem is scale-invariant.
        gap: smallest (λ1 − λ2)/λ1 that counts as a gap; below it, or when the top eigenvector is exchanged within a step, the
            flow is not smooth and the member stops with EIGENGAP_LOST.
        tolerance: local error per integration step relative to ‖w‖; by default 1e-6 in float64, 1e-4 in float32.
        eigen_tolerance: relative residual of the eigenpairs; by default 1e-6 in float64, 1e-3 in float32.
        max_matvecs: bound on products per evaluation; beyond it the member stops with FLOW_EIGENPAIR_UNCONVERGED.
        max_steps: bound on integration steps between two measurements; beyond it the member stops with STEP_LIMIT.
        dense_limit: most residuals for which the Jacobian is formed.

    Returns:
        A `Flow`; its parameters have unit norm on the sphere, and `effective_learning_rate` is 2/λ1. Cost: 6 evaluations per
        integration step, each about 4 to 10 products from warm eigenvectors, a third derivative, and a projection on Γ.

    Raises:
        ValueError: when neither or both of weight_decay and c_b are given.

    Example:
        >>> import jax, numpy as np, jaxsharp as js
        >>> rng = np.random.default_rng(0)
        >>> problem = js.problems.bn_linear_regression(rng.normal(size=(12, 20)), rng.normal(size=12))
        >>> start = js.problems.interpolant(problem, jax.random.key(0), angle=1.2)
        >>> flow = js.flows.sharpness_reduction(0.1, 1e-3)
        >>> ds = js.simulate(problem, flow, steps=5000, init=start, probes=["metrics"], every=5000)
        >>> abs(float(ds.angle[-1]) - float(js.problems.exact_angle(1.2, 0.5))) < 1e-2
        True

    Source: Lyu, Li, Arora 2022; theory §2.
    """
    if (weight_decay is None) == (c_b is None):
        raise ValueError("give exactly one of weight_decay (GD with weight decay) and c_b (a scalar RMSProp schedule).")
    law = _SharpnessReduction(on_sphere, gap, eigen_tolerance, max_matvecs, dense_limit)
    second = {"c_b": c_b} if weight_decay is None else {"weight_decay": weight_decay}
    return Flow({"learning_rate": learning_rate, **second}, tolerance, law, max_steps)
