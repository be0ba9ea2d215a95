"""CIFAR-10 from local files: 32 × 32 colour images of ten kinds of things."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxsharp.data import _prepare
from jaxsharp.data._dataset import Dataset

RECORD = 1 + 3 * 32 * 32
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
WHAT = "the binary version of CIFAR-10 (data_batch_1.bin …, test_batch.bin), or x_train, y_train, x_test, y_test as .npy files"


def cifar10(
    path: str | os.PathLike,
    count: int | None = 5000,
    test_count: int | None = None,
    *,
    seed: int = 0,
    classes: Sequence[int] | None = None,
    standardize: bool = True,
    flatten: bool = False,
) -> tuple[Dataset, Dataset]:
    """Loads CIFAR-10 from files on this machine; nothing is downloaded and no pickle is read.

    Args:
        path: the folder of the binary version (`data_batch_1.bin` to `data_batch_5.bin`, as many as are there, and
            `test_batch.bin`, possibly in a folder `cifar-10-batches-bin`); or an .npz file, or a folder of .npy files, with the
            arrays x_train, y_train, x_test and y_test: images (n, 32, 32, 3) or (n, 3, 32, 32) of bytes, labels (n,) or (n, 1).
        count: number n of training images, drawn from the training files; None takes all, 1.2 GB as float64.
        test_count: number of test images, drawn from the test file; None takes all.
        seed: of the choice.
        classes: the labels to keep, relabelled 0, 1, … in the order given; None keeps all ten.
        standardize: whether to map each of the three channels to mean 0 and variance 1 over the training images chosen, and the
            test images alike; otherwise pixels are numbers from 0 to 1.
        flatten: whether inputs are vectors (n, 3072) rather than images (n, 32, 32, 3).

    Returns:
        (train, test), each a `Dataset` with int32 labels.

    Raises:
        ValueError: for a missing or truncated file, contents of another kind, counts that the files do not cover, or unknown
            classes.

    Example:
        >>> import jaxsharp as js
        >>> js.data.cifar10("no/such/folder")
        Traceback (most recent call last):
        ValueError: path='no/such/folder' does not exist; ...

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    folder = Path(path)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    names = [f"data_batch_{i}.bin" for i in range(1, 6) if (folder / f"data_batch_{i}.bin").is_file()]
    if folder.is_file() or (folder / "x_train.npy").is_file():
        train, test = _arrays(folder)
    elif names:
        parts = [_records(folder / name) for name in names]
        train = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
        test = _records(_prepare.find(folder, ["test_batch.bin"], WHAT))
    elif (folder / "data_batch_1").is_file() or (folder / "cifar-10-batches-py").is_dir():
        raise ValueError(
            f"path={str(path)!r} holds the Python version of CIFAR-10, which is pickled and could run any program; pass the "
            "binary version (cifar-10-binary.tar.gz, unpacked)."
        )
    else:
        _prepare.find(folder, ["data_batch_1.bin", "x_train.npy"], WHAT)
    chosen = {"count": count, "test_count": test_count, "seed": seed, "classes": classes}
    return _prepare.image_sets(train, test, **chosen, standardize=standardize, flatten=flatten)


def _records(path):
    """Images (n, 32, 32, 3) and labels of a binary file: for each image its label and three planes of 32 × 32 bytes."""
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % RECORD:
        raise ValueError(
            f"{path} has {content.size} bytes, which is not a multiple of {RECORD}, the size of a labelled image; the file is "
            "truncated or of another kind, so get it again."
        )
    rows = content.reshape(-1, RECORD)
    return _checked(path, rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0])


def _arrays(path):
    """The same of an .npz file or a folder of .npy files."""
    files = {name: _prepare.find(path, [f"{name}.npy"], WHAT) for name in ARRAYS} if path.is_dir() else {}
    try:
        if files:
            found = {name: np.load(file, allow_pickle=False) for name, file in files.items()}
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                found = {name: archive[name] for name in ARRAYS if name in archive}
    except Exception as error:  # NumPy raises whatever zipfile and zlib do
        raise ValueError(
            f"{path} is not a readable file of plain arrays ({error}); it is truncated or of another kind."
        ) from None
    missing = [name for name in ARRAYS if name not in found]
    if missing:
        raise ValueError(f"{path} has no array {missing[0]!r}; it must hold {', '.join(ARRAYS)}.")
    return tuple(_checked(path, found[f"x_{part}"], found[f"y_{part}"]) for part in ("train", "test"))


def _checked(path, images, labels):
    labels = labels.reshape(-1)
    if images.ndim == 4 and images.shape[1:] == (3, 32, 32):
        images = images.transpose(0, 2, 3, 1)
    if images.shape != (labels.size, 32, 32, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"{path} holds images of shape {images.shape} and type {images.dtype} for {labels.size} labels; CIFAR-10 has uint8 "
            "of shape (n, 32, 32, 3)."
        )
    if labels.size == 0 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{path} holds labels other than 0 to 9, so it is not CIFAR-10 or is damaged.")
    return images, labels
