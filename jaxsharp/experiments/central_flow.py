"""Central flows against the optimizers they predict, GD and RMSProp, on four kinds of networks."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree

from jaxsharp import data, flows, models, optimizers, plots, preconditioning, problems
from jaxsharp.curvature import Operator, hessian_operator, preconditioned, top_eigenpairs
from jaxsharp.experiments import edge_study, shared
from jaxsharp.experiments.edge_study import Predictor
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.tables import aligned, failures, with_interval
from jaxsharp.probes.probe import FunctionProbe, Variable
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Network(NamedTuple):
    """A network of the study.

    Attributes:
        label: in tables and figures.
        model: of flax.
        task: `digits`, flat or as `images`, with squared loss, or `sorting` with cross-entropy.
        rates: learning rates by optimizer.
        scale: factor on the usual initialization, so that GD starts below its edge.
    """

    label: str
    model: Callable
    task: str
    rates: dict[str, float]
    scale: float = 1.0


NETWORKS = {
    "mlp": Network("MLP", lambda: models.MLP(widths=(24, 16)), "digits", {"gd": 0.6, "rmsprop": 0.002}, 0.5),
    "cnn": Network("CNN", lambda: models.CNN(widths=(6, 8)), "images", {"gd": 0.4, "rmsprop": 0.002}),
    "vit": Network("ViT", lambda: models.ViT(width=12, depth=1, heads=2, hidden=24), "images", {"gd": 0.2, "rmsprop": 0.002}),
    "transformer": Network(
        "sorting", lambda: models.Transformer(width=12, depth=1, heads=2, hidden=24), "sorting", {"gd": 0.05, "rmsprop": 0.002}
    ),
}
"""The networks by the name that the setting `networks` takes."""

OPTIMIZERS = {
    "gd": ("GD", optimizers.gd),
    "rmsprop": ("RMSProp", lambda rate: optimizers.rmsprop(rate, beta2=0.99, eps=1e-7)),
}
"""The optimizers by the name that the setting `optimizers` takes."""

TOLERANCE = 1e-3
"""Relative residual of the flows' eigenpairs."""

FLOWS = {
    "stable": "stable flow",
    "central": "central",
    "corrected": "central, corrected",
    "edge": "edge",
}
"""Labels of the flows; for GD the stable one is gradient flow, and only GD has an edge flow."""

EIGENVALUES = 3
"""How many eigenvalues of the optimizer are measured."""


@dataclass(frozen=True)
class Settings:
    """Settings of central-flow; each field says what it is."""

    networks: tuple[str, ...] = setting(("mlp", "vit"), f"which of {', '.join(NETWORKS)}")
    optimizers: tuple[str, ...] = setting(("gd", "rmsprop"), f"which of {', '.join(OPTIMIZERS)}")
    flows: tuple[str, ...] = setting(("stable", "corrected"), f"which of {', '.join(FLOWS)}; others are set against the first")
    factors: tuple[float, ...] = setting((1.0,), "factors on each network's learning rates")
    seeds: int = setting(2, "initializations")
    steps: int = setting(400, "optimizer steps")
    every: int = setting(10, "optimizer steps between measurements")
    shown: tuple[int, ...] = setting((100, 200, 300, 400), "steps at which the table shows distances")
    directions: int = setting(5, "directions that the central flows track")
    samples: int = setting(100, "training images or sequences")

    def __post_init__(self):
        """Refuses what makes no sense."""
        for name, known in (("networks", NETWORKS), ("optimizers", OPTIMIZERS), ("flows", FLOWS)):
            chosen = getattr(self, name)
            if not chosen or any(each not in known for each in chosen):
                raise ValueError(f"{name} must be some of {', '.join(known)}, got {', '.join(chosen) or 'none'}.")
        shared.check_positive(self, "factors")
        shared.check_counts(self, "samples")
        edge_study.check(self)


@lru_cache(maxsize=16)
def _problem(name, samples, double):
    """The problem and the start of a seed; cached, since equal functions let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    _, make, task, _, scale = NETWORKS[name]
    if task == "sorting":
        train, _ = data.sorting(samples, 1, length=4, values=6)
    else:
        train, _ = data.digits(samples, flatten=task == "digits")
    problem = problems.supervised(make(), train, loss="cross_entropy" if task == "sorting" else "mse")

    def start(key):
        return jax.tree.map(lambda leaf: scale * leaf, problem.init(key))

    return problem, start


@dataclass(frozen=True)
class _EdgeRatio:
    """The top eigenvalues of P⁻¹H over 2, P the optimizer's own at its last step; NaN before the first."""

    rule: preconditioning.Preconditioning

    def __call__(self, problem, params, state):
        w, unravel = ravel_pytree(params)
        hyperparams = {name: jnp.asarray(value, w.dtype) for name, value in state.hyperparams.items()}
        moment = getattr(state.inner, "second_moment", None)
        memory = jnp.zeros((), w.dtype) if moment is None else ravel_pytree(moment)[0]
        taken = (state.count - 1).astype(w.dtype)  # a flow's time 0 is the first step
        stiffness = self.rule.stiffness(hyperparams, memory, taken, jnp.ones((), w.dtype))
        hessian = hessian_operator(lambda w: problem.loss(unravel(w)), w)
        pairs = top_eigenpairs(preconditioned(Operator(hessian, w), jnp.broadcast_to(stiffness, w.shape)), w, EIGENVALUES)
        return jnp.where(state.count > 0, pairs.values / 2, jnp.nan)


def _predictors(name, rate, settings):
    """The flows of an optimizer that were asked for."""
    optimizer = OPTIMIZERS[name][1](rate)
    options = {"k": settings.directions, "substeps": 1, "eigen_tolerance": TOLERANCE}
    gd = name == "gd"
    every = {
        "stable": Predictor("gradient flow", flows.gradient(rate), False)
        if gd
        else Predictor("stable flow", flows.stable(optimizer, substeps=8), False),
        "central": Predictor("central", flows.central(optimizer, **options), True),
        "corrected": Predictor("central, corrected", flows.central(optimizer, corrected=True, **options), True),
        "edge": Predictor("edge", flows.edge(rate), True),
    }
    return {key: every[key] for key in settings.flows if gd or key != "edge"}


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs each optimizer and its flows on each network.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        The Datasets of `edge_study.compared` along the dimension `task`, with the coordinates `network`, `optimizer`,
        `learning_rate` and `parameters`; NaN where an optimizer has no such flow.

    Raises:
        ValueError: for a checkpoint of other settings.
    """
    parts, runs = [], []
    for network, name, factor in product(settings.networks, settings.optimizers, settings.factors):
        problem, start = _problem(network, settings.samples, bool(jax.config.jax_enable_x64))
        label, make = OPTIMIZERS[name]
        rate = factor * NETWORKS[network].rates[name]
        task = f"{NETWORKS[network].label}, {label}, rate {rate:g}"
        optimizer = make(rate)
        folder = None if checkpoint is None else Path(checkpoint) / f"{network}-{name}-{factor:g}"
        study = edge_study.Study(problem, start, settings.seeds, settings.steps, settings.every, progress, folder)
        probe = FunctionProbe(
            "edge_ratio",
            _EdgeRatio(preconditioning.of(optimizer)),
            (("edge_ratio", Variable(("eigenvalue",), "η λ / 2")),),
            settings.every,
        )
        ds, attributes = edge_study.compared(
            study, task, optimizer, (probe, "edge_ratio", 1.0), _predictors(name, rate, settings)
        )
        named = {"network": network, "optimizer": name, "learning_rate": rate, "parameters": _size(start)}
        parts.append(ds.reindex(flow=list(settings.flows), fill_value=_MISSING).assign_coords(named))
        runs += list(attributes.values())
    tasks = [f"{part['network'].item()} {part['optimizer'].item()} {part['learning_rate'].item():g}" for part in parts]
    ds = xr.concat(
        parts,
        xr.DataArray(tasks, dims="task", name="task"),
        coords=["network", "optimizer", "learning_rate", "parameters", "seconds"],
    )
    ds.attrs = edge_study.provenance(runs, "Central flows against the optimizers they predict")
    return central_flow.label(ds, settings)


_MISSING = {"status": 0, "distance": np.nan, "oscillation": np.nan, "seconds": np.nan}


def _size(start):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(jax.eval_shape(start, jax.random.key(0))))


def gains(dataset: xr.Dataset, step: int) -> xr.DataArray:
    """How many times nearer to the optimizer each flow is than the first one, at a step."""
    distance = dataset["distance"].sel(step=step)
    return distance.isel(flow=0) / distance


def covariance_ratio(dataset: xr.Dataset) -> xr.DataArray:
    """The predicted trace of the covariance over the measured one, both averaged over the second half of the run."""
    middle = float(dataset["step"][-1]) / 2
    predicted = dataset["oscillation"].where(dataset["step"] > middle, drop=True).mean("step", skipna=False)
    measured = dataset["measured_oscillation"].where(dataset["step_window"] > middle, drop=True).mean("step_window")
    return predicted / measured


def table(dataset: xr.Dataset) -> str:
    """Shows the distance of each flow from its optimizer at fixed steps, and how well it predicts the oscillation.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals.
    """
    settings = json.loads(dataset.attrs["settings"])
    shown = settings["shown"]
    last = f"{FLOWS[settings['flows'][0]]} / it, end"
    rows = [("", "flow", *(str(step) for step in shown), last, "Σ, predicted / measured", "failed")]
    reached, ratio, gain = [], covariance_ratio(dataset), gains(dataset, shown[-1])
    for task in dataset["task"].values:
        here = dataset.sel(task=task)
        steps = edge_study.in_words(edge_study.first_steps(here))
        reached.append(f"{_title(here)}, {int(here['parameters'])} parameters: {steps}")
        title = _title(here)
        for name in here["flow"].values:
            if np.isnan(here["seconds"].sel(flow=name)):
                continue
            cells = [with_interval(here["distance"].sel(flow=name, step=step)) for step in shown]
            better, matched = (values.sel(task=task, flow=name) for values in (gain, ratio))
            cells += ["" if name == settings["flows"][0] else with_interval(better)]
            cells += [with_interval(matched) if np.isfinite(matched).any() else ""]
            lost = stopped(here["status"].sel(flow=name))
            rows.append((title, _label(here, name), *cells, f"{int(lost.sum())} of {lost.size}"))
            title = ""
    lines = [
        f"{dataset.attrs['title']}: {dataset.sizes['seed']} seeds, {settings['samples']} digits or sequences to sort.",
        "Distance of a flow from the optimizer without its oscillation at the same step, mean over seeds ± half width of its",
        "95 % confidence interval; then how many times farther the first flow is at the last of these steps. Σ: the trace of the",
        "covariance of the oscillation, averaged over the second half of the run.",
        "",
        "First measured step with η λ1 / 2 ≥ 1 (λ1 of P⁻¹H for RMSProp), by seed:",
        *reached,
        "",
        *aligned(rows),
        *failures(dataset["status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def _title(task):
    network, optimizer = NETWORKS[task["network"].item()], OPTIMIZERS[task["optimizer"].item()]
    return f"{network.label}, {optimizer[0]}, {float(task['learning_rate']):g}"


def _label(task, flow):
    return "gradient flow" if flow == "stable" and task["optimizer"].item() == "gd" else FLOWS[flow]


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws, for each network and optimizer, its top eigenvalues, the distances of the flows, and the oscillation.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide: lines are medians over seeds, bands reach from the least to the largest.
    """
    count = dataset.sizes["task"]
    styles = {name: {"color": plots.COLORS[number]} for number, name in enumerate(FLOWS)}
    with shared.paper(7):
        canvas = plots.new_figure((7.0, 0.5 + 1.5 * count))
        rows = canvas.subplots(count, 3, squeeze=False, sharex=True)
        for task, (ratio, distance, oscillation) in zip(dataset["task"].values, rows, strict=True):
            here = dataset.sel(task=task)
            edge_study.draw_edge_ratio(ratio, here)
            ratio.set_ylim(0, 1.1 * float(here["edge_ratio"].where(here["step_run"] > 0).quantile(0.98)))
            ran = [name for name in here["flow"].values if np.isfinite(here["seconds"].sel(flow=name))]
            for name in ran:
                far = here[["distance"]].sel(flow=name)
                plots.draw(distance, far, "distance", label=FLOWS[name], linewidth=1.2, **styles[name])
            distance.set_yscale("log")
            predicting = {name: FLOWS[name] for name in ran if name != "stable"}
            edge_study.draw_oscillation(oscillation, here, "optimizer", styles, predicting)
            for axes, title in ((ratio, _title(here)), (distance, ""), (oscillation, "")):
                shared.plain(axes, title)
                axes.set_xlabel("optimizer steps" if task == dataset["task"].values[-1] else "")
            for axes, words in ((ratio, "η λ / 2"), (distance, "distance"), (oscillation, "tr Σ")):
                axes.set_ylabel(words)
        rows[0][0].legend(loc="lower right")
        lines = {line.get_label(): line for axes in rows[:, 1:].flat for line in axes.lines}
        canvas.legend(handles=list(lines.values()), loc="outside upper right", ncols=len(lines))
        canvas.supxlabel(shared.bands(dataset.sizes["seed"]), fontsize=6)
        return canvas


central_flow = Experiment(
    name="central-flow",
    summary="central flows against GD and RMSProp on an MLP, a CNN, a ViT and a transformer: distances and covariances",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={
        "networks": tuple(NETWORKS),
        "flows": tuple(FLOWS),
        "seeds": 3,
        "steps": 1200,
        "every": 20,
        "shown": (100, 200, 400, 800, 1200),
        "directions": 8,
    },
)
