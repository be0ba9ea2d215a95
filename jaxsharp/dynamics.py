"""Dynamics: how parameters move. Optimizers and flows are both Dynamics, counted in optimizer steps."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax

from jaxsharp._types import Array, Count, Params, PyTree, Scalar
from jaxsharp.problems import Problem

LARGEST = 1e10
"""A parameter larger than this in absolute value counts as diverged."""


class Slope(NamedTuple):
    """The loss and its gradient at the parameters of some step, as a measurement found them.

    Attributes:
        value: L(w).
        gradient: ∇L(w), a pytree like the parameters.
        count: completed steps at w; −1 where there is none yet.
    """

    value: Scalar
    gradient: Params
    count: Count


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "inner", "hyperparams", "count", "status", "hvps", "previous", "rate", "order", "slope"],
    meta_fields=[],
)
@dataclass(frozen=True)
class State:
    """What a Dynamics carries from step to step, and what a probe may look at.

    Attributes:
        params: the parameters w.
        inner: the optimizer's or the integrator's own memory.
        hyperparams: name -> scalar; a probe finds `learning_rate` and `weight_decay` here.
        count: completed steps.
        status: bits of `jaxsharp.status.Status`; a member with a fatal bit does not move any more.
        hvps: Hessian-vector products spent so far.
        previous: parameters one step earlier, for measuring at the midpoint; None where they are not kept.
        rate: the effective learning rate, where the rule sets its own; None where it follows from the hyper-parameters.
        order: the training samples in the order of this epoch's minibatches; None for the full batch.
        slope: loss and gradient that a measurement handed on; None where they are not kept.
    """

    params: Params
    inner: PyTree
    hyperparams: dict[str, Array]
    count: Count
    status: Count
    hvps: Count
    previous: Params | None = None
    rate: Array | None = None
    order: Array | None = None
    slope: Slope | None = None


@runtime_checkable
class Dynamics(Protocol):
    """A rule that moves parameters; a pytree whose hyper-parameters are leaves.

    `init(problem, params)` makes a `State`, `advance(problem, state, steps)` moves it by a traced number of optimizer steps,
    or by the same stretch of flow time, `step` is `advance` by one, and `params(state)` reads the parameters.
    `time_per_step` is the flow time of one step, None for an optimizer.
    """

    hyperparams: dict
    time_per_step: Array | None

    def init(self, problem: Problem, params: Params) -> State: ...  # noqa: D102
    def step(self, problem: Problem, state: State) -> State: ...  # noqa: D102
    def advance(self, problem: Problem, state: State, steps: Count) -> State: ...  # noqa: D102
    def params(self, state: State) -> Params: ...  # noqa: D102
