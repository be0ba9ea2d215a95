"""Full-batch GD with weight decay against GD without, for several normalizations of one network: the run, table and figure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from jaxsharp import flows, models, optimizers, plots, probes
from jaxsharp.experiments import shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures, interval, with_interval
from jaxsharp.problems import Problem
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAST = 5
"""What is called the end of a run is the mean over its last measurements, so many, since they oscillate."""

SHOWN = {"lambda1": "λ1", "stability_ratio": "η̃ λ1 / 2", "test_accuracy": "test accuracy"}
"""What the figure shows of each network."""

FLOW = {"lambda1": "flow_lambda1", "test_accuracy": "flow_accuracy"}
"""The same of gradient flow, where it is known."""

FEW = 4
"""Up to so many pairs of a normalization and a learning rate the figure gives each a row; beyond, each normalization a column."""


@dataclass(frozen=True)
class Settings:
    """Settings that every such study has; its own class gives other defaults and adds fields."""

    norms: tuple[str, ...] = setting(("batch",), "normalizations; `none` is a control")
    learning_rates: tuple[float, ...] = setting((0.5,), "learning rates η̂")
    weight_decays: tuple[float, ...] = setting((1e-3,), "weight decays λ̂ above 0; 0 always runs as a control")
    seeds: int = setting(4, "initial parameters drawn")
    steps: int = setting(1_500, "optimizer steps")
    every: int = setting(100, "optimizer steps between measurements")
    images: int = setting(50, "training images")
    test_images: int = setting(500, "test images")
    data_seed: int = setting(0, "seed of the choice of images")
    flow: bool = setting(False, "whether to run gradient flow as a control as well, over the same flow time η̂ t")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_rates(self)
        shared.check_counts(self, "seeds", "steps", "every", "images", "test_images")
        unknown = [norm for norm in self.norms if norm not in models.NORMALIZATIONS]
        if unknown or not self.norms or len(set(self.norms)) < len(self.norms):
            raise ValueError(f"norms must be distinct names out of {', '.join(models.NORMALIZATIONS)}, got {self.norms}.")


def run(
    experiment: Experiment,
    settings: Settings,
    problem_of: Callable[[str], Problem],
    title: str,
    *,
    progress: bool,
    checkpoint: Any,
) -> xr.Dataset:
    """Runs full-batch GD for each normalization, learning rate, weight decay (with 0) and seed.

    λ1 and the metrics are measured at the midpoint of two consecutive iterates.

    Args:
        experiment: whose name the result gets.
        settings: what to run.
        problem_of: the problem of a normalization, scale-invariant but for `none`.
        title: of the result.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions norm, learning_rate, weight_decay (0 first), seed, step: `lambda1` (spherical sharpness, or
        the sharpness at w without normalization), `stability_ratio` η̃ λ1 / 2, `loss`, `test_accuracy` and other metrics,
        `status`; with `flow` also `flow_lambda1`, `flow_accuracy` and `flow_status` of gradient flow, without the dimension
        weight_decay.

    Raises:
        ValueError: for a checkpoint of other settings.
    """
    decays, found, parts = (0.0, *sorted(settings.weight_decays)), [], {}
    for norm in settings.norms:
        measured = [probes.spherical_sharpness(midpoint=True) if norm != "none" else probes.sharpness(midpoint=True)]
        measured += ["loss", probes.metrics(midpoint=True), "effective_learning_rate", "parameter_norm"]
        runs = {"gd": (optimizers.gd, {"learning_rate": settings.learning_rates, "weight_decay": decays})}
        if settings.flow:
            runs["flow"] = (flows.gradient, {"learning_rate": settings.learning_rates})
        for name, (factory, over) in runs.items():
            if progress:
                shared.say(f"{norm}, {name}: {settings.seeds * int(np.prod([len(v) for v in over.values()]))} trajectories")
            parts[norm, name] = sweep(
                problem_of(norm),
                factory,
                over,
                seeds=settings.seeds,
                steps=settings.steps,
                probes=measured if name == "gd" else [probe for probe in measured if probe != "effective_learning_rate"],
                every=settings.every,
                checkpoint=None if checkpoint is None else Path(checkpoint) / f"{norm}-{name}",
                progress=progress,
            )
        ds = _measures(parts[norm, "gd"], norm)
        if settings.flow:
            flow = _measures(parts[norm, "flow"].drop_vars("time"), norm)
            names = {"lambda1": "flow_lambda1", "test_accuracy": "flow_accuracy", "status": "flow_status"}
            ds = ds.merge(flow[list(names)].rename(names))
        found.append(ds.drop_attrs(deep=False))
    ds = xr.concat(found, dim=xr.DataArray(list(settings.norms), dims="norm", name="norm"))
    titles = {"lambda1": "sharpness λ1 (spherical where normalized)", "test_accuracy": "test accuracy", "loss": "training loss"}
    shared.label(ds, **titles)
    ds.attrs = shared.provenance(parts, title)
    return experiment.label(ds, settings)


def _measures(ds, norm):
    """The variables that all networks share: λ1 on the sphere where the network is scale-invariant, at w where it is not."""
    source = "sharpness" if norm == "none" else "spherical_sharpness"
    kept = ds[["loss", "train_accuracy", "test_accuracy", "test_loss", "parameter_norm", "status"]].assign(lambda1=ds[source])
    if "effective_learning_rate" in ds:
        rate = ds["learning_rate"] if norm == "none" else ds["effective_learning_rate"]
        kept["stability_ratio"] = rate * ds[source] / 2
    return kept


def _end(values):
    return values.isel(step=slice(-LAST, None)).mean("step")


def _cells(difference, places):
    """A mean difference with its interval, the same in its standard deviations over seeds, and what the interval says."""
    mean, half, count = interval(difference)
    spread = float(difference.std(ddof=1)) if count > 1 else float("nan")
    size = f"{mean / spread:.1f}" if spread > 0 else "–"
    verdict = "?" if not abs(mean) > half else "lower" if mean < 0 else "higher"
    return with_interval(difference, places=places), size, verdict


def table(dataset: xr.Dataset) -> str:
    """Compares GD with weight decay with GD without, a row for each normalization, learning rate and weight decay.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals, differences paired by seed, and what the intervals say.
    """
    header = ("norm", "η̂", "λ̂", "η̃λ1/2", "λ1", "log λ1 − control", "d", "λ1 is", "accuracy [%]", "− control", "d", "accuracy is")
    header = (*header, *(("− flow",) if "flow_accuracy" in dataset else ()), "failed")
    rows = []
    for norm in dataset["norm"].values:
        for rate in dataset["learning_rate"].values:
            for decay in dataset["weight_decay"].values:
                here = dataset.sel(norm=norm, learning_rate=rate, weight_decay=decay)
                control = dataset.sel(norm=norm, learning_rate=rate, weight_decay=0.0)
                sharpness, accuracy = _end(here["lambda1"]), 100 * _end(here["test_accuracy"])
                logs = np.log(sharpness) - np.log(_end(control["lambda1"]))
                gain = accuracy - 100 * _end(control["test_accuracy"])
                failed, differs = stopped(here["status"]), decay > 0
                cells = [str(norm), f"{rate:g}", f"{decay:g}", with_interval(_end(here["stability_ratio"]), places=3)]
                cells.append(with_interval(sharpness, places=1))
                cells += _cells(logs, 3) if differs else ("", "", "")
                cells.append(with_interval(accuracy, places=1))
                cells += _cells(gain, 1) if differs else ("", "", "")
                if "flow_accuracy" in dataset:
                    cells.append(with_interval(accuracy - 100 * _end(here["flow_accuracy"]), places=1))
                rows.append((*cells, f"{int(failed.sum())} of {failed.size}"))
    title = dataset.attrs["title"]
    lines = [
        f"{title}; seeds: {dataset.sizes['seed']}, {int(dataset['step'][-1])} steps.",
        f"Means over the last {LAST} measurements and over seeds ± half width of the 95 % confidence interval. Control: the same",
        "without weight decay, paired by seed. d: mean difference over its standard deviation across seeds. Lower, higher: than",
        "the control, ? where the interval contains 0. λ1: at w/‖w‖ of normalized networks, which are scale-invariant, and at w",
        "without normalization.",
        "",
        *aligned([header, *rows]),
        *failures(dataset["status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws λ1, stability ratio and test accuracy against steps: for each normalization, a line for each weight decay.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide: lines are medians over seeds, bands reach from the least to the largest. Where there
        are many normalizations, at the largest learning rate only. Gradient flow, where it ran, is dashed.
    """
    from matplotlib.ticker import MaxNLocator

    with shared.paper(7):
        norms, rates = dataset["norm"].values, dataset["learning_rate"].values
        few = norms.size * rates.size <= FEW
        rates = rates if few else [rates.max()]
        shown = [(norm, rate) for norm in norms for rate in rates]
        canvas = plots.new_figure((7.0, 0.6 + 1.7 * len(shown)) if few else (7.0, 4.2))
        shape, share = ((len(shown), 3), "col") if few else ((3, len(shown)), "row")
        panels = canvas.subplots(*shape, squeeze=False, sharex=True, sharey=share)
        panels = panels.T if few else panels
        colors = shared.colors(dataset.sizes["weight_decay"])
        unit, words = (1000, "thousand steps") if dataset["step"][-1] >= 2000 else (1, "steps")
        dataset = dataset.assign_coords(step=dataset["step"] / unit)
        for column, (norm, rate) in zip(panels.T, shown, strict=True):
            here = dataset.sel(norm=norm, learning_rate=rate)
            for axes, name in zip(column, SHOWN, strict=True):
                for decay, color in zip(here["weight_decay"].values, colors, strict=True):
                    plots.draw(
                        axes, _settled(here, name).sel(weight_decay=decay), name, label=f"{decay:g}", color=color, linewidth=1
                    )
                flow = FLOW.get(name)
                if flow in here:
                    plots.draw(
                        axes, _settled(here, flow), flow, label="gradient flow", color="black", linewidth=1, linestyle="dashed"
                    )
                axes.set(xlabel="", ylabel=SHOWN[name] if few or norm == norms[0] else "")
                shared.plain(axes)
            title = {"weight_standardization": "weight std.", "none": "none (λ1 at w)"}.get(str(norm), str(norm))
            column[0].set_title(f"{title}, η̂ = {rate:g}" if len(rates) > 1 else title)
            column[0].xaxis.set_major_locator(MaxNLocator(4 if few else 2, steps=[1, 2, 5, 10]))
        _scales(panels, dataset.sel(learning_rate=rates))
        panels[1, -1].legend(
            *panels[0, -1].get_legend_handles_labels(), title="weight decay λ̂", loc="lower right", borderaxespad=0
        )
        seeds, at = dataset.sizes["seed"], "" if len(rates) > 1 else f" at learning rate {rates[0]:g}"
        canvas.supxlabel(f"{words}{at}; {shared.bands(seeds)}", fontsize=7)
        return canvas


def _settled(dataset, name):
    """A variable without its first value where that says nothing: an untrained network's accuracy."""
    return dataset[[name]].isel(step=slice(1, None)) if name.endswith("accuracy") else dataset[[name]]


def _scales(panels, dataset):
    """Vertical axes that show the end of the runs rather than their first steps."""
    ratio = dataset["stability_ratio"].isel(step=slice(1, None))
    panels[0, 0].set_yscale("log")
    plots.plain_log_ticks(panels[0, 0].yaxis)
    highest = float(ratio.quantile(0.98)) if np.isfinite(ratio).any() else 1.0
    panels[1, 0].set_ylim(0, max(1.3, 1.1 * min(highest, 2.0)))
    for axes in panels[1]:
        axes.axhline(1, color="black", linewidth=0.6, linestyle="dotted")
    accuracies = [dataset[name].isel(step=slice(1, None)) for name in ("test_accuracy", FLOW["test_accuracy"]) if name in dataset]
    if all(np.isfinite(accuracy).any() for accuracy in accuracies):
        low, high = (float(function([function(accuracy) for accuracy in accuracies])) for function in (np.nanmin, np.nanmax))
        room = max(0.1 * (high - low), 0.01)
        panels[2, 0].set_ylim(low - room, high + room)
