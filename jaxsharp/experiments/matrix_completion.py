"""Batch-normalized matrix completion: GD with weight decay against GD without, from the same minimizers."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxsharp import data, minimizers, optimizers, plots, probes, problems
from jaxsharp.experiments import shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures, with_interval
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_RETRACTION_STEPS = 30
"""Gauss–Newton steps from random factors to a minimizer; 6 to 10 are usual."""


@dataclass(frozen=True)
class Settings:
    """Settings of matrix-completion; each field says what it is."""

    learning_rates: tuple[float, ...] = setting((0.2, 0.4), "learning rates η̂")
    weight_decays: tuple[float, ...] = setting((1e-3,), "weight decays λ̂ above 0; 0 always runs as the control")
    seeds: int = setting(8, "starts drawn, the same for every learning rate and weight decay but for their scale")
    steps: int = setting(12_000, "optimizer steps")
    every: int = setting(400, "optimizer steps between measurements")
    size: int = setting(12, "rows and columns of the matrix, and columns of each factor")
    rank: int = setting(1, "rank of the matrix to complete")
    observed: float = setting(0.5, "fraction of entries observed")
    data_seed: int = setting(0, "seed of matrix and observed entries")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_rates(self)
        shared.check_counts(self, "seeds", "steps", "every", "size", "rank")
        data.low_rank(self.size, self.size, rank=self.rank, observed=self.observed, seed=self.data_seed)


@lru_cache(maxsize=4)
def _setting(size, rank, observed, data_seed, least_decay, double):
    """The problem and the start of a seed; cached, since equal functions let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    problem = problems.matrix_completion(*data.low_rank(size, size, rank=rank, observed=observed, seed=data_seed))

    def start(key, learning_rate, weight_decay):
        point = minimizers.retract(problem, problem.init(key), max_steps=MOST_RETRACTION_STEPS)
        # the control has no equilibrium of its own and starts as with the least weight decay
        decay = jnp.maximum(weight_decay, jnp.asarray(least_decay, jnp.result_type(float)))
        return minimizers.edge_of_stability_start(problem, point, learning_rate, decay)

    return problem, start


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs GD over learning rates, weight decays (with 0, the control) and seeds, from minimizers of the training loss.

    A seed draws random factors and takes them to a minimizer φ by Gauss–Newton steps of least length; GD starts at its
    equilibrium at the edge of stability over φ (the control at that of the least weight decay). All but the training loss and
    the effective learning rate is measured at the midpoint of two consecutive iterates (at w itself in step 0).

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions learning_rate, weight_decay (0 first), seed, step and the coordinate time τ = η̂ λ̂ t:
        `spherical_sharpness`, `test_loss` (mean squared error of the hidden entries), `nuclear_norm` (see
        `jaxsharp.problems.matrix_completion`), `stability_ratio` η̃ λ1 / 2, `loss`, `effective_learning_rate`, status and costs.
        The attribute `true_nuclear_norm` is that of the matrix itself.

    Raises:
        ValueError: for a checkpoint of other settings.
    """
    matrix = (settings.size, settings.rank, settings.observed, settings.data_seed)
    problem, start = _setting(*matrix, min(settings.weight_decays), bool(jax.config.jax_enable_x64))
    decays = (0.0, *sorted(settings.weight_decays))
    if progress:
        count = len(settings.learning_rates) * len(decays) * settings.seeds
        shared.say(f"GD: {count} trajectories of {settings.steps} steps, after up to a minute of compilation")
    ds = sweep(
        problem,
        optimizers.gd,
        {"learning_rate": settings.learning_rates, "weight_decay": decays},
        seeds=settings.seeds,
        steps=settings.steps,
        init=start,
        probes=("loss", probes.metrics(midpoint=True), probes.spherical_sharpness(midpoint=True), "effective_learning_rate"),
        every=settings.every,
        checkpoint=checkpoint,
        progress=progress,
    )
    ds = ds.assign_coords(time=ds["learning_rate"] * ds["weight_decay"] * ds["step"])
    ds["stability_ratio"] = ds["effective_learning_rate"] * ds["spherical_sharpness"] / 2
    shared.label(ds, test_loss="squared error of hidden entries", nuclear_norm="nuclear norm")
    true, _ = data.low_rank(settings.size, settings.size, rank=settings.rank, observed=settings.observed, seed=settings.data_seed)
    ds.attrs["title"] = "Batch-normalized matrix completion: GD with and without weight decay"
    ds.attrs["true_nuclear_norm"] = float(np.linalg.norm(true, "nuc"))
    return matrix_completion.label(ds, settings)


def table(dataset: xr.Dataset) -> str:
    """Compares the ends of the runs with their starts and with the control, a row for each learning rate and weight decay.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals.
    """
    header = ("learning rate", "weight decay", "last τ", "λ1 end/start", "test loss, start", "end", "end − control")
    header = (*header, "nuclear norm, end", "stability ratio", "failed")
    first, last = dataset.isel(step=0), dataset.isel(step=-1)
    rows = []
    for rate in dataset["learning_rate"].values:
        for decay in dataset["weight_decay"].values:
            at = {"learning_rate": rate, "weight_decay": decay}
            start, end = first.sel(at), last.sel(at)
            control = last.sel(learning_rate=rate, weight_decay=0.0)
            failed = stopped(end["status"])
            rows.append(
                (
                    f"{rate:g}",
                    f"{decay:g}",
                    f"{float(end['time']):.3g}",
                    with_interval(end["spherical_sharpness"] / start["spherical_sharpness"]),
                    with_interval(start["test_loss"]),
                    with_interval(end["test_loss"]),
                    with_interval(end["test_loss"] - control["test_loss"]) if decay > 0 else "",
                    with_interval(end["nuclear_norm"]),
                    f"{float(end['stability_ratio'].mean()):.4f}",
                    f"{int(failed.sum())} of {failed.size}",
                )
            )
    lines = [
        f"Batch-normalized matrix completion, {dataset.sizes['seed']} seeds, {int(dataset['step'][-1])} steps. Mean over seeds ±",
        "half width of the 95 % confidence interval; end − control: paired by seed with the run without weight decay. Nuclear",
        f"norm of the matrix to complete: {dataset.attrs['true_nuclear_norm']:.4g}.",
        "",
        *aligned([header, *rows]),
        *failures(dataset["status"]),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws spherical sharpness, test loss and nuclear norm against steps at the largest learning rate, a line a weight decay.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide: lines are medians over seeds, bands reach from the least to the largest.
    """
    with shared.paper():
        canvas = plots.new_figure((7.0, 2.5))
        panels = dict(zip(("spherical_sharpness", "test_loss", "nuclear_norm"), canvas.subplots(1, 3), strict=True))
        rate = float(dataset["learning_rate"].max())
        colors = shared.colors(dataset.sizes["weight_decay"])
        for (name, axes), letter in zip(panels.items(), "abc", strict=True):
            for decay, color in zip(dataset["weight_decay"].values, colors, strict=True):
                here = dataset[[name]].sel(learning_rate=rate, weight_decay=decay)
                here = here.assign_coords(step=here["step"] / 1000)
                plots.draw(axes, here, name, label=f"{decay:g}", color=color, linewidth=1.4)
            axes.set(ylim=(0, None), xlabel="thousand steps")
            shared.plain(axes, f"({letter})")
        panels["nuclear_norm"].axhline(dataset.attrs["true_nuclear_norm"], color="black", linewidth=0.8, linestyle="dotted")
        panels["nuclear_norm"].legend(title="weight decay λ̂", loc="lower right")
        canvas.supxlabel(
            f"learning rate {rate:g}; {shared.bands(dataset.sizes['seed'])}; dotted: the matrix to complete",
            fontsize=7,
        )
        return canvas


matrix_completion = Experiment(
    name="matrix-completion",
    summary="GD with and without weight decay on batch-normalized matrix completion: sharpness, nuclear norm, hidden entries",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={
        "learning_rates": (0.1, 0.2, 0.4),
        "weight_decays": (2.5e-4, 5e-4, 1e-3),
        "seeds": 16,
        "steps": 60_000,
        "every": 1000,
        "size": 24,
        "observed": 0.4,
    },
)
