"""An optimizer past its edge of stability against the flows that predict it, from the same starts on one network."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from jaxsharp import compare, plots
from jaxsharp.dynamics import Dynamics
from jaxsharp.experiments import shared
from jaxsharp.problems import Problem
from jaxsharp.simulation import sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW = 20
"""Steps over which the oscillation of an optimizer is averaged."""


class Predictor(NamedTuple):
    """A flow in a study.

    Attributes:
        label: in tables and figures.
        dynamics: the flow.
        oscillates: whether it predicts an oscillation.
    """

    label: str
    dynamics: Dynamics
    oscillates: bool


class Study(NamedTuple):
    """What is run and for how long.

    Attributes:
        problem: the network's.
        start: key -> parameters.
        seeds: initializations.
        steps: of the optimizer.
        every: steps between measurements.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep batches in, or None.
    """

    problem: Problem
    start: Callable
    seeds: int
    steps: int
    every: int
    progress: bool = False
    checkpoint: Path | None = None

    def simulated(self, name: str, label: str, rule: Any, measured: tuple, steps: int, every: int) -> xr.Dataset:
        """Runs one rule for all seeds."""
        if self.progress:
            shared.say(f"{label}: {self.seeds} trajectories, after up to a minute of compilation")
        return sweep(
            self.problem,
            rule,
            seeds=self.seeds,
            steps=steps,
            init=self.start,
            probes=measured,
            every=every,
            checkpoint=None if self.checkpoint is None else self.checkpoint / name,
            progress=self.progress,
        )


def check(settings: Any) -> None:
    """Refuses counts below 1, a run too short for its windows, and steps to show that are not measured.

    Args:
        settings: with `seeds`, `every`, `directions`, `steps` and `shown`.

    Raises:
        ValueError: naming the setting.
    """
    shared.check_counts(settings, "seeds", "every", "directions")
    if settings.steps < 2 * WINDOW:
        raise ValueError(f"steps must be at least {2 * WINDOW}, got {settings.steps}.")
    wrong = [step for step in settings.shown if not 0 < step <= settings.steps or step % settings.every]
    if wrong or not settings.shown:
        raise ValueError(
            f"shown must be multiples of every={settings.every} from {settings.every} to steps={settings.steps}, "
            f"got {settings.shown}."
        )


def compared(
    study: Study, label: str, optimizer: Any, edge_ratio: tuple, flows: Mapping[str, Predictor]
) -> tuple[xr.Dataset, dict[str, dict]]:
    """Runs an optimizer and its flows from the same starts.

    Args:
        study: what to run.
        label: of the optimizer.
        optimizer: of `jaxsharp.optimizers`.
        edge_ratio: a probe of its top eigenvalues, its variable with the dimension `eigenvalue`, and what to multiply it by so
            that it is 1 at the edge of stability.
        flows: by name.

    Returns:
        A Dataset with the dimensions flow, seed, step: `distance` of each flow from the optimizer without its oscillation,
        ‖(w_{t−1} + 2 w_t + w_{t+1}) / 4 − w_flow(t)‖, NaN from where a flow stopped; `oscillation`, the trace of the covariance
        that a flow predicts; `status`. Of the optimizer: `run_status`, `edge_ratio`, and `measured_oscillation`, the trace over
        windows of 20 steps. The coordinate `seconds` is the wall time of a flow with its compilation. And the attributes of all
        runs by name.
    """
    probe, variable, factor = edge_ratio
    run = study.simulated("run", label, optimizer, ("parameters", probe), study.steps + 1, 1)
    attributes, parts = {"run": run.attrs}, []
    for name, (words, dynamics, oscillates) in flows.items():
        measured = ("parameters", "oscillation") if oscillates else ("parameters",)
        flow = study.simulated(name, words, dynamics, measured, study.steps, study.every)
        part = compare.distance(run, flow).reset_coords(drop=True).to_dataset(name="distance")
        part["status"] = flow["status"]
        if oscillates:
            part["oscillation"] = flow["oscillation"].sum("direction", skipna=False).sel(step=part["step"])
        else:
            part["oscillation"] = xr.full_like(part["distance"], np.nan)
        parts.append(part.assign_coords(seconds=flow.attrs["wall_time_seconds"]).drop_vars("time", errors="ignore"))
        attributes[name] = flow.attrs
    ds = xr.concat(parts, xr.DataArray(list(flows), dims="flow", name="flow"), coords=["seconds"], join="inner")
    ds = ds.transpose("flow", "seed", "step")
    ds["run_status"] = run["status"]
    steps = "step" if study.every == 1 else f"step_{study.every}"
    ds["edge_ratio"] = run[variable].drop_vars("time", errors="ignore").rename({steps: "step_run"}) * factor
    variances = compare.oscillation_variances(run, WINDOW, WINDOW).sum("direction", skipna=False)
    ds["measured_oscillation"] = (
        variances.rename(step="step_window").drop_vars("step_window").assign_coords(step_window=variances["step"].values)
    )
    for name, (title, units) in _LABELS.items():
        ds[name].attrs = {"long_name": title, "units": units}
    return ds, attributes


_LABELS = {
    "distance": ("distance from the optimizer", "parameters"),
    "oscillation": ("trace of the covariance", "1"),
    "measured_oscillation": ("trace of the covariance", "1"),
    "edge_ratio": ("η λ / 2 of the optimizer", "1"),
    "step": ("optimizer steps", "steps"),
    "step_run": ("optimizer steps", "steps"),
    "step_window": ("optimizer steps", "steps"),
    "seconds": ("wall time with compilation", "s"),
}


def provenance(runs: list[dict], title: str) -> dict:
    """Joins the attributes of all runs, as `shared.provenance` does, with the whole of each as JSON in `runs`."""
    parts = {number: xr.Dataset(attrs=run) for number, run in enumerate(runs)}
    return {**shared.provenance(parts, title), "runs": json.dumps(runs)}


def first_steps(dataset: xr.Dataset) -> xr.DataArray:
    """Finds the first measured step at which an optimizer's η λ1 / 2 reaches 1, NaN where it never does."""
    top = dataset["edge_ratio"].isel(eigenvalue=0)
    return top["step_run"].where(top >= 1).min("step_run")


def in_words(steps: xr.DataArray) -> str:
    """Lists first steps, such as `180, never`."""
    return ", ".join("never" if np.isnan(step) else str(int(step)) for step in steps.values)


def draw_edge_ratio(axes: "Axes", dataset: xr.Dataset) -> None:
    """Draws the top eigenvalues of an optimizer, and its edge."""
    for color, number in zip(plots.shades(dataset.sizes["eigenvalue"]), dataset["eigenvalue"].values, strict=True):
        here = dataset[["edge_ratio"]].sel(eigenvalue=number)
        plots.draw(axes, here, "edge_ratio", label=f"λ{number}", color=color, linewidth=1.2)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="dotted")


def draw_oscillation(axes: "Axes", dataset: xr.Dataset, label: str, styles: Mapping[str, dict], names: Mapping[str, str]) -> None:
    """Draws the measured trace of the covariance, broad, and that which flows predict.

    Args:
        axes: to draw on.
        dataset: of one optimizer.
        label: of the optimizer.
        styles: of the flows' lines, by name.
        names: labels of those flows that are drawn.
    """
    plots.draw(axes, dataset, "measured_oscillation", label=label, color="black", linewidth=3, alpha=0.5)
    for name, words in names.items():
        here = dataset[["oscillation"]].sel(flow=name)
        plots.draw(axes, here, "oscillation", band="none", label=words, linewidth=1.1, **styles[name])
    axes.set_yscale("log")
    largest = max(float(dataset[name].max()) for name in ("measured_oscillation", "oscillation"))
    if np.isfinite(largest) and largest > 0:
        axes.set_ylim(1e-8 * largest, 10 * largest)
