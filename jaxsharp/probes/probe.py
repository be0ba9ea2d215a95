"""The Probe: what is measured along a trajectory, how often, and what it is called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax

from jaxsharp._types import Params, PyTree
from jaxsharp.dynamics import State
from jaxsharp.problems import Problem


class Variable(NamedTuple):
    """How one recorded array is labelled.

    Attributes:
        dims: names of its axes; by default an axis i of the variable x is called `x_dim_i`.
        long_name: for axes of plots.
        units: `1` where there is none.
        role: `converged` (a False sets the bit EIGENPAIR_UNCONVERGED), `products` (adds to the count of products), or None.
    """

    dims: tuple[str, ...] = ()
    long_name: str = ""
    units: str = "1"
    role: str | None = None


SLOPE = "slope"
"""Under this name a measurement hands (L(w), ∇L(w)) on to the optimizer's next step; it is not recorded."""


@runtime_checkable
class Probe(Protocol):
    """A measurement; hashable and compared by value, so that the same probe reuses a compiled program.

    `init(problem, params)` makes the carry of the first measurement, `measure(problem, state, carry)` returns the next carry
    and a dictionary of arrays, to which a probe with a true attribute `reuse_gradient` adds `SLOPE`. `every` is its cadence in
    steps, None for that of the run; `midpoint` says that it measures at the midpoint of two consecutive iterates; `variables`
    labels what it records.
    """

    name: str
    every: int | None
    midpoint: bool
    variables: dict[str, Variable]

    def init(self, problem: Problem, params: Params) -> PyTree: ...  # noqa: D102
    def measure(self, problem: Problem, state: State, carry: PyTree) -> tuple[PyTree, dict]: ...  # noqa: D102


def point(state: State, midpoint: bool) -> Params:
    """Returns where to measure: the parameters, or the mean of them and the previous ones where a state keeps these."""
    if not midpoint or state.previous is None:
        return state.params
    return jax.tree.map(lambda new, old: 0.5 * (new + old), state.params, state.previous)


@dataclass(frozen=True)
class FunctionProbe:
    """A Probe without memory: records whatever a pure function of (problem, params, state) returns."""

    name: str
    evaluate: Callable
    labels: tuple[tuple[str, Variable], ...] = ()
    every: int | None = None
    midpoint: bool = False

    @property
    def variables(self) -> dict[str, Variable]:
        """Labels by name of variable."""
        return dict(self.labels)

    def init(self, problem: Problem, params: Params) -> PyTree:
        """Carries nothing."""
        del problem, params
        return ()

    def measure(self, problem: Problem, state: State, carry: PyTree) -> tuple[PyTree, dict]:
        """Evaluates the function; a single array is recorded under the probe's name."""
        values = self.evaluate(problem, point(state, self.midpoint), state)
        return carry, values if isinstance(values, dict) else {self.name: values}


def function(
    name: str, evaluate: Callable, *, every: int | None = None, midpoint: bool = False, units: str = "1", long_name: str = ""
) -> FunctionProbe:
    """Makes a Probe of a pure function of problem and parameters.

    Args:
        name: of the recorded variable.
        evaluate: `(problem, params) -> array`, or a dictionary of arrays by name. Pass the same function object again to
            reuse compiled programs.
        every: cadence in steps; by default that of the run.
        midpoint: whether to evaluate at the mean of two consecutive iterates, where an optimizer at the edge of stability
            has its oscillation averaged out.
        units: of the variable.
        long_name: for axes of plots.

    Returns:
        A `Probe`.

    Example:
        >>> import jaxsharp as js
        >>> height = js.probes.function("height", lambda problem, params: params["v"])
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=2, probes=[height])
        >>> ds.height.dims
        ('step',)
    """
    return FunctionProbe(name, _IgnoresState(evaluate), ((name, Variable((), long_name or name, units)),), every, midpoint)


@dataclass(frozen=True)
class _IgnoresState:
    evaluate: Callable

    def __call__(self, problem, params, state):
        del state
        return self.evaluate(problem, params)
