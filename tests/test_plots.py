"""Plots: what is drawn is what the dataset holds, labelled, with sentences for what cannot be drawn."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from jaxsharp import compare, plots

STEPS = np.arange(0, 50, 10)


def sample(rates=3, seeds=4, time=True):
    rng = np.random.default_rng(0)
    dims = ("learning_rate", "seed", "step")
    coords = {"learning_rate": 0.1 * np.arange(1, rates + 1), "seed": np.arange(seeds), "step": STEPS}
    ds = xr.Dataset(
        {
            "loss": (dims, rng.uniform(1, 2, (rates, seeds, 5)), {"long_name": "training loss", "units": "1"}),
            "angle": (dims, rng.uniform(1, 2, (rates, seeds, 5)), {"long_name": "angle α", "units": "rad"}),
            "top": ((*dims, "eigenvalue"), rng.uniform(1, 2, (rates, seeds, 5, 2))),
            "status": (("learning_rate", "seed"), np.zeros((rates, seeds), int)),
        },
        {**coords, "eigenvalue": [1, 2]},
    )
    ds["step"].attrs = {"long_name": "optimizer steps", "units": "steps"}
    if time:
        values = 0.5 * coords["learning_rate"][:, None, None] * np.ones((rates, seeds, 1)) * STEPS
        ds = ds.assign_coords(time=(("learning_rate", "seed", "step"), values, {"long_name": "flow time", "units": "1"}))
    return ds


def test_a_line_for_each_grid_point_is_the_median_over_seeds():
    ds = sample()
    axes = plots.trajectories(ds, "loss").axes[0]
    assert len(axes.lines) == 3
    for line, rate in zip(axes.lines, ds.learning_rate.values, strict=True):
        np.testing.assert_allclose(line.get_xdata(), STEPS)
        np.testing.assert_allclose(line.get_ydata(), ds.loss.sel(learning_rate=rate).median("seed"))
        assert line.get_label() == f"learning rate {rate:g}"
    assert axes.get_legend().get_title().get_text() == "median and range over 4 seeds"


def test_axes_are_labelled_with_units():
    axes = plots.trajectories(sample(), "angle").axes[0]
    assert axes.get_xlabel() == "optimizer steps"
    assert axes.get_ylabel() == "angle α [rad]"


@pytest.mark.parametrize(("spread", "low", "high"), [("range", 0, 1), ("quartiles", 0.25, 0.75)])
def test_the_band_spans_the_seeds(spread, low, high):
    ds = sample(rates=1)
    axes = plots.trajectories(ds, "loss", spread=spread).axes[0]
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    wanted = ds.loss.isel(learning_rate=0)
    np.testing.assert_allclose(corners.min(), wanted.quantile(low, "seed").min())
    np.testing.assert_allclose(corners.max(), wanted.quantile(high, "seed").max())


def test_time_is_each_grid_points_own():
    ds = sample()
    axes = plots.trajectories(ds, "loss", x="time").axes[0]
    np.testing.assert_allclose(axes.lines[2].get_xdata(), 0.5 * float(ds.learning_rate[2]) * STEPS)
    assert axes.get_xlabel() == "flow time"


def test_failed_members_drop_out():
    ds = sample(rates=1, seeds=3)
    ds["loss"][0, 2, 1:] = np.nan
    line = plots.trajectories(ds, "loss").axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata()[1:], ds.loss[0, :2, 1:].mean("seed"))


def test_a_grid_point_that_failed_altogether_leaves_a_gap():
    ds = sample(rates=2, seeds=2)
    ds["loss"][0] = np.nan
    figure = plots.trajectories(ds, "loss", log=True)
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).all()
    figure.canvas.draw()


def test_further_dimensions_get_lines_of_their_own():
    axes = plots.trajectories(sample(), "top").axes[0]
    assert len(axes.lines) == 6
    assert axes.lines[1].get_label() == "learning rate 0.1, eigenvalue 2"


def test_one_trajectory_needs_no_legend():
    axes = plots.trajectories(sample().isel(learning_rate=0, seed=0), "loss").axes[0]
    assert len(axes.lines) == 1
    assert axes.get_legend() is None


def test_lines_differ_in_colour_or_style():
    lines = plots.trajectories(sample(rates=20, seeds=1), "loss").axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


@pytest.mark.parametrize("band", plots.BANDS)
def test_bands(band):
    axes = plots.new_figure((3, 2)).add_subplot()
    plots.draw(axes, sample(rates=1), "loss", band=band, color="black", label="all")
    assert len(axes.collections) == (band == "filled")
    assert len(axes.lines) == (3 if band == "outline" else 1)
    assert [label for label in axes.get_legend_handles_labels()[1]] == ["all"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variable": "los"}, "did you mean 'loss'"),
        ({"variable": "status"}, "'status' is not a recorded trajectory"),
        ({"variable": "loss", "x": "minutes"}, "use 'step' or 'time'"),
        ({"variable": "loss", "spread": "sigma"}, "use one of range, quartiles"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments, words):
    with pytest.raises(ValueError, match=words):
        plots.trajectories(sample(), **arguments)


def test_too_many_lines_are_refused():
    with pytest.raises(ValueError, match="select some first"):
        plots.trajectories(sample(rates=29), "loss")


def test_an_optimizer_has_no_time():
    with pytest.raises(ValueError, match="only flows have a time"):
        plots.trajectories(sample(time=False), "loss", x="time")


def test_importing_jaxsharp_and_plots_leaves_matplotlib_alone():
    code = "import sys, jaxsharp, jaxsharp.plots, jaxsharp.experiments; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_does_not_start_pyplot():
    code = (
        "import sys, jaxsharp as js; from jaxsharp import plots;"
        "ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.5), steps=3);"
        "plots.trajectories(ds, 'loss').canvas.draw(); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _recorded(values, **more):
    return xr.Dataset({"parameters": (("seed", "step", "parameter"), values), **more}, {"step": np.arange(values.shape[1])})


def test_distances_of_several_flows_are_those_of_compare():
    rng = np.random.default_rng(0)
    run = _recorded(rng.normal(size=(3, 20, 4)))
    flows = {"near": _recorded(rng.normal(size=(3, 20, 4))).isel(step=slice(0, None, 5)), "far": _recorded(np.zeros((3, 20, 4)))}
    axes = plots.distances(run, flows).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["near", "far"]
    for line, flow in zip(axes.lines, flows.values(), strict=True):
        wanted = compare.distance(run, flow)
        np.testing.assert_allclose(line.get_ydata(), wanted.median("seed"))
        np.testing.assert_allclose(line.get_xdata(), wanted.step)
    assert len(axes.collections) == 2  # a band each
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("optimizer steps", "distance [parameters]", "log")
    with pytest.raises(ValueError, match="grid over rate"):
        plots.distances(run, {"grid": xr.concat([flows["far"]] * 2, "rate")})
    with pytest.raises(ValueError, match="flows is empty"):
        plots.distances(run, {})


def test_predicted_oscillation_stands_beside_the_measured():
    flips = 0.3 * (-1.0) ** np.arange(20)[:, None] * np.array([0.6, 0.8, 0.0])
    run = _recorded(np.stack([flips, flips, flips]))
    flow = xr.Dataset({"oscillation": (("seed", "step", "direction"), np.full((3, 4, 1), 0.25))}, {"step": [0, 5, 10, 15]})
    axes = plots.oscillations(run, flow, window=6).axes[0]
    predicted, measured = axes.lines
    np.testing.assert_allclose(predicted.get_ydata(), 0.25)
    np.testing.assert_allclose(measured.get_ydata(), 0.09)
    assert measured.get_xdata().tolist() == [3.5, 9.5, 15.5]
    assert predicted.get_color() == measured.get_color()
    assert axes.get_xlabel() == "optimizer steps"
    assert axes.get_ylabel()
    with pytest.raises(ValueError, match="no 'oscillation'"):
        plots.oscillations(run, run, window=6)
