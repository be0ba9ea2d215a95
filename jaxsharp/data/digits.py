"""Scans of handwritten digits, 8 × 8 pixels."""

from collections.abc import Sequence

import numpy as np

from jaxsharp.data import _prepare
from jaxsharp.data._dataset import Dataset

TARGETS = ("labels", "onehot", "value")


def digits(
    count: int = 1000,
    test_count: int | None = None,
    *,
    seed: int = 0,
    classes: Sequence[int] | None = None,
    standardize: bool = True,
    flatten: bool = True,
    drop_constant: bool = True,
    targets: str = "labels",
) -> tuple[Dataset, Dataset]:
    """Loads the 1797 handwritten digits that scikit-learn bundles, split at random; nothing is downloaded.

    Args:
        count: number n of training images.
        test_count: number of test images; None takes all that remain.
        seed: of the split.
        classes: the digits to keep, relabelled 0, 1, … in the order given; None keeps all ten.
        standardize: whether to map each pixel to mean 0 and variance 1 over the training set, and the test set alike. A pixel
            that is constant on the training set becomes 0 in both.
        flatten: whether inputs are vectors (n, 64) rather than images (n, 8, 8, 1).
        drop_constant: whether to remove the pixels that are constant on the training set, leaving (n, d) with d ≤ 64. Images
            keep all their pixels.
        targets: `labels` (n,) int32, `onehot` (n, classes) float64, or `value`, the digit itself as a number (n,) float64.

    Returns:
        (train, test), each a `Dataset`.

    Raises:
        ValueError: for counts that the images do not cover, unknown classes, or an unknown kind of targets.

    Example:
        >>> import jaxsharp as js
        >>> train, test = js.data.digits(100, 50, classes=(3, 8), flatten=False)
        >>> train.inputs.shape, test.inputs.shape, sorted(set(train.targets.tolist()))
        ((100, 8, 8, 1), (50, 8, 8, 1), [0, 1])

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), its test part.
    """
    if targets not in TARGETS:
        raise ValueError(f"targets={targets!r} is unknown; use one of {', '.join(TARGETS)}.")
    classes = list(range(10) if classes is None else classes)
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise ValueError(f"classes={classes} is not usable; pass distinct digits out of 0 to 9.")
    # imported here because scikit-learn takes longer to import than jaxsharp itself
    from sklearn.datasets import load_digits

    images, value = load_digits(return_X_y=True)
    kept = np.isin(value, classes)
    images, value = images[kept], value[kept]
    onehot = value[:, None] == np.asarray(classes)
    labels = onehot.argmax(axis=1).astype(np.int32)
    chosen = {"labels": labels, "onehot": onehot.astype(float), "value": value.astype(float)}[targets]
    if not flatten:
        images = images.reshape(-1, 8, 8, 1)
    rows, test_rows = _prepare.split(len(images), count, test_count, seed)
    inputs, test_inputs = images[rows], images[test_rows]
    if flatten and drop_constant:
        varying = ~_prepare.is_constant(inputs)
        inputs, test_inputs = inputs[:, varying], test_inputs[:, varying]
    if standardize:
        inputs, test_inputs = _prepare.standardize(inputs, test_inputs)
    return Dataset(inputs, chosen[rows]), Dataset(test_inputs, chosen[test_rows])
