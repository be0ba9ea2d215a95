"""What experiments share: checks of settings, words on stderr, the provenance of several runs, the look of their figures."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from jaxsharp import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "learning_rate": "learning rate η̂",
    "weight_decay": "weight decay λ̂",
    "seed": "seed",
    "time": "time τ = η̂ λ̂ t",
    "spherical_sharpness": "spherical sharpness λ1",
    "stability_ratio": "stability ratio η̃ λ1 / 2",
}
"""Titles of what several experiments record."""


def check_rates(settings: Any) -> None:
    """Refuses learning rates and weight decays that are not above 0, or that together reverse the sign of the parameters.

    Args:
        settings: with `learning_rates` and `weight_decays`.

    Raises:
        ValueError: naming the setting.
    """
    for name in ("learning_rates", "weight_decays"):
        check_positive(settings, name)
    if max(settings.learning_rates) * max(settings.weight_decays) >= 1:
        raise ValueError("learning_rates times weight_decays reaches 1 or more, where weight decay alone reverses the sign.")


def check_positive(settings: Any, *names: str) -> None:
    """Refuses lists that are empty or hold anything but finite numbers above 0.

    Args:
        settings: with fields of these names.
        *names: of the fields.

    Raises:
        ValueError: naming the setting.
    """
    for name in names:
        values = getattr(settings, name)
        if not values or not all(np.isfinite(value) and value > 0 for value in values):
            raise ValueError(f"{name} must be numbers above 0, at least one, got {values}.")


def check_counts(settings: Any, *names: str) -> None:
    """Refuses counts below 1.

    Args:
        settings: with fields of these names.
        *names: of the fields.

    Raises:
        ValueError: naming the setting.
    """
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}.")


def say(words: str) -> None:
    """Says on stderr what runs."""
    print(words, file=sys.stderr, flush=True)


def provenance(parts: Mapping[Any, xr.Dataset], title: str) -> dict:
    """Joins the attributes of the runs that a result is made of.

    Args:
        parts: datasets of `sweep` by name.
        title: of the result.

    Returns:
        The attributes of the first, with the time and the products of all.
    """
    first = next(iter(parts.values())).attrs
    return {
        **{name: first[name] for name in ("created", "versions", "device", "precision")},
        "title": title,
        "wall_time_seconds": round(sum(part.attrs["wall_time_seconds"] for part in parts.values()), 3),
        "hvp_count": sum(part.attrs["hvp_count"] for part in parts.values()),
    }


def label(dataset: xr.Dataset, **more: str) -> None:
    """Writes titles on the variables and coordinates that are there, in place.

    Args:
        dataset: whose attributes change.
        **more: titles by name, besides `LABELS`.
    """
    for name, title in {**LABELS, **more}.items():
        if name in dataset.variables:
            dataset[name].attrs.update(long_name=title, units="1")


def bands(seeds: int, what: str = "bands") -> str:
    """Says what lines and bands of a figure are.

    Args:
        seeds: how many there are.
        what: what shows their spread.

    Returns:
        A part of a sentence.

    Example:
        >>> bands(4), bands(1)
        ('lines: median over 4 seeds; bands: least and largest', 'one seed')
    """
    return "one seed" if seeds == 1 else f"lines: median over {seeds} seeds; {what}: least and largest"


def colors(count: int) -> list:
    """Returns colours of quantities in order: two that contrast, or shades where there are more."""
    return list(plots.COLORS[:count]) if count <= 2 else plots.shades(count)


@contextlib.contextmanager
def paper(size: float = 8) -> Iterator[None]:
    """Sets matplotlib up for a figure 7 inches wide while it is drawn.

    Args:
        size: of its text, in points; legends take one less.
    """
    from matplotlib import rc_context

    small = {"legend.fontsize": size - 1, "legend.title_fontsize": size - 1}
    with rc_context({"font.size": size, "axes.titlesize": size, "legend.frameon": False, **small}):
        yield


def plain(axes: "Axes", title: str = "") -> None:
    """Takes the upper and right frame away and puts a title at the left."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")


def power_of_ten(value: float) -> str:
    """Writes a number above 0 as text for a legend, such as 2.5 · 10⁻⁵.

    Example:
        >>> power_of_ten(1e-4)
        '$10^{-4}$'
    """
    mantissa, exponent = f"{value:.3e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else rf"${mantissa}\cdot {power}$"
