"""flow-vs-gd, oscillation and the study on CIFAR-10: tiny runs against closed forms, tables out of the dataset, refusals."""

from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from jaxsharp import models
from jaxsharp.experiments import EXPERIMENTS, cifar10_study, interpolating
from jaxsharp.experiments.cifar10_study import generated
from jaxsharp.experiments.order_study import orders
from jaxsharp.experiments.oscillation import predicted, swing
from jaxsharp.experiments.tables import interval

FLOW, SWING, VGG = (EXPERIMENTS[name] for name in ("flow-vs-gd", "oscillation", "cifar10-vgg11"))
SMALL = {"images": 6, "width": 4}


@cache
def against_flow():
    """A tiny run of one seed, and of a network without hidden layers, which compile long; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpolating, "models", SimpleNamespace(MLP=lambda widths, **how: models.MLP(widths=(), **how)))
        return FLOW.run(FLOW.configure(images=6, width=1, seeds=1, products=(1e-3, 2.5e-4), time=0.1, measurements=5))


@cache
def swings():
    """A tiny run; not to be changed."""
    return SWING.run(SWING.configure(**SMALL, seeds=2, amplitudes=(0.1, 2.0), products=(1e-4, 2.5e-5), periods=3))


def test_gd_is_nearer_to_the_flow_at_first_order_and_its_sharpness_falls():
    ds = against_flow()
    assert ds["distance"].dims == ("product", "seed", "time")
    assert (ds["status"] == 0).all()
    assert (ds["flow_sharpness"].isel(time=-1) < 0.95 * ds["flow_sharpness"].isel(time=0)).all()
    for name in ("distance", "log_ratio"):
        np.testing.assert_allclose(orders(ds, name, "product"), 1, atol=0.2)
    swings = np.abs(ds["stability_ratio"] - 1).isel(time=slice(1, None)) / np.sqrt(ds["product"])
    assert float(swings.max()) < 0.5  # in the unit of theory §2, in which an amplitude of 1 is a large one


def test_orders_are_slopes_of_logarithms():
    ds = xr.concat([against_flow()] * 2, "seed", data_vars="minimal").transpose("product", "seed", "time")
    ds["distance"] = ds["distance"].copy()
    ds["distance"][:] = 3 * (ds["product"] ** 1.7).values[:, None, None]
    ds["distance"][:, 1] = np.nan
    found = orders(ds, "distance", "product")
    assert found[0] == pytest.approx(1.7)
    assert np.isnan(found[1])


def test_flow_table_and_figure_are_made_of_the_dataset():
    ds = against_flow()
    text = FLOW.table(ds)
    mean, half, _ = interval(orders(ds, "distance", "product"))
    assert f"Order of the distance in η̂λ̂: {mean:.3f} ± {half:.3f} (1 seeds)." in text
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["0.00025"])
    assert row[1] == "400"
    assert row[2] == f"{float(ds['distance'].isel(product=1, time=-1).mean()):.3g}"
    assert row[-3:] == ["0", "of", "1"]
    FLOW.figure(ds).canvas.draw()


def test_the_prediction_has_the_period_of_small_swings_and_conserves_energy():
    times, values = predicted(1e-3, periods=2)
    np.testing.assert_allclose(values, 1e-3 * np.cos(2 * np.pi * times), atol=5e-6)
    # a² + e^{2z} − 2z is constant and z = 0 wherever a is extremal: peaks and troughs stay as large as the start
    period, size, damping = swing(*predicted(3.0, periods=8, points=20_001))
    np.testing.assert_allclose((size, damping), (3.0, 0.0), rtol=1e-3, atol=1e-4)
    # the period is 2 ∫ dz / (2 |a|) between the turning points, by the substitution z = mid + half sin φ
    turn = [_bisect(lambda z: 9 + 1 - np.exp(2 * z) + 2 * z, *bracket) for bracket in ((-9.0, 0.0), (0.0, 3.0))]
    angle = (np.arange(20_000) + 0.5) / 20_000 * np.pi - np.pi / 2
    middle, half = (turn[0] + turn[1]) / 2, (turn[1] - turn[0]) / 2
    z = middle + half * np.sin(angle)
    quadrature = np.mean(half * np.cos(angle) / np.sqrt(9 + 1 - np.exp(2 * z) + 2 * z)) * np.pi
    assert period == pytest.approx(quadrature / (np.pi / np.sqrt(2)), rel=1e-3)


def _bisect(function, low, high):
    sign = np.sign(function(low))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sign(function(middle)) == sign else (low, middle)
    return low


def test_a_network_swings_with_the_predicted_period():
    ds = swings()
    assert ds["swing"].dims == ("product", "amplitude", "seed", "time")
    assert (ds["status"] == 0).all()
    np.testing.assert_allclose(ds["period"].sel(amplitude=0.1), 1, atol=0.03)
    np.testing.assert_allclose(ds["period"], ds["predicted_period"], rtol=0.05)
    assert float(ds["predicted_period"].sel(amplitude=2.0).max()) > 1.2
    half = ds.sel(amplitude=2.0, time=slice(0.04, 0.5))
    error = np.abs(half["swing"] - half["predicted_swing"]).max("time") / 2.0
    assert float(error.sel(product=2.5e-5).max()) < 0.3
    # what theory leaves out is of first order in √(η̂λ̂): a quarter of the product leaves half the error
    ratio = error.sel(product=2.5e-5) / error.sel(product=1e-4)
    assert 0.4 < float(ratio.min()) <= float(ratio.max()) < 0.7
    rows = [line.split() for line in SWING.table(ds).splitlines()]
    row = next(row for row in rows if row[:2] == ["0.0001", "2"])
    here = ds.sel(product=1e-4, amplitude=2.0)
    assert row[5] == f"{float(here['period'].mean()):.4g}"
    assert row[8] == f"{float(here['predicted_period'].mean()):.4g}"
    SWING.figure(ds).canvas.draw()


def test_generated_images_are_standardized_and_classes_can_be_told_apart():
    train, test = generated(200, 50, seed=1)
    assert abs(train.inputs.mean()) < 0.02
    assert train.inputs.std() == pytest.approx(1, abs=0.02)
    assert set(train.targets.tolist()) == set(range(10))
    means = np.stack([train.inputs[train.targets == label].mean(axis=0) for label in range(10)])
    nearest = ((test.inputs[:, None] - means) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)
    assert (nearest == test.targets).mean() > 0.5  # by chance 0.1
    again, _ = generated(200, 50, seed=1)
    np.testing.assert_array_equal(train.inputs, again.inputs)


def test_a_study_on_generated_images_says_so(monkeypatch):
    """The network is cut to one convolution, since a deep one compiles for half a minute."""
    monkeypatch.setitem(cifar10_study.MODELS, "cifar10-vgg11", partial(models.VGG, plan=(1, "pool", "pool", "pool", "pool")))
    ds = VGG.run(VGG.configure(images=10, test_images=10, width=2, steps=20, every=2))
    assert ds["lambda1"].dims == ("norm", "learning_rate", "weight_decay", "seed", "step")
    assert (ds["status"] == 0).all()
    assert "generated" in ds.attrs["title"]
    assert "generated" in ds.attrs["images"]
    assert "generated" in VGG.table(ds).splitlines()[0]
    assert float(ds["loss"].isel(step=-1).max()) < float(ds["loss"].isel(step=0).min())
    norm = ds["parameter_norm"].isel(step=-1)
    assert (norm.sel(weight_decay=1e-2) < norm.sel(weight_decay=0.0)).all()
    VGG.figure(ds).canvas.draw()


@pytest.mark.parametrize("name", ["cifar10-vgg11", "cifar10-resnet20"])
def test_a_missing_folder_and_a_width_of_nothing_are_refused(name):
    experiment = EXPERIMENTS[name]
    with pytest.raises(ValueError, match="does not exist"):
        experiment.run(experiment.configure(path="no/such/folder"))
    with pytest.raises(ValueError, match="width must be at least 1"):
        experiment.configure(width=0)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("flow-vs-gd", {"products": (1e-4,)}, "at least two different"),
        ("flow-vs-gd", {"products": (1e-4, -1.0)}, "products must be numbers above 0"),
        ("flow-vs-gd", {"time": 1e-4}, "time is too short"),
        ("flow-vs-gd", {"learning_rate": 0.0}, "learning_rate and time"),
        ("oscillation", {"products": (0.01,)}, "at most 1e-3"),
        ("oscillation", {"amplitudes": (100.0,)}, "too far from the edge"),
        ("oscillation", {"periods": 0}, "periods must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, changes, words):
    with pytest.raises(ValueError, match=words):
        EXPERIMENTS[name].configure(**changes)
