"""Sentences for wrong input."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggests the known name closest to a wrong one, or lists them all.

    Args:
        name: what was asked for.
        known: what there is.

    Returns:
        A clause without a full stop.

    Example:
        >>> did_you_mean("spehre", ["sphere", "curvature"]), did_you_mean("x", ["sphere"])
        ("did you mean 'sphere'?", 'use one of sphere')
    """
    known = [str(entry) for entry in known]
    close = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"


def one_line(message: object) -> str:
    """Returns a message as one sentence on one line, ended by one mark."""
    text = " ".join(str(message).split()).replace("?.", "?")
    return text if text.endswith((".", "?", "!")) else f"{text}."
