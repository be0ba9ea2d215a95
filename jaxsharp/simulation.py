"""The two verbs: simulate one trajectory, sweep many."""

import inspect
import itertools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxsharp import grid, results, trajectory
from jaxsharp._types import Params
from jaxsharp.optimizers import from_factory
from jaxsharp.probes import Probe, resolve
from jaxsharp.problems import Problem
from jaxsharp.transformation import as_dynamics


def simulate(
    problem: Problem,
    dynamics,
    steps: int,
    *,
    init: Params | Callable | None = None,
    seed: int = 0,
    probes: Sequence[str | Probe] = ("loss",),
    every: int = 1,
    minibatch: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    precision: str | None = "highest",
) -> xr.Dataset:
    """Runs one trajectory of an optimizer or a flow and returns what the probes saw.

    The probes measure at step 0, at every multiple of their cadence, and at the last step. Calling again with other
    hyper-parameters, another seed, or other data of the same shape reuses the compiled program.

    Args:
        problem: what is minimized.
        dynamics: an optimizer, a flow, or any optax transformation.
        steps: how many optimizer steps, or the same stretch of flow time.
        init: initial parameters, or a function `(key) -> params`; by default drawn by the problem from the seed.
        seed: of all random numbers.
        probes: names, or probes of `jaxsharp.probes`.
        every: cadence in steps of the probes that have none of their own.
        minibatch: training samples that an optimizer's step sees, drawn without replacement in each epoch by the seed; None for
            the full batch. Probes measure on all samples.
        checkpoint: folder to keep the running state in, and to go on from.
        progress: whether to show a progress bar.
        precision: of matrix products on accelerators, as for `jax.default_matmul_precision`; None for JAX's own habit, which is
            three digits there.

    Returns:
        A Dataset with the dimension `step`; see `jaxsharp.results.to_dataset`. A numerical failure is a bit of `ds.status`,
        and the values from then on are NaN.

    Raises:
        ValueError: for arguments that make no sense, with the remedy.
        jaxsharp.selfcheck.NumericalSelfCheckError: when the installed JAX differentiates wrong; checked once per process,
            which takes a few seconds.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.5), steps=10, probes=["loss", "sharpness"], every=5)
        >>> ds.step.values.tolist(), int(ds.status)
        ([0, 5, 10], 0)
    """
    probes = resolve(probes)
    plan = trajectory.schedule(probes, steps, every)
    rule = as_dynamics(dynamics, seed=np.uint32(_seeds([seed])[0]), minibatch=minibatch, **_kept_for(probes))
    values, function = _initial(problem, init)
    members = grid.Members(_stack([rule], ["dynamics"]), np.asarray(_seeds([seed]), np.uint32), {})
    outcome = grid.execute(
        problem,
        members,
        probes,
        plan,
        start_values=values,
        start_function=function,
        batched=False,
        checkpoint=checkpoint,
        progress=progress,
        precision=precision,
    )
    configuration = _configuration(problem, dynamics, steps, every, probes, seed=seed, minibatch=minibatch)
    return results.to_dataset(outcome, {}, probes, plan, every=every, time_per_step=_times([rule]), configuration=configuration)


def sweep(
    problem: Problem,
    factory,
    over: dict[str, Sequence] | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    steps: int,
    init: Params | Callable | None = None,
    probes: Sequence[str | Probe] = ("loss",),
    every: int = 1,
    minibatch: int | None = None,
    batch_size: int | str = "auto",
    devices: Sequence | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    precision: str | None = "highest",
) -> xr.Dataset:
    """Runs a trajectory for every combination of hyper-parameters and seeds, in one compiled program.

    A member that fails stops with a bit in its status; in the same batch layout the others are bit for bit what they would be
    without it. A member's random numbers depend on its seed's value alone, so across batch sizes and devices its result is
    the same to rounding.

    Args:
        problem: shared by all members.
        factory: makes an optimizer or a flow of keyword arguments (`js.optimizers.gd`, `optax.adam`, a lambda), or one made
            already when `over` is empty.
        over: name -> values of the factory's arguments; the grid is their product.
        seeds: how many (0, 1, …), or which.
        steps: how many optimizer steps, or the same stretch of flow time.
        init: initial parameters of all members, or a function `(key) -> params`; it may also take any of the names in `over`.
        probes: names, or probes of `jaxsharp.probes`.
        every: cadence in steps of the probes that have none of their own.
        minibatch: training samples that an optimizer's step sees, drawn without replacement in each epoch by the seed; None for
            the full batch. Probes measure on all samples.
        batch_size: members per compiled call, or `auto`.
        devices: JAX devices to spread each batch over, each of which stops its own loops; by default all of this process. A CPU
            counts as one device unless the environment variable JAX_NUM_CPU_DEVICES, set before JAX starts, makes it several.
        checkpoint: folder for finished batches and the running one; an interrupted sweep goes on from it.
        progress: whether to show a progress bar.
        precision: of matrix products on accelerators, as for `jax.default_matmul_precision`; None for JAX's own habit, which is
            three digits there.

    Returns:
        A Dataset with the dimensions of `over` in order, then `seed`, then `step`; see `jaxsharp.results.to_dataset`.

    Raises:
        ValueError: for an empty grid, an unknown key, or other arguments that make no sense, with the remedy.
        jaxsharp.selfcheck.NumericalSelfCheckError: when the installed JAX differentiates wrong.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.sweep(js.problems.valley(), js.optimizers.gd, over={"learning_rate": [0.1, 0.5]}, seeds=3, steps=10,
        ...               every=5, progress=False)
        >>> dict(ds.sizes)
        {'learning_rate': 2, 'seed': 3, 'step': 3}
    """
    over = {name: _axis(name, values) for name, values in (over or {}).items()}
    seeds = _seeds(range(seeds) if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool) else seeds)
    probes = resolve(probes)
    plan = trajectory.schedule(probes, steps, every)
    made = [_make(factory, dict(zip(over, point, strict=True))) for point in itertools.product(*over.values())]
    kept = _kept_for(probes)
    rules = [as_dynamics(rule, seed=np.uint32(seed), minibatch=minibatch, **kept) for rule in made for seed in seeds]
    points = [np.repeat(column, len(seeds)) for column in zip(*itertools.product(*over.values()), strict=True)] if over else []
    points = dict(zip(over, (np.asarray(column, float) for column in points), strict=True))
    values, function = _initial(problem, init)
    wanted = _names(function) if function is not None else ()
    points = {name: points[name] for name in wanted if name in points}
    members = grid.Members(_stack(rules, list(over)), np.tile(np.asarray(seeds, np.uint32), len(rules) // len(seeds)), points)
    outcome = grid.execute(
        problem,
        members,
        probes,
        plan,
        start_values=values,
        start_function=function,
        batch_size=batch_size,
        devices=devices,
        checkpoint=checkpoint,
        progress=progress,
        precision=precision,
    )
    configuration = _configuration(
        problem,
        factory,
        steps,
        every,
        probes,
        over={k: list(v) for k, v in over.items()},
        seeds=seeds,
        minibatch=minibatch,
    )
    axes = {**over, "seed": seeds}
    return results.to_dataset(outcome, axes, probes, plan, every=every, time_per_step=_times(rules), configuration=configuration)


def _axis(name, values):
    if name in ("seed", "step"):
        raise ValueError(f"over has the key {name!r}; pass seeds= and steps= instead.")
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"over[{name!r}] must be a list of at least one number, got {values!r}.")
    if not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise ValueError(
            f"over[{name!r}] must hold finite numbers, got {values!r}; run one sweep for each choice of anything else."
        )
    if np.unique(array).size < array.size:
        raise ValueError(f"over[{name!r}] holds a value twice: {values!r}.")
    return [value.item() for value in array]


def _seeds(seeds):
    seeds = list(seeds) if not isinstance(seeds, (str, bool)) and hasattr(seeds, "__iter__") else [seeds]
    valid = all(isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not valid or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be distinct whole numbers from 0 to 2**32 - 1, at least one, got {seeds!r}.")
    return [int(seed) for seed in seeds]


def _names(function):
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _make(factory, point):
    """Calls the factory at a grid point; a bare optax factory is rebuilt from traced numbers at each step."""
    if not point:
        return factory() if inspect.isfunction(factory) else factory
    if not callable(factory):
        raise ValueError(f"over needs a factory such as js.optimizers.gd, got {type(factory).__name__}; do not call it first.")
    parameters = _names(factory)
    takes_any = not parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else [name for name in point if name not in parameters]
    if unknown:
        raise ValueError(f"over has the key {unknown[0]!r}, which the factory does not take; it takes {', '.join(parameters)}.")
    rule = factory(**point)
    if not jax.tree.leaves(rule) or any(callable(leaf) for leaf in jax.tree.leaves(rule)):
        return from_factory(factory, **point)
    return rule


def _stack(rules, names):
    """One Dynamics with a leading member axis on every leaf."""
    structures = {jax.tree.structure(rule) for rule in rules}
    if len(structures) > 1:
        raise ValueError(
            f"the members of a grid over {', '.join(names)} differ in structure, so they cannot share a program; "
            "let the factory make the same kind of rule for every value (for momentum, use values above 0 only)."
        )
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *rules)


def _kept_for(probes) -> dict[str, bool]:
    """What the states have to keep for these probes."""
    return {
        "keep_previous": any(probe.midpoint for probe in probes),
        "keep_slope": any(getattr(probe, "reuse_gradient", False) for probe in probes),
    }


def _initial(problem, init):
    """Initial parameters as values or as a function, checked against what the problem draws itself."""
    if init is None:
        return None, None
    if callable(init):
        return None, init
    like = jax.eval_shape(problem.init, jax.random.key(0))
    values = jax.tree.map(lambda leaf: np.asarray(leaf), init)
    if jax.tree.structure(values) != jax.tree.structure(like):
        raise ValueError(
            f"init has the structure {jax.tree.structure(values)}, but the problem's parameters have {jax.tree.structure(like)}."
        )
    for value, leaf in zip(jax.tree.leaves(values), jax.tree.leaves(like), strict=True):
        if value.shape != leaf.shape:
            raise ValueError(f"init has a leaf of shape {value.shape} where the problem has {leaf.shape}.")
        if not np.isfinite(value.astype(float)).all():
            raise ValueError("init contains NaN or infinity.")
    return jax.tree.map(lambda value, leaf: jnp.asarray(value, leaf.dtype), values, like), None


def _times(rules):
    times = [rule.time_per_step for rule in rules]
    return None if any(time is None for time in times) else np.asarray([float(time) for time in times])


def _configuration(problem, dynamics, steps, every, probes, **more):
    shapes = {
        jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(problem.data)
    }
    return {
        "problem": problem.name,
        "data": shapes,
        "dynamics": getattr(dynamics, "__name__", None) or repr(dynamics),
        "steps": int(steps),
        "every": int(every),
        "probes": [probe.name for probe in probes],
        **more,
    }
