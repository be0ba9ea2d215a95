"""Batch-normalized regression on digits: GD with weight decay, its sharpness-reduction flow, and the exact solution."""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import xarray as xr

from jaxsharp import data, flows, minimizers, optimizers, plots, probes, problems
from jaxsharp.experiments import shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {"gd": "GD+WD", "flow": "flow"}
"""The dynamics, as tables and figures call them."""


SHOWN = 6.0
"""The figure shows angle and sharpness up to this τ, from where on nothing moves."""


@dataclass(frozen=True)
class Settings:
    """Settings of bn-regression; each field says what it is."""

    learning_rates: tuple[float, ...] = setting((0.05, 0.2), "learning rates η̂ of GD+WD")
    weight_decays: tuple[float, ...] = setting((2.5e-4, 5e-4), "weight decays λ̂ of GD+WD")
    seeds: int = setting(8, "starts drawn for each learning rate and weight decay")
    steps: int = setting(40_000, "optimizer steps")
    every: int = setting(400, "optimizer steps between measurements")
    images: int = setting(30, "training images, fewer than their varying pixels (at most 64)")
    data_seed: int = setting(0, "seed of the choice of images")
    least_angle: float = setting(1.0, "smallest angle α(0) of a start, in radians")
    largest_angle: float = setting(1.35, "largest angle α(0) of a start, in radians")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_rates(self)
        shared.check_counts(self, "seeds", "steps", "every")
        if not 0 < self.least_angle <= self.largest_angle < np.pi / 2:
            raise ValueError(
                f"least_angle and largest_angle must satisfy 0 < least_angle <= largest_angle < pi/2, got {self.least_angle} "
                f"and {self.largest_angle}."
            )


@lru_cache(maxsize=4)
def _setting(images, data_seed, least_angle, largest_angle, double):
    """The problem and the two starts of a seed; cached, since equal functions let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    try:
        train, _ = data.digits(images, seed=data_seed, targets="value")
        problem = problems.bn_linear_regression(*train)
    except ValueError as error:
        raise ValueError(f"images={images}: {error}") from None

    def on_manifold(key):
        direction, height = jax.random.split(key)
        angle = jax.random.uniform(height, minval=least_angle, maxval=largest_angle)
        return problems.interpolant(problem, direction, angle=angle)

    def at_the_edge(key, learning_rate, weight_decay):
        return minimizers.edge_of_stability_start(problem, on_manifold(key), learning_rate, weight_decay)

    return problem, on_manifold, at_the_edge


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs GD+WD and the flow over the same grid, from the same points of the minimizer manifold.

    A seed draws an interpolant φ of unit norm at an angle α(0) from the minimum-norm one. The flow starts at φ; GD+WD starts at
    its equilibrium at the edge of stability over φ, w = ‖w‖ Π(φ + x v1). The exact curve of both starts at the angle of φ. GD+WD
    is measured at the midpoint of two consecutive iterates (at w itself in step 0, which has no predecessor), except for its
    loss and its effective learning rate.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions dynamics (`gd`, `flow`), learning_rate, weight_decay, seed, step and the coordinate
        time τ = η̂ λ̂ t. Of both dynamics: `angle`, `angle_error` (angle − exact_angle), `spherical_sharpness`,
        `effective_learning_rate`, `stability_ratio` η̃ λ1 / 2, `loss`, `status` and costs; of neither: `exact_angle` and
        `exact_spherical_sharpness`. The provenance of the two runs is in the attributes `gd` and `flow`, as JSON.

    Raises:
        ValueError: for data that no interpolant fits, or a checkpoint of other settings.
    """
    starts = (settings.images, settings.data_seed, settings.least_angle, settings.largest_angle)
    problem, on_manifold, at_the_edge = _setting(*starts, bool(jax.config.jax_enable_x64))
    over = {"learning_rate": settings.learning_rates, "weight_decay": settings.weight_decays}
    measured = ("loss", probes.metrics(midpoint=True), probes.spherical_sharpness(midpoint=True), "effective_learning_rate")
    rules = {"gd": (optimizers.gd, at_the_edge), "flow": (flows.sharpness_reduction, on_manifold)}
    found = {}
    for name, (factory, init) in rules.items():
        if progress:
            count = len(settings.learning_rates) * len(settings.weight_decays) * settings.seeds
            shared.say(f"{LABELS[name]}: {count} trajectories of {settings.steps} steps, after up to a minute of compilation")
        found[name] = sweep(
            problem,
            factory,
            over,
            seeds=settings.seeds,
            steps=settings.steps,
            init=init,
            probes=measured,
            every=settings.every,
            checkpoint=None if checkpoint is None else Path(checkpoint) / name,
            progress=progress,
        )
    return _combine(problem, found, settings)


def _combine(problem, found, settings):
    """One Dataset of both runs and the exact solution."""
    flow_time = found["flow"]["time"]
    parts = [ds.drop_vars("time", errors="ignore").drop_attrs(deep=False) for ds in found.values()]
    names = xr.DataArray(list(found), dims="dynamics", attrs={"long_name": "dynamics"})
    ds = xr.concat(parts, dim="dynamics").assign_coords(dynamics=names)
    ds = ds.assign_coords(time=flow_time.isel(seed=0, drop=True))

    start = found["flow"]["angle"].isel(step=0, drop=True)  # the flow starts at φ
    exact = xr.apply_ufunc(lambda start, time: np.asarray(problems.exact_angle(start, time)), start, ds["time"])
    exact = exact.transpose("learning_rate", "weight_decay", "seed", "step")
    ds["exact_angle"] = exact.assign_attrs(long_name="angle α, exact", units="rad")
    smallest = _smallest_sharpness(problem)
    sharpness = smallest / np.cos(exact) ** 2
    ds["exact_spherical_sharpness"] = sharpness.assign_attrs(long_name="spherical sharpness λ1, exact", units="1")
    ds["angle_error"] = (ds["angle"] - exact).assign_attrs(long_name="angle α − exact angle", units="rad")
    ratio = ds["effective_learning_rate"] * ds["spherical_sharpness"] / 2
    ds["stability_ratio"] = ratio
    shared.label(ds)
    for name in ("angle", "angle_error", "spherical_sharpness", "stability_ratio"):
        ds[name].attrs["comment"] = "GD+WD: at the midpoint of two iterates, in step 0 at the only one"

    ds.attrs = shared.provenance(found, "Batch-normalized regression: GD+WD, flow and exact solution")
    ds.attrs.update({name: json.dumps(part.attrs) for name, part in found.items()})
    return bn_regression.label(ds.transpose("dynamics", "learning_rate", "weight_decay", "seed", "step"), settings)


def _smallest_sharpness(problem):
    """λ1 at the minimum-norm interpolant, from the Jacobian (σ_y / rms(Xθ)) (I − t tᵀ / n) X with t the standardized targets."""
    inputs, targets = np.asarray(problem.data.inputs), np.asarray(problem.data.targets)
    count, spread = targets.size, targets.std()
    outputs = inputs @ np.asarray(problem.data.minimum_norm)
    standardized = (targets - targets.mean()) / spread
    jacobian = spread / np.sqrt(np.mean(outputs**2)) * (inputs - np.outer(standardized, standardized @ inputs) / count)
    return 2 / count * np.linalg.norm(jacobian, 2) ** 2


def table(dataset: xr.Dataset) -> str:
    """Compares GD+WD and the flow with the exact solution, a row for each learning rate and weight decay.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: the largest |α − exact| of both over time and seeds, and the mean, least and largest stability ratio
        of GD+WD over time and seeds, without step 0, which has no midpoint.
    """
    worst = np.abs(dataset["angle_error"]).max(("seed", "step"))
    ratio = dataset["stability_ratio"].sel(dynamics="gd").where(dataset["step"] > 0)
    failed = stopped(dataset["status"])
    header = ("learning rate", "weight decay", "product", "last τ", "GD+WD |Δα|", "flow |Δα|", "GD+WD stability ratio", "failed")
    rows = []
    for rate in dataset["learning_rate"].values:
        for decay in dataset["weight_decay"].values:
            at = {"learning_rate": rate, "weight_decay": decay}
            here, errors = ratio.sel(at), worst.sel(at)
            rows.append(
                (
                    f"{rate:g}",
                    f"{decay:g}",
                    f"{rate * decay:.3g}",
                    f"{float(dataset['time'].sel(at)[-1]):.3g}",
                    f"{float(errors.sel(dynamics='gd')):.1e}",
                    f"{float(errors.sel(dynamics='flow')):.1e}",
                    f"{float(here.mean()):.4f} ({float(here.min()):.4f}–{float(here.max()):.4f})",
                    f"{int(failed.sel(at).sum())} of {failed.sel(at).size}",
                )
            )
    lines = [
        f"Batch-normalized regression on digits, {dataset.sizes['seed']} seeds, {int(dataset['step'][-1])} steps.",
        "|Δα|: largest |angle − exact angle| over time and seeds, in radians. Stability ratio: effective learning rate times",
        "spherical sharpness / 2, mean (least–largest) over time and seeds. Failed: trajectories of both.",
        "",
        *aligned([header, *rows]),
        *failures(dataset["status"]),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws the angle and the spherical sharpness against τ at the largest product η̂ λ̂, and the error of every product.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide: lines are medians over seeds, bands reach from the least to the largest.
    """
    with shared.paper():
        return _draw(dataset, plots.new_figure((7.0, 2.5)))


def _draw(dataset, canvas):
    angle, sharpness, error = canvas.subplots(1, 3)
    products = sorted(
        (float(rate * decay), float(rate), float(decay)) for rate in dataset["learning_rate"] for decay in dataset["weight_decay"]
    )
    product, rate, decay = products[-1]
    at_largest = dataset.sel(learning_rate=rate, weight_decay=decay)
    _compare(angle, at_largest, "angle")
    _compare(sharpness, at_largest, "spherical_sharpness")
    angle.set(ylabel="angle α to minimum norm [rad]", ylim=(0, None))
    sharpness.set(ylabel=r"spherical sharpness $\lambda_1$", yscale="log")
    angle.legend(title=rf"{_PRODUCT} = {shared.power_of_ten(product)}", loc="upper right")
    plots.plain_log_ticks(sharpness.yaxis)
    last = float(at_largest["time"][-1])
    for axes in (angle, sharpness):
        axes.set_xlim(-0.04 * min(last, SHOWN), 1.04 * min(last, SHOWN))

    colors = plots.shades(len(products))
    for (product, rate, decay), color in zip(products, colors, strict=True):
        here = 1000 * np.abs(dataset[["angle_error"]].sel(learning_rate=rate, weight_decay=decay).isel(step=slice(1, None)))
        plots.draw(
            error, here.sel(dynamics="gd"), "angle_error", "time", label=shared.power_of_ten(product), color=color, linewidth=1.4
        )
    error.set(ylabel="|α − exact α| of GD+WD [mrad]", yscale="log")
    bottom = error.get_ylim()[0]
    if bottom > 0:
        error.set_ylim(bottom=0.4 * bottom)  # room for the legend
    plots.plain_log_ticks(error.yaxis)
    handles, labels = error.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))  # equal products share a label
    error.legend(shown.values(), shown.keys(), title=_PRODUCT, loc="lower right")
    worst = float(np.abs(dataset["angle_error"].sel(dynamics="flow")).max())
    for axes, title in ((angle, "(a)"), (sharpness, "(b)"), (error, f"(c)   flow: < {_ceiling(worst)} rad")):
        shared.plain(axes, title)
        axes.set_xlabel(rf"time τ = {_PRODUCT}$t$")
    canvas.supxlabel(shared.bands(dataset.sizes["seed"], "bands and thin lines"), fontsize=7)
    return canvas


_PRODUCT = r"$\hat\eta\hat\lambda$"


def _compare(axes, dataset, variable):
    """GD+WD as a broad line, the flow as a thin one on it, the exact solution dashed on both."""
    blue, red = plots.COLORS[:2]
    plots.draw(axes, dataset.sel(dynamics="gd"), variable, "time", label="GD+WD", color=blue, linewidth=4, alpha=0.55)
    plots.draw(axes, dataset.sel(dynamics="flow"), variable, "time", band="outline", label="flow", color=red, linewidth=1.6)
    dashes = {"color": "black", "linewidth": 1, "linestyle": (0, (2, 4))}
    plots.draw(axes, dataset, f"exact_{variable}", "time", band="none", label="exact", **dashes)


def _ceiling(value):
    """The next larger power of ten as text for a title."""
    return f"$10^{{{int(np.floor(np.log10(value))) + 1}}}$" if value > 0 else "$10^{-16}$"


bn_regression = Experiment(
    name="bn-regression",
    summary="GD with weight decay and its flow against the exact solution, on batch-normalized regression of digits",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={
        "learning_rates": (0.05, 0.1, 0.2),
        "weight_decays": (2e-4, 5e-4),
        "seeds": 32,
        "steps": 200_000,
        "every": 1000,
    },
)
