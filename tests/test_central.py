"""Central and stable flows: closed forms, the order of the integrator, dense derivatives, and the optimizers they predict."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import count_compilations, dense_hessian, regression

import jaxsharp as js
from jaxsharp.curvature import third_derivatives
from jaxsharp.status import Status

CURVATURES = np.array([1.0, 3.0, 10.0])


def _quadratic(w, data):
    return 0.5 * jnp.sum(data * w**2)


def _ones(key):
    del key
    return jnp.ones(3)


def quadratic():
    return js.problems.from_loss(_quadratic, _ones, data=jnp.asarray(CURVATURES), name="quadratic")


def _two_valleys(w, slope):
    """Two curvatures that grow along u and v, where the loss falls slowly: at rate 1 both pass the edge."""
    x, y, u, v = w
    bend = 0.5 * (1.95 + u + 0.3 * u * v) * x**2 + 0.5 * (1.9 + v + 0.2 * u**2) * y**2
    return bend + 0.05 * u * x - slope * (u + 1.5 * v) + 0.1 * slope * (u**2 + v**2)


def _origin(key):
    del key
    return jnp.zeros(4)


def two_valleys(slope):
    return js.problems.from_loss(_two_valleys, _origin, data=jnp.asarray(slope), name="two valleys")


START = np.array([0.05, 0.03, 0.0, 0.0])
EDGE = (0.0486, 0.0995)  # u and v where both curvatures are 2, so that rate 1 is at its edge


def _balance(slope):
    """Where GD starts in balance, ½ x² = slope and ½ y² = 1.5 slope; and its centre."""
    return np.array([np.sqrt(2 * slope), np.sqrt(3 * slope), *EDGE]), np.array([0.0, 0.0, *EDGE])


@jax.jit
def _moved(flow, substeps, problem, w, steps):
    flow = replace(flow, substeps=substeps)
    return flow.advance(problem, flow.init(problem, w), steps)


def after(flow, problem, steps, start=(1.0, 1.0, 1.0)):
    """The state of a flow after some steps; numbers, also that of substeps, are traced and programs shared."""
    traced = (jnp.asarray(flow.substeps), problem, jnp.asarray(start), jnp.asarray(steps))
    return _moved(replace(flow, substeps=1), *traced)


def run_of(optimizer, problem, steps):
    return js.simulate(problem, optimizer, steps, probes=["parameters"], every=steps).parameters.values[-1]


@jax.jit
def derivatives(problem, w):
    """Gradient, Hessian, and its derivative."""
    hessian = jax.hessian(problem.loss)
    return jax.grad(problem.loss)(w), hessian(w), jax.jacfwd(hessian)(w)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_third_derivatives_against_dense_ones_in_a_batch(monkeypatch, backend):
    """Each member has its own loss, point and count; in turns as on a CPU, or side by side as elsewhere."""
    rng = np.random.default_rng(0)
    matrix, rows, points = (jnp.asarray(rng.normal(size=size)) for size in ((6, 6), (3, 6), (3, 6)))
    scales, counts = jnp.array([1.0, 0.5, 0.3]), jnp.array([1, 3, 2])
    loss = lambda w, scale: jnp.sum(jnp.tanh(scale * matrix @ w) ** 3)  # noqa: E731
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    table = lambda scale, point, count: third_derivatives(lambda w: loss(w, scale), point, rows, count)  # noqa: E731
    found = jax.jit(jax.vmap(table))(scales, points, counts)
    tensors = jax.jit(jax.vmap(jax.jacfwd(jax.hessian(loss))))(points, scales)
    for number, (i, j) in enumerate(zip(*np.triu_indices(3), strict=True)):
        exact = np.einsum("mabc,a,b->mc", tensors, rows[i], rows[j]) * np.asarray(j < counts)[:, None]
        np.testing.assert_allclose(found[:, number], exact, atol=1e-12)


def test_below_the_edge_it_is_gradient_flow_at_second_order():
    rate, steps = 0.1, 5
    flows = [js.flows.central(js.optimizers.gd(rate), k=2, substeps=count) for count in (2, 8)]
    exact = np.exp(-CURVATURES * rate * steps)
    errors = [np.abs(after(flow, quadratic(), steps).params - exact).max() for flow in flows]
    assert errors[1] < 2e-3
    assert errors[1] < errors[0] / 11


def test_corrected_with_one_substep_it_is_the_optimizer_below_the_edge():
    optimizer = js.optimizers.gd(0.15, weight_decay=0.3)
    flow = js.flows.central(optimizer, k=2, substeps=1, corrected=True)
    end, run = after(flow, quadratic(), 20).params, run_of(optimizer, quadratic(), 20)
    np.testing.assert_allclose(end, run, atol=1e-12)


def test_the_correction_gains_an_order_in_the_rate():
    """Distance to GD at one flow time: of first order in the rate, of second with the correction."""
    plain, corrected = [], []
    for rate in (0.04, 0.02):
        steps = round(0.4 / rate)
        for errors, choice in ((plain, False), (corrected, True)):
            flow = js.flows.central(js.optimizers.gd(rate), k=2, substeps=8, corrected=choice)
            end = np.asarray(after(flow, quadratic(), steps).params)
            errors.append(np.linalg.norm(end - run_of(js.optimizers.gd(rate), quadratic(), steps)))
    assert 1.6 < plain[0] / plain[1] < 2.6
    assert corrected[0] / corrected[1] > 3.2
    assert corrected[1] < plain[1] / 3


def test_order_of_the_integrator_at_the_edge():
    optimizer = js.optimizers.scalar_rmsprop(0.1, 0.9, initial=0.01, bias_correction=False)
    flows = [js.flows.central(optimizer, k=2, substeps=count, eigen_tolerance=1e-9) for count in (2, 8, 32)]
    *ends, exact = (np.asarray(after(flow, two_valleys(0.1), 20, START).params) for flow in flows)
    errors = [np.linalg.norm(end - exact) for end in ends]
    assert errors[1] < 1e-3 * np.linalg.norm(exact)
    assert errors[1] < errors[0] / 4


@cache
def in_balance(slope, double=True):
    """The central flow of GD at the edge in two directions."""
    with jax.enable_x64(double):
        flow = js.flows.central(js.optimizers.gd(1.0), k=3)
        steps = round(0.8 / slope)
        options = {"init": _balance(slope)[1], "probes": ["parameters", "oscillation"], "every": steps // 100}
        return js.simulate(two_valleys(slope), flow, steps, **options)


def test_two_directions_at_the_edge_in_single_precision():
    single, double = in_balance(0.008, double=False), in_balance(0.008)
    assert single.parameters.dtype == "float32"
    assert int(single.status) & ~int(Status.COMPLEMENTARITY_UNMET) == 0
    assert (single.oscillating_directions[50:] == 2).all()
    np.testing.assert_allclose(single.parameters, double.parameters, atol=2e-3)
    late = [ds.oscillation[50:, :2].median("step") for ds in (single, double)]
    np.testing.assert_allclose(*late, rtol=0.01)


def test_two_directions_at_the_edge_and_the_averages():
    """GD at the edge in two directions: path, variances, loss and gradient norm against the run, nearer as the drift slows."""
    gaps = []
    for slope in (0.008, 0.002):
        problem, steps = two_valleys(slope), round(0.8 / slope)
        start, _ = _balance(slope)
        run = js.simulate(problem, js.optimizers.gd(1.0), steps, init=start, probes=["parameters", "loss", "grad_norm"])
        flow = in_balance(slope)
        assert int(flow.status) == 0
        late = flow.sel(step=slice(steps // 2, None))
        assert (late.oscillating_directions == 2).all()
        np.testing.assert_allclose(late.edge_ratio[:, :2], 1, atol=2e-3)
        assert float(late.oscillation[:, 2].max()) < 1e-12
        tail = lambda values, start=steps // 2: float(values.sel(step=slice(start, None)).mean())  # noqa: E731
        gaps.append(tail(js.compare.distance(run, flow)))
        # Both directions flip at every step, so their phases never part and the run's own covariance has rank one; nothing here
        # depends on the off-diagonal entry, so the flow leaves it out. The variances of the two directions are what agrees.
        measured = (js.compare.oscillating_part(run)[-steps // 2 :, :2] ** 2).mean("step")
        predicted = late.oscillation[:, :2].mean("step")
        np.testing.assert_allclose(measured[::-1], predicted, rtol=0.15)
        np.testing.assert_allclose(tail(run.loss), tail(flow.averaged_loss), rtol=0.05)
        np.testing.assert_allclose(tail(run.grad_norm**2), tail(flow.averaged_grad_norm**2), rtol=0.15)
    assert gaps[1] < gaps[0] / 1.5


def test_scalar_rmsprop_has_the_closed_form_of_one_direction():
    """σ² = [−2⟨∇L,∇S⟩/S² + (c/2)(1 − 4‖∇L‖²/(η²S²))] / [‖∇S‖²/S² + 2c/η²], c = (1 − β2)/β2."""
    rate, beta2, slope = 0.1, 0.8, 0.02
    problem = two_valleys(slope)
    start = np.array([0.0, 0.0, 0.3, -0.5])
    gradient, hessian, third = (np.asarray(value) for value in derivatives(problem, jnp.asarray(start)))
    u, v = start[2:]
    sharpness = 1.95 + u + 0.3 * u * v  # along x, with the small coupling to u left out below by H's own eigenvector
    values, vectors = np.linalg.eigh(hessian)
    top = vectors[:, -1]
    slope_of_sharpness = np.einsum("abc,a,b", third, top, top)
    assert abs(float(values[-1]) - sharpness) < 5e-3
    s = float(values[-1])
    square = float(gradient @ gradient)
    c = (1 - beta2) / beta2
    numerator = -2 * float(gradient @ slope_of_sharpness) / s**2 + c / 2 * (1 - 4 * square / (rate**2 * s**2))
    expected = numerator / (float(slope_of_sharpness @ slope_of_sharpness) / s**2 + 2 * c / rate**2)
    initial = ((rate * s / 2) ** 2 - (1 - beta2) * square) / beta2  # so that the flow starts at the edge, 2√ν/η = S
    optimizer = js.optimizers.scalar_rmsprop(rate, beta2, initial=initial, bias_correction=False)
    flow = js.flows.central(optimizer, k=2, substeps=4096, eigen_tolerance=1e-11)
    dynamics = js.as_dynamics(flow)
    loss = dynamics._loss(problem, lambda w: w, jnp.float64)

    @jax.jit
    def first(w):
        return dynamics._substep(loss, w, dynamics.init(problem, w).inner, jnp.zeros(()))[1].variances[0]

    np.testing.assert_allclose(first(jnp.asarray(start)), expected, rtol=2e-3)
    assert expected > 1e-4


def test_rmsprop_stays_at_its_edge_by_dense_derivatives():
    """With ν, Σ of the flow put into the equations by dense derivatives, the top of P^{-1/2} H P^{-1/2} stands still at 2."""
    problem = two_valleys(0.1)
    beta2, rate = 0.9, 0.05
    optimizer = js.optimizers.rmsprop(rate, beta2, 1e-4, initial=1e-3)
    state = after(js.flows.central(optimizer, k=2, substeps=64, eigen_tolerance=1e-10), problem, 40, START)
    w, inner = jax.tree.map(np.asarray, (state.params, state.inner))
    assert int(inner.active) >= 1
    assert float(inner.values[0]) == pytest.approx(2, abs=2e-3)
    time = 40.0
    c = (1 - beta2) / beta2
    correction = lambda t: 1 - beta2 * np.exp(-c * t)  # noqa: E731
    stiffness = lambda nu, t: (np.sqrt(nu / correction(t)) + 1e-4) / rate  # noqa: E731
    np.testing.assert_allclose(inner.stiffness, stiffness(inner.memory, time), rtol=1e-10)

    gradient, hessian, third = (np.asarray(value) for value in derivatives(problem, w))
    columns = (inner.vectors / np.sqrt(inner.stiffness)[None, :]).T
    sigma = columns @ inner.covariance @ columns.T
    np.testing.assert_allclose(np.linalg.eigvalsh(sigma)[::-1][:2], inner.variances, rtol=1e-3, atol=1e-9)

    def velocity(sigma):
        force = gradient + 0.5 * np.einsum("abc,ab", third, sigma)
        spread = c * np.diag(hessian @ sigma @ hessian)
        return -force / inner.stiffness, c * (gradient**2 - inner.memory) + spread

    def top(w, nu, t):
        p = np.sqrt(stiffness(nu, t))
        return np.linalg.eigvalsh(np.asarray(derivatives(problem, w)[1]) / p[:, None] / p[None, :])[-1]

    step = 1e-4
    rates = []
    for matrix in (sigma, np.zeros_like(sigma)):
        dw, dnu = velocity(matrix)
        forward = top(w + step * dw, inner.memory + step * dnu, time + step)
        backward = top(w - step * dw, inner.memory - step * dnu, time - step)
        rates.append((forward - backward) / (2 * step))
    held, free = rates
    assert free > 1e-3  # without its oscillation it would pass the edge
    assert abs(held) < 0.03 * free


def test_it_meets_the_exact_solution_of_batch_normalized_regression():
    """GD+WD there drifts as tan α = tan α(0) e^{−τ}, τ = η̂λ̂t, up to first order in η̂λ̂."""
    problem = regression()
    point = js.problems.interpolant(problem, jax.random.key(0), angle=1.2)
    sharpness = np.linalg.eigvalsh(dense_hessian(problem.loss, point))[-1]
    rate, worst = 0.1, []
    for product in (4e-3, 1e-3):
        decay = product / rate
        steps = round(1 / product)
        length = np.sqrt(rate * sharpness / (2 * (1 - product)))  # η̃ λ1 = 2
        ds = js.simulate(
            problem,
            js.flows.central(js.optimizers.gd(rate, decay), k=2, substeps=1),
            steps,
            init=jax.tree.map(lambda leaf, r=length: r * leaf, point),
            probes=["metrics", "oscillation"],
            every=steps // 10,
        )
        assert not int(ds.status) & ~int(Status.COMPLEMENTARITY_UNMET)
        exact = js.problems.exact_angle(1.2, product * ds.step.values)
        worst.append(float(np.abs(ds.angle - exact).max()))
    assert worst[1] < 2e-2
    assert worst[1] < worst[0] / 2.5


def test_on_a_real_network_with_several_directions_it_stays_closer_than_gradient_flow():
    """A tanh network of 197 parameters on digits, past the edge in two directions; its run by GD is compared from the start."""
    train, _ = js.data.digits(count=100, targets="value")
    inputs, targets = np.asarray(train.inputs), np.asarray(train.targets)
    inputs = inputs - inputs.mean(axis=0)
    inputs = inputs @ np.linalg.svd(inputs, full_matrices=False)[2][:16].T
    problem = js.problems.supervised(
        js.models.MLP(widths=(8, 6)), (inputs / inputs.std(), (targets - targets.mean()) / targets.std())
    )
    rate, steps = 0.8, 240
    run = js.simulate(problem, js.optimizers.gd(rate), steps, probes=["parameters", "loss"])
    flow = js.simulate(
        problem,
        js.flows.central(js.optimizers.gd(rate), k=4, substeps=1, corrected=True, eigen_tolerance=1e-3),
        steps,
        probes=["parameters", "oscillation"],
    )
    gradient = js.simulate(problem, js.flows.gradient(rate), steps, probes=["parameters"], every=8)
    assert int(flow.status) == 0
    assert float(flow.oscillating_directions.max()) >= 2
    ours, theirs = js.compare.distance(run, flow), js.compare.distance(run, gradient)
    assert float(ours.sel(step=16)) < 0.03 * float(theirs.sel(step=16))  # nearly the optimizer itself up to the edge
    for step in (160, 200):  # right after the edge GD overshoots, until its oscillation has grown; then the flow is nearer
        assert float(ours.sel(step=step)) < 0.5 * float(theirs.sel(step=step))
    np.testing.assert_allclose(flow.averaged_loss[-40:].mean(), run.loss[-40:].mean(), rtol=0.2)


def test_heavy_ball_stays_where_it_is_in_balance():
    """The heavy ball is stable up to 2 (1 + μ)/η; over the first 240 steps, since this loss has no bound to hold it for ever."""
    momentum, slope, steps = 0.3, 0.002, 240
    problem = two_valleys(slope)
    start, centre = _balance(slope)
    start[:2] /= 1.85  # by which the oscillation grows until the momentum, zero at first, has caught up
    optimizer = js.optimizers.gd(1 + momentum, momentum=momentum)
    run = js.simulate(problem, optimizer, steps, init=start, probes=["parameters"])
    flow = js.simulate(problem, js.flows.central(optimizer, k=3), steps, init=centre, probes=["parameters", "oscillation"])
    assert int(flow.status) == 0
    np.testing.assert_allclose(flow.edge_ratio[-50:, 0], 1, atol=5e-3)
    free = steps * slope * (1 + momentum) / (1 - momentum)  # how far u would drift without oscillation
    assert np.abs(flow.parameters[-1, 2] - EDGE[0]) < 0.02 * free
    assert np.abs(run.parameters[-150:, 2].mean() - EDGE[0]) < 0.1 * free


def _half(step):
    return jnp.where(step < 10, 1.0, 0.5)


def test_a_schedule_scales_the_rate():
    flow = js.flows.central(js.optimizers.gd(0.1), k=2, schedule=_half, substeps=8)
    np.testing.assert_allclose(after(flow, quadratic(), 20).params, np.exp(-CURVATURES * 0.1 * 15), atol=2e-3)


def test_stable_rmsprop_against_an_independent_integration():
    rate, beta2, eps = 0.05, 0.9, 1e-3
    optimizer = js.optimizers.rmsprop(rate, beta2, eps, initial=0.5, bias_correction=False, eps_in_root=True)
    end = after(js.flows.stable(optimizer, substeps=32), quadratic(), 10).params
    c = (1 - beta2) / beta2

    def field(w, nu):
        g = CURVATURES * w
        return -rate * g / np.sqrt(nu + eps), c * (g**2 - nu)

    w = np.ones(3)
    nu = beta2 * 0.5 + (1 - beta2) * CURVATURES**2
    parts = 20_000
    h = 10 / parts
    for _ in range(parts):
        a, b = field(w, nu)
        a, b = field(w + h / 2 * a, nu + h / 2 * b)
        w, nu = w + h * a, nu + h * b
    np.testing.assert_allclose(end, w, atol=1e-4)


def test_in_a_grid_it_equals_itself_alone_and_keeps_its_program():
    def make(rate):
        return js.flows.central(js.optimizers.rmsprop(0.05 * rate, 0.9, initial=0.01), k=2, eigen_tolerance=1e-4)

    def run(rates):
        options = {"init": START, "probes": ["parameters", "oscillation"], "steps": 30, "every": 15}
        return js.sweep(two_valleys(0.02), lambda rate: make(rate), {"rate": rates}, progress=False, **options)

    together = run([0.9, 1.0, 1.05])
    with count_compilations() as compiled:
        run([0.95, 0.99, 1.02])
    assert not compiled
    alone = after(make(1.05), two_valleys(0.02), 30, START)
    assert float(alone.inner.variances.max()) > 0
    # only two directions are tracked and both come to the edge, so that a third might be missed: a warning, the run goes on
    assert int(alone.status) & ~int(Status.COMPLEMENTARITY_UNMET) == Status.SUBSPACE_FULL
    here = together.sel(rate=1.05, seed=0).isel(step=-1)
    np.testing.assert_allclose(here.parameters, alone.params, atol=1e-7)
    np.testing.assert_allclose(here.oscillation, alone.inner.variances, rtol=1e-4, atol=1e-9)
    assert int(here.status) == int(alone.status)


def test_a_blow_up_stops_the_member():
    ds = js.simulate(quadratic(), js.flows.stable(js.optimizers.gd(1e6)), 10, probes=["loss"], every=10)
    assert int(ds.status) == Status.DIVERGED
    assert np.isnan(ds.loss[-1])


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="averaged law"):
        js.flows.central(js.optimizers.projected_gd(0.1))
    with pytest.raises(ValueError, match="momentum"):
        js.flows.central(js.optimizers.gd(0.1, momentum=0.9), corrected=True)
    with pytest.raises(ValueError, match="k must"):
        js.flows.central(js.optimizers.gd(0.1), k=0)
    with pytest.raises(ValueError, match="substeps"):
        js.flows.stable(js.optimizers.gd(0.1), substeps=1.5)
    with pytest.raises(ValueError, match="threshold"):
        js.flows.central(js.optimizers.gd(0.1), threshold=2.0)
    with pytest.raises(ValueError, match="central flow"):
        js.simulate(quadratic(), js.optimizers.gd(0.01), 1, probes=["oscillation"])
