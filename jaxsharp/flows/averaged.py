"""The averaged flow: an optimizer with its oscillation averaged out, or left out; `central` and `stable` make one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxsharp import complementarity
from jaxsharp._factorizations import eigh, eigvalsh
from jaxsharp._types import Array, Block, Count, Params, Scalar, Vector
from jaxsharp.curvature import frozen_eigenpairs, third_derivatives
from jaxsharp.dynamics import State
from jaxsharp.flows.stepped import decayed_loss, run_substeps, typed
from jaxsharp.preconditioning import Preconditioning
from jaxsharp.problems import Problem
from jaxsharp.status import Status


class Oscillation(NamedTuple):
    """What a central flow carries besides the parameters.

    With D = (ρP)^{-1/2} Uᵀ, whose columns are the tracked directions, the optimizer oscillates with the covariance Σ = D X Dᵀ.

    Attributes:
        vectors: U, (k, D), orthonormal top eigenvectors of (ρP)^{-1/2} H (ρP)^{-1/2}, rows.
        values: (k,), their eigenvalues, largest first; an optimizer is stable below 2.
        onward: (k, D), the vectors one power step further, where the next search starts.
        covariance: X, (k, k).
        variances: (k,), the eigenvalues of Σ, largest first.
        gradient_variance: tr HΣH.
        memory: ν, the optimizer's second moment, (D,) or scalar.
        stiffness: P(ν, t), like ν.
        active: how many directions oscillate or might come to the edge within a substep.
        residual: the worst residual of the last complementarity problem.
    """

    vectors: Block
    values: Array
    onward: Block
    covariance: Array
    variances: Array
    gradient_variance: Scalar
    memory: Array
    stiffness: Array
    active: Scalar
    residual: Scalar


NEAR = 0.02
"""What is closer to the edge than this times the substep, or than 3 times its last rise, may reach it in the next substep."""


class _Frame(NamedTuple):
    """A point in coordinates z = (ρP)^{1/2} w, in which motion is stable where the Hessian is below 2."""

    scale: Array  # (ρP)^{-1/2}, held fixed through a substep
    edge: Scalar  # ρ
    z: Vector
    time: Scalar
    memory: Array
    stiffness: Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["hyperparams", "threshold", "eigen_tolerance"],
    meta_fields=["rule", "schedule", "k", "substeps", "corrected", "oscillates", "max_matvecs"],
)
@dataclass(frozen=True)
class AveragedFlow:
    """The Dynamics of a central flow; made by `central` and `stable`.

    Attributes:
        hyperparams: the optimizer's, name -> scalar, traced.
        threshold: directions with an eigenvalue above 2 × this are treated as able to oscillate.
        eigen_tolerance: relative residual of the eigenpairs.
        rule: how the optimizer preconditions.
        schedule: step -> factor of the learning rate, or None.
        k: how many directions are tracked.
        substeps: per optimizer step.
        corrected: whether the first backward-error correction is added.
        oscillates: False for a stable flow, which ignores the edge.
        max_matvecs: bound on products per substep.
    """

    hyperparams: dict
    threshold: Any
    eigen_tolerance: Any
    rule: Preconditioning
    schedule: Callable | None
    k: int
    substeps: int
    corrected: bool
    oscillates: bool
    max_matvecs: int

    @property
    def time_per_step(self) -> float:
        """The flow time of one optimizer step, 1: time counts steps."""
        return 1.0

    def params(self, state: State) -> Params:
        """Reads the parameters."""
        return state.params

    def init(self, problem: Problem, params: Params) -> State:
        """Returns the state of flow time 0, with the eigenpairs there."""
        w, unravel = ravel_pytree(params)
        loss = self._loss(problem, unravel, w.dtype)
        memory = self.rule.start(self._typed(w.dtype), jax.grad(loss)(w))
        k = min(self.k, w.size)
        frame = self._frame(w, memory, jnp.zeros((), w.dtype))
        zero = jnp.zeros((), jnp.int32)
        hvps, vectors, values = zero, jnp.zeros((k, w.size), w.dtype), jnp.zeros((k,), w.dtype)
        onward = vectors
        if self.oscillates:
            pairs = self._eigenpairs(loss, frame, vectors)
            hvps, vectors, values, onward = pairs.matvecs, pairs.vectors, pairs.values, pairs.onward
        nothing = jnp.zeros((), w.dtype)
        square, line = jnp.zeros((k, k), w.dtype), jnp.zeros((k,), w.dtype)
        inner = Oscillation(vectors, values, onward, square, line, nothing, memory, frame.stiffness, nothing, nothing)
        return State(
            params=params, inner=inner, hyperparams=dict(self.hyperparams), count=zero, status=zero, hvps=hvps.astype(zero.dtype)
        )

    def step(self, problem: Problem, state: State) -> State:
        """Moves by the time of one optimizer step."""
        return self.advance(problem, state, jnp.ones((), jnp.int32))

    def advance(self, problem: Problem, state: State, steps: Count) -> State:
        """Moves by the time of a traced number of optimizer steps."""
        w, unravel = ravel_pytree(state.params)
        loss = self._loss(problem, unravel, w.dtype)

        return run_substeps(state, steps, self.substeps, lambda w, inner, time: self._substep(loss, w, inner, time))

    def _eigen_tolerance(self, dtype):
        if self.eigen_tolerance is None:
            return 1e-4 if dtype == jnp.float64 else 1e-3
        return self.eigen_tolerance

    def _typed(self, dtype):
        return typed(self.hyperparams, dtype)

    def _loss(self, problem, unravel, dtype):
        return decayed_loss(problem, unravel, self._typed(dtype))

    def _stiffness(self, memory, time):
        factor = jnp.ones((), memory.dtype) if self.schedule is None else jnp.asarray(self.schedule(time), memory.dtype)
        return self.rule.stiffness(self._typed(memory.dtype), memory, time, factor)

    def _frame(self, w, memory, time):
        stiffness = self._stiffness(memory, time)
        edge = jnp.asarray(self.rule.edge(self._typed(w.dtype)), w.dtype)
        scale = 1 / jnp.sqrt(edge * stiffness)
        return _Frame(scale, edge, w / scale, time, memory, stiffness)

    def _eigenpairs(self, loss, frame, guess):
        return frozen_eigenpairs(
            lambda z: loss(frame.scale * z),
            frame.z,
            guess.shape[0],
            guess,
            tol=self._eigen_tolerance(frame.z.dtype),
            max_matvecs=max(self.max_matvecs, 2 * guess.shape[0]),
        )

    def _substep(self, loss, w, before, time):
        frame = self._frame(w, before.memory, time)
        if not self.oscillates:
            drift, memory = self._drift(loss, frame, None, jnp.zeros_like(w), None)
            h = jnp.asarray(1 / self.substeps, w.dtype)
            stiffness = self._stiffness(memory, time + h)
            after = before._replace(memory=memory, stiffness=stiffness)
            return frame.scale * (frame.z + h * drift), after, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return self._oscillating_substep(loss, frame, before)

    def _drift(self, loss, frame, directions, force, spread):
        """The velocity in z without the force of the oscillation, and ν after the substep without its spread.

        Heun's method, in which the force of the last substep helps to predict the end. Along directions that oscillate
        (rows of `directions`) the exponential of a substep replaces it, since these relax within a step.
        """
        h = jnp.asarray(1 / self.substeps, frame.z.dtype)
        hyperparams = self._typed(frame.z.dtype)
        c = jnp.asarray(self.rule.forgetting(hyperparams), frame.z.dtype)

        def forget(memory, gradient):
            square = gradient**2 if self.rule.per_coordinate else jnp.sum(gradient**2)
            return c * (square - memory)

        gradient = jax.grad(loss)(frame.scale * frame.z)
        first = -frame.edge * frame.scale * gradient
        memory_first = forget(frame.memory, gradient)
        ahead = frame.memory + h * (memory_first + (0 if spread is None else spread))
        gradient = jax.grad(loss)(frame.scale * (frame.z + h * (first + force)))
        second = -frame.edge * frame.scale * gradient * (frame.stiffness / self._stiffness(ahead, frame.time + h))
        memory_second = forget(ahead, gradient)
        velocity, memory_velocity = 0.5 * (first + second), 0.5 * (memory_first + memory_second)
        if self.corrected:
            # An optimizer is Euler's method with step 1 in w and its implicit form in ν: w' + ½ w'' and ν' − ½ ν'' are what it
            # takes for w' and ν'. The differences of the stages are these second derivatives.
            velocity = velocity - (second - first) / (2 * h)
            memory_velocity = memory_velocity + (memory_second - memory_first) / (2 * h)
        if directions is not None:
            rows, relax, mask = directions
            velocity = velocity + jnp.where(mask, relax * (rows @ first) - rows @ velocity, 0) @ rows
        return velocity, frame.memory + h * memory_velocity

    def _oscillating_substep(self, loss, frame, before):
        dtype = frame.z.dtype
        h = jnp.asarray(1 / self.substeps, dtype)
        pairs = self._eigenpairs(loss, frame, before.onward)
        rows, values = pairs.vectors, pairs.values
        k = values.size
        _, _, weights = _triangle(k, dtype)
        stiff = values > 2 * jnp.asarray(self.threshold, dtype)
        # X of the last substep, seen in the new directions, predicts the force and the spread of this one.
        overlap = jnp.where(stiff[:, None], rows @ before.vectors.T, 0)
        guess = overlap @ before.covariance @ overlap.T
        # Σ is zero on what neither oscillates nor comes to the edge within the substep: its third derivatives are not needed.
        margin = jnp.maximum(NEAR * h, 3 * (values - before.values))
        near = stiff & ((values + margin > 2) | (jnp.diag(guess) > 0.01 * jnp.trace(guess)))
        active = jnp.max(jnp.where(near, jnp.arange(1, k + 1), 0))
        mask = jnp.arange(k) < active
        guess = complementarity.svec(jnp.where(mask[:, None] & mask[None, :], guess, 0))
        table = weights[:, None] * third_derivatives(lambda z: loss(frame.scale * z), frame.z, rows, active)
        relax = -jnp.expm1(-h * frame.edge * values) / (h * frame.edge * jnp.where(stiff, values, 1))
        kernel, spread = self._spread(rows, values, frame)
        force = -0.5 * frame.edge * (guess @ table)
        directions = (rows, relax, stiff)
        drift, memory = self._drift(loss, frame, directions, force, spread(guess))

        stiffness = self._stiffness(memory, frame.time + h)
        slack = complementarity.svec(2 * jnp.eye(k, dtype=dtype) - jnp.diag(values))
        stiffening = kernel @ jnp.atleast_1d(2 * (stiffness - frame.stiffness) / frame.stiffness)
        alpha = slack + stiffening - h * (table @ drift)
        damped = table @ rows.T * jnp.sqrt(jnp.where(stiff, 1 - relax, 0))[None, :]
        response = 0.5 * h * frame.edge * (table @ table.T - damped @ damped.T)
        # At the edge H D = 2 ρP D, which makes the response of ν symmetric.
        c = jnp.asarray(self.rule.forgetting(self._typed(dtype)), dtype)
        slope = jax.jvp(lambda nu: self._stiffness(nu, frame.time), (frame.memory,), (jnp.ones_like(frame.memory),))[1]
        response = response + 8 * h * c * (kernel * jnp.atleast_1d(slope)[None, :]) @ kernel.T
        found = complementarity.solve(complementarity.smat(alpha), response, mask)
        vector = complementarity.svec(found.value)

        push = -0.5 * frame.edge * (vector @ table)
        push = push - jnp.where(stiff, (1 - relax) * (rows @ push), 0) @ rows
        memory = memory + h * spread(vector)
        columns = jnp.atleast_1d(frame.scale)[None, :] * rows
        bent = values[:, None] * rows / jnp.atleast_1d(frame.scale)[None, :]  # H D
        root = _root(found.value)
        after = Oscillation(
            vectors=rows,
            values=values,
            onward=pairs.onward,
            covariance=found.value,
            variances=jnp.maximum(eigvalsh(root @ (columns @ columns.T) @ root)[::-1], 0),
            gradient_variance=jnp.sum((bent @ bent.T) * found.value),
            memory=memory,
            stiffness=self._stiffness(memory, frame.time + h),
            active=active.astype(dtype),
            residual=jnp.maximum(jnp.maximum(found.primal, found.dual), found.complementarity),
        )
        wrong = (stiff & ~(pairs.residuals <= self._eigen_tolerance(dtype))).any() | ~jnp.isfinite(values).all()
        bits = jnp.where(wrong, int(Status.FLOW_EIGENPAIR_UNCONVERGED), 0)
        bits = bits | jnp.where(found.converged, 0, int(Status.COMPLEMENTARITY_UNMET))
        full = (active == k) & (k < frame.z.size)
        bits = bits | jnp.where(full, int(Status.SUBSPACE_FULL), 0)
        return frame.scale * (frame.z + h * (drift + push)), after, bits.astype(jnp.int32), pairs.matvecs

    def _spread(self, rows, values, frame):
        """The kernel K with Uᵀ diag(p) U = K p, and how fast the oscillation X makes ν grow, ½ ⟨∂²F/∂g², H Σ H⟩."""
        first, second, weights = _triangle(values.size, rows.dtype)
        if self.rule.per_coordinate:
            kernel = weights[:, None] * rows[first] * rows[second]
        else:
            kernel = complementarity.svec(jnp.eye(values.size, dtype=rows.dtype))[:, None]
        c = jnp.asarray(self.rule.forgetting(self._typed(rows.dtype)), rows.dtype)

        def spread(vector):
            # H D = (ρP)^{1/2} Uᵀ Λ, so H Σ H = (ρP)^{1/2} Uᵀ Λ X Λ U (ρP)^{1/2}
            inner = vector * values[first] * values[second]
            total = inner @ kernel if self.rule.per_coordinate else (inner @ kernel)[0]
            return c * frame.edge * frame.stiffness * total

        return kernel, spread


def _triangle(k, dtype):
    first, second = np.triu_indices(k)
    return first, second, jnp.asarray(np.where(first == second, 1.0, np.sqrt(2.0)), dtype)


def _root(matrix):
    values, vectors = eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :]) @ vectors.T
