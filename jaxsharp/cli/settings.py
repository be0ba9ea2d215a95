"""Settings from text: `key=value`, read by the type of the field."""

import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from jaxsharp.cli.misuse import did_you_mean
from jaxsharp.experiments import EXPERIMENTS, Experiment

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def experiment_named(name: str) -> Experiment:
    """Looks an experiment up.

    Args:
        name: as typed.

    Returns:
        The `Experiment`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; {did_you_mean(name, EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def parse_changes(experiment: Experiment, pairs: Sequence[str]) -> dict[str, Any]:
    """Reads `key=value` arguments by the types of an experiment's settings.

    Args:
        experiment: whose settings.
        pairs: the arguments of --set.

    Returns:
        Values by field name.

    Raises:
        ValueError: for an unknown key, a key given twice, or a value of the wrong type.

    Example:
        >>> parse_changes(EXPERIMENTS["bn-regression"], ["learning_rates=0.1,0.2", "seeds=3"])
        {'learning_rates': (0.1, 0.2), 'seeds': 3}
    """
    types = typing.get_type_hints(experiment.settings)
    known = [entry.name for entry in fields(experiment.settings)]
    changes = {}
    for pair in pairs:
        name, mark, text = pair.partition("=")
        if not mark:
            raise ValueError(f"--set needs key=value, got {pair!r}; the keys are {', '.join(known)}.")
        if name not in known:
            raise ValueError(f"--set has the unknown key {name!r}; {did_you_mean(name, known)}.")
        if name in changes:
            raise ValueError(f"--set has the key {name!r} twice.")
        changes[name] = parse_value(name, text, types[name])
    return changes


def parse_value(name: str, text: str, kind: Any) -> Any:
    """Reads one value.

    Args:
        name: of the setting, for messages.
        text: as typed.
        kind: int, float, bool, str, or tuple of one of these with an ellipsis.

    Returns:
        The value.

    Raises:
        ValueError: for text that is not of this type.

    Example:
        >>> parse_value("steps", "1e4", int), parse_value("widths", "8,8", tuple[int, ...])
        (10000, (8, 8))
    """
    if typing.get_origin(kind) is tuple:
        return tuple(parse_value(name, part.strip(), typing.get_args(kind)[0]) for part in text.split(",") if part.strip())
    try:
        if kind is bool:
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[text.lower()]
        if kind is int:
            return _whole(text)
        return kind(text)
    except (ValueError, KeyError, OverflowError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"--set {name} needs {wanted}, got {text!r}.") from None


def _whole(text):
    """An integer, also from text such as 1e4 that spells a whole number."""
    try:
        return int(text)
    except ValueError:
        if not float(text).is_integer():
            raise
        return int(float(text))


def describe_settings(experiment: Experiment) -> str:
    """Lists an experiment's settings with their defaults and meanings, one a line."""
    rows = [("setting", "default", "--full", "meaning")]
    for entry in fields(experiment.settings):
        large = as_text(experiment.full[entry.name]) if entry.name in experiment.full else ""
        rows.append((entry.name, as_text(entry.default), large, entry.metadata.get("about", "")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_text(value: Any) -> str:
    """Writes a value as `parse_value` reads it.

    Args:
        value: of a setting.

    Returns:
        Text.

    Example:
        >>> as_text((0.1, 2.0))
        '0.1,2.0'
    """
    return ",".join(map(as_text, value)) if isinstance(value, tuple) else str(value)
