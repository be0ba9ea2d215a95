"""Plots: labelled results in, matplotlib figures out; nothing is shown or written."""

from jaxsharp.plots.comparison import distances, oscillations
from jaxsharp.plots.trajectories import (
    BANDS,
    COLORS,
    MOST_LINES,
    SPREADS,
    STYLES,
    draw,
    new_figure,
    plain_log_ticks,
    shades,
    trajectories,
    variables,
)

__all__ = [
    "BANDS",
    "COLORS",
    "MOST_LINES",
    "SPREADS",
    "STYLES",
    "distances",
    "draw",
    "new_figure",
    "oscillations",
    "plain_log_ticks",
    "shades",
    "trajectories",
    "variables",
]
