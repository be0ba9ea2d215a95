"""The predictions of the theory, on trajectories: exact solution, first order in the step, period of the oscillation."""

from functools import cache

import jax
import numpy as np
import pytest
from support import regression, tanh_network

import jaxsharp as js

PROBES = ["metrics", "loss", "parameters"]  # those of test_flows, whose program this is


@jax.jit
def _start(problem, point, rate, decay):
    return js.minimizers.edge_of_stability_start(problem, point, rate, decay, tol=1e-9)


@pytest.fixture(scope="module")
def interpolant():
    problem = regression()
    return problem, js.problems.interpolant(problem, jax.random.key(0), angle=1.2)


@pytest.mark.smoke
def test_flow_meets_the_exact_solution(interpolant):
    problem, point = interpolant
    ds = js.simulate(problem, js.flows.sharpness_reduction(0.1, 1e-3), 20_000, init=point, probes=PROBES, every=1000)
    assert int(ds.status) == 0
    np.testing.assert_allclose(ds.time, 1e-4 * ds.step)
    np.testing.assert_allclose(ds.angle, js.problems.exact_angle(1.2, ds.time.values), rtol=0, atol=1e-5)


@pytest.mark.smoke
def test_gd_with_weight_decay_approaches_the_exact_solution_at_first_order(interpolant):
    problem, point = interpolant
    worst = []
    for product in (1e-3, 1e-4):
        rate, decay = 0.1, product / 0.1
        steps = round(2 / product)
        ds = js.simulate(
            problem,
            js.optimizers.gd(rate, decay),
            steps,
            init=_start(problem, point, rate, decay),
            probes=[js.probes.metrics(midpoint=True)],
            every=steps // 20,
        )
        exact = js.problems.exact_angle(1.2, product * ds.step.values[1:])
        worst.append(float(abs(ds.angle[1:] - exact).max()))
    assert worst[1] < 5e-3
    assert worst[1] < worst[0] / 5


@cache
def descent():
    """The flow of a network."""
    problem, point = tanh_network()
    rule = js.flows.sharpness_reduction(0.1, 1e-3, tolerance=1e-8, eigen_tolerance=1e-8)
    probes = ["spherical_sharpness", "effective_learning_rate", "parameter_norm", "parameters"]
    return js.simulate(problem, rule, 4000, init=point, probes=probes, every=1000)


def test_the_flow_descends_and_stands_for_the_edge_of_stability():
    ds = descent()
    assert (np.diff(ds.spherical_sharpness) < 0).all()
    np.testing.assert_allclose(ds.effective_learning_rate * ds.spherical_sharpness, 2, rtol=1e-3)
    np.testing.assert_allclose(ds.parameter_norm, 1, rtol=1e-12)
    assert int(ds.hvps) > 0


def test_distance_between_gd_and_the_flow_is_of_first_order():
    """GD+WD (two iterates averaged) leaves the flow by a distance that falls at least 7-fold per 10-fold cut of η̂λ̂."""
    problem, point = tanh_network()
    flow = descent()
    assert int(flow.status) == 0
    assert float(flow.spherical_sharpness[-1]) < 0.6 * float(flow.spherical_sharpness[0])
    distances = []
    for product in (1e-3, 1e-4, 1e-5):
        rate, decay = 0.1, product / 0.1
        steps = round(0.4 / product)
        gd = js.simulate(
            problem,
            js.optimizers.gd(rate, decay),
            steps,
            init=_start(problem, point, rate, decay),
            probes=[js.probes.parameters(midpoint=True)],
            every=steps,
        )
        end = gd.parameters.values[-1]
        distances.append(np.linalg.norm(end / np.linalg.norm(end) - flow.parameters.values[-1]))
    assert distances[1] < distances[0] / 7
    assert distances[2] < distances[1] / 7


def test_small_oscillations_have_the_predicted_period():
    """Near equilibrium η̃λ1/2 − 1 swings with the period π/√(2 η̂ λ̂) steps."""
    problem, point = tanh_network()
    rate, decay = 0.1, 1e-4
    start = _start(problem, point, rate, decay)
    start = jax.tree.map(lambda leaf: 0.9995 * leaf, start)  # a rate 0.1 % above the edge starts a small swing
    probes = ["effective_learning_rate", js.probes.spherical_sharpness(tol=1e-6, midpoint=True)]
    ds = js.simulate(problem, js.optimizers.gd(rate, decay), 5000, init=start, probes=probes, every=5)
    swing = (ds.effective_learning_rate * ds.spherical_sharpness / 2 - 1).values[1:]
    steps = ds.step.values[1:]
    swing = swing - swing.mean()
    up = np.flatnonzero((swing[:-1] < 0) & (swing[1:] >= 0))
    crossings = steps[up] - swing[up] * (steps[up + 1] - steps[up]) / (swing[up + 1] - swing[up])
    assert len(crossings) >= 5
    period = np.diff(crossings).mean()
    assert np.abs(swing).max() < 5e-3
    np.testing.assert_allclose(period, np.pi / np.sqrt(2 * rate * decay), rtol=0.03)


def test_general_schedule_constant_gives_the_general_flow(interpolant):
    """With 1 − β = C_b η²: dα/dτ = −4 tan α / (4 + (8/C_b) tan²α), integrated here independently by small Euler steps."""
    problem, point = interpolant
    for c_b in (0.5, 8.0, np.inf):
        eta = 0.01
        ds = js.simulate(
            problem, js.flows.sharpness_reduction(eta, c_b=c_b), 10_000, init=point, probes=["metrics"], every=10_000
        )
        alpha, parts = 1.2, 20_000
        for _ in range(parts):
            slope = lambda a: -4 * np.tan(a) / (4 + 8 / c_b * np.tan(a) ** 2)  # noqa: B023, E731
            step = eta**2 / 2 * 10_000 / parts
            alpha += step * slope(alpha + step / 2 * slope(alpha))
        np.testing.assert_allclose(float(ds.angle[-1]), alpha, atol=1e-5)


def test_scheduled_gd_follows_the_general_flow(interpolant):
    """GD on the sphere with the scalar RMSProp schedule drifts as the flow with its C_b, at first order in η²."""
    problem, point = interpolant
    c_b, errors = 8.0, []
    for eta in (0.04, 0.0126):
        beta = 1 - c_b * eta**2
        steps = round(1.0 / (eta**2 / 2))
        slope = 2 * np.tan(1.2)
        amplitude = eta / np.sqrt(4 + 2 / c_b * slope**2)
        at = jax.jit(js.minimizers.log_sharpness_gradient)(problem, point)
        start = js.sphere.normalize(jax.tree.map(lambda w, v, a=amplitude: w + a * v[0], point, at.pairs.vectors))
        rule = js.optimizers.scheduled_gd(eta, beta, initial=float((eta * at.value / 2) ** 2), on_sphere=True)
        gd = js.simulate(problem, rule, steps, init=start, probes=[js.probes.metrics(midpoint=True)], every=steps)
        flow = js.simulate(
            problem, js.flows.sharpness_reduction(eta, c_b=c_b), steps, init=point, probes=["metrics"], every=steps
        )
        errors.append(abs(float(gd.angle[-1]) - float(flow.angle[-1])))
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 5
