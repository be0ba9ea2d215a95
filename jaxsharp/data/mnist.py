"""MNIST from local files: 28 × 28 scans of handwritten digits."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from jaxsharp.data import _prepare
from jaxsharp.data._dataset import Dataset

WHAT = "the four idx files of MNIST (train-images-idx3-ubyte …, plain or .gz)"
BYTES = 0x08  # the code of unsigned bytes in an idx header


def mnist(
    path: str | os.PathLike,
    count: int | None = 5000,
    test_count: int | None = None,
    *,
    seed: int = 0,
    classes: Sequence[int] | None = None,
    standardize: bool = True,
    flatten: bool = False,
) -> tuple[Dataset, Dataset]:
    """Loads MNIST, or a set in its format such as Fashion-MNIST, from files on this machine; nothing is downloaded.

    Args:
        path: the folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
            `t10k-labels-idx1-ubyte`, each plain or with `.gz`, and with `.` in place of the `-` before `idx` as well.
        count: number n of training images, drawn from the training files; None takes all.
        test_count: number of test images, drawn from the test files; None takes all.
        seed: of the choice.
        classes: the labels to keep, relabelled 0, 1, … in the order given; None keeps all ten.
        standardize: whether to map the pixels to mean 0 and variance 1 over the training images chosen, and the test images
            alike; otherwise they are numbers from 0 to 1.
        flatten: whether inputs are vectors (n, 784) rather than images (n, 28, 28, 1).

    Returns:
        (train, test), each a `Dataset` with int32 labels.

    Raises:
        ValueError: for a missing or truncated file, contents of another kind, counts that the files do not cover, or unknown
            classes.

    Example:
        >>> import jaxsharp as js
        >>> js.data.mnist("no/such/folder")
        Traceback (most recent call last):
        ValueError: path='no/such/folder' does not exist; ...

    Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to document recognition.
    """
    train, test = (_pair(path, part) for part in ("train", "t10k"))
    chosen = {"count": count, "test_count": test_count, "seed": seed, "classes": classes}
    return _prepare.image_sets(train, test, **chosen, standardize=standardize, flatten=flatten)


def _pair(path, part):
    images = _idx(path, f"{part}-images", 3)
    labels = _idx(path, f"{part}-labels", 1)
    if len(images) != len(labels):
        raise ValueError(f"path={str(path)!r} has {len(images)} images but {len(labels)} labels in its {part} files.")
    if labels.max() > 9:
        raise ValueError(f"path={str(path)!r} has labels above 9 in its {part} files, so it is not MNIST or is damaged.")
    return images[..., None], labels


def _idx(path, stem, axes):
    """An array of bytes: two zeros, the type, the number of axes, each length as 4 bytes (big end first), then the contents."""
    names = [f"{stem}{mark}idx{axes}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    file = _prepare.find(path, names, WHAT)
    content = file.read_bytes()
    if file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file} cannot be decompressed ({error}); it is truncated or damaged, so get it again.") from None
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, BYTES, axes)):
        raise ValueError(f"{file} does not start like an idx file of bytes with {axes} axes; it is truncated or of another kind.")
    shape = struct.unpack(f">{axes}I", content[4:start])
    wanted = math.prod(shape)
    if len(content) - start != wanted or wanted == 0:
        raise ValueError(
            f"{file} announces {' × '.join(map(str, shape))} bytes but holds {len(content) - start}; it is truncated or damaged, "
            "so get it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
