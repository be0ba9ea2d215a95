"""Splitting and standardizing, shared by the loaders."""

import operator

import numpy as np


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
