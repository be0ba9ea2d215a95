"""How an error falls as a step shrinks: a discrete run against its flow on one axis of time, and the order fitted to it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from jaxsharp import plots
from jaxsharp.experiments import shared
from jaxsharp.experiments.tables import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def on_time(dataset: xr.Dataset, time: float, measurements: int) -> xr.Dataset:
    """Puts a run that was measured evenly on the axis of flow time.

    Args:
        dataset: from `sweep`, with `measurements` measurements after the start.
        time: of the last.
        measurements: how many.

    Returns:
        The Dataset with the dimension `time` in the place of `step`.
    """
    axis = time * np.arange(measurements + 1) / measurements
    return dataset.drop_vars("time", errors="ignore").assign_coords(step=axis).rename(step="time")


def distance(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Evaluates ‖w − w'‖ along `parameter`, NaN where either is."""
    return np.sqrt(((first - second) ** 2).sum("parameter", skipna=False))


def root_mean_squares(dataset: xr.Dataset, variable: str, along: str) -> xr.DataArray:
    """Averages an error over time without the start, for each step and seed."""
    return np.sqrt((dataset[variable].isel(time=slice(1, None)) ** 2).mean("time", skipna=False)).transpose(along, "seed")


def orders(dataset: xr.Dataset, variable: str, along: str) -> np.ndarray:
    """Fits, for each seed, the order p of an error ∝ (step)^p.

    Args:
        dataset: with the dimensions time, seed and `along`.
        variable: whose root mean square over time, without the start, is fitted.
        along: the coordinate that shrinks.

    Returns:
        (seeds,) slopes of log error in log step by least squares; NaN where a run failed.
    """
    errors = root_mean_squares(dataset, variable, along)
    return np.polyfit(np.log(dataset[along].values), np.log(errors.values), 1)[0]


def fitted(dataset: xr.Dataset, along: str, symbol: str, names: Mapping[str, str]) -> list[str]:
    """Writes a line for each error, with its order and the interval over seeds.

    Args:
        dataset: see `orders`.
        along: see `orders`.
        symbol: of what shrinks.
        names: variable -> words.
    """
    lines = []
    for name, words in names.items():
        mean, half, count = interval(orders(dataset, name, along))
        lines.append(f"Order of the {words} in {symbol}: {mean:.3f} ± {half:.3f} ({count} seeds).")
    return lines


def draw_orders(axes: "Axes", dataset: xr.Dataset, along: str, symbol: str, names: Mapping[str, str]) -> None:
    """Draws root mean square errors against what shrinks, a thin line for each seed, a broad one through their median.

    Args:
        axes: to draw on.
        dataset: see `orders`.
        along: see `orders`.
        symbol: of what shrinks.
        names: variable -> words.
    """
    steps = dataset[along].values
    for (name, words), color in zip(names.items(), plots.COLORS, strict=False):
        errors = root_mean_squares(dataset, name, along)
        axes.plot(steps, errors.values, color=color, linewidth=0.5, alpha=0.5)
        mean, half, _ = interval(orders(dataset, name, along))
        text = f"{words}: order {mean:.3f} ± {half:.3f}"
        axes.plot(steps, errors.median("seed").values, color=color, linewidth=1.6, marker="o", markersize=3, label=text)
    axes.set(xscale="log", yscale="log", xlabel=symbol, ylabel="root mean square over time")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    axes.set_xticks(steps, [shared.power_of_ten(step) for step in steps], fontsize=6)
    axes.minorticks_off()
    axes.legend(loc="upper left", borderaxespad=0)
