"""GD with weight decay against the sharpness-reduction flow on a network that interpolates digits, as η̂λ̂ shrinks."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import xarray as xr

from jaxsharp import flows, optimizers, plots, probes
from jaxsharp.experiments import order_study, shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.interpolating import interpolating
from jaxsharp.experiments.tables import aligned, failures, with_interval
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "distance": "distance of directions on the sphere",
    "log_ratio": "log λ1 of GD+WD − log λ1 of the flow",
    "flow_sharpness": "spherical sharpness λ1 of the flow",
    "product": "intrinsic step η̂ λ̂",
}


@dataclass(frozen=True)
class Settings:
    """Settings of flow-vs-gd; each field says what it is."""

    products: tuple[float, ...] = setting((4e-4, 1e-4, 2.5e-5), "products η̂ λ̂ of GD+WD, at least two")
    learning_rate: float = setting(0.1, "learning rate η̂; the directions depend on the product alone")
    seeds: int = setting(8, "minimizers drawn, the starts")
    time: float = setting(0.3, "intrinsic time τ = η̂ λ̂ t of every run")
    measurements: int = setting(15, "measurements after the start, evenly spaced in τ")
    images: int = setting(10, "training images")
    width: int = setting(8, "hidden units")
    data_seed: int = setting(0, "seed of the choice of images")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_positive(self, "products")
        shared.check_counts(self, "seeds", "measurements", "images", "width")
        if len(set(self.products)) < 2 or len(set(self.products)) < len(self.products):
            raise ValueError(f"products must be at least two different numbers, for an order in them, got {self.products}.")
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0 and np.isfinite(self.time) and self.time > 0):
            raise ValueError(f"learning_rate and time must be above 0, got {self.learning_rate} and {self.time}.")
        if max(self.products) * self.measurements > self.time:
            raise ValueError("time is too short: at the largest of products a measurement would come before the first step.")

    def every(self, product: float) -> int:
        """Steps between measurements."""
        return round(self.time / self.measurements / product)


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs the flow once and GD+WD for each product η̂ λ̂, from the same minimizers, over the same intrinsic time.

    The flow starts at a random minimizer φ; GD+WD at its equilibrium at the edge of stability over φ, and is measured at the
    midpoint of two consecutive iterates (at w itself in step 0).

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions product, seed, time: `distance` ‖θ − ζ‖ of the directions, `spherical_sharpness` of GD+WD,
        `flow_sharpness`, `log_ratio`, `stability_ratio` η̃ λ1 / 2, `status` and `flow_status`.

    Raises:
        ValueError: for counts that the digits do not cover, or a checkpoint of other settings.
    """
    made = interpolating(settings.images, settings.width, settings.data_seed, bool(jax.config.jax_enable_x64))
    products = sorted(settings.products, reverse=True)
    rules = {"flow": (flows.sharpness_reduction, made.on_manifold, products[0])}
    rules |= {f"{product:g}": (optimizers.gd, made.at_the_edge, product) for product in products}
    parts = {}
    for name, (factory, init, product) in rules.items():
        every = settings.every(product)
        if progress:
            shared.say(f"{name}: {settings.seeds} trajectories of {settings.measurements * every} steps")
        parts[name] = sweep(
            made.problem,
            factory,
            {"learning_rate": (settings.learning_rate,), "weight_decay": (product / settings.learning_rate,)},
            seeds=settings.seeds,
            steps=settings.measurements * every,
            init=init,
            probes=(
                probes.parameters(midpoint=True),
                probes.spherical_sharpness(midpoint=True, tol=1e-4),
                "effective_learning_rate",
            ),
            every=every,
            checkpoint=None if checkpoint is None else Path(checkpoint) / name,
            progress=progress,
        ).isel(learning_rate=0, weight_decay=0, drop=True)
    return _combine(settings, products, parts)


def _combine(settings, products, parts):
    """One Dataset on the axis of intrinsic time."""
    flow = order_study.on_time(parts["flow"], settings.time, settings.measurements)
    found = []
    for product in products:
        gd = order_study.on_time(parts[f"{product:g}"], settings.time, settings.measurements)
        directions = gd["parameters"] / np.sqrt((gd["parameters"] ** 2).sum("parameter"))
        found.append(
            xr.Dataset(
                {
                    "distance": order_study.distance(directions, flow["parameters"]),
                    "spherical_sharpness": gd["spherical_sharpness"],
                    "log_ratio": np.log(gd["spherical_sharpness"]) - np.log(flow["spherical_sharpness"]),
                    "stability_ratio": gd["effective_learning_rate"] * gd["spherical_sharpness"] / 2,
                    "status": gd["status"],
                }
            ).drop_attrs()
        )
    ds = xr.concat(found, dim=xr.DataArray(products, dims="product", name="product"))
    ds["flow_sharpness"], ds["flow_status"] = flow["spherical_sharpness"], flow["status"]
    shared.label(ds, **LABELS)
    ds.attrs = shared.provenance(parts, "GD+WD against the sharpness-reduction flow on a network that interpolates digits")
    return flow_vs_gd.label(ds, settings)


def table(dataset: xr.Dataset) -> str:
    """Lists the errors at the end for each product, and the orders fitted.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals.
    """
    kept = ~stopped(dataset["flow_status"])
    header = ("product", "steps", "distance, end", "flow has gone", "log λ1, GD+WD − flow, end", "stability ratio − 1", "failed")
    end, settings = dataset.isel(time=-1).where(kept), float(dataset["time"][-1])
    gone = np.log(end["flow_sharpness"]) - np.log(dataset["flow_sharpness"].isel(time=0))
    rows = []
    for product in dataset["product"].values:
        here = end.sel(product=product)
        failed = stopped(dataset["status"].sel(product=product))
        cells = (f"{product:g}", f"{settings / product:.0f}", with_interval(here["distance"]), with_interval(gone))
        cells = (*cells, with_interval(here["log_ratio"]), with_interval(here["stability_ratio"] - 1))
        rows.append((*cells, f"{int(failed.sum())} of {failed.size}"))
    names = {"distance": "distance", "log_ratio": "difference of log λ1"}
    lines = [
        f"{dataset.attrs['title']}; {dataset.sizes['seed']} seeds, τ = {settings:g}.",
        "Mean over seeds ± half width of the 95 % confidence interval. Distance: of the directions on the sphere, GD+WD averaged",
        "over two iterates. Flow has gone: log λ1 of the flow, end − start. Orders: of the root mean square over time, by seed.",
        f"The flow stopped in {int((~kept).sum())} of {kept.size} seeds; these are left out.",
        "",
        *aligned([header, *rows]),
        "",
        *order_study.fitted(dataset, "product", "η̂λ̂", names),
        *failures(dataset["flow_status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws spherical sharpness and distance against intrinsic time, and the errors against η̂ λ̂ with the order fitted.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide.
    """
    with shared.paper():
        canvas = plots.new_figure((7.0, 2.6))
        sharpness, distance, order = canvas.subplots(1, 3)
        steps = dataset.rename(time="step")
        relative = (steps[["spherical_sharpness"]] / steps["flow_sharpness"].isel(step=0)).isel(step=slice(1, None))
        colors = plots.shades(dataset.sizes["product"])
        for product, color in zip(dataset["product"].values, colors, strict=True):
            name = shared.power_of_ten(product)
            plots.draw(sharpness, relative.sel(product=product), "spherical_sharpness", band="none", label=name, color=color)
            far = steps[["distance"]].isel(step=slice(1, None)).sel(product=product)
            plots.draw(distance, far, "distance", label=name, color=color, linewidth=1.4)
        flow = (steps[["flow_sharpness"]] / steps["flow_sharpness"].isel(step=0)).assign_coords(step=steps["step"])
        plots.draw(sharpness, flow, "flow_sharpness", band="none", label="flow", color="black", linestyle=(0, (2, 3)))
        distance.set(yscale="log", ylabel="distance of GD+WD to the flow")
        sharpness.set(ylabel="λ1 / λ1 of the start")
        sharpness.legend(title="η̂λ̂ of GD+WD")
        order_study.draw_orders(order, dataset, "product", "η̂λ̂", {"distance": "distance", "log_ratio": "|Δ log λ1|"})
        for axes, letter in ((sharpness, "(a)"), (distance, "(b)"), (order, "(c)")):
            shared.plain(axes, letter)
        for axes in (sharpness, distance):
            axes.set_xlabel("intrinsic time τ = η̂λ̂t")
        canvas.supxlabel(f"{shared.bands(dataset.sizes['seed'])}; (a): medians; (c): a thin line for each seed", fontsize=7)
        return canvas


flow_vs_gd = Experiment(
    name="flow-vs-gd",
    summary="GD with weight decay against its flow on a network that interpolates digits: distance and λ1 as η̂λ̂ shrinks",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={"products": (4e-4, 1e-4, 2.5e-5, 6.25e-6), "seeds": 16},
)
