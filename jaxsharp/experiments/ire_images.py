"""Does IRE help on images? SGD, SGD-IRE, SAM and SAM-IRE, each tuned on a validation split, for a ResNet and a ViT."""

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
from jax.flatten_util import ravel_pytree

from jaxsharp import data, models, optimizers, plots, problems
from jaxsharp.data import Dataset
from jaxsharp.experiments import shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.schedule import rise_and_fall
from jaxsharp.experiments.tables import aligned, failures, interval, with_interval
from jaxsharp.simulation import simulate, sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = {"SGD": (False, False), "SGD-IRE": (False, True), "SAM": (True, False), "SAM-IRE": (True, True)}
"""Whether ρ and whether κ are above 0."""

NETWORKS = {
    "resnet": lambda width, patch: models.ResNet(depth=8, width=width, norm="batch"),
    "vit": lambda width, patch: models.ViT(width=2 * width, depth=2, heads=4, patch=patch),
}
"""Small networks by name, of a width; patches have so many pixels a side."""

TITLES = {"resnet": "ResNet-8", "vit": "ViT"}

FIRST_TUNING_SEED = 1000
"""Runs that tune draw other seeds than those that are judged."""

SHOWN = {"test_accuracy": "test accuracy [%]", "sharpness": "sharpness λ1", "trace": "trace of the Hessian"}
"""What the figure shows."""


@dataclass(frozen=True)
class Settings:
    """Settings of ire-images; each field says what it is."""

    path: str = setting("", "folder of CIFAR-10, see js.data.cifar10; where empty, the digits")
    networks: tuple[str, ...] = setting(("resnet",), f"networks: {', '.join(NETWORKS)}")
    learning_rates: tuple[float, ...] = setting((0.05, 0.1), "learning rates η to choose from, the peaks of the schedule")
    rhos: tuple[float, ...] = setting((0.1,), "SAM's radii ρ to choose from")
    kappas: tuple[float, ...] = setting((1.0,), "IRE strengths κ to choose from")
    gamma: float = setting(0.8, "fraction γ of flat parameters")
    ire_every: int = setting(10, "steps between IRE's estimates of curvature")
    ema: float = setting(0.9, "weight of IRE's earlier estimates")
    momentum: float = setting(0.9, "momentum of SGD, also inside SAM")
    weight_decay: float = setting(5e-4, "weight decay")
    tuning_seeds: int = setting(1, "seeds of each choice on the validation split")
    seeds: int = setting(3, "seeds of each method on the test set, others than those")
    steps: int = setting(200, "optimizer steps")
    rise: float = setting(0.1, "share of a run in which the learning rate rises")
    start: float = setting(0.2, "share of a run before IRE sets in")
    minibatch: int = setting(30, "images a step")
    images: int = setting(300, "training images")
    held_out: int = setting(500, "images of the validation split, and again of the test set")
    width: int = setting(8, "channels of the ResNet's first stage; the ViT is twice as wide")
    data_seed: int = setting(0, "seed of the choice of images")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_positive(self, "learning_rates", "rhos", "kappas")
        shared.check_counts(self, "ire_every", "tuning_seeds", "steps", "minibatch", "images", "held_out", "width")
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, for an interval, got {self.seeds}.")
        unknown = [name for name in self.networks if name not in NETWORKS]
        if unknown or not self.networks or len(set(self.networks)) < len(self.networks):
            raise ValueError(f"networks must be distinct names out of {', '.join(NETWORKS)}, got {self.networks}.")
        if not (0 < self.rise < 1 and 0 <= self.start < 1 and 0 <= self.ema < 1 and 0 <= self.gamma <= 1):
            raise ValueError("rise must lie between 0 and 1, start and ema in [0, 1) and gamma in [0, 1].")
        if not (0 < self.momentum < 1 and self.weight_decay >= 0):
            raise ValueError("momentum must lie between 0 and 1 and weight_decay be at least 0.")
        if self.minibatch > self.images:
            raise ValueError(f"minibatch={self.minibatch} is larger than images={self.images}.")


@dataclass(frozen=True)
class _Rule:
    """All four methods: SGD with momentum inside SAM inside IRE inside a schedule; ρ = 0 and κ = 0 leave theirs out."""

    gamma: float
    every: int
    ema: float
    momentum: float
    weight_decay: float
    rise: float
    start: float

    __name__ = "sam_ire"

    def __call__(self, learning_rate, rho, kappa, horizon):
        sgd = optimizers.gd(learning_rate, self.weight_decay, self.momentum)
        begin = jnp.round(self.start * horizon).astype(jnp.int32)
        options = {"estimator": "fisher", "ema": self.ema}
        enlarged = optimizers.ire(optimizers.sam(sgd, rho), kappa, self.gamma, self.every, begin, **options)
        return optax.chain(enlarged, optax.scale_by_schedule(partial(rise_and_fall, horizon=horizon, rise=self.rise)))


@lru_cache(maxsize=16)
def _factory(rule, horizon):
    def sam_ire(learning_rate, rho, kappa):
        numbers = {"learning_rate": learning_rate, "rho": rho, "kappa": kappa, "horizon": float(horizon)}
        return optimizers.Optimizer(rule, numbers)

    return sam_ire


@lru_cache(maxsize=4)
def _problems(network, path, images, held_out, width, data_seed, double):
    """The problem with the validation split, and the same with the test set; cached, so that later runs reuse programs."""
    del double  # distinguishes the precisions
    if path:
        both, test = data.cifar10(path, images + held_out, held_out, seed=data_seed)
    else:
        both, test = data.digits(images + held_out, held_out, seed=data_seed, flatten=False)
    train, validation = (Dataset(*(part[rows] for part in both)) for rows in (slice(images), slice(images, None)))
    model = NETWORKS[network](width, patch=4 if path else 2)
    return tuple(problems.supervised(model, train, part, loss="cross_entropy") for part in (validation, test))


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Tunes each method on the validation split, then runs it with other seeds and looks at the test set once.

    Training images, validation split and test set do not overlap; the validation split is no part of the final training.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions network, optimizer, seed: `test_accuracy`, `test_loss`, `loss`, `train_accuracy`,
        `sharpness`, `trace` and its error at the end, `status`; the numbers chosen, `learning_rate`, `rho`, `kappa`, by
        network and optimizer; and with the dimensions network, learning_rates, rhos, kappas (0 first), tuning_seed:
        `validation_accuracy`, `validation_loss`, `tuning_status`.

    Raises:
        ValueError: for images that are missing or too few, or a checkpoint of other settings.
    """
    names = ("gamma", "ire_every", "ema", "momentum", "weight_decay", "rise", "start")
    factory = _factory(_Rule(*(getattr(settings, name) for name in names)), settings.steps)
    sizes = (settings.path, settings.images, settings.held_out, settings.width, settings.data_seed)
    grid = {"learning_rate": sorted(settings.learning_rates), "rho": (0.0, *sorted(settings.rhos))}
    grid["kappa"] = (0.0, *sorted(settings.kappas))
    common = {"steps": settings.steps, "every": settings.steps, "minibatch": settings.minibatch, "progress": progress}
    common |= {"probes": ("metrics", "loss", "parameters")}
    parts, found = {}, []
    for network in settings.networks:
        validation, test = _problems(network, *sizes, bool(jax.config.jax_enable_x64))
        folder = None if checkpoint is None else Path(checkpoint) / network
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + settings.tuning_seeds)
        if progress:
            shared.say(f"{TITLES[network]}: {np.prod([len(v) for v in grid.values()]) * len(seeds)} runs to tune")
        tuning = sweep(validation, factory, grid, seeds=seeds, checkpoint=folder and folder / "tuning", **common)
        parts[network, "tuning"], tuning = tuning, tuning.isel(step=-1, drop=True)
        ends = []
        for name in METHODS:
            point = chosen(tuning, name)
            if progress:
                shared.say(f"{TITLES[network]}, {name}: {settings.seeds} runs at {point}")
            over = {key: (value,) for key, value in point.items()}
            where = folder and folder / name
            part = parts[network, name] = sweep(test, factory, over, seeds=settings.seeds, checkpoint=where, **common)
            end = part.isel(step=-1, drop=True).isel(dict.fromkeys(point, 0)).reset_coords(list(point))
            curved = parts[network, name, "curvature"] = _curvature(test, end)
            end = end[[*point, *_KEPT]].merge(curved.drop_vars("status"))
            ends.append(end.assign(status=end["status"] | curved["status"]).drop_attrs(deep=False))
        judged = xr.concat(ends, xr.DataArray(list(METHODS), dims="optimizer", name="optimizer"))
        renamed = {"test_accuracy": "validation_accuracy", "test_loss": "validation_loss", "status": "tuning_status"}
        tuning = tuning[list(renamed)].rename({**renamed, "seed": "tuning_seed", **{name: f"{name}s" for name in grid}})
        found.append(judged.merge(tuning.drop_attrs(deep=False)))
    ds = xr.concat(found, xr.DataArray(list(settings.networks), dims="network", name="network"))
    shared.label(ds, sharpness="sharpness λ1", rho="SAM's radius ρ", kappa="IRE strength κ", learning_rate="learning rate η")
    words = f"CIFAR-10, {settings.images} images" if settings.path else f"digits, {settings.images} images"
    ds.attrs = shared.provenance(parts, f"SGD, SAM and IRE on {words}, minibatches of {settings.minibatch}")
    ds.attrs |= {"steps": settings.steps, "held_out": settings.held_out}
    return ire_images.label(ds, settings)


_KEPT = ("test_accuracy", "test_loss", "loss", "train_accuracy", "status")


def _curvature(problem, end):
    """Sharpness and trace at the end of each run; measured apart, since a program that also trains compiles twice as long."""
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))[1]
    runs = []
    for row in end["parameters"].values:
        at = unravel(jnp.asarray(np.where(np.isfinite(row), row, 0), jnp.result_type(float)))
        runs.append(simulate(problem, optimizers.gd(0.0), 0, init=at, probes=("sharpness", "trace")))
    joined = xr.concat([run.isel(step=0, drop=True) for run in runs], end["seed"])
    values = joined[["sharpness", "trace", "trace_error"]].where(np.isfinite(end["loss"]))
    sums = {name: sum(run.attrs[name] for run in runs) for name in ("wall_time_seconds", "hvp_count")}
    return values.assign(status=joined["status"]).assign_attrs(sums)


def chosen(tuning: xr.Dataset, method: str) -> dict[str, float]:
    """The numbers of a method with the best mean accuracy on the validation split, of equals those with the least loss.

    Args:
        tuning: `test_accuracy`, `test_loss` and `status` on that split, with the dimensions learning_rate, rho, kappa, seed.
        method: a name in `METHODS`.

    Returns:
        Values by name. A choice with a run that failed comes last.
    """
    with_sam, with_ire = METHODS[method]
    allowed = tuning.sel(rho=[x for x in tuning["rho"].values if (x > 0) == with_sam])
    allowed = allowed.sel(kappa=[x for x in tuning["kappa"].values if (x > 0) == with_ire])
    means = allowed.mean("seed", skipna=False).stack(choice=("learning_rate", "rho", "kappa"))
    accuracy = np.nan_to_num(means["test_accuracy"].values, nan=-np.inf)
    loss = np.nan_to_num(means["test_loss"].values, nan=np.inf)
    best = np.lexsort((loss, -accuracy))[0]
    return {name: float(means[name].values[best]) for name in ("learning_rate", "rho", "kappa")}


def table(dataset: xr.Dataset) -> str:
    """Compares the four methods with SGD, a row for each network and method.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals, differences paired by seed.
    """
    header = ("network", "method", "η", "ρ", "κ", "test accuracy [%]", "− SGD", "test loss − SGD")
    header = (*header, "training loss", "λ1", "log λ1 − SGD", "trace", "log trace − SGD", "failed")
    rows = []
    for network in dataset["network"].values:
        plain = dataset.sel(network=network, optimizer="SGD")
        for method in METHODS:
            here = dataset.sel(network=network, optimizer=method)
            failed, differs = stopped(here["status"]), method != "SGD"
            gain = with_interval(100 * (here["test_accuracy"] - plain["test_accuracy"]), places=2)
            cells = [TITLES[str(network)], method, *(f"{float(here[name]):g}" for name in ("learning_rate", "rho", "kappa"))]
            cells += [with_interval(100 * here["test_accuracy"], places=2), gain if differs else ""]
            loss = with_interval(here["test_loss"] - plain["test_loss"], places=4)
            cells += [loss if differs else "", with_interval(here["loss"])]
            for name in ("sharpness", "trace"):
                logs = with_interval(_log(here[name]) - _log(plain[name]), places=2)
                cells += [with_interval(here[name]), logs if differs else ""]
            rows.append((*cells, f"{int(failed.sum())} of {failed.size}"))
    held_out, seeds = dataset.attrs["held_out"], dataset.sizes["tuning_seed"]
    runs = dataset.sizes["learning_rates"] * dataset.sizes["rhos"] * dataset.sizes["kappas"]
    lines = [
        f"{dataset.attrs['title']}, {dataset.attrs['steps']} steps; {dataset.sizes['seed']} seeds.",
        "Mean over seeds ± half width of the 95 % confidence interval; differences paired by seed, those of λ1 and the trace in",
        "logarithms, of positive values alone. λ1 and trace: of the Hessian of the training loss on all images, without decay,",
        f"at the end. η, ρ, κ of each method: the best of its share of {runs} choices, with {seeds} other seeds each, by",
        f"accuracy on a validation split of {held_out} images. Test set: {held_out} other images, looked at once.",
        "",
        *aligned([header, *rows]),
        *failures(dataset["status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def _log(values):
    return np.log(values.where(values > 0))


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws test accuracy, sharpness and trace of each method: a point for each seed, means with 95 % confidence intervals.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide, a row for each network.
    """
    with shared.paper():
        rows = dataset.sizes["network"]
        canvas = plots.new_figure((7.0, 0.5 + 2.1 * rows))
        panels = canvas.subplots(rows, len(SHOWN), squeeze=False, sharex=True)
        for row, network in zip(panels, dataset["network"].values, strict=True):
            for axes, (name, words) in zip(row, SHOWN.items(), strict=True):
                here = dataset[name].sel(network=network)
                _points(axes, 100 * here if name == "test_accuracy" else here)
                axes.set_ylabel(words)
                shared.plain(axes)
            shared.plain(row[0], TITLES[str(network)])
        count = dataset.sizes["seed"]
        canvas.supxlabel(f"method; points: {count} seeds; bars: means with 95 % confidence intervals", fontsize=7)
        return canvas


def _points(axes, values):
    count = values.sizes["seed"]
    for place, (method, color) in enumerate(zip(METHODS, plots.COLORS, strict=False)):
        here = values.sel(optimizer=method).values
        axes.plot(place - 0.15 + 0.1 * np.linspace(-1, 1, count), here, ".", color=color, markersize=4, alpha=0.6)
        mean, half, _ = interval(here)
        axes.errorbar([place + 0.15], [mean], [np.nan_to_num(half)], color=color, marker="_", markersize=8, capsize=3)
    axes.set_xticks(range(len(METHODS)), METHODS, rotation=30)
    axes.set_xlim(-0.5, len(METHODS) - 0.5)


ire_images = Experiment(
    name="ire-images",
    summary="SGD, SAM and IRE on both, each tuned, for a ResNet and a ViT on digits or CIFAR-10: test accuracy, sharpness, trace",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={
        "networks": ("resnet", "vit"),
        "learning_rates": (0.02, 0.05, 0.1, 0.2),
        "rhos": (0.05, 0.1, 0.2),
        "kappas": (1.0, 3.0),
        "tuning_seeds": 3,
        "seeds": 16,
        "steps": 1000,
        "width": 16,
    },
    precision="float32",
)
