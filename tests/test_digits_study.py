"""The study of normalizations on digits: a tiny run, its labels, its table out of the dataset, and settings it refuses."""

from functools import cache

import numpy as np
import pytest

from jaxsharp.experiments import EXPERIMENTS

ZOO = EXPERIMENTS["norm-zoo"]


@cache
def dataset():
    """A tiny run; not to be changed."""
    tiny = {"norms": ("layer", "none"), "seeds": 2, "steps": 12, "every": 2, "images": 20, "test_images": 20, "widths": (3,)}
    return ZOO.run(ZOO.configure(**tiny))


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
