"""The study of normalizations on digits: a tiny run, its labels, its table out of the dataset, and settings it refuses."""

from functools import cache

import numpy as np
import pytest
import xarray as xr

from jaxsharp.experiments import EXPERIMENTS

ZOO = EXPERIMENTS["norm-zoo"]


TINY = {"seeds": 2, "images": 20, "test_images": 20, "widths": (3,)}


@cache
def dataset():
    """A tiny run; not to be changed."""
    return ZOO.run(ZOO.configure(**TINY, norms=("layer", "none"), steps=12, every=2, flow=True))


def test_the_result_is_labelled_and_the_table_is_made_of_it():
    ds = dataset()
    assert ds["lambda1"].dims == ("norm", "learning_rate", "weight_decay", "seed", "step")
    assert ds["norm"].values.tolist() == ["layer", "none"]
    assert (ds["status"] == 0).all()
    plain = ds.sel(norm="none")
    np.testing.assert_allclose(plain["stability_ratio"], 0.5 * plain["lambda1"] / 2)
    row = next(line.split() for line in ZOO.table(ds).splitlines() if line.split()[:3] == ["layer", "0.5", "0.001"])
    end = ds["lambda1"].sel(norm="layer", weight_decay=1e-3).isel(learning_rate=0, step=slice(-5, None)).mean("step")
    assert row[6] == f"{float(end.mean()):.1f}"
    assert row[-3:] == ["0", "of", "2"]
    figure = ZOO.figure(ds)
    figure.canvas.draw()
    assert len(figure.axes) == 6
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["0", "0.001", "gradient flow"]


def test_the_control_is_gradient_flow():
    """Over the same flow time GD of a rate 50 times smaller ends where it does."""
    ds = dataset()
    assert ds["flow_lambda1"].dims == ("norm", "learning_rate", "seed", "step")
    assert (ds["flow_status"] == 0).all()
    slow = ZOO.run(ZOO.configure(**TINY, norms=("layer",), learning_rates=(0.01,), steps=600, every=100))  # the same program
    found = ds["flow_lambda1"].sel(norm="layer").isel(learning_rate=0)
    truth = slow["lambda1"].sel(norm="layer", weight_decay=0.0).isel(learning_rate=0)
    np.testing.assert_allclose(found, truth, rtol=0.015)


def test_each_learning_rate_has_a_row_where_there_are_few():
    ds = dataset()
    twice = xr.concat([ds, ds.assign_coords(learning_rate=[1.0])], dim="learning_rate", data_vars="minimal")
    figure = ZOO.figure(twice)
    figure.canvas.draw()
    assert len(figure.axes) == 12
    assert [axes.get_title() for axes in figure.axes if axes.get_title()][:2] == ["layer, η̂ = 0.5", "layer, η̂ = 1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norms": ("bach",)}, "norms must be distinct"),
        ({"widths": ()}, "widths"),
        ({"weight_decays": (0.0,)}, "weight_decays must be numbers above 0"),
        ({"images": 0}, "images must be at least 1"),
    ],
)
@pytest.mark.parametrize("name", ["norm-zoo", "bn-digits"])
def test_settings_that_make_no_sense_are_refused(name, changes, words):
    with pytest.raises(ValueError, match=words):
        EXPERIMENTS[name].configure(**changes)
