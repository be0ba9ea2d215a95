"""Every flow that predicts gradient descent at the edge of stability, against gradient descent on one real network."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import xarray as xr

from jaxsharp import compare, data, flows, models, optimizers, plots, probes, problems
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures, with_interval
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Entry(NamedTuple):
    """A flow of the zoo.

    Attributes:
        label: in tables and figures.
        make: (learning rate, directions to track) -> flow.
        oscillates: whether it predicts an oscillation.
    """

    label: str
    make: Callable
    oscillates: bool = True


TOLERANCE = 1e-3
"""Relative residual of the flows' eigenpairs."""

ZOO = {
    "gradient": Entry("gradient flow", lambda rate, k: flows.gradient(rate), False),
    "stable": Entry("stable, corrected", lambda rate, k: flows.stable(optimizers.gd(rate), substeps=8, corrected=True), False),
    "central": Entry("central", lambda rate, k: flows.central(optimizers.gd(rate), k, substeps=1, eigen_tolerance=TOLERANCE)),
    "corrected": Entry(
        "central, corrected",
        lambda rate, k: flows.central(optimizers.gd(rate), k, substeps=1, corrected=True, eigen_tolerance=TOLERANCE),
    ),
    "rod": Entry("rod", lambda rate, k: flows.rod(rate, k=3)),
    "edge": Entry("edge", lambda rate, k: flows.edge(rate)),
    "stabilized": Entry("self-stabilization", lambda rate, k: flows.self_stabilization(rate, eigen_tolerance=TOLERANCE)),
    "constrained": Entry("constrained", lambda rate, k: flows.constrained(rate, eigen_tolerance=TOLERANCE)),
}
"""The flows by the name that the setting `flows` takes."""

WINDOW = 20
"""Steps over which the oscillation of GD is averaged."""


@dataclass(frozen=True)
class Settings:
    """Settings of flow-zoo; each field says what it is."""

    learning_rate: float = setting(0.4, "learning rate η of GD")
    flows: tuple[str, ...] = setting(tuple(name for name in ZOO if name != "constrained"), "which flows")
    seeds: int = setting(3, "initializations")
    steps: int = setting(400, "optimizer steps")
    every: int = setting(10, "optimizer steps between measurements")
    shown: tuple[int, ...] = setting((100, 200, 250, 300, 350, 400), "steps at which the table shows distances")
    directions: int = setting(4, "directions that the central flows track")
    images: int = setting(100, "training images")
    widths: tuple[int, ...] = setting((48, 24), "hidden layers of the tanh network")
    scale: float = setting(0.5, "factor on the usual initialization; at 1 GD starts past its edge")

    def __post_init__(self):
        """Refuses what makes no sense."""
        unknown = [name for name in self.flows if name not in ZOO]
        if unknown or not self.flows:
            raise ValueError(f"flows must be some of {', '.join(ZOO)}, got {', '.join(self.flows) or 'none'}.")
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate}.")
        for name in ("seeds", "every", "directions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.steps < 2 * WINDOW:
            raise ValueError(f"steps must be at least {2 * WINDOW}, got {self.steps}.")
        wrong = [step for step in self.shown if not 0 < step <= self.steps or step % self.every]
        if wrong or not self.shown:
            raise ValueError(
                f"shown must be multiples of every={self.every} from {self.every} to steps={self.steps}, got {self.shown}."
            )


@lru_cache(maxsize=4)
def _setting(images, widths, scale, double):
    """The problem and the start of a seed; cached, since equal functions let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    train, _ = data.digits(images)
    problem = problems.supervised(models.MLP(widths=widths), train, loss="mse")

    def start(key):
        return jax.tree.map(lambda leaf: scale * leaf, problem.init(key))

    return problem, start


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs GD and each flow from the same initializations of one network on digits.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions flow, seed, step: `distance` of each flow from GD without its oscillation,
        ‖(w_{t−1} + 2 w_t + w_{t+1}) / 4 − w_flow(t)‖, NaN from where a flow stopped; `oscillation`, the trace of the covariance
        that a flow predicts; `status`, and `gd_status` that of GD. Of GD: `edge_ratio` η λᵢ / 2 and
        `measured_oscillation`, the trace over windows of 20 steps. The coordinate `seconds` is the wall time of a flow with its
        compilation; the provenance of all runs is in attributes of their names, as JSON.

    Raises:
        ValueError: for a checkpoint of other settings.
    """
    problem, start = _setting(settings.images, tuple(settings.widths), settings.scale, bool(jax.config.jax_enable_x64))
    rate = settings.learning_rate

    def simulated(name, label, dynamics, measured, steps, every):
        if progress:
            print(f"{label}: {settings.seeds} trajectories, after up to a minute of compilation", file=sys.stderr, flush=True)
        return sweep(
            problem,
            dynamics,
            seeds=settings.seeds,
            steps=steps,
            init=start,
            probes=measured,
            every=every,
            checkpoint=None if checkpoint is None else Path(checkpoint) / name,
            progress=progress,
        )

    measured = ("parameters", probes.sharpness(k=3, every=settings.every))
    gd = simulated("gd", "GD", optimizers.gd(rate), measured, settings.steps + 1, 1)
    attributes, parts = {"gd": json.dumps(gd.attrs)}, []
    for name in settings.flows:
        label, make, oscillates = ZOO[name]
        measured = ("parameters", "oscillation") if oscillates else ("parameters",)
        flow = simulated(name, label, make(rate, settings.directions), measured, settings.steps, settings.every)
        part = compare.distance(gd, flow).reset_coords(drop=True).to_dataset(name="distance")
        part["status"] = flow["status"]
        if oscillates:
            part["oscillation"] = flow["oscillation"].sum("direction", skipna=False).sel(step=part["step"])
        else:
            part["oscillation"] = xr.full_like(part["distance"], np.nan)
        parts.append(part.assign_coords(seconds=flow.attrs["wall_time_seconds"]).drop_vars("time", errors="ignore"))
        attributes[name] = json.dumps(flow.attrs)
    return _combine(gd, parts, settings, attributes)


def _combine(gd, parts, settings, attributes):
    """One Dataset of all flows and what is measured of GD."""
    ds = xr.concat(parts, xr.DataArray(list(settings.flows), dims="flow", name="flow"), coords=["seconds"], join="inner")
    ds = ds.transpose("flow", "seed", "step")
    ds["gd_status"] = gd["status"]
    name = "step" if settings.every == 1 else f"step_{settings.every}"
    ratio = gd["sharpness"].drop_vars("time", errors="ignore").rename({name: "step_gd"}) * settings.learning_rate / 2
    ds["edge_ratio"] = ratio
    variances = compare.oscillation_variances(gd, WINDOW, WINDOW).sum("direction", skipna=False)
    ds["measured_oscillation"] = (
        variances.rename(step="step_window").drop_vars("step_window").assign_coords(step_window=variances["step"].values)
    )
    labels = {
        "distance": ("distance from GD", "parameters"),
        "oscillation": ("trace of the covariance", "1"),
        "measured_oscillation": ("trace of the covariance", "1"),
        "edge_ratio": ("η λ / 2 of GD", "1"),
        "step": ("optimizer steps", "steps"),
        "step_gd": ("optimizer steps", "steps"),
        "step_window": ("optimizer steps", "steps"),
        "seconds": ("wall time with compilation", "s"),
    }
    for name, (label, units) in labels.items():
        ds[name].attrs = {"long_name": label, "units": units}
    runs = [json.loads(text) for text in attributes.values()]
    ds.attrs = {name: runs[0][name] for name in ("title", "created", "versions", "device", "precision")}
    ds.attrs["title"] = "The flows of gradient descent at the edge of stability, on digits"
    ds.attrs["wall_time_seconds"] = round(sum(each["wall_time_seconds"] for each in runs), 3)
    ds.attrs["hvp_count"] = sum(each["hvp_count"] for each in runs)
    return flow_zoo.label(ds.assign_attrs(attributes), settings)


def table(dataset: xr.Dataset) -> str:
    """Shows the distance of each flow from GD at fixed steps.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals.
    """
    settings = json.loads(dataset.attrs["settings"])
    shown = settings["shown"]
    ratio = dataset["edge_ratio"]
    above = (ratio > 1).sum("eigenvalue").sel(step_gd=shown)
    top = ratio.isel(eigenvalue=0).sel(step_gd=shown)
    rows = [("step", *(str(step) for step in shown), "failed", "seconds")]
    rows.append(("GD: η λ1 / 2", *(f"{float(top.sel(step_gd=step).mean()):.3f}" for step in shown), "", ""))
    rows.append(("η λ / 2 > 1, of 3", *(f"{float(above.sel(step_gd=step).mean()):.2g}" for step in shown), "", ""))
    failed = stopped(dataset["status"])
    for name in dataset["flow"].values:
        here = dataset["distance"].sel(flow=name)
        cells = [with_interval(here.sel(step=step)) for step in shown]
        lost = failed.sel(flow=name)
        seconds = float(dataset["seconds"].sel(flow=name))
        rows.append((ZOO[name].label, *cells, f"{int(lost.sum())} of {lost.size}", f"{seconds:.0f}"))
    first = ", ".join("never" if np.isnan(step) else str(int(step)) for step in first_steps(dataset).values)
    lines = [
        f"The flows of GD with rate {settings['learning_rate']:g} on {settings['images']} digits, tanh network of hidden layers "
        f"{', '.join(map(str, settings['widths']))}; {dataset.sizes['seed']} seeds.",
        "Distance of a flow from GD without its oscillation at the same step, mean over seeds ± half width of its 95 %",
        f"confidence interval. First measured step with η λ1 / 2 ≥ 1, by seed: {first}. Seconds: all seeds, with compilation.",
        "",
        *aligned(rows),
        *failures(dataset["status"]),
    ]
    return "\n".join(lines) + "\n"


def first_steps(dataset: xr.Dataset) -> xr.DataArray:
    """Finds the first measured step at which GD's η λ1 / 2 reaches 1, for each seed."""
    top = dataset["edge_ratio"].isel(eigenvalue=0)
    return top["step_gd"].where(top >= 1).min("step_gd")


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws GD's top eigenvalues, the distance of each flow from GD, and the oscillation that is predicted and measured.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide: lines are medians over seeds, bands reach from the least to the largest.
    """
    from matplotlib import rc_context

    small = {"legend.fontsize": 6.5, "legend.title_fontsize": 6.5}
    with rc_context({"font.size": 8, "axes.titlesize": 8, "legend.frameon": False, **small}):
        canvas = plots.new_figure((7.0, 5.2))
        panels = canvas.subplot_mosaic([["distance", "distance"], ["edge_ratio", "oscillation"]], height_ratios=(1.3, 1))
        styles = _styles(dataset)
        for name, style in styles.items():
            here = dataset[["distance"]].sel(flow=name)
            plots.draw(panels["distance"], here, "distance", label=ZOO[name].label, linewidth=1.3, **style)
        panels["distance"].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for color, number in zip(plots.shades(3), dataset["eigenvalue"].values, strict=False):
            here = dataset[["edge_ratio"]].sel(eigenvalue=number)
            plots.draw(panels["edge_ratio"], here, "edge_ratio", label=f"λ{number}", color=color, linewidth=1.2)
        panels["edge_ratio"].axhline(1, color="black", linewidth=0.8, linestyle="dotted")
        panels["edge_ratio"].legend(loc="lower right")
        plots.draw(panels["oscillation"], dataset, "measured_oscillation", label="GD", color="black", linewidth=3, alpha=0.5)
        panels["oscillation"].legend(loc="upper left")  # the flows as in the first panel
        for name, style in styles.items():
            if ZOO[name].oscillates and name in ("corrected", "rod", "edge", "stabilized"):
                here = dataset[["oscillation"]].sel(flow=name)
                plots.draw(panels["oscillation"], here, "oscillation", band="none", label=ZOO[name].label, linewidth=1.1, **style)
        for (name, axes), letter in zip(panels.items(), "abc", strict=True):
            axes.set_title(f"({letter})", loc="left")
            axes.set(xlabel="optimizer steps")
            axes.spines[["top", "right"]].set_visible(False)
            if name != "edge_ratio":
                axes.set_yscale("log")
        largest = float(dataset["measured_oscillation"].max())
        if np.isfinite(largest) and largest > 0:
            panels["oscillation"].set_ylim(1e-8 * largest, 10 * largest)
        canvas.supxlabel(f"lines: median over {dataset.sizes['seed']} seeds; bands: least and largest", fontsize=7)
        return canvas


def _styles(dataset):
    colors = {name: plots.COLORS[number % len(plots.COLORS)] for number, name in enumerate(ZOO)}
    lines = {name: plots.STYLES[number // len(plots.COLORS)] for number, name in enumerate(ZOO)}
    return {name: {"color": colors[name], "linestyle": lines[name]} for name in dataset["flow"].values}


flow_zoo = Experiment(
    name="flow-zoo",
    summary="every flow that predicts GD at the edge of stability against GD on a network for digits: distances at fixed steps",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={
        "flows": tuple(ZOO),
        "seeds": 16,
        "steps": 1600,
        "shown": (100, 200, 250, 300, 400, 600, 800, 1200, 1600),
        "directions": 10,
        "images": 1000,
        "widths": (100, 100),
    },
)
