"""The slow oscillation of η̃λ1 around 2 on a network that interpolates digits, against the equations of theory §2."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import xarray as xr

from jaxsharp import optimizers, plots, probes
from jaxsharp.experiments import shared
from jaxsharp.experiments.experiment import Experiment, setting
from jaxsharp.experiments.interpolating import interpolating
from jaxsharp.experiments.tables import aligned, failures, with_interval
from jaxsharp.simulation import sweep
from jaxsharp.status import stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PER_PERIOD = 48
"""Measurements in the period of small oscillations."""


@dataclass(frozen=True)
class Settings:
    """Settings of oscillation; each field says what it is."""

    amplitudes: tuple[float, ...] = setting((0.1, 0.5, 1.0, 2.0, 4.0), "u(0)/√(η̂ λ̂) with η̃ λ1 = 2 (1 + u)")
    products: tuple[float, ...] = setting((1e-4, 2.5e-5), "products η̂ λ̂ of GD+WD")
    learning_rate: float = setting(0.1, "learning rate η̂; the directions depend on the product alone")
    seeds: int = setting(8, "minimizers drawn, the starts")
    periods: int = setting(6, "length of a run in periods of small oscillations")
    images: int = setting(10, "training images")
    width: int = setting(8, "hidden units")
    data_seed: int = setting(0, "seed of the choice of images")

    def __post_init__(self):
        """Refuses what makes no sense."""
        shared.check_positive(self, "amplitudes", "products")
        shared.check_counts(self, "seeds", "periods", "images", "width")
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}.")
        if max(self.amplitudes) * np.sqrt(max(self.products)) > 0.5:
            raise ValueError("amplitudes times the root of the largest product is over 0.5, too far from the edge for a theory.")
        if max(self.products) > 1e-3:
            raise ValueError(f"products must be at most 1e-3, so that a period has {PER_PERIOD} steps, got {self.products}.")


def small_period(product: float) -> float:
    """The period of small oscillations in steps, π / √(2 η̂ λ̂).

    Example:
        >>> round(small_period(1e-4), 1)
        222.1
    """
    return float(np.pi / np.sqrt(2 * product))


def predicted(amplitude: float, periods: float = 1.0, points: int = 2001) -> tuple[np.ndarray, np.ndarray]:
    """Integrates u' = 2 η̂λ̂ (1 − x²/x*²), (log x)' = 2 u from x = x* and u = amplitude √(η̂λ̂).

    In the time s = t √(η̂λ̂) and with a = u/√(η̂λ̂), z = log(x/x*) nothing but the amplitude is left: a' = 2 (1 − e^{2z}), z' = 2 a.

    Args:
        amplitude: a(0).
        periods: how long, in periods of small oscillations.
        points: at how many times.

    Returns:
        Times in periods of small oscillations, and a there.

    Example:
        >>> times, values = predicted(0.01)
        >>> round(float(values[-1]), 4)
        0.01

    Source: theory §2.
    """
    # imported here because importing jaxsharp should not take longer for it
    from scipy.integrate import solve_ivp

    times = np.linspace(0, periods, points)
    unit = np.pi / np.sqrt(2)

    def slope(_, state):
        return [2 * (1 - np.exp(min(2 * state[1], 100.0))), 2 * state[0]]  # a trial step may go far astray

    solved = solve_ivp(slope, (0, periods * unit), [amplitude, 0.0], t_eval=times * unit, rtol=1e-9, atol=1e-11)
    return times, solved.y[0]


def swing(times: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Reads period and amplitude off the first full swing of an oscillation that starts at a maximum, and how fast it dies away.

    Args:
        times: (n,).
        values: (n,) about 0.

    Returns:
        (period, size, damping): the time between the first two upward crossings of 0; half of highest − lowest between them;
        the mean loss of the logarithm of the size from one such swing to the next. NaN with fewer than two crossings, and
        damping with fewer than three.

    Example:
        >>> times = np.linspace(0, 4, 401)
        >>> period, size, damping = swing(times, np.exp(-0.2 * times) * np.cos(2 * np.pi * times))
        >>> round(period, 3), round(damping, 3)
        (1.0, 0.2)
    """
    up = np.flatnonzero((values[:-1] < 0) & (values[1:] >= 0))
    if len(up) < 2:
        return (float("nan"),) * 3
    crossings = times[up] - values[up] * (times[up + 1] - times[up]) / (values[up + 1] - values[up])
    sizes = np.array([np.ptp(values[start : end + 1]) / 2 for start, end in itertools.pairwise(up)])
    damping = -np.diff(np.log(sizes)).mean() if len(sizes) > 1 else float("nan")
    return float(crossings[1] - crossings[0]), float(sizes[0]), float(damping)


def theory_period(amplitude: float) -> float:
    """The period of the equations over that of small oscillations.

    Example:
        >>> round(theory_period(0.01), 3), theory_period(2.0) > 1.3
        (1.0, True)
    """
    return swing(*predicted(amplitude, 4 + 2 * amplitude, 8001))[0]


def run(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs GD+WD from its equilibrium at the edge of stability, pushed off it by a rate too large.

    A seed draws a minimizer φ; the equilibrium over φ is shortened so that η̃ λ1 = 2 (1 + u) with u = amplitude √(η̂ λ̂). λ1 is
    measured at the midpoint of two consecutive iterates.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset with the dimensions product, amplitude, seed, time (in periods of small oscillations): `swing` u/√(η̂ λ̂),
        `predicted_swing` (without product and seed), `period` of the first full swing over that of small oscillations, its
        `size`, `predicted_period` at that size, `damping` (loss of log size from swing to swing) over √(η̂ λ̂), `status`.

    Raises:
        ValueError: for counts that the digits do not cover, or a checkpoint of other settings.
    """
    made = interpolating(settings.images, settings.width, settings.data_seed, bool(jax.config.jax_enable_x64))
    parts = {}
    for product in sorted(settings.products, reverse=True):
        every = max(1, round(small_period(product) / PER_PERIOD))
        steps = every * round(settings.periods * small_period(product) / every)
        if progress:
            shared.say(f"η̂λ̂ = {product:g}: {settings.seeds * len(settings.amplitudes)} trajectories of {steps} steps")
        over = {"learning_rate": (settings.learning_rate,), "weight_decay": (product / settings.learning_rate,)}
        parts[product] = sweep(
            made.problem,
            _pushed_gd,
            {**over, "amplitude": settings.amplitudes},
            seeds=settings.seeds,
            steps=steps,
            init=made.off_balance,
            probes=(probes.spherical_sharpness(midpoint=True, tol=1e-4), "effective_learning_rate"),
            every=every,
            checkpoint=None if checkpoint is None else Path(checkpoint) / f"{product:g}",
            progress=progress,
        ).isel(learning_rate=0, weight_decay=0, drop=True)
    return _combine(settings, parts)


def _pushed_gd(learning_rate, weight_decay, amplitude):
    """GD with weight decay; the amplitude is for the start alone."""
    del amplitude
    return optimizers.gd(learning_rate, weight_decay)


def _combine(settings, parts):
    times = np.arange(settings.periods * PER_PERIOD + 1) / PER_PERIOD
    found = []
    for product, part in parts.items():
        u = (part["effective_learning_rate"] * part["spherical_sharpness"] / 2 - 1) / np.sqrt(product)
        u = u.isel(step=slice(1, None))  # step 0 has no midpoint
        u = u.assign_coords(step=u["step"] / small_period(product)).rename(step="time")
        found.append(xr.Dataset({"swing": u.interp(time=times), **_read(u), "status": part["status"]}).drop_attrs())
    ds = xr.concat(found, dim=xr.DataArray(list(parts), dims="product", name="product"))
    curves = np.stack([predicted(a, settings.periods, len(times))[1] for a in settings.amplitudes])
    ds["predicted_swing"] = ("amplitude", "time"), curves
    grid = np.linspace(0.02, 1.2 * max(settings.amplitudes), 60)
    periods = np.array([theory_period(a) for a in grid])
    ds["predicted_period"] = xr.apply_ufunc(lambda size: np.interp(size, grid, periods, right=np.nan), ds["size"])
    ds["damping"] = ds["damping"] / np.sqrt(ds["product"])
    titles = {"time": "steps / period of small oscillations", "swing": "(η̃ λ1 / 2 − 1) / √(η̂ λ̂)"}
    shared.label(ds, **titles, period="period / (π / √(2 η̂ λ̂))", amplitude="u(0) / √(η̂ λ̂)", product="intrinsic step η̂ λ̂")
    ds.attrs = shared.provenance(parts, "Oscillation of η̃λ1 around 2 on a network that interpolates digits")
    return oscillation.label(ds, settings)


def _read(u):
    """What `swing` reads off each trajectory."""
    read = xr.apply_ufunc(
        lambda values: np.asarray(swing(u["time"].values, values)),
        u,
        input_core_dims=[["time"]],
        output_core_dims=[["what"]],
        vectorize=True,
    )
    return {name: read.isel(what=index) for index, name in enumerate(("period", "size", "damping"))}


def table(dataset: xr.Dataset) -> str:
    """Compares period and amplitude with the equations, a row for each product and amplitude.

    Args:
        dataset: from `run`.

    Returns:
        Plain text: means over seeds with 95 % confidence intervals.
    """
    header = ("product", "amplitude", "size", "period", "theory", "period / theory", "damping / √(η̂λ̂)", "failed")
    rows = []
    for product in dataset["product"].values:
        for amplitude in dataset["amplitude"].values:
            here = dataset.sel(product=product, amplitude=amplitude)
            cells = [f"{product:g}", f"{amplitude:g}", with_interval(here["size"]), with_interval(here["period"], 4)]
            cells += (
                f"{float(here['predicted_period'].mean()):.4g}",
                with_interval(here["period"] / here["predicted_period"], 4),
            )
            failed = stopped(here["status"])
            rows.append((*cells, with_interval(here["damping"]), f"{int(failed.sum())} of {failed.size}"))
    lines = [
        f"{dataset.attrs['title']}; {dataset.sizes['seed']} seeds.",
        "η̃λ1 = 2 (1 + u). Amplitude: u(0)/√(η̂λ̂) set at the start; size: of the first full swing, (highest − lowest)/2, in the",
        "same unit. Period: of that swing, in π/√(2η̂λ̂) steps; theory: the equations of u and log x at that size. Damping: loss",
        "of the logarithm of the size from one swing to the next, 0 in those equations.",
        "Mean over seeds ± half width of the 95 % confidence interval.",
        "",
        *aligned([header, *rows]),
        *failures(dataset["status"].astype(int)),
    ]
    return "\n".join(lines) + "\n"


def figure(dataset: xr.Dataset) -> "Figure":
    """Draws swings against the prediction at a small and a large amplitude, and the period against the amplitude.

    Args:
        dataset: from `run`.

    Returns:
        A matplotlib Figure, 7 inches wide.
    """
    with shared.paper():
        canvas = plots.new_figure((7.0, 2.6))
        panels = canvas.subplots(1, 3)
        colors = plots.shades(dataset.sizes["product"] + 1)[:-1]
        dashes = {"color": "black", "linewidth": 1, "linestyle": (0, (2, 2))}
        large = min(2, dataset.sizes["amplitude"] - 1)
        for axes, index, letter in zip(panels, (0, large), "ab", strict=False):
            here = dataset[["swing", "predicted_swing"]].isel(amplitude=index).rename(time="step")
            for product, color in zip(dataset["product"].values, colors, strict=True):
                plots.draw(
                    axes, here.sel(product=product), "swing", label=shared.power_of_ten(product), color=color, linewidth=1.2
                )
            plots.draw(axes, here, "predicted_swing", label="theory", **dashes)
            axes.set(xlabel="steps / small period", ylabel="(η̃λ1/2 − 1) / √(η̂λ̂)")
            shared.plain(axes, f"({letter})   amplitude {float(here['amplitude']):g}")
        panels[0].legend(title="η̂λ̂", loc="upper right", ncols=2, borderaxespad=0, columnspacing=1)
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(low, high + 0.4 * (high - low))  # room for the legend
        largest = np.nanmax([1.05 * float(dataset["size"].max()), 0.2])
        sizes = np.linspace(0.02, largest, 40)
        for product, color in zip(dataset["product"].values, colors, strict=True):
            here = dataset.sel(product=product)
            dots = {"marker": "o", "markersize": 3, "linestyle": "none", "color": color, "alpha": 0.7}
            panels[2].plot(here["size"].values.ravel(), here["period"].values.ravel(), **dots)
        panels[2].plot(sizes, [theory_period(size) for size in sizes], label="theory", **dashes)
        panels[2].set(xlabel="size of the first full swing", ylabel="period / small period")
        panels[2].legend(loc="upper left")
        shared.plain(panels[2], "(c)")
        words = f"small period: π/√(2η̂λ̂) steps; {shared.bands(dataset.sizes['seed'])}; (c): a dot for each run"
        canvas.supxlabel(words, fontsize=7)
        return canvas


oscillation = Experiment(
    name="oscillation",
    summary="period and amplitude of η̃λ1 around 2 on a network that interpolates digits, against theory",
    settings=Settings,
    run=run,
    table=table,
    figure=figure,
    full={"products": (1e-4, 2.5e-5, 6.25e-6), "periods": 8},
)
