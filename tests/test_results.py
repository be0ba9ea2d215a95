"""Results: dimensions, labels, provenance, and files that come back as they went."""

import json

import numpy as np
import pytest
import xarray as xr

import jaxsharp as js
from jaxsharp import results
from jaxsharp.status import MEANINGS


@pytest.fixture(scope="module")
def dataset():
    return js.sweep(
        js.problems.valley(),
        js.flows.gradient,
        {"weight_decay": [0.0, 0.1, 0.2], "learning_rate": [0.1, 0.3]},
        seeds=2,
        steps=4,
        every=2,
        probes=["loss", js.probes.sharpness(k=2), "parameters"],
        progress=False,
    )


def test_dimensions_follow_the_question(dataset):
    assert dataset.loss.dims == ("weight_decay", "learning_rate", "seed", "step")
    assert dataset.sharpness.dims == ("weight_decay", "learning_rate", "seed", "step", "eigenvalue")
    assert dataset.parameters.dims == ("weight_decay", "learning_rate", "seed", "step", "parameter")
    assert dataset.eigenvalue.values.tolist() == [1, 2]
    np.testing.assert_allclose(dataset.time.sel(learning_rate=0.3), np.broadcast_to([0, 0.6, 1.2], (3, 2, 3)))


def test_everything_has_a_name_and_units(dataset):
    for name, variable in dataset.data_vars.items():
        assert variable.attrs["long_name"], name
    assert dataset.step.attrs["units"] == "steps"
    assert len(dataset.status.attrs["flag_masks"]) == len(dataset.status.attrs["flag_meanings"].split()) == len(MEANINGS)


def test_provenance(dataset):
    versions = json.loads(dataset.attrs["versions"])
    assert {"jax", "jaxlib", "jaxsharp"} <= set(versions)
    assert dataset.attrs["precision"] == "float64"
    assert dataset.attrs["device"].startswith("cpu")
    assert dataset.attrs["wall_time_seconds"] > 0
    assert dataset.attrs["hvp_count"] == int(dataset.sharpness_products.sum()) == int(dataset.hvps.sum())
    configuration = json.loads(dataset.attrs["configuration"])
    assert configuration["over"] == {"weight_decay": [0.0, 0.1, 0.2], "learning_rate": [0.1, 0.3]}
    assert configuration["seeds"] == [0, 1]
    assert configuration["steps"] == 4


@pytest.mark.smoke
def test_a_file_comes_back_identical(dataset, tmp_path):
    path = js.save(dataset, tmp_path / "results.nc")
    xr.testing.assert_identical(js.load(path), dataset)
    js.save(dataset.isel(seed=[0]), path)
    assert js.load(path).sizes["seed"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.nc"]


def test_files_that_cannot_be_read_or_written_are_named(dataset, tmp_path):
    path = js.save(dataset, tmp_path / "results.nc")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"results\.nc.*truncated"):
        js.load(path)
    with pytest.raises(ValueError, match=r"no result file.*missing\.nc"):
        js.load(tmp_path / "missing.nc")
    with pytest.raises(ValueError, match="cannot be written"):
        js.save(dataset, tmp_path / "no folder" / "results.nc")


def test_version_of_a_missing_package_is_unknown():
    assert results._version("no-such-package") == "unknown"
