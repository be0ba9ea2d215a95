"""The SteppedFlow: a centre and what oscillates around it, moved in fixed substeps of an optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsharp._types import Array, Count, Loss, Params, PyTree, Scalar, Vector
from jaxsharp.dynamics import LARGEST, State
from jaxsharp.problems import Problem
from jaxsharp.status import Status, stopped


class Substep(NamedTuple):
    """Where a substep ends.

    Attributes:
        params: the flat centre.
        inner: what oscillates around it, and whatever else the law carries.
        bits: of the status, to set.
        hvps: products spent.
    """

    params: Vector
    inner: PyTree
    bits: Count
    hvps: Count


class SteppedLaw(Protocol):
    """How a centre and its oscillation move; a frozen dataclass of settings that compares by value."""

    def start(self, loss: Loss, hyperparams: dict, w: Vector) -> Substep:
        """Returns the centre, the oscillation and the status of flow time 0."""

    def substep(self, loss: Loss, hyperparams: dict, w: Vector, inner: PyTree, h: Scalar) -> Substep:
        """Moves by h optimizer steps."""


@partial(jax.tree_util.register_dataclass, data_fields=["hyperparams"], meta_fields=["law", "substeps"])
@dataclass(frozen=True)
class SteppedFlow:
    """The Dynamics of a law with an oscillation of its own; made by `rod`, `edge`, `constrained` and `self_stabilization`.

    Attributes:
        hyperparams: name -> scalar, traced; `weight_decay` λ̂ adds ½ λ̂ ‖w‖² to the loss.
        law: how a substep moves.
        substeps: per optimizer step.
    """

    hyperparams: dict
    law: Any
    substeps: int

    @property
    def time_per_step(self) -> float:
        """The flow time of one optimizer step, 1: time counts steps."""
        return 1.0

    def params(self, state: State) -> Params:
        """Reads the parameters."""
        return state.params

    def init(self, problem: Problem, params: Params) -> State:
        """Returns the state of flow time 0."""
        w, unravel = ravel_pytree(params)
        hyperparams = typed(self.hyperparams, w.dtype)
        first = self.law.start(decayed_loss(problem, unravel, hyperparams), hyperparams, w)
        return State(
            params=unravel(first.params),
            inner=first.inner,
            hyperparams=dict(self.hyperparams),
            count=jnp.zeros((), jnp.int32),
            status=jnp.asarray(first.bits, jnp.int32),
            hvps=jnp.asarray(first.hvps, jnp.int32),
        )

    def step(self, problem: Problem, state: State) -> State:
        """Moves by the time of one optimizer step."""
        return self.advance(problem, state, jnp.ones((), jnp.int32))

    def advance(self, problem: Problem, state: State, steps: Count) -> State:
        """Moves by the time of a traced number of optimizer steps."""
        w, unravel = ravel_pytree(state.params)
        hyperparams = typed(self.hyperparams, w.dtype)
        loss = decayed_loss(problem, unravel, hyperparams)
        h = jnp.asarray(1 / self.substeps, w.dtype)
        return run_substeps(state, steps, self.substeps, lambda w, inner, _: self.law.substep(loss, hyperparams, w, inner, h))


def run_substeps(state: State, steps: Count, substeps: int, substep: Callable[[Vector, PyTree, Scalar], tuple]) -> State:
    """Takes substeps one after the other; a member with a fatal bit, or out of bounds, stays where it was.

    Args:
        state: to go on from.
        steps: how many optimizer steps, traced.
        substeps: per optimizer step.
        substep: (flat parameters, inner state, time in steps) -> (both after it, status bits, products).

    Returns:
        The state after them.
    """
    w, unravel = ravel_pytree(state.params)

    def take(index, carry):
        w, inner, status, hvps, count = carry
        time = state.count.astype(w.dtype) + (index / substeps).astype(w.dtype)
        after, inner_after, bits, spent = substep(w, inner, time)
        still = stopped(status)
        bounded = jnp.all(jnp.abs(after) < LARGEST)
        bits = bits | jnp.where(bounded, 0, int(Status.DIVERGED))
        status = status | jnp.where(still, 0, bits).astype(status.dtype)
        moves = ~stopped(status)
        keep = lambda new, old: jnp.where(moves, new, old)  # noqa: E731
        done = jnp.where((index + 1) % substeps == 0, 1, 0)
        return (
            keep(after, w),
            jax.tree.map(keep, inner_after, inner),
            status,
            hvps + jnp.where(still, 0, spent).astype(hvps.dtype),
            keep(count + done, count).astype(count.dtype),
        )

    carry = (w, state.inner, state.status, state.hvps, state.count)
    w, inner, status, hvps, count = jax.lax.fori_loop(0, steps * substeps, take, carry)
    return replace(state, params=unravel(w), inner=inner, status=status, hvps=hvps, count=count)


def centre_step(first: Vector, second: Vector, h: Scalar, corrected: bool) -> Vector:
    """Returns a substep of Heun's method from the velocities at both ends, h v with v their mean, or with v − ½ dv/dt.

    An optimizer is Euler's method with step 1, x_{t+1} = x_t + v: the flow through its points moves by v − ½ dv/dt + …,
    and the difference of the ends is h dv/dt.
    """
    step = 0.5 * h * (first + second)
    return step - 0.5 * (second - first) if corrected else step


def typed(hyperparams: dict, dtype) -> dict[str, Array]:
    """Casts hyper-parameters to the type of the parameters."""
    return {name: jnp.asarray(value, dtype) for name, value in hyperparams.items()}


def decayed_loss(problem: Problem, unravel: Callable, hyperparams: dict) -> Loss:
    """Makes the loss of flat parameters, with the penalty ½ λ̂ ‖w‖² where there is weight decay."""
    decay = hyperparams.get("weight_decay")

    def loss(w):
        value = problem.loss(unravel(w))
        return value if decay is None else value + 0.5 * decay * jnp.sum(w**2)

    return loss


def check_counts(**counts: int) -> None:
    """Raises a ValueError for a count that is not a whole number of at least 1."""
    for label, value in counts.items():
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise ValueError(f"{label} must be a whole number, at least 1, got {value!r}.")
