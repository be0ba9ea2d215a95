"""Normalized GD, and GD on the root of the loss, against their flows on a minimizer manifold, as the learning rate shrinks."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxsharp import data, flows, minimizers, models, optimizers, plots, probes, problems
from jaxsharp.curvature import frozen_eigenpairs
from jaxsharp.experiments import order_study, shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.interpolating import MOST_RETRACTION_STEPS
from jaxsharp.experiments.tables import aligned, failures, with_interval
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Rule(NamedTuple):
    """An optimizer of the study.

    Attributes:
        label: in tables and figures.
        optimizer: learning rate -> optimizer.
        flow: learning rate -> flow.
        speed: (learning rate) -> flow time of a step.
        across: (learning rate, λ1) -> how far across the manifold each iterate lies in balance.
        rate: factor on the learning rates of the settings, so that both rules oscillate about as far.
        time: factor on the time of the settings, so that both go about as far.
    """

    label: str
    optimizer: Callable
    flow: Callable
    speed: Callable
    across: Callable
    rate: float
    time: float


RULES = {
    "normalized": Rule(
        "normalized GD",
        optimizers.normalized_gd,
        flows.normalized_gd,
        lambda rate: rate**2 / 4,
        lambda rate, sharpness: rate / 2,
        1.0,
        1.0,
    ),
    "root": Rule(
        "GD on √L",
        optimizers.sqrt_loss_gd,
        flows.sqrt_loss_gd,
        lambda rate: rate**2 / 8,
        lambda rate, sharpness: rate * jnp.sqrt(sharpness / 8),
        0.2,
        0.05,
    ),
}
"""The optimizers by the name that the setting `rules` takes."""

ERRORS = {"distance": "distance", "log_ratio": "difference of log λ1"}


@dataclass(frozen=True)
class Settings:
    """Settings of normalized-gd; each field says what it is."""

    rules: tuple[str, ...] = setting(tuple(RULES), f"which of {', '.join(RULES)}")
    learning_rates: tuple[float, ...] = setting((0.1, 0.05, 0.025), "learning rates η of normalized GD, at least two")
    time: float = setting(0.3, "flow time s = η² t / 4 of every run of normalized GD")
    seeds: int = setting(8, "minimizers drawn, the starts")
    measurements: int = setting(10, "measurements after the start, evenly spaced in flow time")
    images: int = setting(10, "training images")
    width: int = setting(8, "hidden units")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_positive(self, "learning_rates")
        shared.check_counts(self, "seeds", "measurements", "images", "width")
        unknown = [name for name in self.rules if name not in RULES]
        if unknown or not self.rules:
            raise ValueError(f"rules must be some of {', '.join(RULES)}, got {', '.join(self.rules) or 'none'}.")
        if len(set(self.learning_rates)) < 2 or len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"learning_rates must be at least two different numbers, got {self.learning_rates}.")
        if not (np.isfinite(self.time) and self.time > 0):
            raise ValueError(f"time must be above 0, got {self.time}.")
        if any(self.every(name, max(self.learning_rates)) < 1 for name in self.rules):
            raise ValueError("time is too short: at the largest learning rate a measurement would come before the first step.")

    def every(self, name: str, learning_rate: float) -> int:
        """Steps between measurements."""
        rule = RULES[name]
        return round(rule.time * self.time / self.measurements / rule.speed(rule.rate * learning_rate))


@lru_cache(maxsize=4)
def _setting(images, width, double):
    """The problem, its random minimizers, and the starts over them; cached, so that a later run reuses compiled programs."""
    del double  # distinguishes the precisions
    train, _ = data.digits(images, targets="value")
    problem = problems.supervised(models.MLP(widths=(width,)), train)

    def on_manifold(key):
        return minimizers.retract(problem, problem.init(key), max_steps=MOST_RETRACTION_STEPS)

    def over(name):
        def start(key, learning_rate):
            point = on_manifold(key)
            pairs = frozen_eigenpairs(problem.loss, point, 1, tol=1e-6)
            across = RULES[name].across(jnp.asarray(learning_rate, pairs.values.dtype), pairs.values[0])
            return jax.tree.map(lambda leaf, rows: leaf + across * rows[0], point, pairs.vectors)

        return start

    return problem, on_manifold, {name: over(name) for name in RULES}


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs each flow once and its optimizer at each learning rate, from the same minimizers over the same flow time.

    The flow starts at a random minimizer; the optimizer across it by what is its oscillation in balance, and is measured at the
    midpoint of two consecutive iterates.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions rule, learning_rate, seed, time (from 0 to 1, of the whole): `distance` of the optimizer
        from the flow, `sharpness` and `flow_sharpness`, `log_ratio`, `gone`, the way of the flow, `status` and `flow_status`.

    Raises:
        ValueError: for counts that the digits do not cover, or a checkpoint of other settings.
    """
    problem, on_manifold, over = _setting(settings.images, settings.width, bool(jax.config.jax_enable_x64))
    rates = sorted(settings.learning_rates, reverse=True)
    found, runs = [], {}
    for name in settings.rules:
        rule = RULES[name]

        def measured(factory, rate, init, label, name=name, rule=rule):
            every = settings.every(name, rate)
            if progress:
                shared.say(f"{label}: {settings.seeds} trajectories of {settings.measurements * every} steps")
            folder = None if checkpoint is None else Path(checkpoint) / f"{label.replace(' ', '-')}-{rate:g}"
            runs[label, rate] = sweep(
                problem,
                factory,
                {"learning_rate": (rule.rate * rate,)},
                seeds=settings.seeds,
                steps=settings.measurements * every,
                init=init,
                probes=(probes.parameters(midpoint=True), probes.sharpness(midpoint=True, tol=1e-4)),
                every=every,
                checkpoint=folder,
                progress=progress,
            ).isel(learning_rate=0, drop=True)
            return order_study.on_time(runs[label, rate], 1.0, settings.measurements)

        flow = measured(rule.flow, rates[0], on_manifold, f"flow of {rule.label}")
        found.append(_against(flow, [measured(rule.optimizer, rate, over[name], rule.label) for rate in rates], rates))
    ds = xr.concat(found, xr.DataArray(list(settings.rules), dims="rule", name="rule"))
    shared.label(ds, sharpness="sharpness λ1", log_ratio="log λ1 − log λ1 of the flow", time="flow time, of the whole", **_TITLES)
    ds.attrs = shared.provenance(runs, "Normalized GD and GD on √L against their flows on a minimizer manifold")
    return normalized_gd.label(ds, settings)


_TITLES = {"distance": "distance from the flow", "flow_sharpness": "sharpness λ1 of the flow", "gone": "way of the flow"}


def _against(flow, discrete, rates):
    """One Dataset of a rule."""
    parts = [
        xr.Dataset(
            {
                "distance": order_study.distance(run["parameters"], flow["parameters"]),
                "sharpness": run["sharpness"],
                "log_ratio": np.log(run["sharpness"]) - np.log(flow["sharpness"]),
                "status": run["status"],
            }
        ).drop_attrs()
        for run in discrete
    ]
    ds = xr.concat(parts, xr.DataArray(rates, dims="learning_rate", name="learning_rate"))
    ds["flow_sharpness"], ds["flow_status"] = flow["sharpness"], flow["status"]
    ds["gone"] = order_study.distance(flow["parameters"], flow["parameters"].isel(time=0, drop=True))
    return ds


def table(dataset: xr.Dataset) -> str:
    """Lists the errors at the end for each rule and learning rate, and the orders fitted.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals.
    """
    settings = json.loads(dataset.attrs["settings"])
    header = ("rule", "η", "steps", "distance, end", "flow has gone", "λ1, end / start", "log λ1 − flow's, end", "failed")
    rows, fits = [], []
    for name in dataset["rule"].values:
        rule, here = RULES[name], dataset.sel(rule=name)
        kept = ~stopped(here["flow_status"])
        end = here.isel(time=-1).where(kept)
        for rate in dataset["learning_rate"].values:
            at = end.sel(learning_rate=rate)
            failed = stopped(here["status"].sel(learning_rate=rate))
            steps = round(rule.time * settings["time"] / rule.speed(rule.rate * rate))
            cells = (rule.label, f"{rule.rate * rate:g}", str(steps), with_interval(at["distance"]), with_interval(at["gone"]))
            fell = at["sharpness"] / here["sharpness"].sel(learning_rate=rate).isel(time=0)
            rows.append((*cells, with_interval(fell), with_interval(at["log_ratio"]), f"{int(failed.sum())} of {failed.size}"))
        fits += [f"{rule.label}. {line}" for line in order_study.fitted(here, "learning_rate", "η", ERRORS)]
        fits += [f"{rule.label}. The flow stopped in {int((~kept).sum())} of {kept.size} seeds; these are left out."]
    lines = [
        f"{dataset.attrs['title']}.",
        f"{dataset.sizes['seed']} starts of a tanh network, {settings['width']} hidden units, {settings['images']} digits.",
        "Mean over seeds ± half width of the 95 % confidence interval. Distance: of the optimizer, averaged over two iterates,",
        "from its flow. Orders: of the root mean square over time, by seed.",
        "",
        *aligned([header, *rows]),
        "",
        *fits,
        *failures(dataset["flow_status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws sharpness and distance against flow time, and the errors against η with the order fitted, a row for each rule.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide.
    """
    with shared.paper():
        canvas = plots.new_figure((7.0, 0.2 + 2.3 * dataset.sizes["rule"]))
        rows = canvas.subplots(dataset.sizes["rule"], 3, squeeze=False)
        colors = plots.shades(dataset.sizes["learning_rate"])
        for name, (sharpness, distance, order) in zip(dataset["rule"].values, rows, strict=True):
            rule, here = RULES[name], dataset.sel(rule=name)
            here = here.isel(seed=np.flatnonzero(~stopped(here["flow_status"]).values))
            steps = here.rename(time="step")
            start = steps["flow_sharpness"].isel(step=0)
            for rate, color in zip(dataset["learning_rate"].values, colors, strict=True):
                words, at = f"{rule.rate * rate:g}", steps.sel(learning_rate=rate).isel(step=slice(1, None))
                relative = (at[["sharpness"]] / start).assign_coords(step=at["step"])
                plots.draw(sharpness, relative, "sharpness", band="none", label=words, color=color)
                plots.draw(distance, at[["distance"]], "distance", label=words, color=color, linewidth=1.4)
            flow = (steps[["flow_sharpness"]] / start).assign_coords(step=steps["step"])
            plots.draw(sharpness, flow, "flow_sharpness", band="none", label="flow", color="black", linestyle=(0, (2, 3)))
            sharpness.set(ylabel="λ1 / λ1 of the start")
            sharpness.legend(title="η")
            distance.set(yscale="log", ylabel="distance from the flow")
            scaled = here.assign_coords(learning_rate=rule.rate * here["learning_rate"])
            order_study.draw_orders(order, scaled, "learning_rate", "η", {"distance": "distance", "log_ratio": "|Δ log λ1|"})
            for axes, title in ((sharpness, rule.label), (distance, ""), (order, "")):
                shared.plain(axes, title)
            for axes in (sharpness, distance):
                axes.set_xlabel("flow time, of the whole")
        seeds = dataset.sizes["seed"]
        canvas.supxlabel(
            f"{shared.bands(seeds)}, without those whose flow stopped; left: medians; right: a thin line for each seed",
            fontsize=7,
        )
        return canvas


normalized_gd = Experiment(
    name="normalized-gd",
    summary="normalized GD and GD on √L against their flows on a minimizer manifold: distance and sharpness as η shrinks",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={"learning_rates": (0.1, 0.05, 0.025, 0.0125), "seeds": 16},
)
