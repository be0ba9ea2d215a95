"""How fast SAM drifts along a minimizer manifold, with and without IRE: measured exponents of η and ρ against the theory's."""

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
from jax.flatten_util import ravel_pytree

from jaxsharp import data, minimizers, models, optimizers, plots, problems
from jaxsharp._factorizations import eigh
from jaxsharp.experiments import shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures, interval, with_interval
from jaxsharp.problems import Problem
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = {
    "SAM": ("gradient", None),
    "SAM-IRE": ("gradient", "projection"),
    "average SAM": ("random", None),
    "average SAM-IRE": ("random", "projection"),
    "masked SAM-IRE": ("gradient", "mask"),
}
"""SAM's ascent, and what IRE takes for flat: what is orthogonal to the top eigenvectors, or the paper's mask of coordinates."""

MOST_RETRACTION_STEPS = 50


@dataclass(frozen=True)
class Settings:
    """Settings of sam-rates; each field says what it is."""

    learning_rates: tuple[float, ...] = setting((0.01, 0.02, 0.04), "learning rates η, at least two")
    rhos: tuple[float, ...] = setting((0.003, 0.01, 0.03), "radii ρ, at least two; with a projection IRE's strength is κ = 1/ρ")
    seeds: int = setting(6, "minimizers drawn, the starts")
    steps: int = setting(20, "optimizer steps")
    directions: int = setting(64, "random directions a step of average SAM")
    ire_every: int = setting(10, "steps between IRE's estimates")
    gamma: float = setting(0.8, "fraction γ of flat parameters in the form with a mask")
    kappa: float = setting(2.0, "IRE's strength κ in the form with a mask, which 1/ρ throws off the manifold")
    images: int = setting(6, "training images")
    width: int = setting(6, "hidden units")
    data_seed: int = setting(0, "seed of the choice of images")
    forms: tuple[str, ...] = setting(tuple(FORMS), "what runs")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_positive(self, "learning_rates", "rhos")
        shared.check_counts(self, "seeds", "directions", "ire_every", "images", "width")
        for name in ("learning_rates", "rhos"):
            values = getattr(self, name)
            if len(set(values)) < 2 or len(set(values)) < len(values):
                raise ValueError(f"{name} must be at least two different numbers, for an exponent, got {values}.")
        if self.steps < 4 or self.steps % 2:
            raise ValueError(f"steps must be even and at least 4, since SAM's iterates alternate, got {self.steps}.")
        if not (0 < self.gamma < 1 and np.isfinite(self.kappa) and self.kappa >= 0):
            raise ValueError(f"gamma must lie between 0 and 1 and kappa be at least 0, got {self.gamma} and {self.kappa}.")
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown or not self.forms or len(set(self.forms)) < len(self.forms):
            raise ValueError(f"forms must be distinct names out of {', '.join(FORMS)}, got {self.forms}.")


class Start(NamedTuple):
    """A minimizer and what the theory says of the motion from there.

    Attributes:
        point: (p,) the minimizer φ.
        top: (p,) v1.
        sharpness: λ1.
        slopes: (2, p) ∇_Γ λ1 and ∇_Γ tr H.
        on_manifold: whether φ was found.
    """

    point: jax.Array
    top: jax.Array
    sharpness: jax.Array
    slopes: jax.Array
    on_manifold: jax.Array


class Network(NamedTuple):
    """The problem and its starts.

    Attributes:
        problem: squared loss of a tanh network on a few digits, whose values are the targets.
        starts: a `Start` with a leading axis.
        factory: `(form) -> (learning_rate, rho, start) -> optimizer`.
        init: `(key, learning_rate, rho, start)`: φ, moved along v1 to where SAM alternates from the first step on.
        init_average: `(key, start)`: φ.
    """

    problem: Problem
    starts: Start
    factory: Callable
    init: Callable
    init_average: Callable


@lru_cache(maxsize=4)
def network(images, width, data_seed, seeds, directions, every, gamma, kappa, double) -> Network:
    """Makes the network, finds its minimizers; cached, since equal functions let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    train, _ = data.digits(images, seed=data_seed, targets="value")
    problem = problems.supervised(models.MLP(widths=(width,)), train)
    one = jax.jit(lambda problem, key: find_start(problem, key, images))
    found = [one(problem, jax.random.key(seed)) for seed in range(seeds)]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    unravel = ravel_pytree(problem.init(jax.random.key(0)))[1]

    def init(key, learning_rate, rho, start):
        del key
        here = jax.tree.map(lambda leaf: leaf[start.astype(int)], starts)
        size = learning_rate * here.sharpness * rho / (2 - learning_rate * here.sharpness)
        return unravel(here.point + size.astype(here.point.dtype) * here.top)

    def init_average(key, start):
        del key
        return unravel(starts.point[start.astype(int)])

    @lru_cache
    def factory(form):
        ascent, flat = FORMS[form]
        if flat == "projection":
            options = {"gamma": None, "estimator": optimizers.Eigenspace(k=images, tol=1e-5, max_matvecs=20 * images + 100)}
        else:
            options = {"gamma": gamma, "estimator": "fisher"}

        def make(learning_rate, rho, start):
            draws = directions if ascent == "random" else 1
            sam = optimizers.sam(optimizers.gd(learning_rate), rho, ascent=ascent, directions=draws, seed=int(start))
            strength = kappa if flat == "mask" else 1 / rho
            return sam if flat is None else optimizers.ire(sam, strength, every=every, **options)

        return make

    return Network(problem, starts, factory, init, init_average)


def find_start(problem: Problem, key: jax.Array, images: int) -> Start:
    """Finds a minimizer, and λ1 and tr H there with their tangent gradients.

    On Γ the Hessian is JᵀJ over the number of images, and the part of it that is zero there has no gradient along Γ, so that the
    small matrix JJᵀ knows all of these.
    """
    back = minimizers.retraction(problem, problem.init(key), max_steps=MOST_RETRACTION_STEPS)
    point, unravel = ravel_pytree(back.params)

    def jacobian(w):
        return jax.jacrev(lambda w: problem.residuals(unravel(w)))(w)

    def largest_and_sum(w):
        rows = jacobian(w)
        matrix = rows @ rows.T
        top = eigh(jax.lax.stop_gradient(matrix))[1][:, -1]  # by the envelope rule λ1 changes as if it stood still
        return jnp.stack([top @ matrix @ top, jnp.trace(matrix)]) / images

    def tangent(slope):
        return ravel_pytree(minimizers.project_tangent(problem, back.params, unravel(slope)))[0]

    rows = jacobian(point)
    top = rows.T @ eigh(rows @ rows.T)[1][:, -1]
    slopes = jax.vmap(tangent)(jax.jacrev(largest_and_sum)(point))
    return Start(point, top / jnp.linalg.norm(top), largest_and_sum(point)[0], slopes, back.converged)


def predicted(form: str, learning_rate, rho, sharpness, parameters: int, kappa: float = 0.0):
    """The rate by theory §6 and §7: η ρ²/2 of −∇_Γ λ1 a step, or η ρ²/(2 p) of −∇_Γ tr H, times 1 + κ with IRE.

    With a projection κ = 1/ρ, our reading of §7: that makes both of its pairs of rates, the second where ρ = √η.

    To the first, which is for small η, belongs a factor (1 − η λ1/2)⁻² of ours: standard SAM alternates along v1 at ± x with
    x = η λ1 ρ / (2 − η λ1), so that its gradients are taken at a distance ρ + x from Γ.

    Args:
        form: a name in `FORMS`.
        learning_rate: η.
        rho: ρ.
        sharpness: λ1.
        parameters: p.
        kappa: κ of the form with a mask, for which the product is the most it can do: as if the mask held all of the gradient.

    Returns:
        A number, or an array.

    Example:
        >>> round(predicted("SAM", 0.1, 0.1, 0.0, 10) * 1e6, 6), round(predicted("average SAM-IRE", 0.1, 0.1, 0.0, 10) * 1e6, 6)
        (500.0, 550.0)
    """
    ascent, flat = FORMS[form]
    rate = learning_rate * rho**2 / 2
    rate = rate / parameters if ascent == "random" else rate / (1 - learning_rate * sharpness / 2) ** 2
    return rate if flat is None else rate * (1 + (kappa if flat == "mask" else 1 / rho))


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs each form for every η, ρ and start for a few steps and measures how fast it moves along −∇_Γ λ1, or −∇_Γ tr H.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions form, learning_rate, rho, seed: `rate`, the coefficient r of a motion −r ∇_Γ f a step, f
        = λ1 for standard and tr H for average SAM; `theory`, that of `predicted`; `loss`, the mean over the run; `status`; and
        by seed `sharpness`, λ1 of the start, and `on_manifold`.

    Raises:
        ValueError: for counts that the digits do not cover, or a checkpoint of other settings.
    """
    names = ("images", "width", "data_seed", "seeds", "directions", "ire_every", "gamma", "kappa")
    made = network(*(getattr(settings, name) for name in names), bool(jax.config.jax_enable_x64))
    starts = jax.tree.map(np.asarray, made.starts)
    grid = {"learning_rate": sorted(settings.learning_rates), "rho": sorted(settings.rhos), "start": range(settings.seeds)}
    parts = {}
    for form in settings.forms:
        if progress:
            shared.say(f"{form}: {np.prod([len(values) for values in grid.values()])} trajectories of {settings.steps} steps")
        parts[form] = sweep(
            made.problem,
            made.factory(form),
            grid,
            steps=settings.steps,
            every=2,
            init=made.init if FORMS[form][0] == "gradient" else made.init_average,
            probes=("parameters", "loss"),
            checkpoint=None if checkpoint is None else Path(checkpoint) / form.replace(" ", "-"),
            progress=progress,
        ).isel(seed=0, drop=True)
    sharpness = xr.DataArray(starts.sharpness.astype(float), {"start": list(grid["start"])}, "start")
    found = [_rates(form, part, starts, sharpness, settings.kappa).drop_attrs(deep=False) for form, part in parts.items()]
    ds = xr.concat(found, xr.DataArray(list(parts), dims="form", name="form"))
    ds["sharpness"], ds["on_manifold"] = sharpness, ("start", starts.on_manifold)
    ds = ds.rename(start="seed")
    titles = {"rate": "drift a step over the gradient that it follows", "theory": "the same by theory", "rho": "SAM's radius ρ"}
    shared.label(ds, learning_rate="learning rate η", sharpness="sharpness λ1 of the start", **titles)
    ds.attrs = shared.provenance(parts, "The drift of SAM, average SAM and IRE along a minimizer manifold")
    ds.attrs |= {"parameters": int(starts.point.shape[1]), "images": settings.images, "steps": settings.steps}
    ds.attrs["kappa"] = settings.kappa
    return sam_rates.label(ds, settings)


def _rates(form, ds, starts, sharpness, kappa):
    """Displacement a step along the gradient, in units of it: at the start, by a parabola through the even steps.

    Average SAM goes so little that its speed does not change; there the mean over the run has the least noise.
    """
    slope = starts.slopes[:, 0 if FORMS[form][0] == "gradient" else 1]
    moved = (ds["parameters"] - ds["parameters"].isel(step=0)).transpose(..., "start", "step", "parameter").values
    along = -np.einsum("...stp,sp->...st", moved, slope) / np.sum(slope**2, axis=1)[:, None]
    flat = np.where(np.isfinite(along), along, 0).reshape(-1, along.shape[-1])
    steps = ds["step"].values
    first = flat[:, -1] / steps[-1] if FORMS[form][0] == "random" else np.polyfit(steps, flat.T, 2)[1]
    kept = ds[["status"]].assign(loss=ds["loss"].mean("step", skipna=False))
    rate = kept["loss"].copy(data=first.reshape(along.shape[:-1])).where(np.isfinite(along).all(-1))
    theory = predicted(form, ds["learning_rate"], ds["rho"], sharpness, starts.point.shape[1], kappa)
    theory = theory + 0 * sharpness  # with that dimension in every form
    return kept.assign(rate=rate, theory=theory.transpose(*rate.dims))


LOST = 100.0
"""A run whose mean loss is so many times that of the form without IRE has left the manifold."""


def usable(dataset: xr.Dataset) -> xr.DataArray:
    """Which runs moved downhill and stayed near the manifold.

    Args:
        dataset: from `run`.

    Returns:
        Booleans with the dimensions form, learning_rate, rho, seed.
    """
    plain = [form for form in dataset["form"].values if FORMS[str(form)][1] is None]
    fine = (dataset["rate"] > 0) & ~stopped(dataset["status"].astype(int)) & dataset["on_manifold"]
    if plain:
        fine = fine & (dataset["loss"] < LOST * dataset["loss"].sel(form=plain).max("form"))
    return fine


def exponents(dataset: xr.Dataset, form: str, variable: str = "rate") -> np.ndarray:
    """Fits, for each seed, log rate = a log η + b log ρ + c over the grid by least squares.

    Args:
        dataset: from `run`.
        form: a name in `FORMS`.
        variable: `rate` or `theory`.

    Returns:
        (seeds, 2) exponents a and b; NaN where too few runs of a seed are usable.
    """
    fine = usable(dataset).sel(form=form).transpose("seed", "learning_rate", "rho").values
    values = dataset[variable].sel(form=form).transpose("seed", "learning_rate", "rho").values
    eta, rho = np.meshgrid(dataset["learning_rate"].values, dataset["rho"].values, indexing="ij")
    found = []
    for kept, here in zip(fine, values, strict=True):
        columns = np.stack([np.log(eta[kept]), np.log(rho[kept]), np.ones(kept.sum())], axis=1)
        known = columns.shape[0] > 3 and np.linalg.matrix_rank(columns) == 3
        found.append(np.linalg.lstsq(columns, np.log(here[kept]), rcond=None)[0][:2] if known else [np.nan, np.nan])
    return np.array(found, float)


def table(dataset: xr.Dataset) -> str:
    """Lists the exponents of η and ρ, measured and of theory, and the measured rate over theory's.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over starts with 95 % confidence intervals.
    """
    header = (
        "form",
        "exponent of η",
        "theory",
        "exponent of ρ",
        "theory",
        "of η where ρ ∝ √η",
        "theory",
        "rate / theory",
        "lost",
    )
    rows, fine = [], usable(dataset)
    for form in dataset["form"].values:
        measured, wanted = exponents(dataset, str(form)), exponents(dataset, str(form), "theory")
        cells = [str(form)]
        for pick in (lambda e: e[:, 0], lambda e: e[:, 1], lambda e: e[:, 0] + e[:, 1] / 2):
            mean = interval(pick(wanted))[0]
            cells += [with_interval(pick(measured), places=3), f"{mean:.3f}"]
        ratio = (dataset["rate"] / dataset["theory"]).where(fine).sel(form=form).median(("learning_rate", "rho"))
        lost = ~fine.sel(form=form)
        rows.append((*cells, with_interval(ratio, places=3), f"{int(lost.sum())} of {lost.size}"))
    rates = ", ".join(f"{value:g}" for value in dataset["learning_rate"].values)
    rhos = ", ".join(f"{value:g}" for value in dataset["rho"].values)
    lines = [
        f"{dataset.attrs['title']}: a tanh network of {dataset.attrs['parameters']} parameters that interpolates "
        f"{dataset.attrs['images']} digits.",
        f"η = {rates}; ρ = {rhos}; {dataset.attrs['steps']} steps from {dataset.sizes['seed']} minimizers. Drift of",
        "standard SAM along −∇λ1, of average SAM along −∇ tr H. Mean over minimizers ± half width of the 95 % confidence",
        "interval. Where ρ ∝ √η: the exponent of η then, the first plus half the second. IRE enlarges what is orthogonal to as",
        "many top eigenvectors as there are images, with κ = 1/ρ; or, as in the paper, a mask of coordinates, here with",
        f"κ = {dataset.attrs['kappa']:g}. Theory: ηρ²/2 /(1 − ηλ1/2)² and ηρ²/(2p), times 1 + κ, fitted as the measurements are.",
        "For small η and ρ its exponents are 1 and 2, with κ = 1/ρ 1 and 1: ηρ² → ηρ, and where ρ = √η, η² → η^1.5.",
        "Rate / theory: median over η and ρ, of each minimizer. Lost: went uphill, or to a loss 100 times that without IRE; left",
        "out of the fits.",
        "",
        *aligned([header, *rows]),
        *failures(dataset["status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws the measured rates against ρ and against η, with theory's lines, and their ratios.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide.
    """
    with shared.paper():
        canvas = plots.new_figure((7.0, 3.0))
        over_rho, over_eta, ratios = canvas.subplots(1, 3)
        fine = usable(dataset)
        middle = float(dataset["learning_rate"][dataset.sizes["learning_rate"] // 2])
        radius = float(dataset["rho"][dataset.sizes["rho"] // 2])
        for form, color in zip(dataset["form"].values, plots.COLORS, strict=False):
            here = dataset[["rate", "theory"]].where(fine).sel(form=form)
            _line(over_rho, here.sel(learning_rate=middle), "rho", color, str(form))
            _line(over_eta, here.sel(rho=radius), "learning_rate", color, str(form))
            ratio = (here["rate"] / here["theory"]).transpose("learning_rate", "rho", "seed")
            for index in range(ratio.sizes["learning_rate"]):
                parts = [interval(each)[:2] for each in ratio.values[index]]
                mean, half = (np.array(part) for part in zip(*parts, strict=True))
                place = dataset["rho"].values * 1.08 ** (index - (ratio.sizes["learning_rate"] - 1) / 2)
                ratios.errorbar(place, mean, np.nan_to_num(half), color=color, marker=".", capsize=2, linestyle="none")
        over_rho.set(
            xscale="log", yscale="log", xlabel=f"ρ, at η = {middle:g}", ylabel="drift a step over the gradient it follows"
        )
        over_eta.set(xscale="log", yscale="log", xlabel=f"η, at ρ = {radius:g}")
        ratios.axhline(1, color="black", linewidth=0.6, linestyle="dotted")
        ratios.set(xscale="log", yscale="log", xlabel="ρ, for each η from left to right", ylabel="drift over theory's")
        plots.plain_log_ticks(ratios.yaxis)
        for axes, name, letter in ((over_rho, "rho", "(a)"), (over_eta, "learning_rate", "(b)"), (ratios, "rho", "(c)")):
            axes.set_xticks(dataset[name].values, [f"{value:g}" for value in dataset[name].values])
            axes.minorticks_off()
            shared.plain(axes, letter)
        over_rho.legend(fontsize=6, loc="upper left")
        low, high = over_rho.get_ylim()
        over_rho.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
        count = dataset.sizes["seed"]
        canvas.supxlabel(
            f"means over {count} minimizers with 95 % confidence intervals; dotted: theory; lost runs left out", fontsize=7
        )
        return canvas


def _line(axes, here, name, color, label):
    x = here[name].values
    parts = [interval(each)[:2] for each in here["rate"].transpose(name, "seed").values]
    mean, half = (np.array(part) for part in zip(*parts, strict=True))
    axes.errorbar(x, mean, np.nan_to_num(half), color=color, marker="o", markersize=3, capsize=2, linestyle="none", label=label)
    axes.plot(x, here["theory"].mean("seed").values, color=color, linewidth=0.9, linestyle="dotted")


sam_rates = Experiment(
    name="sam-rates",
    summary="drift of SAM, average SAM and their IRE forms along a network's minimizers: exponents of η and ρ against the theory",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={
        "learning_rates": (0.005, 0.01, 0.02, 0.04),
        "rhos": (0.003, 0.006, 0.012, 0.024),
        "seeds": 12,
        "directions": 64,
        "images": 10,
        "width": 8,
    },
)
