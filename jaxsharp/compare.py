"""Comparison of a discrete run with the flow that predicts it, on one axis of steps; functions of datasets."""

import numpy as np
import xarray as xr

PARAMETERS = "parameters"


def deoscillated(run: xr.Dataset, variable: str = PARAMETERS) -> xr.DataArray:
    """Averages the oscillation out of a recorded trajectory, w̄_t = (w_{t−1} + 2 w_t + w_{t+1}) / 4.

    What flips sign at each step vanishes exactly; what moves evenly is unchanged.

    Args:
        run: recorded at every step.
        variable: which.

    Returns:
        The variable at all steps but the first and the last.

    Raises:
        ValueError: for a variable that is not recorded at every step.

    Example:
        >>> import jaxsharp as js
        >>> run = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 4, probes=["parameters"])
        >>> js.compare.deoscillated(run).step.values.tolist()
        [1, 2, 3]

    Source: Damian, Nichani, Lee 2023; Cohen, Damian et al. 2024.
    """
    values = _every_step(run, variable)
    before, after = values.shift(step=1), values.shift(step=-1)
    return (0.25 * (before + 2 * values + after)).isel(step=slice(1, -1)).assign_attrs(values.attrs).rename(variable)


def oscillating_part(run: xr.Dataset, variable: str = PARAMETERS) -> xr.DataArray:
    """Takes the oscillation of a recorded trajectory, δ_t = w_t − w̄_t = (2 w_t − w_{t−1} − w_{t+1}) / 4.

    Args:
        run: recorded at every step.
        variable: which.

    Returns:
        δ at all steps but the first and the last.

    Example:
        >>> import jaxsharp as js
        >>> run = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 4, probes=["parameters"])
        >>> dict(js.compare.oscillating_part(run).sizes)
        {'step': 3, 'parameter': 2}
    """
    return (_every_step(run, variable) - deoscillated(run, variable)).rename("oscillating_part")


def distance(run: xr.Dataset, flow: xr.Dataset, *, average: bool = True, relative: bool = False) -> xr.DataArray:
    """Measures how far a discrete run is from a flow at the same step, ‖w̄_t − w_flow(t)‖.

    Args:
        run: with `parameters`, at every step where it is averaged.
        flow: with `parameters`; a flow counts its time in optimizer steps, so steps are the common axis.
        average: whether to take the run's oscillation out first.
        relative: whether to divide by ‖w_flow(t) − w_flow(0)‖, how far the flow has gone; NaN at its start.

    Returns:
        `distance` at the steps that both have, with the other dimensions of both.

    Raises:
        ValueError: when they have no step in common.

    Example:
        >>> import jaxsharp as js
        >>> problem, start = js.problems.valley(), {"u": 1.0, "v": 0.1}
        >>> run = js.simulate(problem, js.optimizers.gd(0.1), 10, init=start, probes=["parameters"])
        >>> flow = js.simulate(problem, js.flows.gradient(0.1), 10, init=start, probes=["parameters"], every=5)
        >>> js.compare.distance(run, flow).step.values.tolist()
        [5]
    """
    first = deoscillated(run) if average else _recorded(run, PARAMETERS)
    second = _recorded(flow, PARAMETERS)
    first, moved = xr.align(first, second, join="inner", exclude=["parameter"])
    if first.sizes["step"] == 0:
        raise ValueError("the run and the flow have no step in common; record both at the same cadence.")
    gap = _norm(first - moved)
    if relative:
        gone = _norm(moved - second.isel(step=0, drop=True))
        gap = gap / gone.where(gone > 0)
    units = "1" if relative else "parameters"
    return gap.rename("distance").assign_attrs(long_name="relative distance" if relative else "distance", units=units)


def oscillation_variances(run: xr.Dataset, window: int, directions: int = 1) -> xr.DataArray:
    """Measures the largest eigenvalues of the covariance of the oscillation, (1/n) Σ δ_t δ_tᵀ over windows of n steps.

    What `oscillation` of a central flow predicts.

    Args:
        run: with `parameters` at every step.
        window: n, steps in a window; windows do not overlap, and a rest is left out.
        directions: how many eigenvalues.

    Returns:
        `oscillation` with the dimensions `step` (the middle of each window) and `direction`.

    Raises:
        ValueError: for a window that the run does not fill, or fewer steps than directions.

    Example:
        >>> import jaxsharp as js
        >>> run = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 9, probes=["parameters"])
        >>> dict(js.compare.oscillation_variances(run, window=4).sizes)
        {'step': 2, 'direction': 1}
    """
    moves = oscillating_part(run)
    count = moves.sizes["step"] // window if window > 0 else 0
    if count < 1 or directions > min(window, moves.sizes["parameter"]):
        raise ValueError(
            f"a window of {window} steps does not fit {moves.sizes['step']} recorded ones with {directions} directions; "
            "choose a window between both."
        )
    moves = moves.transpose(..., "step", "parameter")
    values = moves.values[..., : count * window, :]
    values = values.reshape(*values.shape[:-2], count, window, values.shape[-1])
    singular = np.linalg.svd(values, compute_uv=False)[..., :directions]
    middles = moves.step.values[: count * window].reshape(count, window).mean(axis=1)
    dims = (*moves.dims[:-2], "step", "direction")
    coords = {name: moves.coords[name] for name in moves.dims[:-2] if name in moves.coords}
    attributes = {"long_name": "measured variance of the oscillation", "units": "1"}
    return xr.DataArray(singular**2 / window, {**coords, "step": middles}, dims, "oscillation", attributes)


def first_step_at_edge(run: xr.Dataset, learning_rate: float | None = None, *, variable: str = "sharpness") -> xr.DataArray:
    """Finds the first recorded step at which the curvature reaches the edge of stability, η λ1 ≥ 2.

    Args:
        run: with the sharpness, and with `effective_learning_rate` if no learning rate is given and the grid has none.
        learning_rate: η; by default the run's `effective_learning_rate`, or the grid's dimension `learning_rate`.
        variable: name of the sharpness.

    Returns:
        `first_step_at_edge`, NaN for a member that never reached it.

    Raises:
        ValueError: when no learning rate is known.

    Example:
        >>> import jaxsharp as js
        >>> run = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 4, probes=["sharpness"])
        >>> bool(js.compare.first_step_at_edge(run, 100.0) == 0)
        True
    """
    sharpness = _recorded(run, variable)
    if "eigenvalue" in sharpness.dims:
        sharpness = sharpness.isel(eigenvalue=0, drop=True)
    if learning_rate is None:
        known = [name for name in ("effective_learning_rate", "learning_rate") if name in run]
        if not known:
            raise ValueError("no learning rate is known; pass learning_rate=, or record the probe effective_learning_rate.")
        learning_rate = run[known[0]]
    beyond = sharpness * learning_rate >= 2
    steps = sharpness.step.where(beyond)
    attributes = {"long_name": "first step at the edge of stability", "units": "steps"}
    return steps.min("step").rename("first_step_at_edge").assign_attrs(attributes)


def drift_rate(run: xr.Dataset, variable: str, first: int = 0, last: int | None = None) -> xr.Dataset:
    """Fits the drift of a variable per step, by least squares over the steps from first to last.

    Args:
        run: with the variable at 3 or more of these steps.
        variable: which, one number a step and member.
        first: step.
        last: step, included; by default the last recorded.

    Returns:
        A Dataset with `rate` and its `standard_error`, as if the deviations from the line were independent, which those of an
        oscillation are not.

    Raises:
        ValueError: for fewer than 3 steps.

    Example:
        >>> import jaxsharp as js
        >>> run = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 20, probes=["loss"])
        >>> bool(js.compare.drift_rate(run, "loss", 1).rate < 0)
        True
    """
    values = _recorded(run, variable).sel(step=slice(first, last))
    count = values.sizes["step"]
    if count < 3:
        raise ValueError(f"{variable} has {count} recorded steps from {first} to {last}; a rate with an error needs 3.")
    steps = values.step - values.step.mean()
    scatter = (steps**2).sum("step")
    rate = (steps * values).sum("step") / scatter
    rest = values - values.mean("step") - rate * steps
    error = np.sqrt((rest**2).sum("step") / (count - 2) / scatter)
    return xr.Dataset({"rate": rate, "standard_error": error})


def _recorded(dataset, variable):
    if variable not in dataset or "step" not in dataset[variable].dims:
        raise ValueError(f"the dataset does not have {variable!r} along step; record it with the probe of that name.")
    return dataset[variable].drop_vars("time", errors="ignore")


def _every_step(run, variable):
    values = _recorded(run, variable)
    if values.sizes["step"] < 3 or (np.diff(values.step) != 1).any():
        raise ValueError(f"{variable} must be recorded at every step, at least 3 of them; run with every=1.")
    return values


def _norm(values):
    return np.sqrt((values**2).sum("parameter", skipna=False))
