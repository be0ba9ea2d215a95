"""The experiment flow-zoo: a tiny run, its table and its figure."""

from functools import cache

import jax
import numpy as np
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree
from support import digits_network

import jaxsharp as js
from jaxsharp.experiments import EXPERIMENTS
from jaxsharp.experiments.flow_zoo import _setting
from jaxsharp.experiments.tables import with_interval

EXPERIMENT = EXPERIMENTS["flow-zoo"]
RATE = 0.4


@cache
def dataset():
    """A tiny run; not to be changed."""
    tiny = {"seeds": 2, "steps": 60, "shown": (20, 60), "images": 30, "widths": (8,), "learning_rate": RATE, "scale": 1.0}
    return EXPERIMENT.run(EXPERIMENT.configure(flows=("edge",), **tiny))


def test_distances_are_from_gd_of_the_same_start():
    ds = dataset()
    assert ds["distance"].dims == ("flow", "seed", "step")
    assert (ds["status"] == 0).all()
    assert (ds["run_status"] == 0).all()
    assert ds["step"].values.tolist() == [10, 20, 30, 40, 50, 60]
    problem = digits_network(widths=(8,), count=30)
    again = js.flows.edge(RATE)  # the same problem and start, so that this is the same program
    network, start = _setting(30, (8,), 1.0, True)
    options = {"init": start, "probes": ["parameters", "oscillation"], "every": 10, "progress": False}
    flow = js.sweep(network, again, seeds=2, steps=60, **options).sel(seed=1)
    w, unravel = ravel_pytree(problem.init(jax.random.key(1)))
    gradient = jax.jit(jax.grad(lambda w: problem.loss(unravel(w))))
    path = [w]
    for _ in range(61):
        path.append(path[-1] - RATE * gradient(path[-1]))
    run = xr.Dataset({"parameters": (("step", "parameter"), np.stack(path))}, {"step": np.arange(62)})
    np.testing.assert_allclose(ds["distance"].sel(flow="edge", seed=1), js.compare.distance(run, flow), rtol=1e-6)
    trace = js.compare.oscillation_variances(run, 20, 20).sum("direction")
    np.testing.assert_allclose(ds["measured_oscillation"].sel(seed=1), trace, rtol=1e-6)
    np.testing.assert_allclose(ds["oscillation"].sel(flow="edge", seed=1), flow.oscillation[1:, 0], rtol=1e-4)


def test_table_and_figure_are_made_of_the_dataset():
    ds = dataset()
    rows = EXPERIMENT.table(ds).splitlines()
    row = next(line for line in rows if line.lstrip().startswith("edge"))
    assert with_interval(ds["distance"].sel(flow="edge", step=60)) in row
    assert "0 of 2" in row
    figure = EXPERIMENT.figure(ds)
    figure.canvas.draw()
    assert len(figure.axes) == 3
    assert all(axes.get_xlabel() == "optimizer steps" and axes.get_ylabel() for axes in figure.axes)
    line = figure.axes[0].lines[0]
    assert line.get_label() == "edge"
    np.testing.assert_allclose(line.get_ydata(), ds["distance"].sel(flow="edge").median("seed"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flows": ("rods",)}, "flows must be some of"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"steps": 10}, "steps must be at least 40"),
        ({"shown": (105,)}, "multiples of every=10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EXPERIMENT.configure(**changes)
