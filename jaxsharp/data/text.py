"""Text as sequences of bytes, for next-token prediction."""

import os
import sysconfig
from pathlib import Path

import numpy as np

from jaxsharp.data import _prepare
from jaxsharp.data._dataset import Dataset

MODULES = (
    *("argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "contextlib", "copy", "csv", "dataclasses"),
    *("datetime", "decimal", "difflib", "doctest", "enum", "fileinput", "fractions", "functools", "gettext", "glob", "gzip"),
    *("heapq", "inspect", "ipaddress", "locale", "mailbox", "numbers", "optparse", "pdb", "pickle", "platform", "plistlib"),
    *("pprint", "profile", "random", "sched", "shelve", "shlex", "shutil", "socket", "statistics", "string", "subprocess"),
    *("tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback", "turtle", "typing", "uuid", "zipapp"),
)
"""Modules of the Python standard library that are one file of prose and code each; those that a version lacks are passed over."""


def text(
    path: str | os.PathLike | None = None,
    count: int = 1000,
    test_count: int | None = 1000,
    *,
    length: int = 64,
    limit: int = 2_000_000,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """Cuts a text into windows of bytes, each position of which is to predict the next byte; nothing is downloaded.

    The text is cut into windows of length + 1 bytes that do not overlap, and these are split at random. Tokens are the bytes
    themselves, 0 to 255 (below 128 in plain ASCII), so `bytes(row.tolist()).decode()` reads a row back.

    Args:
        path: a text file, or any other; None takes the source of some fifty modules of the Python standard library at hand, one
            after the other in a fixed order, about 2 MB that differ a little between versions of Python.
        count: number n of training windows.
        test_count: number of test windows; None takes all that remain.
        length: of a window.
        limit: at most so many bytes of the text are read.
        seed: of the split.

    Returns:
        (train, test), each a `Dataset` with inputs and targets (n, length), both int32; targets are inputs shifted by one.

    Raises:
        ValueError: for a missing or empty file, or more windows than the text has.

    Example:
        >>> import jaxsharp as js
        >>> train, _ = js.data.text(count=10, test_count=5, length=32)
        >>> train.inputs.shape, bool((train.inputs[:, 1:] == train.targets[:, :-1]).all())
        ((10, 32), True)
    """
    if length < 1 or limit < 1:
        raise ValueError(f"length and limit must be at least 1, got length={length}, limit={limit}.")
    content = _standard_library(limit) if path is None else _file(Path(path), limit)
    total = len(content) // (length + 1)
    if total < 2:
        raise ValueError(f"the text has {len(content)} bytes, fewer than two windows of {length} + 1; pass a smaller length.")
    windows = np.frombuffer(content, np.uint8)[: total * (length + 1)].reshape(total, length + 1).astype(np.int32)
    rows, test_rows = _prepare.split(total, count, test_count, seed)
    return tuple(Dataset(windows[chosen, :-1], windows[chosen, 1:]) for chosen in (rows, test_rows))


def _file(path, limit):
    try:
        with path.open("rb") as file:
            content = file.read(limit)
    except OSError as error:
        raise ValueError(f"path={str(path)!r} cannot be read ({error.strerror}); pass a text file.") from None
    if not content:
        raise ValueError(f"path={str(path)!r} is empty; pass a text file.")
    return content


def _standard_library(limit):
    folder = Path(sysconfig.get_path("stdlib"))
    found, size = [], 0
    for module in MODULES:
        file = folder / f"{module}.py"
        if file.is_file() and size < limit:
            found.append(file.read_bytes())
            size += len(found[-1])
    if not found:
        raise ValueError(f"the standard library in {folder} has no source files; pass a text file as path=.")
    return b"".join(found)[:limit]
