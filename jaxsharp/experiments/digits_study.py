"""Does weight decay with a normalization reduce sharpness and help on digits? A study of one or of every normalization."""

import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import xarray as xr

from jaxsharp import data, flows, models, optimizers, plots, probes, problems
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures, with_interval
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAST = 5
"""What is called the end of a run is the mean over its last measurements, so many, since they oscillate."""


@dataclass(frozen=True)
class ZooSettings:
    """Settings of norm-zoo; each field says what it is."""

    norms: tuple[str, ...] = setting(("batch", "layer", "rms", "weight", "none"), "normalizations; `none` is a control")
    learning_rates: tuple[float, ...] = setting((0.5,), "learning rates η̂")
    weight_decays: tuple[float, ...] = setting((1e-3,), "weight decays λ̂ above 0; 0 always runs as a control")
    seeds: int = setting(8, "initial parameters drawn")
    steps: int = setting(2_000, "optimizer steps")
    every: int = setting(50, "optimizer steps between measurements")
    images: int = setting(100, "training images")
    test_images: int = setting(500, "test images")
    data_seed: int = setting(0, "seed of the choice of images")
    widths: tuple[int, ...] = setting((6,), "channels of the convolutions")
    flow: bool = setting(False, "whether to run gradient flow as a control as well, over the same flow time η̂ t")

    def __post_init__(self):
        """Refuses what makes no sense."""
        _check(self)


@dataclass(frozen=True)
class BatchSettings:
    """Settings of bn-digits; each field says what it is."""

    norms: tuple[str, ...] = setting(("batch", "none"), "normalizations; `none` is a control")
    learning_rates: tuple[float, ...] = setting((0.5, 1.0), "learning rates η̂")
    weight_decays: tuple[float, ...] = setting((5e-4, 1e-3), "weight decays λ̂ above 0; 0 always runs as a control")
    seeds: int = setting(8, "initial parameters drawn")
    steps: int = setting(2_000, "optimizer steps")
    every: int = setting(50, "optimizer steps between measurements")
    images: int = setting(100, "training images")
    test_images: int = setting(500, "test images")
    data_seed: int = setting(0, "seed of the choice of images")
    widths: tuple[int, ...] = setting((6,), "channels of the convolutions")
    flow: bool = setting(True, "whether to run gradient flow as a control as well, over the same flow time η̂ t")

    def __post_init__(self):
        """Refuses what makes no sense."""
        _check(self)


def _check(settings):
    for name in ("learning_rates", "weight_decays"):
        rates = getattr(settings, name)
        if not rates or not all(np.isfinite(rate) and rate > 0 for rate in rates):
            raise ValueError(f"{name} must be numbers above 0, at least one, got {rates}.")
    for name in ("seeds", "steps", "every", "images", "test_images"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}.")
    if not settings.widths or min(settings.widths) < 1:
        raise ValueError(f"widths must be whole numbers above 0, at least one, got {settings.widths}.")
    unknown = [norm for norm in settings.norms if norm not in models.NORMALIZATIONS]
    if unknown or not settings.norms or len(set(settings.norms)) < len(settings.norms):
        raise ValueError(f"norms must be distinct names out of {', '.join(models.NORMALIZATIONS)}, got {settings.norms}.")
    if max(settings.learning_rates) * max(settings.weight_decays) >= 1:
        raise ValueError("learning_rates times weight_decays reaches 1 or more, where weight decay alone reverses the sign.")


@lru_cache(maxsize=16)
def _problem(norm, images, test_images, data_seed, widths, double):
    """The problem of a normalization; cached, since equal functions let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    train, test = data.digits(images, test_images, seed=data_seed, flatten=False)
    model = models.CNN(widths=tuple(widths), norm=norm, scale_invariant=norm != "none")
    return problems.supervised(model, train, test, loss="mse")


def _run(experiment: Experiment, settings: Any, progress, checkpoint) -> xr.Dataset:
    decays, found, parts = (0.0, *sorted(settings.weight_decays)), [], {}
    for norm in settings.norms:
        sizes = (settings.images, settings.test_images, settings.data_seed, tuple(settings.widths))
        problem = _problem(norm, *sizes, bool(jax.config.jax_enable_x64))
        measured = [probes.spherical_sharpness(midpoint=True) if norm != "none" else probes.sharpness(midpoint=True)]
        measured += ["loss", probes.metrics(midpoint=True), "effective_learning_rate", "parameter_norm"]
        runs = {"gd": (optimizers.gd, {"learning_rate": settings.learning_rates, "weight_decay": decays})}
        if settings.flow:
            runs["flow"] = (flows.gradient, {"learning_rate": settings.learning_rates})
        for name, (factory, over) in runs.items():
            if progress:
                words = f"{norm}, {name}: {settings.seeds * int(np.prod([len(v) for v in over.values()]))} trajectories"
                print(words, file=sys.stderr, flush=True)
            parts[norm, name] = sweep(
                problem,
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
    labels = {
        "lambda1": "sharpness λ1 (spherical where normalized)",
        "stability_ratio": "stability ratio η̃ λ1 / 2",
        "test_accuracy": "test accuracy",
        "loss": "training loss",
    }
    for name, label in labels.items():
        ds[name].attrs.update(long_name=label, units="1")
    first = next(iter(parts.values())).attrs
    ds.attrs = {name: first[name] for name in ("created", "versions", "device", "precision")}
    ds.attrs["title"] = f"{experiment.name}: full-batch GD with and without weight decay on digits"
    ds.attrs["wall_time_seconds"] = round(sum(part.attrs["wall_time_seconds"] for part in parts.values()), 3)
    ds.attrs["hvp_count"] = sum(part.attrs["hvp_count"] for part in parts.values())
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


def table(dataset: xr.Dataset) -> str:
    """Compares GD with weight decay with GD without, a row for each normalization, learning rate and weight decay.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals, differences paired by seed.
    """
    header = ("norm", "learning rate", "weight decay", "stability ratio", "λ1 end", "log λ1 − log control")
    header = (*header, "test accuracy [%]", "− control [%]", *(("− flow [%]",) if "flow_accuracy" in dataset else ()), "failed")
    rows = []
    for norm in dataset["norm"].values:
        for rate in dataset["learning_rate"].values:
            for decay in dataset["weight_decay"].values:
                here = dataset.sel(norm=norm, learning_rate=rate, weight_decay=decay)
                control = dataset.sel(norm=norm, learning_rate=rate, weight_decay=0.0)
                sharpness, accuracy = _end(here["lambda1"]), 100 * _end(here["test_accuracy"])
                failed = stopped(here["status"])
                differs = decay > 0
                cells = [
                    str(norm),
                    f"{rate:g}",
                    f"{decay:g}",
                    with_interval(_end(here["stability_ratio"])),
                    with_interval(sharpness),
                    with_interval(np.log(sharpness) - np.log(_end(control["lambda1"]))) if differs else "",
                    with_interval(accuracy),
                    with_interval(accuracy - 100 * _end(control["test_accuracy"])) if differs else "",
                ]
                if "flow_accuracy" in dataset:
                    cells.append(with_interval(accuracy - 100 * _end(here["flow_accuracy"])))
                rows.append((*cells, f"{int(failed.sum())} of {failed.size}"))
    lines = [
        f"Full-batch GD on digits, {dataset.sizes['seed']} seeds, {int(dataset['step'][-1])} steps; the end is the mean of",
        f"the last {LAST} measurements.",
        "Mean over seeds ± half width of the 95 % confidence interval; control: the same without weight decay, paired by seed.",
        "λ1: at w/‖w‖ of normalized networks, which are scale-invariant, and at w of the network without normalization.",
        "",
        *aligned([header, *rows]),
        *failures(dataset["status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws λ1, stability ratio and test accuracy against steps: a row for each normalization, a line for each weight decay.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide, at the largest learning rate: lines are medians over seeds, bands reach from the
        least to the largest.
    """
    from matplotlib import rc_context

    with rc_context({"font.size": 7, "axes.titlesize": 7, "legend.frameon": False, "legend.fontsize": 6}):
        count = dataset.sizes["norm"]
        canvas = plots.new_figure((7.0, 1.6 * count + 0.4))
        panels = canvas.subplots(count, 3, squeeze=False, sharex=True)
        rate, colors = float(dataset["learning_rate"].max()), plots.shades(dataset.sizes["weight_decay"])
        for row, norm in zip(panels, dataset["norm"].values, strict=True):
            for axes, name in zip(row, ("lambda1", "stability_ratio", "test_accuracy"), strict=True):
                for decay, color in zip(dataset["weight_decay"].values, colors, strict=True):
                    here = dataset[[name]].sel(norm=norm, learning_rate=rate, weight_decay=decay)
                    plots.draw(axes, here, name, label=f"{decay:g}", color=color, linewidth=1)
                axes.set(xlabel="steps" if row is panels[-1] else "", ylabel={"lambda1": "λ1"}.get(name, name.replace("_", " ")))
                axes.spines[["top", "right"]].set_visible(False)
            row[0].set_title(f"norm: {norm}", loc="left")
        panels[0, 1].legend(title="weight decay λ̂")
        canvas.supxlabel(f"learning rate {rate:g}; lines: median over {dataset.sizes['seed']} seeds; bands: least and largest")
        return canvas


def run_zoo(settings: ZooSettings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs full-batch GD on a small convolutional network for each normalization, learning rate, weight decay (with 0) and seed.

    Networks with a normalization are in their fully scale-invariant form. λ1 and the metrics are measured at the midpoint of two
    consecutive iterates.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions norm, learning_rate, weight_decay (0 first), seed, step: `lambda1` (spherical sharpness, or
        the sharpness at w without normalization), `stability_ratio` η̃ λ1 / 2, `loss`, `test_accuracy` and other metrics,
        `status`; with `flow` also `flow_lambda1`, `flow_accuracy` and `flow_status` of gradient flow, without the dimension
        weight_decay.

    Raises:
        ValueError: for counts that the digits do not cover, or a checkpoint of other settings.
    """
    return _run(norm_zoo, settings, progress, checkpoint)


def run_batch(settings: BatchSettings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs the same study for batch normalization over more learning rates and weight decays; see `run_zoo`."""
    return _run(bn_digits, settings, progress, checkpoint)


_FULL = {"seeds": 16, "steps": 20_000, "every": 200, "images": 200, "widths": (8, 8)}

norm_zoo = Experiment(
    name="norm-zoo",
    summary="GD with and without weight decay on digits for each normalization: sharpness, edge of stability, test accuracy",
    settings=ZooSettings,
    run=run_zoo,
    table=table,
    figure=figure,
    full={**_FULL, "norms": (*models.NORMALIZATIONS[1:], "none"), "learning_rates": (0.3, 1.0), "weight_decays": (3e-4, 1e-3)},
    precision="float32",
)

bn_digits = Experiment(
    name="bn-digits",
    summary="GD with weight decay with batch normalization on digits; controls: no decay, no normalization, gradient flow",
    settings=BatchSettings,
    run=run_batch,
    table=table,
    figure=figure,
    full={**_FULL, "learning_rates": (0.1, 0.3, 1.0), "weight_decays": (1e-4, 3e-4, 1e-3)},
    precision="float32",
)
