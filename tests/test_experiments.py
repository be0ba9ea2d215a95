"""Experiments: settings that refuse nonsense, results against closed forms, tables out of the dataset, labelled figures."""

import json

import jax
import numpy as np
import pytest
import tiny

import jaxsharp as js
from jaxsharp.experiments import EXPERIMENTS

EXPERIMENT = EXPERIMENTS["bn-regression"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_described_and_its_full_setting_is_valid(name):
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert experiment.summary
    assert experiment.precision in ("float32", "float64")
    small, large = experiment.configure(), experiment.configure(full=True)
    assert small != large
    assert all(entry.metadata["about"] for entry in small.__dataclass_fields__.values())


def test_the_default_grid_keeps_to_the_regime_of_the_theory():
    settings = EXPERIMENT.configure()
    largest = max(settings.learning_rates) * max(settings.weight_decays)
    assert largest <= 1e-4 * (1 + 1e-12)
    assert largest * settings.steps >= 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sseds": 3}, "no setting 'sseds'"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"steps": -1}, "steps must be at least 1"),
        ({"learning_rates": ()}, "learning_rates must be numbers above 0"),
        ({"learning_rates": (0.1, -0.1)}, "learning_rates must be numbers above 0"),
        ({"weight_decays": (float("nan"),)}, "weight_decays must be numbers above 0"),
        ({"weight_decays": (100.0,)}, "reaches 1 or more"),
        ({"least_angle": 1.5, "largest_angle": 1.2}, "least_angle <= largest_angle"),
        ({"largest_angle": 1.6}, "< pi/2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EXPERIMENT.configure(**changes)


@pytest.mark.parametrize("images", [60, 100_000])
def test_data_that_no_interpolant_fits_are_refused(images):
    with pytest.raises(ValueError, match=f"images={images}"):
        EXPERIMENT.run(EXPERIMENT.configure(images=images))


def test_the_result_is_labelled_and_explains_itself():
    ds = tiny.dataset()
    assert ds["angle"].dims == ("dynamics", "learning_rate", "weight_decay", "seed", "step")
    assert ds["dynamics"].values.tolist() == ["gd", "flow"]
    assert (ds["status"] == 0).all()
    assert ds["status"].attrs["flag_meanings"]
    np.testing.assert_allclose(ds["time"], ds["learning_rate"] * ds["weight_decay"] * ds["step"])
    assert ds["angle"].attrs["units"] == ds["exact_angle"].attrs["units"] == "rad"
    assert ds.attrs["experiment"] == "bn-regression"
    assert json.loads(ds.attrs["settings"])["seeds"] == 2
    assert "jax" in json.loads(ds.attrs["versions"])
    assert json.loads(json.loads(ds.attrs["gd"])["configuration"])["dynamics"] == "gd"


def test_both_start_over_the_same_points_which_differ_between_seeds():
    ds = tiny.dataset()
    start = ds["exact_angle"].isel(step=0)
    assert ((start >= 1.0) & (start <= 1.35)).all()
    assert float(np.ptp(start.values[0, 0])) > 1e-2
    np.testing.assert_allclose(start - start.isel(learning_rate=0), 0, atol=1e-12)
    np.testing.assert_allclose(ds["angle"].sel(dynamics="flow").isel(step=0), start, atol=1e-12)
    np.testing.assert_allclose(ds["angle"].sel(dynamics="gd").isel(step=0), start, atol=1e-3)


def test_flow_and_gd_follow_the_exact_solution():
    error = np.abs(tiny.dataset()["angle_error"])
    assert float(error.sel(dynamics="flow").max()) < 1e-6
    assert float(error.sel(dynamics="gd").max()) < 5e-3


def test_gd_stays_at_the_edge_of_stability():
    ratio = tiny.dataset()["stability_ratio"].isel(step=slice(1, None))
    np.testing.assert_allclose(ratio, 1, atol=0.02)


def test_the_exact_sharpness_is_that_of_the_dense_hessian():
    ds = tiny.dataset()
    train, _ = js.data.digits(10, targets="value")
    problem = js.problems.bn_linear_regression(*train)
    hessian = jax.jit(jax.hessian(lambda w: problem.loss({"weights": w})))(problem.data.minimum_norm)
    least = ds["exact_spherical_sharpness"] * np.cos(ds["exact_angle"]) ** 2
    np.testing.assert_allclose(least, np.linalg.eigvalsh(hessian)[-1], rtol=1e-9)


def test_the_table_holds_the_numbers_of_the_dataset():
    ds = tiny.dataset()
    rows = EXPERIMENT.table(ds).splitlines()
    row = next(line.split() for line in rows if line.split()[:2] == ["0.2", "0.0005"])
    here = ds.sel(learning_rate=0.2, weight_decay=5e-4)
    worst = np.abs(here["angle_error"]).max(("seed", "step"))
    assert row[2:4] == ["0.0001", "0.04"]
    assert row[4:6] == [f"{float(worst.sel(dynamics=name)):.1e}" for name in ("gd", "flow")]
    ratio = here["stability_ratio"].sel(dynamics="gd").isel(step=slice(1, None))
    assert row[6] == f"{float(ratio.mean()):.4f}"
    assert row[7] == f"({float(ratio.min()):.4f}–{float(ratio.max()):.4f})"
    assert row[8:] == ["0", "of", "4"]


def test_the_table_counts_failures_by_kind():
    ds = tiny.dataset().copy(deep=True)
    ds["status"][0, 1, 0, 0] = 1
    ds["angle_error"][0, 1] = np.nan
    text = EXPERIMENT.table(ds)
    assert "1 of 4" in text
    assert "diverged: 1 of 8 trajectories" in text


def test_the_figure_is_labelled():
    figure = EXPERIMENT.figure(tiny.dataset())
    figure.canvas.draw()
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.get_xlabel().startswith("time τ")
        assert axes.get_ylabel()
    assert "[rad]" in figure.axes[0].get_ylabel()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["GD+WD", "flow", "exact"]
    line = next(line for line in figure.axes[0].lines if line.get_label() == "GD+WD")
    wanted = tiny.dataset()["angle"].sel(dynamics="gd", learning_rate=0.2, weight_decay=5e-4).median("seed")
    np.testing.assert_allclose(line.get_ydata(), wanted)


def test_the_figure_survives_failures():
    ds = tiny.dataset().copy(deep=True)
    for name in ("angle", "angle_error", "spherical_sharpness", "stability_ratio"):
        ds[name][:] = np.nan
    EXPERIMENT.figure(ds).canvas.draw()
