"""Recorded variables against steps or flow time, and what all plots share."""

import difflib
import itertools
import warnings
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which readers with any colour vision can tell apart."""

STYLES = ("solid", "dashed", "dotted", "dashdot")

SPREADS = {"range": (0.0, 1.0), "quartiles": (0.25, 0.75)}
"""What a band over seeds may show, as quantiles."""

BANDS = ("filled", "outline", "none")

MOST_LINES = 28
"""As many as colours and line styles can tell apart."""


def trajectories(
    dataset: xr.Dataset,
    variable: str,
    x: str = "step",
    *,
    over: str = "seed",
    spread: str = "range",
    log: bool = False,
    size: tuple[float, float] = (5.5, 3.6),
) -> "Figure":
    """Draws one recorded variable against steps or flow time: a line for each grid point, the median over seeds, with a band.

    Args:
        dataset: from `simulate` or `sweep`, or made of such.
        variable: name of a data variable that has a step dimension.
        x: `step` or `time`, the flow time where the dataset has one.
        over: the dimension that the band is over.
        spread: `range` (least to largest) or `quartiles`; members that failed drop out.
        log: whether the vertical axis is logarithmic.
        size: width and height in inches.

    Returns:
        A matplotlib Figure; save it with `figure.savefig(path)`.

    Raises:
        ValueError: for a variable, an axis or a spread that does not exist, or for more lines than can be told apart.

    Example:
        >>> import jaxsharp as js
        >>> from jaxsharp import plots
        >>> grid = {"learning_rate": [0.1, 0.5]}
        >>> ds = js.sweep(js.problems.valley(), js.optimizers.gd, over=grid, seeds=3, steps=10, progress=False)
        >>> figure = plots.trajectories(ds, "loss", log=True)
        >>> figure.axes[0].get_xlabel(), len(figure.axes[0].lines)
        ('optimizer steps', 2)
    """
    figure = new_figure(size)
    axes = figure.add_subplot()
    draw(axes, dataset, variable, x, over=over, spread=spread)
    if log:
        axes.set_yscale("log")
    count = dataset.sizes.get(over, 1) if over in dataset[variable].dims else 1
    note = f"median and {spread} over {count} {over}s" if count > 1 else None
    if len(axes.lines) > 1 or note:
        beside = len(axes.lines) > 6
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if beside else {"loc": "best"}
        handles = [line for line in axes.lines if not line.get_label().startswith("_")]
        axes.legend(handles=handles, title=note, **place)
    return figure


def new_figure(size: tuple[float, float]) -> "Figure":
    """Makes an empty Figure that belongs to no window, with constrained layout.

    Args:
        size: width and height in inches.

    Returns:
        A matplotlib Figure.

    Example:
        >>> new_figure((3, 2)).axes
        []
    """
    # imported here because matplotlib takes longer to import than most commands to run
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def draw(
    axes: "Axes",
    dataset: xr.Dataset,
    variable: str,
    x: str = "step",
    *,
    over: str = "seed",
    spread: str = "range",
    band: str = "filled",
    label: str | None = None,
    **line,
) -> None:
    """Draws what `trajectories` draws on axes that exist, and labels them.

    Args:
        axes: matplotlib Axes.
        dataset: see `trajectories`.
        variable: see `trajectories`.
        x: see `trajectories`.
        over: see `trajectories`.
        spread: see `trajectories`.
        band: `filled`, `outline` (two thin lines) or `none`.
        label: of the lines; by default the grid point of each.
        **line: matplotlib's settings of the lines; by default a colour and a style of its own for each.

    Raises:
        ValueError: see `trajectories`.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.5), steps=3)
        >>> axes = new_figure((3, 2)).add_subplot()
        >>> draw(axes, ds, "loss", color="black")
        >>> axes.get_ylabel()
        'training loss'
    """
    values, horizontal = _axes_of(dataset, variable, x, over)
    for argument, value, choices in (("spread", spread, SPREADS), ("band", band, BANDS)):
        if value not in choices:
            raise ValueError(f"{argument}={value!r} is unknown; use one of {', '.join(choices)}.")
    step = next(name for name in values.dims if str(name).startswith("step"))
    grid = [name for name in values.dims if name not in (step, over)]
    points = list(itertools.product(*(range(values.sizes[name]) for name in grid)))
    if len(points) > MOST_LINES:
        raise ValueError(
            f"{variable} has {len(points)} lines over {', '.join(map(str, grid))}, more than the {MOST_LINES} that can be told "
            "apart; select some first, for example with dataset.isel."
        )
    values = values.astype(float)
    banded = over in values.dims and values.sizes[over] > 1
    middle = values.median(over) if over in values.dims else values
    for number, indices in enumerate(points):
        at = dict(zip(grid, indices, strict=True))
        style = {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS)], **line}
        where = horizontal.isel({name: index for name, index in at.items() if name in horizontal.dims}).values
        axes.plot(where, middle.isel(at).values, label=_name(dataset, at) if label is None else label, **style)
        if not banded or band == "none":
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice")  # where every member failed, the band has a gap
            edges = [values.isel(at).quantile(q, over).values for q in SPREADS[spread]]
        if band == "filled":
            axes.fill_between(where, *edges, color=style["color"], alpha=0.2, linewidth=0)
        else:
            axes.plot(where, np.transpose(edges), color=style["color"], linewidth=0.7, label="_edge")
    axes.set_xlabel(_title(horizontal, x))
    axes.set_ylabel(_title(values, variable))


def shades(count: int) -> list:
    """Returns colours from dark to light for quantities in order, which also differ in a print without colour.

    Args:
        count: how many.

    Returns:
        RGBA tuples, from cividis without its lightest part.

    Example:
        >>> len(shades(3))
        3
    """
    import matplotlib  # here for the same reason as in new_figure

    return [matplotlib.colormaps["cividis"](0.9 * number / max(count - 1, 1)) for number in range(count)]


def plain_log_ticks(axis: "Axis") -> None:
    """Labels a logarithmic axis that spans few decades at 1, 2 and 5 times the powers of ten, as plain numbers.

    Args:
        axis: a matplotlib Axis, `axes.xaxis` or `axes.yaxis`.

    Example:
        >>> axes = new_figure((3, 2)).add_subplot()
        >>> axes.set_yscale("log")
        >>> plain_log_ticks(axes.yaxis)
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FormatStrFormatter("%g"))


def variables(dataset: xr.Dataset) -> list[str]:
    """Lists the data variables that `trajectories` can draw: those with a step dimension and at most one line per grid point.

    Args:
        dataset: see `trajectories`.

    Returns:
        Their names.

    Example:
        >>> import jaxsharp as js
        >>> variables(js.simulate(js.problems.valley(), js.optimizers.gd(0.5), steps=3, probes=["loss", "parameters"]))
        ['loss']
    """
    return [str(name) for name, values in dataset.data_vars.items() if _step_of(values) and "parameter" not in values.dims]


def _step_of(values):
    return next((name for name in values.dims if str(name).startswith("step")), None)


def _axes_of(dataset, variable, x, over):
    """The variable, and what it is drawn against, the same for all seeds."""
    known = [str(name) for name, values in dataset.data_vars.items() if _step_of(values)]
    if variable not in known:
        close = difflib.get_close_matches(variable, known, 1)
        hint = f"did you mean {close[0]!r}? It" if close else "it"
        raise ValueError(
            f"variable {variable!r} is not a recorded trajectory of this dataset; {hint} has {', '.join(known) or 'none'}."
        )
    values = dataset[variable]
    step = _step_of(values)
    if x not in ("step", "time"):
        raise ValueError(f"x={x!r} is unknown; use 'step' or 'time'.")
    name = step if x == "step" else step.replace("step", "time", 1)
    if name not in dataset.coords:
        raise ValueError(f"this dataset has no coordinate {name!r}: only flows have a time of their own; use x='step'.")
    horizontal = dataset[name]
    return values, horizontal.isel({over: 0}) if over in horizontal.dims else horizontal


def _name(dataset, at):
    parts = []
    for name, index in at.items():
        value = dataset[name].values[index] if name in dataset.coords else index
        number = isinstance(value, (int, float, np.number))
        text = f"{value:g}" if number else str(value)
        parts.append(f"{str(name).replace('_', ' ')} {text}" if number else text)
    return ", ".join(parts) or None


def _title(values, name):
    units = values.attrs.get("units", "1")
    title = values.attrs.get("long_name", name)
    return title if units in ("", "1") or units in title else f"{title} [{units}]"
