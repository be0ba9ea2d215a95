"""A discrete run beside the flows that predict it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from jaxsharp import compare
from jaxsharp.plots.trajectories import COLORS, STYLES, draw, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def distances(
    run: xr.Dataset,
    flows: Mapping[str, xr.Dataset],
    *,
    relative: bool = False,
    over: str = "seed",
    spread: str = "range",
    log: bool = True,
    size: tuple[float, float] = (5.5, 3.6),
) -> "Figure":
    """Draws how far several flows are from the de-oscillated run, on one axis of steps: medians over seeds, with bands.

    Args:
        run: with `parameters` at every step.
        flows: each with `parameters`, by the name that the legend shows.
        relative: see `jaxsharp.compare.distance`.
        over: the dimension that the bands are over.
        spread: `range` (least to largest) or `quartiles`.
        log: whether the vertical axis is logarithmic.
        size: width and height in inches.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: for no flow, datasets that cannot be compared, or a grid besides the seeds; select a point first.

    Example:
        >>> import jaxsharp as js
        >>> from jaxsharp import plots
        >>> options = {"steps": 10, "seed": 0, "probes": ["parameters"]}
        >>> run = js.simulate(js.problems.valley(), js.optimizers.gd(0.5), **options)
        >>> flows = {"gradient flow": js.simulate(js.problems.valley(), js.flows.gradient(0.5), **options)}
        >>> plots.distances(run, flows).axes[0].get_ylabel()
        'distance [parameters]'
    """
    if not flows:
        raise ValueError("flows is empty; pass at least one, by name.")
    figure = new_figure(size)
    axes = figure.add_subplot()
    for number, (name, flow) in enumerate(flows.items()):
        gap = compare.distance(run, flow, relative=relative)
        _check_dims(gap, ("step", over))
        line = {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}
        draw(axes, _labelled(gap), "distance", over=over, spread=spread, label=name, **line)
    axes.set_xlabel("optimizer steps")
    if log:
        axes.set_yscale("log")
    axes.legend()
    return figure


def oscillations(
    run: xr.Dataset,
    flow: xr.Dataset,
    window: int,
    *,
    over: str = "seed",
    log: bool = True,
    size: tuple[float, float] = (5.5, 3.6),
) -> "Figure":
    """Draws the variances of the oscillation that a flow predicts, as lines, and those of the run in windows, as points.

    Args:
        run: with `parameters` at every step.
        flow: with `oscillation`, of the probe of that name.
        window: steps in which the run's covariance is taken, see `jaxsharp.compare.oscillation_variances`.
        over: the dimension over which medians are drawn.
        log: whether the vertical axis is logarithmic.
        size: width and height in inches.

    Returns:
        A matplotlib Figure, a colour a direction, the largest variance first.

    Raises:
        ValueError: for a flow without `oscillation`, a window that does not fit, or a grid besides the seeds.

    Example:
        >>> import jaxsharp as js
        >>> from jaxsharp import plots
        >>> problem, rate = js.problems.valley(), 0.5
        >>> run = js.simulate(problem, js.optimizers.gd(rate), 10, probes=["parameters"])
        >>> flow = js.simulate(problem, js.flows.edge(rate), 10, probes=["oscillation"])
        >>> [line.get_label() for line in plots.oscillations(run, flow, window=3).axes[0].lines]
        ['predicted', 'measured']
    """
    if "oscillation" not in flow:
        raise ValueError("the flow has no 'oscillation'; record it with the probe of that name.")
    predicted = flow["oscillation"]
    count = predicted.sizes["direction"]
    measured = compare.oscillation_variances(run, window, min(count, window, run.sizes["parameter"]))
    figure = new_figure(size)
    axes = figure.add_subplot()
    for values, name, style in ((predicted, "predicted", {}), (measured, "measured", {"linestyle": "none", "marker": "o"})):
        _check_dims(values, ("step", over, "direction"))
        middle = values.median(over) if over in values.dims else values
        for direction in range(middle.sizes["direction"]):
            label = f"{name}, direction {direction + 1}" if count > 1 else name
            here = middle.isel(direction=direction)
            shown = here.where(here > 0) if log else here
            axes.plot(shown["step"], shown.values, color=COLORS[direction % len(COLORS)], label=label, markersize=4, **style)
    if log and any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.set_yscale("log")
    axes.set(xlabel="optimizer steps", ylabel="variance of the oscillation")
    axes.legend(title=f"measured over {window} steps")
    return figure


def _labelled(gap):
    gap["step"].attrs.setdefault("long_name", "optimizer steps")
    return gap.to_dataset(name="distance")


def _check_dims(values, known):
    unknown = [str(name) for name in values.dims if name not in known]
    if unknown:
        raise ValueError(
            f"there is a grid over {', '.join(unknown)}; select one point of it first, for example with dataset.isel."
        )
