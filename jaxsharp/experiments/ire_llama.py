"""Does IRE make the pre-training of a language model faster? AdamW and IRE on AdamW on a small Llama, both tuned."""

import os
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from jaxsharp import data, models, optimizers, plots, probes, problems
from jaxsharp.experiments import shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.schedule import rise_and_fall
from jaxsharp.experiments.tables import aligned, failures, interval, with_interval
from jaxsharp.experiments.tuning import cross_fitted
from jaxsharp.simulation import sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = {"15K": (16, 2, 2), "100K": (48, 3, 4), "1M": (128, 5, 4), "8M": (320, 6, 5), "60M": (640, 12, 10)}
"""Width, depth and heads by about how many parameters that makes with bytes for tokens."""

MOMENTS = (0.9, 0.95)
"""β1 and β2 of AdamW."""


@dataclass(frozen=True)
class Settings:
    """Settings of ire-llama; each field says what it is."""

    path: str = setting("", "a text file; where empty, the source of Python's standard library")
    size: str = setting("15K", f"parameters of the model, about: one of {', '.join(SIZES)}")
    learning_rates: tuple[float, ...] = setting((0.01, 0.03, 0.09), "learning rates η, the peaks of the schedule")
    kappas: tuple[float, ...] = setting((1.0, 4.0), "IRE strengths κ above 0; 0, plain AdamW, always runs")
    gamma: float = setting(0.6, "fraction γ of flat parameters")
    ire_every: int = setting(10, "steps between IRE's estimates of curvature")
    ema: float = setting(0.9, "weight of IRE's earlier estimates")
    estimator: str = setting("fisher", "IRE's estimator: squared_gradient, fisher or hutchinson")
    seeds: int = setting(3, "initializations, each with its own order of the text")
    steps: int = setting(250, "optimizer steps of a run, the length of its cosine schedule")
    stretches: tuple[float, ...] = setting((0.5, 2.0), "further runs of AdamW, so many times as long, each with its own schedule")
    rise: float = setting(0.1, "share of a run in which the learning rate rises")
    start: float = setting(0.2, "share of a run before IRE sets in")
    weight_decay: float = setting(0.1, "AdamW's weight decay, of matrices alone")
    clip: float = setting(1.0, "largest norm of a gradient")
    length: int = setting(32, "bytes in a window")
    minibatch: int = setting(16, "windows a step")
    windows: int = setting(20_000, "training windows")
    test_windows: int = setting(256, "held-out windows, and training windows that the training loss is measured on")
    measurements: int = setting(25, "measurements along a run")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_positive(self, "learning_rates", "kappas", "stretches")
        counts = ("ire_every", "seeds", "steps", "length", "minibatch", "windows", "test_windows", "measurements")
        shared.check_counts(self, *counts)
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {self.size!r}.")
        if self.estimator not in ("squared_gradient", "fisher", "hutchinson"):
            raise ValueError(f"estimator must be squared_gradient, fisher or hutchinson, got {self.estimator!r}.")
        if not (0 < self.rise < 1 and 0 <= self.start < 1 and 0 <= self.ema < 1 and 0 <= self.gamma <= 1):
            raise ValueError("rise must lie between 0 and 1, start and ema in [0, 1) and gamma in [0, 1].")
        if not (self.weight_decay >= 0 and self.clip > 0):
            raise ValueError("weight_decay must be at least 0 and clip above 0.")
        if 1.0 in self.stretches or min(self.stretches) * self.steps < self.measurements or self.measurements > self.steps:
            raise ValueError("stretches must not hold 1, and their runs must have at least as many steps as measurements.")


@dataclass(frozen=True)
class _Rule:
    """AdamW with IRE inside clipping and a schedule whose length is data: runs of any length share a program."""

    gamma: float
    every: int
    ema: float
    estimator: str
    rise: float
    start: float
    weight_decay: float
    clip: float

    __name__ = "admire"

    def __call__(self, learning_rate, kappa, horizon):
        adamw = optax.adamw(learning_rate, *MOMENTS, weight_decay=self.weight_decay, mask=_matrices)
        begin = jnp.round(self.start * horizon).astype(jnp.int32)
        options = {"estimator": self.estimator, "ema": self.ema}
        enlarged = optimizers.ire(adamw, kappa, self.gamma, self.every, begin, **options)
        factor = partial(rise_and_fall, horizon=horizon, rise=self.rise)
        return optax.chain(optax.clip_by_global_norm(self.clip), enlarged, optax.scale_by_schedule(factor))


def _matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@lru_cache(maxsize=16)
def _factory(rule, horizon):
    def admire(learning_rate, kappa):
        return optimizers.Optimizer(rule, {"learning_rate": learning_rate, "kappa": kappa, "horizon": float(horizon)})

    return admire


@lru_cache(maxsize=4)
def _problem(path, size, length, windows, test_windows, double):
    """Cached, since equal objects let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    train, test = data.text(path or None, windows, test_windows, length=length)
    width, depth, heads = SIZES[size]
    tokens = 1 + max(int(part.max()) for pair in (train, test) for part in pair)
    model = models.Llama(tokens, width, depth, heads, outputs=tokens)  # not every byte need be in the training windows
    return problems.supervised(model, train, test, loss="cross_entropy")


def _held_out(problem, params):
    return problem.metrics(params)["test_loss"]  # the rest is not computed


def _training(problem, params):
    return problem.take(jnp.arange(min(problem.samples, problem.data.test.inputs.shape[0]))).loss(params)


PROBES = (
    probes.function("held_out_loss", _held_out, long_name="held-out loss", units="nat per byte"),
    probes.function("training_loss", _training, long_name="training loss", units="nat per byte"),
)


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Trains a Llama on bytes with AdamW and AdmIRE for every learning rate, κ and seed, and AdamW for other lengths as well.

    All runs share one compiled program.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions kappa (0 first: AdamW), learning_rate, seed, step: `held_out_loss`, `training_loss`,
        `status`; and with the dimensions stretch, learning_rate, seed: `adamw_loss`, the held-out loss at the end of runs of
        AdamW so many times as long, and `adamw_status`.

    Raises:
        ValueError: for a text that cannot be read or is too short, or a checkpoint of other settings.
    """
    sizes = (settings.size, settings.length, settings.windows, settings.test_windows)
    problem = _problem(settings.path, *sizes, bool(jax.config.jax_enable_x64))
    names = ("gamma", "ire_every", "ema", "estimator", "rise", "start", "weight_decay", "clip")
    rule = _Rule(*(getattr(settings, name) for name in names))
    parts = {}
    for stretch in (1.0, *sorted(settings.stretches)):
        kappas = (0.0, *sorted(settings.kappas)) if stretch == 1 else (0.0,)
        steps = round(stretch * settings.steps)
        if progress:
            shared.say(f"{len(kappas) * len(settings.learning_rates) * settings.seeds} trajectories of {steps} steps")
        parts[stretch] = sweep(
            problem,
            _factory(rule, steps),
            {"kappa": kappas, "learning_rate": sorted(settings.learning_rates)},
            seeds=settings.seeds,
            steps=steps,
            every=steps // settings.measurements,
            probes=PROBES,
            minibatch=settings.minibatch,
            checkpoint=None if checkpoint is None else Path(checkpoint) / f"{stretch:g}",
            progress=progress,
        )
    ds = parts[1.0][["held_out_loss", "training_loss", "status"]]
    ends = {name: part.sel(kappa=0.0).isel(step=-1) for name, part in sorted(parts.items())}
    stretch = xr.DataArray(sorted(parts), dims="stretch", name="stretch")
    ds["adamw_loss"] = xr.concat([end["held_out_loss"].drop_vars(("kappa", "step")) for end in ends.values()], stretch)
    ds["adamw_status"] = xr.concat([end["status"].drop_vars(("kappa", "step")) for end in ends.values()], stretch)
    titles = {"kappa": "IRE strength κ", "stretch": "length of AdamW's run over that of the others"}
    shared.label(ds, learning_rate="learning rate η", **titles)
    ds["adamw_loss"].attrs = {"long_name": "held-out loss at the end of AdamW", "units": "nat per byte"}
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(problem.init, jax.random.key(0))))
    source = f"{Path(settings.path).name}" if settings.path else "the source of Python's standard library"
    ds.attrs = shared.provenance(parts, f"Llama of {count:,} parameters on bytes of {source}")
    ds.attrs |= {"tokens_per_step": settings.length * settings.minibatch}
    return ire_llama.label(ds, settings)


def reached(steps: np.ndarray, curve: np.ndarray, level: float) -> float:
    """The step at which a loss curve first meets a level, in a straight line between measurements; NaN where it never does.

    Example:
        >>> import numpy as np
        >>> float(reached(np.array([0, 10, 20]), np.array([3.0, 2.0, 1.0]), 1.5))
        15.0
    """
    below = np.flatnonzero(curve <= level)
    if below.size == 0:
        return float("nan")
    first = below[0]
    if first == 0:
        return float(steps[0])
    share = (curve[first - 1] - level) / (curve[first - 1] - curve[first])
    return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))


def speedup_within(dataset: xr.Dataset, kappa: float, learning_rate: float) -> np.ndarray:
    """The speed-up as the paper measures it, at one learning rate for both: steps of AdamW over steps to AdamW's last loss.

    Where AdmIRE ends above AdamW it is turned round: the share of its steps in which AdamW reaches AdmIRE's last loss.

    Args:
        dataset: from `run`.
        kappa: of AdmIRE.
        learning_rate: of both.

    Returns:
        (seeds,) numbers; NaN where a run failed.
    """
    steps, here = dataset["step"].values, dataset["held_out_loss"].sel(learning_rate=learning_rate)
    found = []
    for plain, fast in zip(here.sel(kappa=0.0).values, here.sel(kappa=kappa).values, strict=True):
        if not (np.isfinite(plain[-1]) and np.isfinite(fast[-1])):
            found.append(float("nan"))
        elif fast[-1] <= plain[-1]:
            found.append(steps[-1] / reached(steps, fast, plain[-1]))
        else:
            found.append(reached(steps, plain, fast[-1]) / steps[-1])
    return np.array(found)


def tuned(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """What tuned runs end with, each seed at the learning rate, and for AdmIRE the κ, that the other seeds choose.

    Args:
        dataset: from `run`.

    Returns:
        `admire` (seeds,), the held-out loss; `adamw` (stretches, seeds); `speedup` (seeds,), how many times as many steps a
        tuned AdamW with a schedule of its own takes for the loss of a tuned AdmIRE, log steps in a straight line between the
        stretches that ran and beyond.
    """
    end = dataset["held_out_loss"].isel(step=-1)
    admire = cross_fitted(end.where(end["kappa"] > 0, drop=True).transpose("kappa", "learning_rate", "seed").values)
    losses = dataset["adamw_loss"].transpose("stretch", "learning_rate", "seed").values
    adamw = np.stack([cross_fitted(each) for each in losses])
    logs = np.log(dataset["stretch"].values)
    speedup = [np.exp(_crossing(logs, adamw[:, seed], admire[seed])) for seed in range(admire.size)]
    return {"admire": admire, "adamw": adamw, "speedup": np.array(speedup)}


def _crossing(x, falling, level):
    """Where a broken line meets a level; its first and last pieces go on for ever."""
    if not (np.isfinite(falling).all() and np.isfinite(level)):
        return float("nan")
    piece = int(np.clip(np.sum(falling[1:-1] > level), 0, len(x) - 2))
    slope = (falling[piece + 1] - falling[piece]) / (x[piece + 1] - x[piece])
    return x[piece] + (level - falling[piece]) / slope if slope < 0 else float("nan")


def table(dataset: xr.Dataset) -> str:
    """Compares AdmIRE with AdamW at each learning rate, then both tuned.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals, differences paired by seed.
    """
    header = ("κ", "η", "training loss", "held-out loss", "− AdamW", "speed-up within a run")
    rows, end = [], dataset.isel(step=-1)
    for kappa in dataset["kappa"].values:
        for rate in dataset["learning_rate"].values:
            here, plain = end.sel(kappa=kappa, learning_rate=rate), end.sel(kappa=0.0, learning_rate=rate)
            cells = [f"{kappa:g}", f"{rate:g}"]
            cells += [with_interval(here[name], places=4) for name in ("training_loss", "held_out_loss")]
            more = (
                with_interval(here["held_out_loss"] - plain["held_out_loss"], places=4),
                with_interval(speedup_within(dataset, kappa, rate), places=3),
            )
            rows.append((*cells, *(more if kappa > 0 else ("", ""))))
    best, count, steps = tuned(dataset), dataset.sizes["seed"], int(dataset["step"][-1])
    one = dataset["stretch"].values.tolist().index(1.0)
    lengths = [
        (f"{round(stretch * steps)}", with_interval(best["adamw"][index], places=4))
        for index, stretch in enumerate(dataset["stretch"].values)
    ]
    mean, half, _ = interval(best["speedup"])
    lines = [
        f"{dataset.attrs['title']}; {steps} steps of {dataset.attrs['tokens_per_step']} bytes, {count} seeds.",
        "Mean over seeds ± half width of the 95 % confidence interval, losses in nat per byte, differences paired by seed.",
        "κ = 0: AdamW. Speed-up within a run, as the paper measures it: steps of AdamW over steps after which AdmIRE, at the",
        "same learning rate, meets AdamW's last loss; where AdmIRE ends higher, the share in which AdamW meets its loss.",
        "",
        *aligned([header, *rows]),
        "",
        "Both tuned, each seed at the learning rate (and κ) that the other seeds choose; each run has its own cosine schedule.",
        *aligned([("steps", "held-out loss of AdamW"), *lengths]),
        f"AdmIRE after {steps} steps: {with_interval(best['admire'], places=4)}, "
        f"minus AdamW: {with_interval(best['admire'] - best['adamw'][one], places=4)}.",
        f"Steps of a tuned AdamW for the same loss, over {steps}: {mean:.3f} ± {half:.3f}.",
        *failures(dataset["status"].astype(int)),
        *failures(dataset["adamw_status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws held-out loss against steps, its end against learning rate, and against the length of AdamW's run.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide.
    """
    with shared.paper():
        canvas = plots.new_figure((7.0, 2.8))
        curves, rates, lengths = canvas.subplots(1, 3)
        colors = plots.COLORS if dataset.sizes["kappa"] <= len(plots.COLORS) else plots.shades(dataset.sizes["kappa"])
        _curves(curves, dataset, colors)
        end = dataset["held_out_loss"].isel(step=-1)
        for kappa, color in zip(dataset["kappa"].values, colors, strict=False):
            parts = [interval(end.sel(kappa=kappa, learning_rate=rate)) for rate in dataset["learning_rate"].values]
            x, (mean, half, _) = dataset["learning_rate"].values, zip(*parts, strict=True)
            rates.errorbar(x, mean, np.nan_to_num(half), color=color, marker="o", markersize=3, capsize=2, linewidth=1)
        rates.set(xscale="log", xlabel="learning rate η", ylabel="held-out loss, end [nat per byte]")
        rates.set_xticks(x, [f"{rate:g}" for rate in x])
        rates.minorticks_off()
        _lengths(lengths, dataset)
        for axes, letter in ((curves, "(a)"), (rates, "(b)"), (lengths, "(c)")):
            shared.plain(axes, letter)
        count = dataset.sizes["seed"]
        canvas.supxlabel(f"(a): medians of {count} seeds, bands: least and largest; (b, c): means, 95 % intervals", fontsize=7)
        return canvas


def _curves(axes, dataset, colors):
    """Each κ at the learning rate where its mean is least, from a tenth of the run on."""
    end = dataset["held_out_loss"].isel(step=-1).mean("seed")
    for kappa, color in zip(dataset["kappa"].values, colors, strict=False):
        here = end.sel(kappa=kappa).fillna(np.inf)
        rate = float(here["learning_rate"][int(here.argmin("learning_rate"))])
        name = f"κ = {kappa:g}, η = {rate:g}" if kappa > 0 else f"AdamW, η = {rate:g}"
        later = dataset[["held_out_loss"]].sel(kappa=kappa, learning_rate=rate)
        later = later.sel(step=slice(0.1 * float(dataset["step"][-1]), None))
        plots.draw(axes, later, "held_out_loss", label=name, color=color, linewidth=1)
    axes.set(xlabel="optimizer steps", ylabel="held-out loss [nat per byte]")
    axes.legend()


def _lengths(axes, dataset):
    best, steps = tuned(dataset), float(dataset["step"][-1])
    x = steps * dataset["stretch"].values
    mean, half, _ = zip(*(interval(each) for each in best["adamw"]), strict=True)
    axes.errorbar(x, mean, np.nan_to_num(half), color=plots.COLORS[0], marker="o", markersize=3, capsize=2, label="AdamW")
    mean, half, _ = interval(best["admire"])
    half = np.nan_to_num(half)
    axes.errorbar([steps], [mean], [half], color=plots.COLORS[1], marker="s", markersize=4, capsize=2, label="AdmIRE")
    axes.axhline(mean, color=plots.COLORS[1], linewidth=0.6, linestyle="dotted")
    axes.set(xscale="log", xlabel="steps of the schedule", ylabel="held-out loss, tuned [nat per byte]")
    axes.set_xticks(x, [f"{round(each)}" for each in x])
    axes.minorticks_off()
    axes.legend()


ire_llama = Experiment(
    name="ire-llama",
    summary="a small Llama on text with AdamW and with IRE on AdamW: held-out loss, speed-up as the paper measures it and tuned",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={
        "size": "1M",
        "learning_rates": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        "seeds": 5,
        "steps": 2000,
        "length": 128,
        "minibatch": 32,
        "windows": 12_000,
        "test_windows": 512,
    },
    precision="float32",
)
