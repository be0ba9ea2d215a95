"""Every flow that predicts gradient descent at the edge of stability, against gradient descent on one real network."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import xarray as xr

from jaxsharp import data, flows, models, optimizers, plots, probes, problems
from jaxsharp.experiments import edge_study, shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures, with_interval
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

FINE = 1e-5
"""That of self-stabilization, whose oscillation grows from their errors where these exceed what it has decayed to."""

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
    "stabilized": Entry("self-stabilization", lambda rate, k: flows.self_stabilization(rate, eigen_tolerance=FINE)),
    "constrained": Entry("constrained", lambda rate, k: flows.constrained(rate, eigen_tolerance=TOLERANCE)),
}
"""The flows by the name that the setting `flows` takes."""


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
        edge_study.check(self)


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
        The Dataset of `edge_study.compared`; the provenance of all runs is in the attribute `runs`, as JSON.

    Raises:
        ValueError: for a checkpoint of other settings.
    """
    problem, start = _setting(settings.images, tuple(settings.widths), settings.scale, bool(jax.config.jax_enable_x64))
    rate = settings.learning_rate
    folder = None if checkpoint is None else Path(checkpoint)
    study = edge_study.Study(problem, start, settings.seeds, settings.steps, settings.every, progress, folder)
    predictors = {}
    for name in settings.flows:
        label, make, oscillates = ZOO[name]
        predictors[name] = edge_study.Predictor(label, make(rate, settings.directions), oscillates)
    edge_ratio = probes.sharpness(k=3, every=settings.every), "sharpness", rate / 2
    ds, runs = edge_study.compared(study, "GD", optimizers.gd(rate), edge_ratio, predictors)
    title = "The flows of gradient descent at the edge of stability, on digits"
    ds.attrs = edge_study.provenance(list(runs.values()), title)
    return flow_zoo.label(ds, settings)


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
    above = (ratio > 1).sum("eigenvalue").sel(step_run=shown)
    top = ratio.isel(eigenvalue=0).sel(step_run=shown)
    rows = [("step", *(str(step) for step in shown), "failed", "seconds")]
    rows.append(("GD: η λ1 / 2", *(f"{float(top.sel(step_run=step).mean()):.3f}" for step in shown), "", ""))
    rows.append(("η λ / 2 > 1, of 3", *(f"{float(above.sel(step_run=step).mean()):.2g}" for step in shown), "", ""))
    failed = stopped(dataset["status"])
    for name in dataset["flow"].values:
        here = dataset["distance"].sel(flow=name)
        cells = [with_interval(here.sel(step=step)) for step in shown]
        lost = failed.sel(flow=name)
        seconds = float(dataset["seconds"].sel(flow=name))
        rows.append((ZOO[name].label, *cells, f"{int(lost.sum())} of {lost.size}", f"{seconds:.0f}"))
    first = edge_study.in_words(edge_study.first_steps(dataset))
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


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws GD's top eigenvalues, the distance of each flow from GD, and the oscillation that is predicted and measured.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide: lines are medians over seeds, bands reach from the least to the largest.
    """
    with shared.paper(7.5):
        canvas = plots.new_figure((7.0, 5.2))
        panels = canvas.subplot_mosaic([["distance", "distance"], ["edge_ratio", "oscillation"]], height_ratios=(1.3, 1))
        styles = _styles(dataset)
        for name, style in styles.items():
            here = dataset[["distance"]].sel(flow=name)
            plots.draw(panels["distance"], here, "distance", label=ZOO[name].label, linewidth=1.3, **style)
        panels["distance"].set_yscale("log")
        panels["distance"].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        edge_study.draw_edge_ratio(panels["edge_ratio"], dataset)
        panels["edge_ratio"].legend(loc="lower right")
        shown = [name for name in styles if name in ("corrected", "rod", "edge", "stabilized")]
        edge_study.draw_oscillation(panels["oscillation"], dataset, "GD", styles, {name: ZOO[name].label for name in shown})
        panels["oscillation"].legend(handles=panels["oscillation"].lines[:1], loc="upper left")  # the flows as in (a)
        for axes, letter in zip(panels.values(), "abc", strict=True):
            shared.plain(axes, f"({letter})")
            axes.set_xlabel("optimizer steps")
        canvas.supxlabel(shared.bands(dataset.sizes["seed"]), fontsize=7)
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
