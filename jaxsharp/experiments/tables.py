"""What the tables of experiments share: columns in line, failures by kind, means with intervals."""

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
    """Returns one line for each kind of failure or warning, with how many trajectories it befell, after an empty one."""
    codes, counts = np.unique(status.values[status.values != 0], return_counts=True)
    kinds = [f"{describe(code)}: {count} of {status.size} trajectories" for code, count in zip(codes, counts, strict=True)]
    return ["", *kinds] if kinds else []


def interval(values, confidence: float = 0.95) -> tuple[float, float, int]:
    """Evaluates a mean over independent runs and the half width of its confidence interval, t s/√n by Student's t.

    Args:
        values: (n,) numbers; NaN, from runs that failed, are left out.
        confidence: of the interval.

    Returns:
        (mean, half width, n); NaN for a mean of nothing or an interval of fewer than two.

    Example:
        >>> mean, half, count = interval([1.0, 2.0, 3.0, float("nan")])
        >>> mean, round(half, 4), count
        (2.0, 2.4841, 3)
    """
    # imported here because importing jaxsharp should not take longer for it
    from scipy.stats import t

    values = np.asarray(values, float).ravel()
    values = values[np.isfinite(values)]
    count = values.size
    mean = float(values.mean()) if count else float("nan")
    half = float(t.ppf(0.5 + confidence / 2, count - 1) * values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return mean, half, count


def with_interval(values, digits: int = 3, places: int | None = None) -> str:
    """Writes a mean and its 95 % confidence interval, if it has one, such as `-0.25 ± 0.03`, to digits or to decimal places.

    Example:
        >>> with_interval([1.0, 2.0, 3.0]), with_interval([1.0, 2.0, 3.0], places=1)
        ('2 ± 2.48', '2.0 ± 2.5')
    """
    mean, half, _ = interval(values)
    form = f".{digits}g" if places is None else f".{places}f"
    return f"{mean:{form}} ± {half:{form}}" if np.isfinite(half) else f"{mean:{form}}"
