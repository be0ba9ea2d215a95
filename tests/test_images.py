"""Loaders of local files and generators: small files in the real formats, damaged ones, and what a task promises."""

import gzip
import struct

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxsharp as js

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, size=(30, 3, 32, 32), dtype=np.uint8)  # as the binary files hold them: planes of a colour
KINDS = np.arange(30, dtype=np.uint8) % 10
DIGITS = RNG.integers(0, 256, size=(30, 28, 28), dtype=np.uint8)


def binary(folder):
    """Two training files of 10 images, and a test file of 10."""
    for i, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        rows = slice(10 * i, 10 * i + 10)
        content = b"".join(bytes([k]) + x.tobytes() for k, x in zip(KINDS[rows], IMAGES[rows], strict=True))
        (folder / f"{name}.bin").write_bytes(content)
    return folder


def arrays(channels_last=True, labels_shape=(-1,)):
    images = IMAGES.transpose(0, 2, 3, 1) if channels_last else IMAGES
    labels = KINDS.reshape(labels_shape)
    return {"x_train": images[:20], "y_train": labels[:20], "x_test": images[20:], "y_test": labels[20:]}


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def digit_files(folder, end="", mark="-"):
    pack = gzip.compress if end else bytes
    for part, rows in (("train", slice(20)), ("t10k", slice(20, None))):
        (folder / f"{part}-images{mark}idx3-ubyte{end}").write_bytes(pack(idx(DIGITS[rows])))
        (folder / f"{part}-labels{mark}idx1-ubyte{end}").write_bytes(pack(idx(KINDS[rows])))
    return folder


def test_cifar10_reads_the_binary_version(tmp_path):
    train, test = js.data.cifar10(binary(tmp_path), None, standardize=False)
    np.testing.assert_array_equal(np.round(train.inputs * 255), IMAGES[:20].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(test.inputs[3, 5, 7] * 255, IMAGES[23, :, 5, 7])
    np.testing.assert_array_equal(train.targets, KINDS[:20])
    np.testing.assert_array_equal(test.targets, KINDS[20:])
    assert (train.inputs.dtype, train.targets.dtype) == (np.float64, np.int32)
    (tmp_path / "above" / "cifar-10-batches-bin").mkdir(parents=True)
    again, _ = js.data.cifar10(binary(tmp_path / "above" / "cifar-10-batches-bin").parent, None, standardize=False)
    np.testing.assert_array_equal(again.inputs, train.inputs)


@pytest.mark.parametrize(("channels_last", "labels_shape"), [(True, (-1,)), (False, (-1, 1))])
def test_cifar10_reads_plain_arrays(tmp_path, channels_last, labels_shape):
    found = arrays(channels_last, labels_shape)
    np.savez(tmp_path / "cifar.npz", **found)
    for name, array in found.items():
        np.save(tmp_path / f"{name}.npy", array)
    for path in (tmp_path / "cifar.npz", tmp_path):
        train, test = js.data.cifar10(path, None, standardize=False)
        np.testing.assert_array_equal(np.round(train.inputs * 255), IMAGES[:20].transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(test.targets, KINDS[20:])


def test_cifar10_chooses_and_standardizes(tmp_path):
    folder = binary(tmp_path)
    raw, raw_test = js.data.cifar10(folder, 7, 3, seed=1, standardize=False)
    train, test = js.data.cifar10(folder, 7, 3, seed=1)
    mean, std = (getattr(raw.inputs.reshape(-1, 3), name)(axis=0) for name in ("mean", "std"))
    np.testing.assert_allclose(test.inputs, (raw_test.inputs - mean) / std, atol=1e-12)
    np.testing.assert_allclose(train.inputs.reshape(-1, 3).std(0), 1)
    assert len({row.tobytes() for row in raw.inputs}) == 7
    assert not np.array_equal(js.data.cifar10(folder, 7, 3, seed=2, standardize=False)[0].inputs, raw.inputs)
    chosen, _ = js.data.cifar10(folder, None, classes=(7, 2), standardize=False, flatten=True)
    assert chosen.inputs.shape == (4, 3072)
    original = [
        np.flatnonzero((IMAGES.transpose(0, 2, 3, 1) == np.round(x.reshape(32, 32, 3) * 255)).all((1, 2, 3)))[0]
        for x in chosen.inputs
    ]
    np.testing.assert_array_equal(KINDS[original], np.asarray([7, 2])[chosen.targets])


@pytest.mark.parametrize(("end", "mark"), [("", "-"), (".gz", "-"), ("", ".")])
def test_mnist_reads_idx_files(tmp_path, end, mark):
    train, test = js.data.mnist(digit_files(tmp_path, end, mark), None, standardize=False)
    np.testing.assert_array_equal(np.round(train.inputs[..., 0] * 255), DIGITS[:20])
    np.testing.assert_array_equal(np.round(test.inputs[..., 0] * 255), DIGITS[20:])
    np.testing.assert_array_equal(np.concatenate([train.targets, test.targets]), KINDS)
    train, test = js.data.mnist(tmp_path, 12, 4, flatten=True)
    assert (train.inputs.shape, test.inputs.shape) == ((12, 784), (4, 784))
    np.testing.assert_allclose([train.inputs.mean(), train.inputs.std()], [0, 1], atol=1e-12)


def truncate(path, size=-1):
    path.write_bytes(path.read_bytes()[:size])


def pickled(folder):
    np.savez(folder / "x.npz", **{name: np.array([{}], dtype=object) for name in ("x_train", "y_train", "x_test", "y_test")})
    return folder / "x.npz"


CIFAR_DAMAGE = {
    "no folder": (lambda folder: folder / "none", "does not exist"),
    "empty folder": (lambda folder: folder, r"no file data_batch_1\.bin"),
    "no test file": (lambda folder: (binary(folder) / "test_batch.bin").unlink() or folder, r"no file test_batch\.bin"),
    "truncated": (
        lambda folder: truncate(binary(folder) / "data_batch_2.bin") or folder,
        "30729 bytes, which is not a multiple of 3073",
    ),
    "labels": (
        lambda folder: (binary(folder) / "test_batch.bin").write_bytes(bytes([10]) * 3073) and folder,
        "other than 0 to 9",
    ),
    "pickle": (lambda folder: (folder / "data_batch_1").write_bytes(b"x") and folder, "pickled"),
    "objects": (pickled, "plain arrays"),
    "missing array": (lambda folder: np.savez(folder / "x.npz", x_train=IMAGES) or folder / "x.npz", "no array 'y_train'"),
    "missing npy": (lambda folder: np.save(folder / "x_train.npy", IMAGES) or folder, r"no file y_train\.npy"),
    "wrong images": (lambda folder: np.savez(folder / "x.npz", **{**arrays(), "x_test": DIGITS}) or folder / "x.npz", "28, 28"),
    "truncated archive": (
        lambda folder: (np.savez(folder / "x.npz", **arrays()), truncate(folder / "x.npz", 5000)) and folder / "x.npz",
        "truncated",
    ),
}


@pytest.mark.parametrize("name", CIFAR_DAMAGE)
def test_damaged_cifar10_is_refused_by_name(tmp_path, name):
    damage, words = CIFAR_DAMAGE[name]
    with pytest.raises(ValueError, match=words):
        js.data.cifar10(damage(tmp_path))


MNIST_DAMAGE = {
    "no folder": (lambda folder: folder / "none", "does not exist"),
    "missing": (
        lambda folder: (digit_files(folder) / "t10k-labels-idx1-ubyte").unlink() or folder,
        "no file t10k-labels-idx1-ubyte or",
    ),
    "truncated": (
        lambda folder: truncate(digit_files(folder) / "train-images-idx3-ubyte") or folder,
        "20 × 28 × 28 bytes but holds 15679",
    ),
    "header": (lambda folder: truncate(digit_files(folder) / "train-images-idx3-ubyte", 9) or folder, "does not start like"),
    "swapped": (
        lambda folder: (digit_files(folder) / "train-labels-idx1-ubyte").rename(folder / "train-images-idx3-ubyte").parent,
        "3 axes",
    ),
    "gz": (
        lambda folder: truncate(digit_files(folder, ".gz") / "train-images-idx3-ubyte.gz", 900) or folder,
        "cannot be decompressed",
    ),
    "counts": (
        lambda folder: (digit_files(folder) / "t10k-labels-idx1-ubyte").write_bytes(idx(KINDS)) and folder,
        "10 images but 30",
    ),
    "labels": (
        lambda folder: (digit_files(folder) / "t10k-labels-idx1-ubyte").write_bytes(idx(KINDS[:10] + 9)) and folder,
        "above 9",
    ),
}


@pytest.mark.parametrize("name", MNIST_DAMAGE)
def test_damaged_mnist_is_refused_by_name(tmp_path, name):
    damage, words = MNIST_DAMAGE[name]
    with pytest.raises(ValueError, match=words):
        js.data.mnist(damage(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 21}, "count=21"),
        ({"test_count": 0}, "test_count=0"),
        ({"classes": (3, 3)}, "classes"),
        ({"classes": (11,)}, "classes"),
    ],
)
def test_choices_that_the_files_do_not_cover(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        js.data.mnist(digit_files(tmp_path), **{"count": 5, **options})


@pytest.mark.parametrize(("length", "values"), [(3, 6), (8, 8)])  # all listed, and drawn
def test_sorting_is_what_it_says(length, values):
    train, test = js.data.sorting(90, 100, length=length, values=values)
    together = np.concatenate([train.inputs, test.inputs])
    targets = np.concatenate([train.targets, test.targets])
    assert (together.shape, targets.shape, together.dtype) == ((190, 2 * length - 1), (190, length), np.int32)
    np.testing.assert_array_equal(np.sort(together[:, :length], axis=1), targets)
    np.testing.assert_array_equal(together[:, length:], targets[:, :-1])
    assert len(np.unique(together, axis=0)) == 190
    assert set(together[:, :length].ravel()) == set(range(values))
    np.testing.assert_array_equal(js.data.sorting(90, 100, length=length, values=values)[1].inputs, test.inputs)
    assert not np.array_equal(js.data.sorting(90, 100, length=length, values=values, seed=1)[1].inputs, test.inputs)


def test_sorting_can_list_every_sequence():
    train, test = js.data.sorting(20, 7, length=3, values=3)
    assert len(np.unique(np.concatenate([train.inputs, test.inputs])[:, :3], axis=0)) == 27


def test_text_reads_a_file_and_the_standard_library(tmp_path):
    content = "".join(chr(97 + i % 26) for i in range(330)) + "ü"
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    train, test = js.data.text(tmp_path / "a.txt", 20, 10, length=10)
    windows = np.concatenate([np.column_stack([data.inputs, data.targets[:, -1]]) for data in (train, test)])
    found = {bytes(row.tolist()).decode() for row in windows}
    assert found == {content[i : i + 11] for i in range(0, 330, 11)}
    np.testing.assert_array_equal(train.inputs[:, 1:], train.targets[:, :-1])
    library, _ = js.data.text(count=200, test_count=10, length=40)
    joined = b" ".join(bytes(row.tolist()) for row in library.inputs)
    assert b"self" in joined
    np.testing.assert_array_equal(js.data.text(count=200, test_count=10, length=40)[0].inputs, library.inputs)
    assert len(js.data.text(count=5, test_count=None, length=9, limit=1000)[1].inputs) == 95


TASK_MISUSE = [
    (js.data.sorting, {"count": 0}, "count=0"),
    (js.data.sorting, {"length": 2.5}, "length=2.5"),
    (js.data.sorting, {"count": 20, "test_count": 8, "length": 3, "values": 3}, "only 27 sequences"),
    (js.data.text, {"path": "no/such/file"}, "cannot be read"),
    (js.data.text, {"length": 0}, "length=0"),
    (js.data.text, {"length": 900_000, "limit": 1_000_000}, "fewer than two windows"),
    (js.data.text, {"count": 10**6}, "count=1000000"),
    (js.data.low_rank, {"rank": 30}, "rank=30"),
    (js.data.low_rank, {"observed": 1.0}, "observed=1.0"),
]


@pytest.mark.parametrize(("make", "options", "words"), TASK_MISUSE)
def test_misuse_of_a_generated_task(make, options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_supervised_takes_images_and_tokens_as_they_come():
    train, test = js.data.sorting(12, 6, length=3, values=4)
    problem = js.problems.supervised(js.models.Transformer(width=4, depth=1, heads=1), train, test, loss="cross_entropy")
    assert problem.data.train.inputs.dtype == np.int32
    shapes = flatten_dict(jax.eval_shape(problem.init, jax.random.key(0)))
    assert shapes["embedding", "embedding"].shape == (4, 4)
    assert shapes["dense_0", "kernel"].shape == (4, 4)
    images, _ = js.data.digits(20, flatten=False, standardize=False)
    bytes_of = images.inputs.astype(np.uint8)
    problem = js.problems.supervised(js.models.CNN(widths=(2,)), (bytes_of, images.targets))
    np.testing.assert_array_equal(problem.data.train.inputs, images.inputs)
