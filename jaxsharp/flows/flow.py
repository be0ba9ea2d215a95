"""The Flow: an ordinary differential equation that predicts an optimizer, integrated with error control."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import diffrax
import jax
import jax.numpy as jnp

from jaxsharp import sphere
from jaxsharp._types import Array, Count, Params, PyTree, Scalar
from jaxsharp.dynamics import LARGEST, State
from jaxsharp.problems import Problem
from jaxsharp.status import Status, stopped


class Velocity(NamedTuple):
    """What a law says at a point.

    Attributes:
        params: dw/ds, a pytree like the parameters, s the flow time.
        memory: floating arrays to start the next evaluation from (eigenvectors) and to judge this one by.
        hvps: products spent, as a floating scalar.
    """

    params: Params
    memory: PyTree
    hvps: Scalar


class Law(Protocol):
    """A vector field with memory; a frozen dataclass of settings that compares by value."""

    def time_per_step(self, hyperparams: dict) -> Scalar:
        """Returns the flow time that passes in one optimizer step."""

    def start(self, problem: Problem, hyperparams: dict, params: Params) -> tuple[Params, PyTree, Count]:
        """Returns where the flow starts, the memory of its first evaluation, and the products spent."""

    def velocity(self, problem: Problem, hyperparams: dict, params: Params, memory: PyTree) -> Velocity:
        """Evaluates the vector field."""

    def settle(self, problem: Problem, params: Params, memory: PyTree) -> tuple[Params, Count]:
        """Returns the parameters after an accepted step, put back where they belong, and the status bits to set."""

    def rate(self, hyperparams: dict, params: Params, memory: PyTree) -> Scalar | None:
        """Returns the effective learning rate that the flow stands for, or None."""


class Integrator(NamedTuple):
    """What the integration carries between calls.

    Attributes:
        memory: the law's.
        length: the step length that the error control proposed last, in flow time; 0 before the first step.
        solver: diffrax's solver state.
    """

    memory: PyTree
    length: Scalar
    solver: Any


class _Leg(NamedTuple):
    time: Scalar
    params: Params
    integrator: Integrator
    controller: Any
    status: Count
    hvps: Count
    attempts: Count


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["hyperparams", "tolerance"],
    meta_fields=["law", "max_steps"],
)
@dataclass(frozen=True)
class Flow:
    """The Dynamics of a law dw/ds = F(w), with Tsit5 and an adaptive step.

    After each accepted step the law settles the parameters (back on the manifold) and its memory (the eigenvectors that start
    the next evaluation) comes from the last stage, so no evaluation is spent on it. A member stops, with a bit in its status,
    at a lost eigengap, an unconverged eigenpair, a failed return to the manifold, or after `max_steps` attempts in one
    interval between measurements.

    Attributes:
        hyperparams: name -> scalar, traced.
        tolerance: local error allowed per step, relative to ‖w‖; None for 1e-6 in float64 and 1e-4 in float32.
        law: the vector field.
        max_steps: bound on attempted steps between two measurements.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.flows.gradient(0.1), steps=20, probes=["loss"], every=10)
        >>> [round(float(t), 3) for t in ds.time]
        [0.0, 1.0, 2.0]
    """

    hyperparams: dict
    tolerance: Any
    law: Any
    max_steps: int = 10_000

    @property
    def time_per_step(self) -> Scalar:
        """The flow time of one optimizer step."""
        return self.law.time_per_step(self.hyperparams)

    def init(self, problem: Problem, params: Params) -> State:
        """Returns the state of flow time 0."""
        params, memory, hvps = self.law.start(problem, self.hyperparams, params)
        zero = jnp.zeros((), jnp.int32)
        dtype = jax.tree.leaves(params)[0].dtype
        time = jnp.zeros((), dtype)
        y = {"params": params, "memory": memory, "hvps": time}
        solver_state = _SOLVER.init(self._term(problem), time, time, y, memory)
        return State(
            params=params,
            inner=Integrator(memory, time, solver_state),
            hyperparams=dict(self.hyperparams),
            count=zero,
            status=zero,
            hvps=hvps,
            rate=self.law.rate(self.hyperparams, params, memory),
        )

    def params(self, state: State) -> Params:
        """Reads the parameters."""
        return state.params

    def step(self, problem: Problem, state: State) -> State:
        """Integrates over the flow time of one optimizer step."""
        return self.advance(problem, state, jnp.ones((), jnp.int32))

    def advance(self, problem: Problem, state: State, steps: Count) -> State:
        """Integrates over the flow time of a traced number of optimizer steps."""
        dtype = jax.tree.leaves(state.params)[0].dtype
        unit = jnp.asarray(self.time_per_step, dtype)
        end = steps.astype(dtype) * unit
        tolerance = _default_tolerance(dtype) if self.tolerance is None else self.tolerance
        term = self._term(problem)
        size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        smallest = 4 * jnp.finfo(dtype).eps * end

        def unfinished(leg):
            return (leg.time < end) & ~stopped(leg.status)

        def attempt(leg):
            memory, length, solver_state = leg.integrator
            length = jnp.where(length > 0, length, 0.1 * unit)
            last = leg.time + length >= end
            until = jnp.where(last, end, leg.time + length)
            y = {"params": leg.params, "memory": memory, "hvps": jnp.zeros((), dtype)}
            fresh = solver_state[0]
            y1, error, dense, solver_state_1, _ = _SOLVER.step(term, leg.time, until, y, memory, solver_state, made_jump=False)
            spent = dense["k"]["hvps"] / (until - leg.time)
            spent = jnp.sum(spent) - jnp.where(fresh, 0, spent[0])
            controller = _controller(tolerance * sphere.norm(leg.params) / jnp.sqrt(jnp.asarray(size, dtype)))
            bounded = _bounded(y1["params"]) & _bounded(error["params"])
            error = jax.tree.map(lambda leaf: jnp.where(bounded, leaf, jnp.inf), error["params"])
            keep, _, until_next, _, controller_state, _ = controller.adapt_step_size(
                leg.time, until, leg.params, y1["params"], None, error, _SOLVER.order(term), leg.controller
            )
            keep = keep & bounded
            time = jnp.where(keep, until, leg.time)
            proposed = until_next - time
            proposed = jnp.where(keep & last, jnp.maximum(proposed, length), proposed)
            moved = jax.tree.map(lambda new, old: jnp.where(keep, new, old), y1["params"], leg.params)
            memory = jax.tree.map(lambda new, old: jnp.where(keep, new, old), solver_state_1[1]["memory"], memory)
            settled, bits = self.law.settle(problem, moved, memory)
            bits = jnp.where(keep, bits, 0)
            stuck = (proposed < smallest) | (leg.attempts + 1 >= self.max_steps)
            bits = bits | jnp.where(stuck & (time < end), int(Status.STEP_LIMIT), 0)
            params = jax.tree.map(lambda new, old: jnp.where(keep, new, old), settled, leg.params)
            solver_state_1 = jax.tree.map(lambda new, old: jnp.where(keep, new, old), solver_state_1, solver_state)
            return _Leg(
                time,
                params,
                Integrator(memory, proposed, solver_state_1),
                controller_state,
                leg.status | bits.astype(leg.status.dtype),
                leg.hvps + jnp.round(spent).astype(leg.hvps.dtype),
                leg.attempts + 1,
            )

        one = jnp.ones((), dtype)
        zero = jnp.zeros((), jnp.int32)
        leg = _Leg(
            jnp.zeros((), dtype), state.params, state.inner, (one, one, jnp.asarray(False)), state.status, state.hvps, zero
        )
        leg = jax.lax.while_loop(unfinished, attempt, leg)
        completed = jnp.where(~stopped(leg.status), steps, jnp.floor(leg.time / unit).astype(steps.dtype))
        return replace(
            state,
            params=leg.params,
            inner=leg.integrator,
            count=state.count + jnp.where(stopped(state.status), 0, completed).astype(state.count.dtype),
            status=leg.status,
            hvps=leg.hvps,
            rate=self.law.rate(self.hyperparams, leg.params, leg.integrator.memory),
        )

    def _term(self, problem):
        def field(t, y, memory):
            del t
            velocity = self.law.velocity(problem, self.hyperparams, y["params"], memory)
            return velocity._asdict()

        return diffrax.ODETerm(field)


_SOLVER = diffrax.Tsit5(scan_kind="lax")


def _controller(tolerance: Array) -> diffrax.PIDController:
    return diffrax.PIDController(rtol=0.0, atol=tolerance)


def _bounded(tree) -> Array:
    return jnp.stack([jnp.all(jnp.abs(leaf) < LARGEST) for leaf in jax.tree.leaves(tree)]).all()


def _default_tolerance(dtype) -> float:
    return 1e-6 if dtype == jnp.float64 else 1e-4
