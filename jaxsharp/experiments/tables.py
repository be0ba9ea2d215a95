"""Plain-text tables of experiments."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from jaxsharp.status import describe


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns cells to the right under a header, the first row.

    Args:
        rows: cells as text, equally many in each.

    Returns:
        Lines, a rule after the first.

    Example:
        >>> aligned([("a", "long"), ("10", "2")])
        [' a  long', '--  ----', '10     2']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def failures(status: xr.DataArray) -> list[str]:
    """Says what went wrong in how many trajectories, a line for each kind; nothing where all went well."""
    codes, counts = np.unique(status.values[status.values != 0], return_counts=True)
    kinds = [f"{describe(code)}: {count} of {status.size} trajectories" for code, count in zip(codes, counts, strict=True)]
    return ["", *kinds] if kinds else []
