"""Rod, edge and self-stabilization flows: closed forms, the order of integrators and of predictions, and GD itself."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree
from support import count_compilations

import jaxsharp as js
from jaxsharp.flows.rod import averages, principal
from jaxsharp.status import Status


def _bowls(w, data):
    """Two directions that soften as they are left, ½ Σ Sᵢ wᵢ² − ¼ Σ Qᵢⱼ wᵢ² wⱼ², and a slow one."""
    sharp, soft, slow = data
    squares = w[:2] ** 2
    return 0.5 * sharp @ squares - 0.25 * squares @ soft @ squares + 0.5 * slow * w[2] ** 2


SHARP, SOFT = np.array([2.6, 2.4]), np.array([[1.0, 0.3], [0.3, 1.0]])
START = np.array([0.03, 0.02, 1.0])


def _start(key):
    del key
    return jnp.asarray(START)


def bowls(sharp=SHARP, soft=SOFT, slow=0.05):
    return js.problems.from_loss(_bowls, _start, data=tuple(map(jnp.asarray, (sharp, soft, slow))), name="bowls")


def quadratic(*curvatures):
    return bowls(np.array(curvatures[:2]), np.zeros((2, 2)), curvatures[2])


@cache
def _advance(flow):
    return jax.jit(lambda rate, problem, w, steps: _moved(flow, rate, problem, w, steps))


def _moved(flow, rate, problem, w, steps):
    dynamics = flow(rate)
    return dynamics.advance(problem, dynamics.init(problem, w), steps)


def after(flow, rate, problem, steps, start=START):
    """The state of a flow, a function of the rate, after some steps; numbers are traced and programs shared."""
    return _advance(flow)(jnp.asarray(rate), problem, jnp.asarray(start), jnp.asarray(steps))


def gd(rate, problem, steps, start=START, unravel=lambda w: w):
    w = [np.asarray(start)]
    gradient = jax.jit(jax.grad(lambda w: problem.loss(unravel(w))))
    for _ in range(steps):
        w.append(w[-1] - rate * np.asarray(gradient(jnp.asarray(w[-1]))))
    return np.array(w)


def rod_1(rate):
    return js.flows.rod(rate, k=1)


def rod_2(rate):
    return js.flows.rod(rate, k=2)


def edge(rate):
    return js.flows.edge(rate)


def predicted(rate):
    return js.flows.self_stabilization(rate, eigen_tolerance=1e-10)


@pytest.mark.parametrize("flow", [rod_1, rod_2, edge])
def test_extents_of_two_unstable_directions_are_those_of_gd(flow):
    """Where w flips, η ∇L(w) = 2 w: S − Q X = 2/η for the squares X, whether one direction is unstable or both."""
    for rate, sharp in ((1.0, SHARP), (1.05, SHARP), (1.0, np.array([2.5, 0.5]))):
        problem = bowls(sharp)
        open_ = sharp > 2 / rate
        squares = np.zeros(2)
        squares[open_] = np.linalg.solve(SOFT[np.ix_(open_, open_)], sharp[open_] - 2 / rate)
        run = gd(rate, problem, 300)
        np.testing.assert_allclose(run[-1][:2] ** 2, squares, atol=1e-9)
        state = after(flow, rate, problem, 300)
        assert int(state.status) == 0
        inner = state.inner
        found = jnp.sum(inner.rods**2, axis=0) if flow is not edge else inner.variances[0] * inner.direction**2
        np.testing.assert_allclose(found[:2], squares, atol=2e-5)
        np.testing.assert_allclose(state.params[:2], 0, atol=1e-6)
        np.testing.assert_allclose(jnp.sum(inner.variances), squares.sum(), atol=2e-5)


@pytest.mark.parametrize("flow", [js.flows.rod, js.flows.edge])
def test_order_of_the_integrators(flow):
    law = flow(1.0, corrected=False).law
    problem, hyperparams = bowls(), {"learning_rate": jnp.ones(())}

    @jax.jit
    def after(w, count):  # 12 steps in substeps of any length, in one program
        def take(_, at):
            return law.substep(problem.loss, hyperparams, at.params, at.inner, 12 / count)

        return jax.lax.fori_loop(0, count, take, law.start(problem.loss, hyperparams, w))

    ends = []
    for count in (96, 192, 768):
        state = after(jnp.asarray([0.4, 0.3, 1.0]), jnp.asarray(count))
        extent = state.inner.rods.T @ state.inner.rods if flow is js.flows.rod else state.inner.direction
        ends.append(np.concatenate([state.params, np.ravel(extent), state.inner.variances[:1]]))
    coarse, fine = (np.linalg.norm(end - ends[2]) for end in ends[:2])
    assert fine < 1e-3
    assert 3.4 < coarse / fine < 5.5


@pytest.mark.parametrize("h", [0.05, 0.7])
def test_extents_relax_exactly_where_the_force_is_constant(h):
    """On a linear loss Σ(h) = e^{−2h} Σ + (1 − e^{−2h}) (η/2)² g gᵀ for substeps of any length, and m moves by −η g h."""
    force, rod, rate = np.array([3.0, 4.0]), np.array([2.0, -1.0]), 0.5
    law = js.flows.rod(1.0, k=2).law
    inner = law.start(lambda w: force @ w, {"learning_rate": rate}, jnp.zeros(2)).inner
    inner = inner._replace(rods=jnp.stack([jnp.asarray(rod), jnp.zeros(2)]))
    after = law.substep(lambda w: force @ w, {"learning_rate": rate}, jnp.zeros(2), inner, jnp.asarray(h))
    left = np.exp(-2 * h)
    expected = left * np.outer(rod, rod) + (1 - left) * (rate / 2) ** 2 * np.outer(force, force)
    np.testing.assert_allclose(after.inner.rods.T @ after.inner.rods, expected, rtol=1e-12)
    np.testing.assert_allclose(after.params, -rate * h * force, rtol=1e-12)


def plain_rod(rate):
    return js.flows.rod(rate, corrected=False)


def plain_edge(rate):
    return js.flows.edge(rate, corrected=False)


@pytest.mark.parametrize(("plain", "corrected"), [(plain_rod, rod_2), (plain_edge, edge)])
def test_below_the_edge_they_are_gradient_flow_and_corrected_gd_itself_to_second_order(plain, corrected):
    curvatures = np.array([3.0, 2.0, 0.5])
    start = np.array([1.0, -0.5, 2.0])
    gaps = []
    for rate in (0.08, 0.04):
        steps = round(0.8 / rate)
        problem = quadratic(*curvatures)
        flow = np.exp(-curvatures * rate * steps) * start
        run = (1 - rate * curvatures) ** steps * start
        ends = [np.asarray(after(which, rate, problem, steps, start).params) for which in (plain, corrected)]
        gaps.append([np.linalg.norm(ends[0] - flow), np.linalg.norm(ends[1] - run), np.linalg.norm(flow - run)])
    (plain_gap, gap, between), fine = gaps
    assert plain_gap / fine[0] > 3.2
    assert gap / fine[1] > 3.2
    assert between / fine[2] < 2.4
    assert max(fine[0], fine[1]) < 0.2 * fine[2]


def test_at_the_start_what_flips_is_out_of_the_centre_and_a_rod_is_a_move():
    problem = quadratic(2.0, 1.0, 0.01)
    for flow in (rod_1, edge):  # at rate 1 the first direction is at the edge: GD there is 0.3, −0.3, 0.3, …
        state = after(flow, 1.0, problem, 0, np.array([0.3, 0.0, 1.0]))
        np.testing.assert_allclose(state.params, [0, 0, 1 - 0.25e-4], atol=1e-12)
        np.testing.assert_allclose(state.inner.variances, 0.09, rtol=1e-3)
    moved = after(rod_2, 0.01, quadratic(3.0, 2.0, 0.5), 80, np.array([1.0, -0.5, 2.0]))
    step = 0.01 * np.array([3.0, 2.0, 0.5]) * np.asarray(moved.params)  # of GD below the edge; a rod is half of it
    np.testing.assert_allclose(moved.inner.rods.T @ moved.inner.rods, np.outer(step, step) / 4, rtol=0.05, atol=1e-9)


def test_an_alternation_grows_and_decays_as_that_of_gd():
    """On a quadratic by the factor ηS − 1 at each step, along the top eigenvector, from what the first two steps leave."""
    problem = quadratic(1.5, 1.0, 0.2)
    for rate in (1.2, 1.5):  # ηS = 1.8 and 2.25
        states = [after(edge, rate, problem, steps) for steps in (40, 50)]
        rates = [float(state.inner.log_amplitude) for state in states]
        np.testing.assert_allclose((rates[1] - rates[0]) / 10, np.log(1.5 * rate - 1), rtol=1e-3)
        np.testing.assert_allclose(np.abs(states[1].inner.direction), [1, 0, 0], atol=1e-4)
        # of the start, 0.03 along the top direction, all flips once η S is near 2
        exact = np.log(0.03) + 50 * np.log(1.5 * rate - 1)
        assert abs(rates[1] - exact) < 0.8


def test_the_floor_keeps_an_oscillation_ready():
    problem = quadratic(1.5, 1.0, 0.2)
    low = after(edge, 1.0, problem, 400)
    w = np.linalg.norm(low.params)
    np.testing.assert_allclose(
        np.exp(low.inner.log_amplitude), np.finfo(float).eps * w / np.sqrt(3), rtol=0.1
    )  # ‖c‖ of a substep before
    ready = after(lambda rate: js.flows.edge(rate, floor=1e-3), 1.0, problem, 400)
    np.testing.assert_allclose(np.exp(ready.inner.log_amplitude), 1e-3)


def test_averages_over_the_ends_of_rods():
    """Against all combinations of signs, and the third moments of several rods, which are those of independent signs."""
    rng = np.random.default_rng(0)
    rods, centre, tensor = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=(4, 4, 4))
    loss = lambda w: jnp.einsum("ijk,i,j,k", tensor, w, w, w) + jnp.sum(w**4)  # noqa: E731
    both, signs = np.array([[1.0], [-1.0]]), np.array(np.meshgrid(*[[1.0, -1.0]] * 3)).reshape(3, -1).T
    reach = np.concatenate([both @ rods[:1], signs @ rods])
    gradients = np.asarray(jax.jit(jax.vmap(jax.grad(loss)))(jnp.asarray(centre + reach)))
    for count, combinations, found in ((1, both, gradients[:2]), (3, signs, gradients[2:])):
        mean, bends = jax.jit(lambda rods: averages(loss, jnp.asarray(centre), rods))(jnp.asarray(rods[:count]))
        np.testing.assert_allclose(mean, found.mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(bends, combinations.T @ found / len(combinations), rtol=1e-10)
    kept = principal(jnp.asarray(rng.normal(size=(5, 4))), 2)
    assert abs(float(kept[0] @ kept[1])) < 1e-12


def _groove(w, data):
    """Sharpness s + v grows as v drifts; with `bend` zero self-stabilization leaves nothing out."""
    drift, bend = data
    x, v = w
    return 0.5 * (1.9 + v + bend * v**2) * x**2 + 0.3 * bend * x**4 - drift * v * (1 - bend * v)


def groove(drift, bend):
    data = (jnp.asarray(drift), jnp.asarray(bend))
    return js.problems.from_loss(_groove, lambda key: jnp.zeros(2), data=data, name="groove")


def _cycles(drift, bend, x, steps):
    start = np.array([x, 0.0])
    run = gd(1.0, groove(drift, bend), steps, start)
    ds = js.simulate(groove(drift, bend), predicted(1.0), 300, init=start, probes=["parameters", "oscillation"])
    return run, ds.isel(step=slice(0, steps + 1))


def test_predicted_dynamics_are_gd_where_they_leave_nothing_out():
    """Over several cycles on a cubic loss, up to what the start is off the valley's floor."""
    run, ds = _cycles(0.002, 0.0, 1e-4, 300)
    assert int(ds.status) == 0
    assert run[:, 1].max() > 0.25  # far past the edge at 0.1, several times
    np.testing.assert_allclose(ds.parameters[:, 1], run[:, 1], atol=1e-10)
    np.testing.assert_allclose(np.sqrt(ds.oscillation[:, 0]), np.abs(run[:, 0]), atol=1e-6)


def test_predicted_dynamics_in_a_batch_are_those_alone():
    _, alone = _cycles(0.002, 0.0, 1e-4, 60)
    starts = jnp.asarray([[1e-2, 0.05], [1e-4, 0.0]])

    def move(start):
        flow, problem = predicted(1.0), groove(0.002, 0.0)
        return flow.advance(problem, flow.init(problem, start), jnp.asarray(60))

    together = jax.jit(jax.vmap(move))(starts)
    assert not together.status.any()
    np.testing.assert_allclose(together.params[1], alone.parameters[60], atol=1e-9)
    np.testing.assert_allclose(together.inner.variances[1], alone.oscillation[60], rtol=1e-6)
    assert float(jnp.abs(together.params[0] - together.params[1]).max()) > 1e-3


def test_error_of_the_predicted_dynamics_over_the_first_cycle():
    """Relative to the rise of the sharpness the error is of the order of the cycle's size, √drift; the start scales alike."""
    errors = []
    for drift in (0.016, 0.001):
        run, ds = _cycles(drift, 0.5, 0.1 * np.sqrt(drift), round(4.5 / np.sqrt(drift)))
        rise = run[:, 1].max() - run[:, 1].min()
        errors.append(np.abs(ds.parameters[:, 1] - run[:, 1]).max() / rise)
    assert errors[1] < errors[0] / 2.5
    assert errors[1] < 0.05


RATE, STEPS = 0.8, 70


@cache
def network():
    """A tanh network of 197 parameters on digits, whose GD passes the edge at step 20 and oscillates only from step 45 on."""
    train, _ = js.data.digits(count=100, targets="value")
    inputs, targets = np.asarray(train.inputs), np.asarray(train.targets)
    inputs = inputs - inputs.mean(axis=0)
    inputs = inputs @ np.linalg.svd(inputs, full_matrices=False)[2][:16].T
    problem = js.problems.supervised(
        js.models.MLP(widths=(8, 6)), (inputs / inputs.std(), (targets - targets.mean()) / targets.std())
    )
    w, unravel = ravel_pytree(problem.init(jax.random.key(0)))
    path = gd(RATE, problem, STEPS, w, unravel)
    return problem, xr.Dataset({"parameters": (("step", "parameter"), path)}, {"step": np.arange(STEPS + 1)})


def test_just_past_the_edge_the_edge_flow_is_nearer_than_any_flow_in_balance():
    problem, run = network()
    flows = {
        "edge": js.flows.edge(RATE, floor=1e-17),
        "ready": js.flows.edge(RATE, floor=0.03),
        "constrained": js.flows.constrained(RATE, eigen_tolerance=1e-3),
    }
    found = {
        name: js.simulate(problem, flow, STEPS, probes=["parameters", "oscillation"], every=10) for name, flow in flows.items()
    }
    gaps = {name: js.compare.distance(run, ds) for name, ds in found.items()}
    assert all(int(ds.status) == 0 for ds in found.values())
    assert float(gaps["edge"].sel(step=40)) < 0.04
    for other in ("ready", "constrained"):
        assert float(gaps["edge"].sel(step=40)) < 0.15 * float(gaps[other].sel(step=40))
        assert float(gaps["edge"].sel(step=50)) < 0.5 * float(gaps[other].sel(step=50))
    held = found["constrained"].edge_ratio[:, 0]  # up to what a step's linearization leaves; GD itself reaches 1.4
    np.testing.assert_allclose(held.sel(step=slice(20, None)), 1, atol=4e-3)
    # an oscillation kept ready is in balance, as that of the constrained trajectory
    balance = [np.sqrt(found[name].oscillation[-1, 0]) for name in ("ready", "constrained")]
    np.testing.assert_allclose(balance[0], balance[1], rtol=0.25)


@pytest.mark.parametrize("make", [js.flows.rod, js.flows.edge])
def test_in_a_grid_and_in_single_precision(make):
    """Equal to themselves alone, one program for all rates, and the extents of GD; a member that diverges is flagged."""
    options = {"probes": ["parameters", "oscillation"], "steps": 100, "every": 50}
    with jax.enable_x64(False):
        problem = bowls(np.array([2.5, 0.5]))
        run = lambda rates: js.sweep(problem, make, {"learning_rate": rates}, progress=False, **options).isel(seed=0)  # noqa: E731
        together = run([0.6, 1.0, 50.0])
        with count_compilations() as compiled:
            run([0.5, 0.8, 0.9])
        alone = js.simulate(problem, make(1.0), **options)
    assert not compiled
    assert together.parameters.dtype == "float32"
    for name in ("parameters", "oscillation"):
        np.testing.assert_allclose(together[name][1], alone[name], rtol=2e-3, atol=2e-5)
    assert together.status[0] == 0
    assert int(together.status[2]) & int(Status.DIVERGED)
    np.testing.assert_allclose(alone.oscillation[-1, 0], 0.5, rtol=1e-3)


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="k must"):
        js.flows.rod(0.1, k=0)
    with pytest.raises(ValueError, match="substeps"):
        js.flows.edge(0.1, substeps=2.0)
