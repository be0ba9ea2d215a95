"""The valley of the IRE paper: how far gradient descent, with and without IRE, gets along a flat direction."""

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxsharp import optimizers, plots, probes, problems
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures
from jaxsharp.simulation import sweep
from jaxsharp.status import describe, stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE = {(1.0, 0.0): 0.99289, (1.0, 90.0): 0.92849, (1.0, 900.0): 0.74259, (1.0, 9000.0): 0.00998}
"""Where u ends by the paper's Figure 1, by learning rate and κ, from the start (1, 0.01)."""


@dataclass(frozen=True)
class Settings:
    """Settings of ire-valley; each field says what it is."""

    learning_rates: tuple[float, ...] = setting((1.0, 2.0), "learning rates η")
    kappas: tuple[float, ...] = setting((0.0, 90.0, 900.0, 9000.0), "IRE strengths κ; 0 is plain gradient descent")
    steps: int = setting(500, "optimizer steps")
    u: float = setting(1.0, "start along the valley")
    v: float = setting(0.01, "start across the valley")

    def __post_init__(self):
        """Refuses what makes no sense."""
        for name, least in (("learning_rates", "above"), ("kappas", "not below")):
            values = getattr(self, name)
            wrong = [x for x in values if not np.isfinite(x) or x < 0 or (x == 0 and least == "above")]
            if not values or wrong:
                raise ValueError(f"{name} must be numbers {least} 0, at least one, got {values}.")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")
        if not (np.isfinite(self.u) and np.isfinite(self.v)):
            raise ValueError(f"u and v must be finite, got {self.u} and {self.v}.")


def _u(problem, params):
    del problem
    return params["u"]


def _v(problem, params):
    del problem
    return params["v"]


def _sharpness(problem, params):
    """λ1 of the two by two Hessian."""
    hessian = jax.hessian(problem.loss)(params)
    along, across, mixed = hessian["u"]["u"], hessian["v"]["v"], hessian["u"]["v"]
    return (along + across) / 2 + jnp.sqrt(((along - across) / 2) ** 2 + mixed**2)


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs gradient descent with IRE for every learning rate and κ in one sweep.

    The mask is half of the two coordinates, chosen anew at every step by the squared gradient: u, whose gradient u v² is the
    smaller one in the valley.

    Args:
        settings: what to run.
        progress: whether to show a bar.
        checkpoint: folder to keep the running sweep in, and to go on from.

    Returns:
        A Dataset with the dimensions learning_rate, kappa, step: `u`, `v`, `loss`, `sharpness` (λ1 of the Hessian there),
        `settled_at`, the first step from which u keeps its last value to five digits, `status` and costs.
    """
    if progress:
        print(f"{len(settings.learning_rates) * len(settings.kappas)} trajectories", file=sys.stderr, flush=True)
    ds = sweep(
        problems.valley(),
        lambda learning_rate, kappa: optimizers.ire(optimizers.gd(learning_rate), kappa, 0.5, every=1),
        {"learning_rate": settings.learning_rates, "kappa": settings.kappas},
        steps=settings.steps,
        init={"u": settings.u, "v": settings.v},
        probes=[probes.function("u", _u), probes.function("v", _v), probes.function("sharpness", _sharpness), "loss", "mask"],
        progress=progress,
        checkpoint=checkpoint,
    )
    ds = ds.isel(seed=0, drop=True)
    moved = (np.abs(ds["u"] - ds["u"].isel(step=-1)) >= 5e-6).values
    last = np.where(moved.any(axis=-1), moved.shape[-1] - np.argmax(moved[..., ::-1], axis=-1), 0)
    settled = np.where(stopped(ds["status"].values), np.nan, last)
    ds["settled_at"] = (
        ("learning_rate", "kappa"),
        settled,
        {"long_name": "step from which u keeps five digits", "units": "steps"},
    )
    ds["learning_rate"].attrs = {"long_name": "learning rate η", "units": "1"}
    ds["kappa"].attrs = {"long_name": "IRE strength κ", "units": "1"}
    ds.attrs["title"] = "IRE in the valley (1 + u²) v² / 2"
    return ire_valley.label(ds, settings)


def table(dataset: xr.Dataset) -> str:
    """Lists where each run ends, beside the paper's figure.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: u and v at the end, the sharpness there, the step from which u keeps five digits, the paper's u, the status.
    """
    header = ("learning rate", "κ", "u at the end", "v at the end", "sharpness", "settled at step", "paper's u", "status")
    rows = []
    usual = float(dataset["u"][0, 0, 0]) == 1.0 and float(dataset["v"][0, 0, 0]) == 0.01
    for rate in dataset["learning_rate"].values:
        for kappa in dataset["kappa"].values:
            here = dataset.sel(learning_rate=rate, kappa=kappa)
            end = here.isel(step=-1)
            failed = bool(stopped(int(here["status"])))
            reference = REFERENCE.get((float(rate), float(kappa))) if usual else None
            rows.append(
                (
                    f"{rate:g}",
                    f"{kappa:g}",
                    "–" if failed else f"{float(end['u']):.5f}",
                    "–" if failed else f"{float(end['v']):.1e}",
                    "–" if failed else f"{float(end['sharpness']):.5f}",
                    "–" if failed else f"{int(here['settled_at'])}",
                    "–" if reference is None else f"{reference:.5f}",
                    describe(int(here["status"]))
                    + (f" at step {int(here['diverged_at'])}" if np.isfinite(here["diverged_at"]) else ""),
                )
            )
    lines = [
        f"The valley L = (1 + u²) v² / 2, {int(dataset['step'][-1])} steps; IRE enlarges the step along u by 1 + κ.",
        "At the bottom, v = 0, the sharpness is 1 + u²: the flattest minimum is u = 0.",
        "",
        *aligned([header, *rows]),
        *failures(dataset["status"]),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws the paths on the landscape and u against steps, for every κ at the first learning rate.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide.
    """
    from matplotlib import rc_context

    with rc_context({"font.size": 8, "axes.titlesize": 8, "legend.frameon": False, "legend.fontsize": 7}):
        return _draw(dataset, plots.new_figure((7.0, 2.6)))


def _draw(dataset, canvas):
    landscape, progress = canvas.subplots(1, 2)
    here = dataset.isel(learning_rate=0)
    first = np.abs(here[["u", "v"]].isel(step=0)).max()
    width, height = 1.15 * max(float(first["u"]), 0.1), 1.3 * max(float(first["v"]), 1e-3)
    u, v = np.meshgrid(np.linspace(-0.15 * width, width, 120), np.linspace(-height, height, 120))
    levels = np.linspace(0, 1, 13)[1:] * height**2
    landscape.contour(u, v, (1 + u**2) * v**2 / 2, levels=levels, colors="0.8", linewidths=0.6)
    landscape.axhline(0, color="0.5", linewidth=0.6, linestyle="dotted")
    for kappa, color in zip(here["kappa"].values, plots.shades(here.sizes["kappa"]), strict=True):
        path = here.sel(kappa=kappa)
        label = "GD" if kappa == 0 else f"IRE, κ = {kappa:g}"
        landscape.plot(path["u"], path["v"], color=color, linewidth=0.9, marker=".", markersize=2.5, label=label)
        progress.plot(path["step"], path["u"], color=color, linewidth=1.4, label=label)
        if not bool(stopped(int(path["status"]))):
            landscape.plot(path["u"][-1], path["v"][-1], color=color, marker="*", markersize=9, linestyle="none")
    rate = float(here["learning_rate"])
    landscape.set(xlabel="u, along the valley", ylabel="v, across", xlim=(-0.15 * width, width), ylim=(-height, height))
    landscape.set_title(f"(a)   paths at η = {rate:g}; stars: ends", loc="left")
    progress.set(xlabel="optimizer steps", ylabel="u", xscale="symlog")
    progress.set_xlim(left=0)
    progress.set_title("(b)", loc="left")
    progress.legend(loc="center right", bbox_to_anchor=(1.0, 0.35))
    for axes in (landscape, progress):
        axes.spines[["top", "right"]].set_visible(False)
    gone = stopped(dataset["status"])
    if bool(gone.any()):
        rates = [f"{rate:g}" for rate in dataset["learning_rate"].values if bool(gone.sel(learning_rate=rate).all())]
        canvas.supxlabel(
            f"not shown: η = {', '.join(rates)}, where every run diverges" if rates else "some runs stop early", fontsize=7
        )
    return canvas


ire_valley = Experiment(
    name="ire-valley",
    summary="where GD ends in the valley (1 + u²) v² / 2, with and without IRE along u (Figure 1 of Wang et al. 2024)",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={"kappas": (0.0, 9.0, 30.0, 90.0, 300.0, 900.0, 3000.0, 9000.0), "steps": 5000},
)
