"""One trajectory: the dynamics moved from measurement to measurement, and what the probes saw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._types import Array, Count, Params, PyTree
from jaxsharp.dynamics import Dynamics, Slope, State
from jaxsharp.probes import Probe
from jaxsharp.probes.probe import SLOPE
from jaxsharp.problems import Problem
from jaxsharp.status import Status, stopped


class Carry(NamedTuple):
    """What a trajectory carries: the state of the dynamics, and each probe's memory."""

    state: State
    probes: tuple[PyTree, ...]


class Segment(NamedTuple):
    """A stretch of a schedule, as data for `run`; the same for every member.

    Attributes:
        lengths: (capacity,) steps before each measurement.
        due: (capacity, groups) whether a cadence group measures there.
        rows: (capacity, groups) row of the group's buffer, or capacity where it does not measure.
        events: how many of the measurements are real.
    """

    lengths: Array
    due: Array
    rows: Array
    events: Count


@dataclass(frozen=True)
class Schedule:
    """When each cadence group measures, for a run of `steps` steps.

    A group measures at 0, every, 2 every, … and at the end of the run.

    Attributes:
        cadences: the distinct cadences, in steps.
        groups: for each cadence the indices of its probes.
        events: (e,) steps at which any group measures.
        due: (e, groups) which groups measure at each event.
    """

    cadences: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    events: np.ndarray
    due: np.ndarray

    def steps_of(self, group: int) -> np.ndarray:
        """Returns the steps at which a group measures."""
        return self.events[self.due[:, group]]

    def segment(self, first: int, count: int, capacity: int) -> Segment:
        """Cuts out the measurements first … first + count − 1, padded to capacity."""
        before = np.concatenate([[0], self.events])[:-1]
        lengths, due = np.zeros(capacity, np.int32), np.zeros((capacity, len(self.groups)), bool)
        lengths[:count] = (self.events - before)[first : first + count]
        due[:count] = self.due[first : first + count]
        rows = np.where(due, np.cumsum(due, axis=0) - 1, capacity).astype(np.int32)
        return Segment(lengths, due, rows, np.asarray(count, np.int32))


def schedule(probes: Sequence[Probe], steps: int, every: int) -> Schedule:
    """Plans the measurements of a run.

    Args:
        probes: each with its own cadence, or None for `every`.
        steps: length of the run.
        every: the run's cadence.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: for steps below 0 or a cadence below 1.

    Example:
        >>> from jaxsharp import probes
        >>> schedule([probes.loss(), probes.sharpness(every=4)], steps=6, every=2).events.tolist()
        [0, 2, 4, 6]
    """
    for label, value, least in (("steps", steps, 0), ("every", every, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{label} must be a whole number, at least {least}, got {value!r}.")
    wanted = [probe.every or every for probe in probes]
    cadences = tuple(sorted(set(wanted))) or (every,)
    groups = tuple(tuple(i for i, cadence in enumerate(wanted) if cadence == c) for c in cadences)
    times = [np.union1d(np.arange(0, steps + 1, cadence), [steps]) for cadence in cadences]
    events = np.unique(np.concatenate(times)).astype(np.int64)
    due = np.stack([np.isin(events, group) for group in times], axis=1)
    return Schedule(cadences, groups, events, due)


def start(problem: Problem, dynamics: Dynamics, probes: Sequence[Probe], params: Params) -> Carry:
    """Returns the carry of step 0; nothing is measured yet.

    Args:
        problem: what is minimized.
        dynamics: how it moves.
        probes: what is measured.
        params: where it starts.

    Returns:
        A `Carry`.
    """
    state = dynamics.init(problem, params)
    return Carry(state, tuple(probe.init(problem, state.params) for probe in probes))


def run(
    problem: Problem,
    dynamics: Dynamics,
    probes: Sequence[Probe],
    groups: Sequence[Sequence[int]],
    carry: Carry,
    segment: Segment,
) -> tuple[Carry, tuple[dict[str, Array], ...]]:
    """Runs a trajectory through a segment of its schedule.

    Written for one member; the step counters are not batched under `vmap`, so a measurement that is not due costs nothing.

    Args:
        problem: what is minimized.
        dynamics: how it moves.
        probes: what is measured.
        groups: indices of the probes of each cadence.
        carry: from `start` or an earlier segment.
        segment: from `Schedule.segment`.

    Returns:
        The next carry, and for each group the recorded arrays with a leading axis of capacity + 1 rows, the last to be ignored.
    """
    capacity = segment.lengths.shape[0]

    def measure_group(group, carry):
        values, memories, state = {}, list(carry.probes), carry.state
        for index in group:
            memories[index], seen = probes[index].measure(problem, state, memories[index])
            state = _handed_on(seen.pop(SLOPE, None), _account(probes[index], seen, state))
            values.update({name: _masked(jnp.asarray(value), state) for name, value in seen.items()})
        return Carry(state, tuple(memories)), values

    looks = [jax.jit(partial(measure_group, group), inline=True) for group in groups]  # traced once each, for both uses
    shapes = [jax.eval_shape(look, carry)[1] for look in looks]
    blank = tuple({name: jnp.zeros((capacity + 1, *leaf.shape), leaf.dtype) for name, leaf in shape.items()} for shape in shapes)

    def event(index, loop):
        carry, buffers = loop
        carry = carry._replace(state=dynamics.advance(problem, carry.state, segment.lengths[index]))
        written = []
        for number, look in enumerate(looks):

            def skip(carry, shape=shapes[number]):
                return carry, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)

            carry, values = jax.lax.cond(segment.due[index, number], look, skip, carry)
            row = segment.rows[index, number]
            written.append({name: buffers[number][name].at[row].set(value) for name, value in values.items()})
        return carry, tuple(written)

    return jax.lax.fori_loop(0, segment.events, event, (carry, blank))


def _handed_on(slope: tuple | None, state: State) -> State:
    """Keeps the loss and gradient of a measurement for the next step."""
    if slope is None or state.slope is None:
        return state
    return replace(state, slope=Slope(*slope, state.count))


def _account(probe: Probe, seen: dict, state: State) -> State:
    """Adds what a measurement cost, and whether it converged, to the member's state."""
    for name, label in probe.variables.items():
        if name not in seen:
            continue
        if label.role == "products":
            state = replace(state, hvps=state.hvps + seen[name].astype(state.hvps.dtype))
        if label.role == "converged":
            bit = jnp.where(seen[name] | stopped(state.status), 0, int(Status.EIGENPAIR_UNCONVERGED))
            state = replace(state, status=state.status | bit.astype(state.status.dtype))
    return state


def _masked(value: Array, state: State) -> Array:
    """A member that has stopped records NaN."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return jnp.where(stopped(state.status), jnp.nan, value)
