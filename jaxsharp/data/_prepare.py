"""Splitting and standardizing, shared by the loaders."""

import operator
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxsharp.data._dataset import Dataset


def split(total: int, count: int, test_count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws disjoint indices (count,) for training and (test_count,), or all the rest, for testing."""
    count = _size(count, "count", total - 1, total)
    available = total - count
    test_count = available if test_count is None else _size(test_count, "test_count", available, total)
    order = np.random.default_rng(seed).permutation(total)
    return order[:count], order[count : count + test_count]


def _size(value: int, name: str, largest: int, total: int) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} is not an integer; pass a number of samples.") from None
    if not 1 <= size <= largest:
        raise ValueError(f"{name}={size} is out of range; of {total} samples it can take 1 to {largest} here.")
    return size


def is_constant(train: np.ndarray) -> np.ndarray:
    """Tells which features (n, ...) -> (...) do not vary over the samples."""
    return np.ptp(train, axis=0) == 0


def standardize(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps both sets (n, ...) by (x - mean) / std of the training set; what is constant there becomes 0 in both."""
    constant = is_constant(train)
    mean, std = train.mean(axis=0), np.where(constant, 1.0, train.std(axis=0))
    return tuple(np.where(constant, 0.0, (x - mean) / std) for x in (train, test))


def choose(total: int, count: int | None, name: str, rng: np.random.Generator) -> np.ndarray:
    """Draws distinct indices (count,) out of a total; None takes all, in order."""
    return np.arange(total) if count is None else rng.permutation(total)[: _size(count, name, total, total)]


def image_sets(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    count: int | None,
    test_count: int | None,
    seed: int,
    classes: Sequence[int] | None,
    standardize: bool,
    flatten: bool,
) -> tuple[Dataset, Dataset]:
    """Makes data sets of (images (n, height, width, channels) of bytes, labels (n,) 0 to 9), each chosen from its own files.

    Pixels become numbers from 0 to 1, or (x − mean)/std with one mean and one std for each channel over the training images
    chosen.
    """
    classes = list(range(10) if classes is None else classes)
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise ValueError(f"classes={classes} is not usable; pass distinct labels out of 0 to 9.")
    rng = np.random.default_rng(seed)
    chosen = []
    for (images, labels), number, name in ((train, count, "count"), (test, test_count, "test_count")):
        kept = np.flatnonzero(np.isin(labels, classes))
        if kept.size == 0:
            raise ValueError(f"the files hold no image of classes={classes}.")
        rows = kept[choose(kept.size, number, name, rng)]
        targets = (labels[rows, None] == np.asarray(classes)).argmax(axis=1).astype(np.int32)
        chosen.append((images[rows] / 255.0, targets))
    if standardize:
        pixels = chosen[0][0]
        mean, std = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
        std = np.where(std > 0, std, 1.0)
        chosen = [((images - mean) / std, targets) for images, targets in chosen]
    return tuple(Dataset(x.reshape(len(x), -1) if flatten else x, targets) for x, targets in chosen)


def find(folder: str | os.PathLike, names: Sequence[str], what: str) -> Path:
    """Returns the first of several file names that exists in a folder.

    Raises:
        ValueError: where the folder or all of the files are missing, with the names.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"path={str(folder)!r} does not exist; pass the folder that holds {what}.")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"path={str(folder)!r} has no file {' or '.join(names)}; it must hold {what}.")
