"""Many trajectories at once: vmap, chunks, devices, checkpoints, progress and jit; knows no mathematics."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxsharp import selfcheck, trajectory
from jaxsharp._cost import burden_of, members_at_once
from jaxsharp._types import Params
from jaxsharp.checkpoint import Store, fingerprint
from jaxsharp.dynamics import Dynamics
from jaxsharp.probes import Probe
from jaxsharp.problems import Problem
from jaxsharp.progress import bar
from jaxsharp.trajectory import Schedule

SAVE_EVERY = 60.0
"""Seconds between checkpoints within one batch."""

PLAIN_CODE = {"xla_backend_optimization_level": 0}
"""How a CPU compiles the drawing of initial parameters: as it is, since optimizing that takes a second or two, longer than a
small run; drawing 10 million numbers then takes 0.4 s instead of 0.1."""

BUFFER_BYTES = 128 * 2**20
"""Most memory that one call's recorded values may take on the device."""


@dataclass(frozen=True)
class Members:
    """The members of a grid, as arrays with a leading axis.

    Attributes:
        dynamics: a Dynamics whose leaves have a leading member axis.
        seeds: (members,) integers; a member's random numbers depend on its seed's value alone.
        points: name -> (members,) what the initial parameters may depend on besides the seed.
    """

    dynamics: Dynamics
    seeds: np.ndarray
    points: dict[str, np.ndarray]

    def take(self, indices: np.ndarray) -> "Members":
        """Selects members."""
        pick = lambda leaf: np.asarray(leaf)[indices]  # noqa: E731
        return Members(jax.tree.map(pick, self.dynamics), self.seeds[indices], jax.tree.map(pick, self.points))


@dataclass(frozen=True)
class Outcome:
    """What a grid recorded, as NumPy arrays with a leading member axis.

    Attributes:
        records: cadence -> variable -> (members, measurements, …), the cadence in steps as text.
        status: (members,) bits.
        count: (members,) completed steps.
        hvps: (members,) products spent.
        seconds: wall time of the whole call, compilation included, and of earlier calls that its checkpoint continues.
    """

    records: dict[str, dict[str, np.ndarray]]
    status: np.ndarray
    count: np.ndarray
    hvps: np.ndarray
    seconds: float


def execute(
    problem: Problem,
    members: Members,
    probes: tuple[Probe, ...],
    plan: Schedule,
    *,
    start_values: Params | None = None,
    start_function: Callable | None = None,
    batched: bool = True,
    batch_size: int | str = "auto",
    devices: Sequence | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    precision: str | None = "highest",
) -> Outcome:
    """Runs every member through the schedule, batch by batch, in compiled programs that the values do not change.

    Args:
        problem: shared by all members.
        members: their dynamics, seeds and grid points.
        probes: what is measured.
        plan: when.
        start_values: initial parameters of all members; None for `start_function` or the problem's own.
        start_function: `(key, **points) -> params`.
        batched: whether to vmap; False runs the only member as it is.
        batch_size: members per compiled call, or `auto`.
        devices: JAX devices to spread each batch over; None for all of this process, or the default one where one is set.
        checkpoint: folder in which finished batches and the running one are kept, and from which an interrupted call goes on.
        progress: whether to show a bar with an estimate of the time left.
        precision: of matrix products, as for `jax.default_matmul_precision`; None for JAX's own habit.

    Returns:
        An `Outcome`.

    Raises:
        ValueError: for a bad batch size, or a checkpoint of another grid or that cannot be read.
        NumericalSelfCheckError: when the installed JAX differentiates wrong.
    """
    began = time.perf_counter()
    total = members.seeds.size
    devices = _chosen(devices, total) if batched else ()
    selfcheck.ensure()
    weight = 0.0
    if batched and batch_size == "auto":
        weight = _gradient_burden(problem, members, start_values, start_function)
    size = batch_length(batch_size, total, len(devices) or 1, weight) if batched else 1
    batched = size > 1
    each = size // (len(devices) or 1)
    start, begin = _start_program(start_function, each, devices), _begin_program(probes, each, devices)
    advance = _advance_program(probes, plan.groups, each, devices)
    batches = [np.arange(first, min(first + size, total)) for first in range(0, total, size)]

    def prepare(batch):
        padded = np.resize(batch, size)  # the last batch repeats members, so that it has the shape of the others
        subset = members.take(padded if batched else padded[0])
        params = start(problem, subset.seeds, subset.points, start_values)
        return subset.dynamics, begin(problem, subset.dynamics, params)

    finished, earlier = [], 0.0
    with jax.default_matmul_precision(precision or "default"), bar(progress, len(batches) * len(plan.events)) as tick:
        store = None
        if checkpoint is not None:
            started = prepare(batches[0])[1].state.params
            arrays = (problem, members.dynamics, members.seeds, members.points, started)
            structure = jax.tree.structure((problem, members.dynamics))
            store = Store(
                checkpoint, fingerprint(arrays, structure=structure, probes=probes, events=plan.events, batch_size=size)
            )
        for number, batch in enumerate(batches):
            done, spent = store.finished(number) if store else (None, 0.0)
            if done is None:
                done, spent = _run_batch(problem, *prepare(batch), advance, plan, size, batched, store, number, tick)
            else:
                tick(len(plan.events))
            earlier += spent
            finished.append(jax.tree.map(lambda leaf, n=batch.size: leaf[:n], done))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *finished)
    return Outcome(joined["records"], joined["status"], joined["count"], joined["hvps"], time.perf_counter() - began + earlier)


def batch_length(batch_size: int | str, total: int, devices: int, burden: float = 0.0) -> int:
    """Chooses how many members one compiled call runs.

    `auto` takes, per CPU device, at most as many members as do 6e8 operations in a gradient together, or 4e6 of convolutions, and
    at most 32: small networks gain from company, large ones fill the cores alone. Per accelerator it takes up to 256. The last
    batch has the shape of the others, so it takes up to half of that where this leaves fewer places empty.

    Args:
        batch_size: a number, or `auto`.
        total: how many members there are.
        devices: how many devices share a batch; the result is a multiple of it.
        burden: of one member's gradient.

    Returns:
        The batch size.

    Raises:
        ValueError: for anything else.

    Example:
        >>> batch_length(4, 10, 1), batch_length(3, 10, 2), batch_length("auto", 10, 1, burden=1e9)
        (4, 4, 1)
    """
    if batch_size == "auto":
        alone = members_at_once(burden) if jax.default_backend() == "cpu" else 256
        most = alone * devices
        batch_size = total if total <= most else _least_padded(total, most, devices)
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size must be 'auto' or a whole number, at least 1, got {batch_size!r}.")
    return -(-min(int(batch_size), total) // devices) * devices


def _least_padded(total, most, devices):
    """The batch, a multiple of `devices` above half of `most`, that wastes the fewest places; the largest of such."""
    return min(range(most, most // 2, -devices), key=lambda size: -total % size)


def _gradient_burden(problem, members, start_values, start_function):
    """The burden of one gradient of one member, found by tracing alone."""
    gradient = _gradient_program(start_function)
    return burden_of(gradient.trace(problem, members.seeds[0], members.take(np.asarray(0)).points, start_values).jaxpr.jaxpr)


def _gradient(problem, seed, point, start_values, *, start_function):
    return jax.grad(problem.loss)(_start_params(problem, seed, point, start_values, start_function=start_function))


@lru_cache(maxsize=64)
def _gradient_program(start_function):
    return jax.jit(partial(_gradient, start_function=start_function))


def _start_params(problem, seed, point, start_values, *, start_function):
    if start_values is not None:
        return start_values
    key = jax.random.key(seed)
    return start_function(key, **point) if start_function is not None else problem.init(key)


def _begin(problem, dynamics, params, *, probes):
    return trajectory.start(problem, _typed(dynamics, params), probes, params)


def _advance(problem, dynamics, carry, segment, *, probes, groups):
    return trajectory.run(problem, _typed(dynamics, carry.state.params), probes, groups, carry, segment)


def _typed(dynamics, params):
    """The hyper-parameters in the dtype of the parameters, so that neither promotes the other."""
    dtype = jax.tree.leaves(params)[0].dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, dynamics)


@lru_cache(maxsize=64)
def _start_program(start_function, each, devices):
    start = _for_members(partial(_start_params, start_function=start_function), (False, True, True, False), each, devices)
    plain = start_function is None and jax.default_backend() == "cpu"
    return jax.jit(start, compiler_options=PLAIN_CODE if plain else None)


@lru_cache(maxsize=64)
def _begin_program(probes, each, devices):
    return jax.jit(_for_members(partial(_begin, probes=probes), (False, True, True), each, devices))


@lru_cache(maxsize=64)
def _advance_program(probes, groups, each, devices):
    advance = partial(_advance, probes=probes, groups=groups)
    return jax.jit(_for_members(advance, (False, True, True, False), each, devices), donate_argnums=2)


def _for_members(function, by_member, each, devices):
    """A function of one member for `each` members on each device; a single one runs best as it is, without a batch axis."""
    if len(devices) < 2:
        return jax.vmap(function, in_axes=tuple(0 if split else None for split in by_member)) if each > 1 else function

    def local(*arguments):
        if each > 1:
            return jax.vmap(function, in_axes=tuple(0 if split else None for split in by_member))(*arguments)
        own = (jax.tree.map(lambda leaf: leaf[0], x) if split else x for x, split in zip(arguments, by_member, strict=True))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], function(*own))

    mesh = jax.make_mesh((len(devices),), ("member",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    each_own, same = PartitionSpec("member"), PartitionSpec()
    specs = tuple(each_own if split else same for split in by_member)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=each_own, check_vma=False)


def _chosen(devices, members):
    """The devices to spread over, no more than members, and none where there is only one."""
    if devices is None:
        devices = jax.local_devices() if jax.config.jax_default_device is None else ()
    devices = tuple(devices)[:members]
    return devices if len(devices) > 1 else ()


def _run_batch(problem, dynamics, carry, advance, plan, size, batched, store, number, tick):
    """Runs one batch through the schedule in calls of a length that adapts to about a second each.

    Returns what it found, and the seconds that an earlier run had spent on it.
    """
    position, records, earlier, entered = 0, None, 0.0, time.perf_counter()
    if store is not None and (resumed := store.running(number, carry)) is not None:
        position, carry, records, earlier = resumed
        tick(position)
    capacity = _capacity(problem, dynamics, carry, advance, plan)
    many, saved = 1, time.perf_counter()
    while position < len(plan.events):
        count = min(many, capacity, len(plan.events) - position)
        segment = plan.segment(position, count, capacity)
        began = time.perf_counter()
        carry, buffers = jax.block_until_ready(advance(problem, dynamics, carry, segment))
        took = time.perf_counter() - began
        records = _collect(records, buffers, plan, position, count, size, batched)
        position += count
        many = max(1, min(2 * many, int(many / max(took, 1e-3))))
        tick(count)
        if store is not None and time.perf_counter() - saved > SAVE_EVERY and position < len(plan.events):
            saved = time.perf_counter()
            store.save_running(number, position, carry, records, earlier + saved - entered)
    state = jax.tree.map(lambda leaf: np.atleast_1d(np.asarray(leaf)), carry.state)
    done = {"records": records, "status": state.status, "count": state.count, "hvps": state.hvps}
    if store is not None:
        store.finish(number, done, earlier + time.perf_counter() - entered)
    return done, earlier


def _capacity(problem, dynamics, carry, advance, plan):
    """Rows of the device buffers: a power of two, so that runs of similar length share a program.

    What a row holds is found by tracing the program with as many rows as it will most likely have, so that it need not be traced
    again.
    """
    most = _power_of_two(min(int(plan.due.sum(axis=0).max()), 1024))
    shapes = jax.eval_shape(advance, problem, dynamics, carry, plan.segment(0, 1, most))[1]
    row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) / (most + 1)  # one row is ignored
    return min(most, _power_of_two(max(1, int(BUFFER_BYTES / max(row, 1)))))


def _power_of_two(most):
    return 2 ** int(np.floor(np.log2(most)))


def _collect(records, buffers, plan, position, count, size, batched):
    """Copies the filled rows of the device buffers to their place in the records on the host."""
    groups = [{name: np.asarray(value) for name, value in group.items()} for group in buffers]
    if not batched:
        groups = [{name: value[None] for name, value in group.items()} for group in groups]
    if records is None:
        records = {
            str(cadence): {name: np.zeros((size, rows, *value.shape[2:]), value.dtype) for name, value in group.items()}
            for cadence, rows, group in zip(plan.cadences, plan.due.sum(axis=0), groups, strict=True)
        }
    for index, (cadence, group) in enumerate(zip(plan.cadences, groups, strict=True)):
        first = int(plan.due[:position, index].sum())
        new = int(plan.due[position : position + count, index].sum())
        for name, value in group.items():
            records[str(cadence)][name][:, first : first + new] = value[:, :new]
    return records
