"""Flows: closed forms, error control, flags, and one table of properties for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import count_compilations, regression

import jaxsharp as js
from jaxsharp.status import Status

CURVATURES = np.array([1.0, 3.0, 10.0])
PROBES = ["metrics", "loss", "parameters"]
"""Of all flows on the regression, with 17 to 32 measurements, so that programs are shared."""


def _quadratic(w, data):
    return 0.5 * jnp.sum(data * w**2)


def _ones(key):
    del key
    return jnp.ones(3)


def quadratic():
    return js.problems.from_loss(_quadratic, _ones, data=jnp.asarray(CURVATURES), name="quadratic")


def test_gradient_flow_is_exact_on_a_quadratic(precision):
    ds = js.simulate(quadratic(), js.flows.gradient(0.05, weight_decay=0.5), 40, probes=["parameters"], every=10)
    exact = np.exp(-(CURVATURES + 0.5)[None] * ds.time.values[:, None])
    np.testing.assert_allclose(ds.parameters, exact, rtol=0, atol=1e-5 if precision == "float64" else 1e-3)
    assert ds.parameters.dtype == precision
    np.testing.assert_allclose(ds.time, 0.05 * ds.step)


def test_error_follows_the_tolerance():
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        ds = js.simulate(quadratic(), js.flows.gradient(0.1, tolerance=tolerance), 10, probes=["parameters"], every=10)
        errors.append(np.abs(ds.parameters.values[-1] - np.exp(-CURVATURES)).max())
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10


def test_gd_tends_to_gradient_flow_at_first_order():
    distances = []
    for rate in (0.02, 0.002):
        steps = round(1 / rate)
        gd = js.simulate(quadratic(), js.optimizers.gd(rate), steps, probes=["parameters"], every=steps)
        flow = js.simulate(quadratic(), js.flows.gradient(rate), steps, probes=["parameters"], every=steps)
        distances.append(np.linalg.norm(gd.parameters.values[-1] - flow.parameters.values[-1]))
    assert distances[1] < distances[0] / 8


def test_cadence_does_not_change_a_flow():
    ends = []
    for every in (200, 375):
        point = js.problems.interpolant(regression(), jax.random.key(0), angle=1.1)
        ds = js.simulate(regression(), js.flows.sharpness_reduction(0.1, 1e-3), 6000, init=point, probes=PROBES, every=every)
        ends.append(float(ds.angle[-1]))
        assert float(ds.loss.max()) < 1e-20  # it stays on the minimizer manifold
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-5)


def test_the_flow_on_a_real_network_and_real_data_in_a_grid():
    """A normalized MLP with 1,696 parameters on 30 digits: four members on their manifolds, flatter and flatter."""
    train, _ = js.data.digits(count=30, targets="value")
    model = js.models.MLP(widths=(32,), norm="batch", scale_invariant=True)
    problem = js.problems.supervised(model, train)
    ds = js.sweep(
        problem,
        js.flows.sharpness_reduction,
        {"learning_rate": [0.1, 0.2], "weight_decay": [1e-3]},
        seeds=2,
        steps=1000,
        every=250,
        init=lambda key: js.minimizers.retract(problem, problem.init(key), max_steps=100),
        probes=["spherical_sharpness", "loss"],
        progress=False,
    )
    assert not ds.status.any()
    assert float(ds.loss.max()) < 1e-20
    assert (ds.spherical_sharpness.diff("step") < 0).all()
    slow, fast = (ds.spherical_sharpness.sel(learning_rate=rate, weight_decay=1e-3) for rate in (0.1, 0.2))
    np.testing.assert_allclose(slow.sel(step=1000), fast.sel(step=500), rtol=1e-3)  # the same flow time


def _crossing_loss(w, data):
    """Two valleys across u; their curvatures 1 + u² and 2.2 − u meet at u = 0.704, and the flow comes from u = 1.5."""
    del data
    u, v, z = w
    return 0.5 * ((1 + u**2) * v**2 + (2.2 - u) * z**2)


def _crossing_residuals(w, data):
    del data
    u, v, z = w
    return jnp.stack([jnp.sqrt(1 + u**2) * v, jnp.sqrt(jnp.maximum(2.2 - u, 0.01)) * z])


def test_a_lost_eigengap_is_flagged_and_not_integrated_through():
    problem = js.problems.from_loss(_crossing_loss, _ones, residuals=_crossing_residuals, name="crossing")
    start = np.array([1.5, 0.0, 0.0])
    rule = js.flows.sharpness_reduction(0.1, c_b=np.inf)
    ds = js.simulate(problem, rule, 2000, init=start, probes=["parameters"], every=50)
    assert int(ds.status) == Status.EIGENGAP_LOST
    crossing = (-1 + np.sqrt(1 + 4 * 1.2)) / 2
    stopped = float(ds.diverged_at)
    assert 0 < stopped < 2000
    seen = ds.parameters.values[:, 0]
    assert np.isnan(seen[ds.step.values >= stopped]).all()
    kept = seen[ds.step.values < stopped]
    assert (kept > crossing - 0.02).all()
    assert kept[-1] < crossing + 0.1
    # Until then it is normalized GD, du/dτ = −½ d log(1 + u²)/du, so that u²/2 + log u falls by τ.
    height = kept**2 / 2 + np.log(kept)
    np.testing.assert_allclose(height, height[0] - ds.time.values[: len(kept)], atol=1e-4)


def test_an_unconverged_eigenpair_stops_the_member():
    point = js.problems.interpolant(regression(), jax.random.key(0), angle=1.1)
    rule = js.flows.sharpness_reduction(0.1, 1e-3, max_matvecs=4, eigen_tolerance=1e-12)
    ds = js.simulate(regression(), rule, 100, init=point, probes=["loss"], every=100)
    assert int(ds.status) & Status.FLOW_EIGENPAIR_UNCONVERGED


def test_too_many_integration_steps_stop_the_member():
    ds = js.simulate(quadratic(), js.flows.gradient(1.0, max_steps=5), 100, probes=["loss"], every=100)
    assert int(ds.status) == Status.STEP_LIMIT
    assert np.isnan(ds.loss[-1])


def test_a_blow_up_stops_the_member_and_not_the_program():
    problem = js.problems.from_loss(lambda w, data: -jnp.sum(w**4), _ones, name="unbounded")
    ds = js.simulate(problem, js.flows.gradient(1.0), 10, probes=["loss"], every=10)
    assert int(ds.status) & (Status.STEP_LIMIT | Status.DIVERGED)


FLOWS = {
    "gradient": lambda rate: js.flows.gradient(rate, weight_decay=0.01),
    "sharpness_reduction": lambda rate: js.flows.sharpness_reduction(rate, weight_decay=0.01),
}


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_in_a_grid_equals_itself_alone_and_keeps_its_program(name):
    point = js.problems.interpolant(regression(), jax.random.key(0), angle=0.9)
    options = {"steps": 300, "every": 15, "init": point, "probes": PROBES}
    run = lambda rates: js.sweep(regression(), _factory(name), {"rate": rates}, progress=False, **options)  # noqa: E731
    together = run([0.1, 0.2])
    assert not together.status.any()
    with count_compilations() as compiled:
        run([0.15, 0.3])
    assert not compiled
    alone = js.simulate(regression(), FLOWS[name](0.2), **options)
    # ten local errors: where a step is limited by stability, rounding decides
    np.testing.assert_allclose(together.parameters.sel(rate=0.2, seed=0), alone.parameters, atol=1e-5)
    assert together.parameters.dtype == "float64"


def _factory(name):
    return lambda rate: FLOWS[name](rate)


def test_in_single_precision_with_the_constant_of_weight_decay():
    """C_b = 2 is the flow of GD with weight decay, of τ = η² t / 2."""
    with jax.enable_x64(False):
        rng = np.random.default_rng(0)
        problem = js.problems.bn_linear_regression(rng.normal(size=(6, 10)), rng.normal(size=6))
        point = js.problems.interpolant(problem, jax.random.key(0), angle=0.9)
        ds = js.simulate(
            problem, js.flows.sharpness_reduction(0.2, c_b=2.0), 30, init=point, probes=["metrics", "parameters"], every=15
        )
    assert int(ds.status) == 0
    assert ds.parameters.dtype == "float32"
    np.testing.assert_allclose(ds.time[-1], 0.6, rtol=1e-5)
    np.testing.assert_allclose(ds.angle, js.problems.exact_angle(0.9, ds.time.values.astype(float)), atol=1e-3)


def test_a_flow_needs_one_way_to_set_its_constant():
    with pytest.raises(ValueError, match="exactly one"):
        js.flows.sharpness_reduction(0.1)
    with pytest.raises(ValueError, match="exactly one"):
        js.flows.sharpness_reduction(0.1, 0.1, c_b=2.0)
