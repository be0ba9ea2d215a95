"""The experiments central-flow and normalized-gd: tiny runs, what they measure against dense truths, tables and figures."""

from functools import cache, partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree
from support import dense_hessian

import jaxsharp as js
from jaxsharp import preconditioning
from jaxsharp.experiments import EXPERIMENTS, edge_study
from jaxsharp.experiments.central_flow import NETWORKS, Network, _EdgeRatio, _predictors, covariance_ratio, gains
from jaxsharp.experiments.order_study import orders
from jaxsharp.experiments.tables import with_interval

CENTRAL, NORMALIZED = EXPERIMENTS["central-flow"], EXPERIMENTS["normalized-gd"]
RATE, STEPS = 0.002, 40


@cache
def central():
    """A tiny network under RMSProp and its stable flow, one trajectory after the other; not to be changed."""
    tiny = Network("MLP", lambda: js.models.MLP(widths=(3,)), "digits", {"rmsprop": RATE}, 0.5)
    settings = CENTRAL.configure(
        networks=("mlp",), optimizers=("rmsprop",), flows=("stable",), seeds=2, steps=STEPS, every=20, shown=(20, 40), samples=12
    )
    one_by_one = mock.patch.object(edge_study, "sweep", partial(js.sweep, batch_size=1))  # a batch compiles longer
    with mock.patch.dict(NETWORKS, mlp=tiny), one_by_one:
        return CENTRAL.run(settings), central_flow_problem(settings.samples)


def central_flow_problem(samples):
    train, _ = js.data.digits(samples)
    return js.problems.supervised(js.models.MLP(widths=(3,)), train, loss="mse")


def test_central_flow_measures_rmsprop_and_its_preconditioned_curvature():
    ds, problem = central()
    assert ds["distance"].dims == ("task", "flow", "seed", "step")
    assert not ds["status"].any()
    w, unravel = ravel_pytree(jax.tree.map(lambda leaf: 0.5 * leaf, problem.init(jax.random.key(1))))
    assert int(ds["parameters"][0]) == w.size
    gradient = jax.jit(jax.grad(lambda w: problem.loss(unravel(w))))
    path, nu = [np.asarray(w)], np.zeros(w.size)
    for step in range(1, STEPS + 2):
        nu = 0.99 * nu + 0.01 * np.asarray(gradient(path[-1])) ** 2
        stiffness = (np.sqrt(nu / (1 - 0.99**step)) + 1e-7) / RATE
        path.append(path[-1] - np.asarray(gradient(path[-1])) / stiffness)
        if step == STEPS:
            hessian = dense_hessian(problem.loss, unravel(path[-1])) / np.sqrt(stiffness[:, None] * stiffness[None, :])
            exact = np.linalg.eigvalsh(hessian)[::-1][:3] / 2
    # the averaged law counts bias correction in continuous time, 1 − β2 e^{−(1 − β2) t / β2}: 0.2 % of √ν at step 40
    found = ds["edge_ratio"].isel(task=0).sel(seed=1, step_run=STEPS)
    np.testing.assert_allclose(found, exact, rtol=5e-3)
    middle = 0.25 * (path[-3] + 2 * path[-2] + path[-1])
    flow = js.flows.stable(js.optimizers.rmsprop(RATE, 0.99, 1e-7), substeps=8)
    end = jax.jit(lambda w: flow.advance(problem, flow.init(problem, unravel(w)), jnp.asarray(STEPS)).params)(w)
    far = float(np.linalg.norm(middle - ravel_pytree(end)[0]))
    np.testing.assert_allclose(ds["distance"].isel(task=0, flow=0).sel(seed=1, step=STEPS), far, rtol=1e-6)


def test_the_edge_of_gd_is_at_twice_the_inverse_rate():
    problem = js.problems.from_loss(lambda w, _: 0.5 * jnp.sum(jnp.array([5.0, 3.0, 1.0]) * w**2), lambda key: jnp.ones(3))
    optimizer = js.optimizers.gd(0.5)
    dynamics = js.as_dynamics(optimizer)
    ratio = _EdgeRatio(preconditioning.of(optimizer))
    measure = lambda w: ratio(problem, w, dynamics.advance(problem, dynamics.init(problem, w), jnp.asarray(1)))  # noqa: E731
    np.testing.assert_allclose(jax.jit(measure)(jnp.ones(3)), [1.25, 0.75, 0.25], rtol=1e-3)


def test_central_flow_table_and_figure_are_made_of_the_dataset():
    """A second flow is made up, twice as near, with an oscillation of three times what was measured."""
    ds, _ = central()
    measured = ds["measured_oscillation"].where(ds["step_window"] > STEPS / 2, drop=True).mean("step_window")
    other = ds.assign(distance=ds["distance"] / 2, oscillation=3 * measured + 0 * ds["distance"], status=ds["status"] + 1)
    both = xr.concat([ds, other.assign_coords(flow=["corrected"])], "flow", data_vars="minimal", coords="minimal").assign_attrs(
        settings=ds.attrs["settings"].replace('["stable"]', '["stable", "corrected"]')
    )
    assert (gains(both, 40).sel(flow="corrected") == 2).all()
    np.testing.assert_allclose(covariance_ratio(both).sel(flow="corrected"), 3)
    text = CENTRAL.table(both)
    row = next(line for line in text.splitlines() if line.lstrip().startswith("central, corrected"))
    assert with_interval(both["distance"].isel(task=0).sel(flow="corrected", step=40)) in row
    assert row.split()[-9:] == ["2", "±", "0", "3", "±", "0", *row.split()[-3:]]
    assert row.rstrip().endswith("2 of 2")  # the made-up status is a fatal bit
    figure = CENTRAL.figure(both)
    figure.canvas.draw()
    panel = figure.axes[1].lines
    assert [line.get_label() for line in panel] == ["stable flow", "central, corrected"]
    np.testing.assert_allclose(panel[0].get_ydata(), ds["distance"].isel(task=0, flow=0).median("seed"))


def test_flows_of_the_study_are_those_of_the_optimizer():
    settings = CENTRAL.configure(flows=("stable", "central", "corrected", "edge"), directions=7)
    for name, optimizer in (("gd", js.optimizers.gd(0.3)), ("rmsprop", js.optimizers.rmsprop(0.3, 0.99, 1e-7))):
        found = _predictors(name, 0.3, settings)
        plain = js.flows.central(optimizer, 7, substeps=1, eigen_tolerance=1e-3)
        assert found["central"].dynamics == plain
        assert found["corrected"].dynamics == js.flows.central(optimizer, 7, substeps=1, corrected=True, eigen_tolerance=1e-3)
        assert ("edge" in found) == (name == "gd")


@cache
def normalized():
    """A tiny run of one rule and one seed; not to be changed."""
    tiny = {"rules": ("normalized",), "seeds": 1, "learning_rates": (0.1, 0.05)}
    return NORMALIZED.run(NORMALIZED.configure(**tiny, time=0.1, measurements=4))


def test_normalized_gd_meets_its_flow_as_the_rate_shrinks():
    ds = normalized()
    assert ds["distance"].dims == ("rule", "learning_rate", "seed", "time")
    assert not ds["status"].any()
    assert not ds["flow_status"].any()
    assert (ds["flow_sharpness"].isel(time=-1) < 0.95 * ds["flow_sharpness"].isel(time=0)).all()
    here = ds.isel(rule=0)
    np.testing.assert_allclose(orders(here, "distance", "learning_rate"), 2, atol=0.4)
    end = here.isel(time=-1)
    assert (end["distance"].isel(learning_rate=1) < 0.05 * end["gone"]).all()
    settings = NORMALIZED.configure()
    assert settings.every("normalized", 0.1) == round(0.3 / 10 / (0.1**2 / 4))
    assert settings.every("root", 0.1) == round(0.05 * 0.3 / 10 / (0.02**2 / 8))


def test_normalized_gd_table_and_figure_are_made_of_the_dataset():
    ds = normalized()
    text = NORMALIZED.table(ds)
    row = next(line for line in text.splitlines() if " 0.05 " in line)
    assert f"{float(ds['distance'].isel(rule=0, learning_rate=1, time=-1).mean()):.3g}" in row
    assert row.split()[3] == "160"
    assert "Order of the distance in η: " in text
    NORMALIZED.figure(ds).canvas.draw()


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (CENTRAL, {"networks": ("mpl",)}, "networks must be some of"),
        (CENTRAL, {"optimizers": ()}, "optimizers must be some of"),
        (CENTRAL, {"flows": ("rod",)}, "flows must be some of"),
        (CENTRAL, {"factors": (0.0,)}, "factors must be numbers above 0"),
        (CENTRAL, {"samples": 0}, "samples must be at least 1"),
        (NORMALIZED, {"rules": ("gd",)}, "rules must be some of"),
        (NORMALIZED, {"learning_rates": (0.1, 0.1)}, "at least two different"),
        (NORMALIZED, {"time": 1e-5}, "time is too short"),
        (NORMALIZED, {"time": np.inf}, "time must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(experiment, changes, words):
    with pytest.raises(ValueError, match=words):
        experiment.configure(**changes)
