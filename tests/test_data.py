"""The loaders split, standardize and relabel as they say, and refuse what they cannot do."""

import numpy as np
import pytest

import jaxsharp as js

pytestmark = pytest.mark.smoke

TOTAL = 1797


def rows_of(*datasets):
    return np.concatenate([np.column_stack([data.inputs.reshape(len(data.inputs), -1), data.targets]) for data in datasets])


def test_digits_are_split_without_overlap_or_loss():
    from sklearn.datasets import load_digits

    train, test = js.data.digits(1000, standardize=False, drop_constant=False)
    assert len(train.inputs) == 1000
    assert len(test.inputs) == TOTAL - 1000
    together, original = rows_of(train, test), np.column_stack(load_digits(return_X_y=True))
    np.testing.assert_array_equal(together[np.lexsort(together.T)], original[np.lexsort(original.T)])


def test_the_seed_decides_the_split():
    first, again, other = (js.data.digits(20, 5, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.targets, again.targets)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert not np.array_equal(first.targets, other.targets)


@pytest.mark.parametrize("flatten", [True, False])
def test_standardizing_uses_the_training_set_only(flatten):
    train, test = js.data.digits(300, 100, flatten=flatten)
    raw_train, raw_test = js.data.digits(300, 100, flatten=flatten, standardize=False)
    varying = raw_train.inputs.std(axis=0) > 0
    mean, std = raw_train.inputs.mean(axis=0), np.where(varying, raw_train.inputs.std(axis=0), 1)
    np.testing.assert_allclose(test.inputs, np.where(varying, (raw_test.inputs - mean) / std, 0), atol=1e-12)
    np.testing.assert_allclose(train.inputs.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(train.inputs.std(axis=0), varying, atol=1e-12)


def test_constant_pixels_are_dropped_from_vectors_and_zero_in_images():
    kept = js.data.digits(50, 20, drop_constant=False)
    dropped = js.data.digits(50, 20)
    images = js.data.digits(50, 20, flatten=False)
    assert kept[0].inputs.shape == (50, 64)
    assert dropped[0].inputs.shape[1] == dropped[1].inputs.shape[1] < 64
    assert (np.ptp(dropped[0].inputs, axis=0) > 0).all()
    for vectors, pictures in zip(kept, images, strict=True):
        assert pictures.inputs.shape == (len(vectors.inputs), 8, 8, 1)
        np.testing.assert_array_equal(pictures.inputs.reshape(-1, 64), vectors.inputs)
        assert not vectors.inputs[:, 0].any()


def test_the_kinds_of_targets_agree():
    labels, onehot, value = (
        js.data.digits(200, 50, classes=(7, 2, 5), targets=kind)[0].targets for kind in ("labels", "onehot", "value")
    )
    assert labels.dtype == np.int32
    assert onehot.shape == (200, 3)
    np.testing.assert_array_equal(onehot, np.eye(3)[labels])
    np.testing.assert_array_equal(value, np.array([7.0, 2.0, 5.0])[labels])


def test_inputs_are_float64_numpy():
    for data in (*js.data.digits(20, 20), *js.data.diabetes()):
        assert isinstance(data.inputs, np.ndarray)
        assert data.inputs.dtype == np.float64


def test_diabetes_is_standardized_by_its_training_set():
    train, test = js.data.diabetes(300, 100)
    raw_train, raw_test = js.data.diabetes(300, 100, standardize=False)
    assert test.inputs.shape == (100, 10)
    assert raw_train.targets.min() > 20
    np.testing.assert_allclose(
        test.inputs, (raw_test.inputs - raw_train.inputs.mean(axis=0)) / raw_train.inputs.std(axis=0), rtol=1e-12
    )
    np.testing.assert_allclose(test.targets, (raw_test.targets - raw_train.targets.mean()) / raw_train.targets.std(), rtol=1e-12)
    np.testing.assert_allclose(train.targets.std(), 1)


@pytest.mark.parametrize(
    ("load", "arguments", "message"),
    [
        (js.data.digits, {"count": 0}, "count=0"),
        (js.data.digits, {"count": TOTAL}, "count=1797"),
        (js.data.digits, {"count": 10.5}, "count=10.5"),
        (js.data.digits, {"count": 1000, "test_count": 798}, "test_count=798"),
        (js.data.digits, {"classes": (3, 3)}, "classes"),
        (js.data.digits, {"classes": ()}, "classes"),
        (js.data.digits, {"classes": (3, 12)}, "classes"),
        (js.data.digits, {"classes": (3,), "count": 500}, "count=500"),
        (js.data.digits, {"targets": "label"}, "targets='label'"),
        (js.data.diabetes, {"count": 442}, "count=442"),
        (js.data.diabetes, {"count": 400, "test_count": 0}, "test_count=0"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(load, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)
