"""ire-valley against the paper's end points, ire-heatmap against single runs; their tables and figures hold the dataset."""

from functools import cache

import jax
import jax.flatten_util
import numpy as np
import pytest
from support import count_compilations

import jaxsharp as js
from jaxsharp import optimizers
from jaxsharp.experiments import EXPERIMENTS
from jaxsharp.experiments.ire_valley import REFERENCE
from jaxsharp.status import Status

VALLEY, HEATMAP = EXPERIMENTS["ire-valley"], EXPERIMENTS["ire-heatmap"]


@cache
def valley():
    return VALLEY.run(VALLEY.configure())


@cache
def heatmap():
    return HEATMAP.run(HEATMAP.configure(**TINY))


TINY = {
    "kappas": (0.0, 3.0, 1e6),
    "gammas": (0.5, 0.9),
    "seeds": 2,
    "steps": 12,
    "every": 4,
    "warmup": 2,
    "images": 40,
    "width": 6,
}


def test_the_valley_ends_where_the_paper_says():
    ds = valley()
    assert len(REFERENCE) == 4
    for (rate, kappa), u in REFERENCE.items():
        here = ds.sel(learning_rate=rate, kappa=kappa)
        np.testing.assert_allclose(here.u[-1], u, atol=5e-6)
        np.testing.assert_allclose(here.sharpness[-1], 1 + float(here.u[-1]) ** 2, rtol=1e-4)
        assert int(here.status) == 0
        assert int(here.settled_at) < 300
    assert (ds.status.sel(learning_rate=2.0) == int(Status.DIVERGED)).all()
    assert (ds.mask_fraction.sel(learning_rate=1.0)[:, 1:] == 0.5).all()


def test_the_valley_s_plain_run_is_the_recursion():
    u, v = 1.0, 0.01
    for step in range(30):
        here = valley().sel(learning_rate=1.0, kappa=0.0, step=step)
        np.testing.assert_allclose([here.u, here.v], [u, v], rtol=1e-12)
        u, v = u - u * v**2, v - (1 + u**2) * v


def test_the_step_at_which_a_run_settles_is_the_first():
    here = valley().sel(learning_rate=1.0, kappa=90.0)
    at = int(here.settled_at)
    gap = np.abs(here.u - here.u[-1]).values
    assert (gap[at:] < 5e-6).all()
    assert gap[at - 1] >= 5e-6


def test_the_valley_s_table_and_figure_hold_the_dataset():
    rows = [line.split() for line in VALLEY.table(valley()).splitlines()]
    row = next(cells for cells in rows if cells[:2] == ["1", "900"])
    assert row[2] == "0.74259" == row[6]
    assert row[7] == "ok"
    assert "diverged: 4 of 8 trajectories" in VALLEY.table(valley())
    figure = VALLEY.figure(valley())
    figure.canvas.draw()
    line = next(line for line in figure.axes[1].lines if line.get_label() == "IRE, κ = 900")
    np.testing.assert_allclose(line.get_ydata(), valley().u.sel(learning_rate=1.0, kappa=900.0))
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_the_heatmap_is_one_sweep_of_single_runs():
    ds = heatmap()
    assert dict(ds.sizes) == {"kappa": 3, "gamma": 2, "seed": 2, "step": 2, "eigenvalue": 5}
    assert (ds.status.sel(kappa=1e6) == int(Status.DIVERGED)).all()
    train, test = js.data.digits(40)
    problem = js.problems.supervised(js.models.MLP(widths=(6,)), train, test)
    plain = js.simulate(problem, optimizers.gd(0.2), 12, probes=["loss", "metrics", "parameters"], every=12)
    for name in ("loss", "test_accuracy"):
        for gamma in (0.5, 0.9):
            np.testing.assert_allclose(ds[name].sel(kappa=0.0, gamma=gamma, seed=0), plain[name], rtol=1e-6)
    w = plain.parameters.values[-1]
    unravel = jax.flatten_util.ravel_pytree(problem.init(jax.random.key(0)))[1]
    top = np.linalg.eigvalsh(jax.jit(jax.hessian(lambda w: problem.loss(unravel(w))))(w))[-1]
    np.testing.assert_allclose(ds.sharpness.sel(kappa=0.0, gamma=0.5, seed=0)[-1], top, rtol=1e-3)
    assert np.abs(ds.loss.sel(kappa=3.0, gamma=0.9) - ds.loss.sel(kappa=0.0, gamma=0.9)).max() > 1e-3
    fraction = ds.protection.sel(kappa=0.0)
    assert (fraction.sel(gamma=0.9).isel(step=-1) < fraction.sel(gamma=0.5).isel(step=-1)).all()


def test_another_heatmap_of_the_same_size_compiles_nothing():
    heatmap()
    with count_compilations() as compiled:
        HEATMAP.run(HEATMAP.configure(**{**TINY, "kappas": (0.1, 1.0, 2.0), "gammas": (0.3, 0.7)}))
    assert not compiled


def test_the_heatmap_s_table_and_figure_hold_the_dataset():
    ds = heatmap()
    rows = [line.split() for line in HEATMAP.table(ds).splitlines()]
    row = next(cells for cells in rows if cells[:2] == ["3", "0.9"])
    values = ds.isel(step=-1).sel(kappa=3.0, gamma=0.9)
    assert row[5] == f"{float(values.sharpness.mean()):.3g}"
    assert row[7] == f"{float(values.sharpness.std(ddof=1)):.3g}"
    lost = next(cells for cells in rows if cells[:2] == ["1e+06", "0.5"])
    assert lost[2:] == ["–", "–", "–", "–", "2"]
    figure = HEATMAP.figure(ds)
    figure.canvas.draw()
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image[1, 1], values.sharpness.mean())
    assert [text.get_text() for text in figure.axes[0].texts].count("×") == 2


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (VALLEY, {"learning_rates": ()}, "learning_rates must be numbers above 0"),
        (VALLEY, {"kappas": (-1.0,)}, "kappas must be numbers not below 0"),
        (VALLEY, {"steps": 0}, "steps must be at least 1"),
        (VALLEY, {"u": float("nan")}, "u and v must be finite"),
        (HEATMAP, {"gammas": (1.1,)}, "gammas must be numbers from 0 to 1"),
        (HEATMAP, {"kappas": (-1.0,)}, "kappas must be numbers from 0"),
        (HEATMAP, {"seeds": 0}, "seeds must be at least 1"),
        (HEATMAP, {"ema": 1.0}, "ema in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(experiment, changes, words):
    with pytest.raises(ValueError, match=words):
        experiment.configure(**changes)
