"""The engine: schedules, grids against single runs, frozen members, compilations, checkpoints, devices, precision."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from support import count_compilations, digits_network, flat, regression, tolerance

import jaxsharp as js
from jaxsharp import grid, selfcheck, trajectory
from jaxsharp.status import Status, describe

START = {"u": 1.0, "v": 0.01}


def _valley(rates, **options):
    options = {"steps": 40, "every": 10, "init": START, "probes": ["loss", "sharpness"], "progress": False, **options}
    return js.sweep(js.problems.valley(), js.optimizers.gd, {"learning_rate": rates}, **options)


@pytest.mark.parametrize(("steps", "every"), [(10, 3), (10, 5), (7, 10), (0, 1), (1001, 100)])
def test_schedule_measures_first_last_and_every(steps, every):
    plan = trajectory.schedule([js.probes.loss()], steps, every)
    expected = sorted({*range(0, steps + 1, every), steps})
    assert plan.events.tolist() == expected
    segments = [plan.segment(i, min(4, len(expected) - i), 4) for i in range(0, len(expected), 4)]
    assert sum(int(segment.lengths.sum()) for segment in segments) == steps


def test_probes_with_their_own_cadence_get_their_own_dimension():
    probes = ["loss", js.probes.sharpness(k=2, every=6), js.probes.parameters(every=100)]
    ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 20, probes=probes, every=4)
    assert ds.step.values.tolist() == [0, 4, 8, 12, 16, 20]
    assert ds.step_6.values.tolist() == [0, 6, 12, 18, 20]
    assert ds.step_100.values.tolist() == [0, 20]
    assert ds.sharpness.dims == ("step_6", "eigenvalue")
    full = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 20, probes=["loss", "parameters"], every=1)
    np.testing.assert_allclose(ds.loss, full.loss.sel(step=ds.step), rtol=1e-13)
    np.testing.assert_allclose(ds.parameters, full.parameters.sel(step=ds.step_100), rtol=1e-13)


def test_a_trajectory_is_the_plain_loop():
    problem = js.problems.valley()
    w = jax.tree.map(jnp.asarray, START)
    ds = js.simulate(problem, js.optimizers.gd(0.3, 0.01), 25, init=START, probes=["parameters", "loss"], every=5)
    for step in range(26):
        if step % 5 == 0:
            np.testing.assert_allclose(ds.parameters.sel(step=step), [w["u"], w["v"]], rtol=1e-12)
            np.testing.assert_allclose(ds.loss.sel(step=step), problem.loss(w), rtol=1e-12)
        gradient = jax.grad(problem.loss)(w)
        w = jax.tree.map(lambda x, g: (1 - 0.3 * 0.01) * x - 0.3 * g, w, gradient)


def test_a_run_starts_where_the_problem_says(precision, monkeypatch):
    """Each member from its own seed; the problem's own start is compiled without optimization, a given function with."""
    problem = digits_network(widths=(4,), count=20)
    ds = js.sweep(problem, js.optimizers.gd, {"learning_rate": [0.1]}, seeds=2, steps=1, probes=["parameters"], progress=False)
    for seed in (0, 1):
        exact = flat(problem.init(jax.random.key(seed)))
        found = ds.parameters.isel(learning_rate=0, seed=seed, step=0)
        np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance(precision, 10, 1))  # numbers of about 0.1
    options = []
    monkeypatch.setattr(jax, "jit", lambda function, compiler_options=None: options.append(compiler_options))
    for start in (None, lambda key: key):
        grid._start_program.__wrapped__(start, 1, ())
    assert options == [grid.PLAIN_CODE if jax.default_backend() == "cpu" else None, None]


def test_grid_members_equal_single_runs(precision):
    problem = digits_network(widths=(5,), count=40)
    probes = ["loss", "grad_norm", "metrics", js.probes.sharpness(k=2, tol=1e-3)]
    over = {"learning_rate": [0.05, 0.2], "weight_decay": [0.0, 0.01]}
    ds = js.sweep(problem, js.optimizers.gd, over, seeds=[3, 8], steps=12, every=6, probes=probes, progress=False)
    assert dict(ds.sizes) == {"learning_rate": 2, "weight_decay": 2, "seed": 2, "step": 3, "eigenvalue": 2}
    assert ds.loss.dtype == precision
    bound = 1e-9 if precision == "float64" else 2e-3
    for rate, decay, seed in ((0.05, 0.01, 3), (0.2, 0.0, 8)):
        alone = js.simulate(problem, js.optimizers.gd(rate, decay), 12, seed=seed, every=6, probes=probes)
        member = ds.sel(learning_rate=rate, weight_decay=decay, seed=seed)
        for name in ("loss", "grad_norm", "test_accuracy", "sharpness"):
            np.testing.assert_allclose(member[name], alone[name], rtol=bound, atol=bound)


@pytest.mark.smoke
def test_a_member_does_not_depend_on_the_batch_it_runs_in():
    whole = _valley([0.1, 0.2, 0.3, 0.4, 0.5])
    split = _valley([0.1, 0.2, 0.3, 0.4, 0.5], batch_size=2)
    np.testing.assert_allclose(split.loss, whole.loss, rtol=1e-10)
    reordered = _valley([0.5, 0.2])
    np.testing.assert_allclose(reordered.loss.sel(learning_rate=0.2), whole.loss.sel(learning_rate=0.2), rtol=1e-10)


@pytest.mark.smoke
def test_a_diverged_member_freezes_and_the_others_do_not_notice():
    calm, wild = _valley([0.1, 0.2, 0.5]), _valley([0.1, 2.0, 0.5])
    assert wild.status.values.ravel().tolist() == [0, Status.DIVERGED, 0]
    for rate in (0.1, 0.5):
        for name in ("loss", "sharpness"):
            np.testing.assert_array_equal(wild[name].sel(learning_rate=rate), calm[name].sel(learning_rate=rate))
    lost = wild.sel(learning_rate=2.0, seed=0)
    failed = int(lost.diverged_at)
    w = dict(START)
    for step in range(1, failed + 1):  # the same recursion, in plain Python
        u, v = w["u"], w["v"]
        w = {"u": u - 2 * u * v**2, "v": v - 2 * (1 + u**2) * v}
        assert (max(abs(w["u"]), abs(w["v"])) > 1e10) == (step == failed)
    assert int(lost.steps_completed) == failed - 1
    assert np.isnan(lost.loss.sel(step=lost.step >= failed)).all()
    assert np.isfinite(lost.loss.sel(step=lost.step < failed)).all()
    assert np.isnan(wild.diverged_at.sel(learning_rate=0.1)).all()
    assert describe(lost.status) == "diverged"


def test_nan_in_one_member_stays_there():
    problem = js.problems.from_loss(
        lambda w, data: jnp.sum(jnp.where(w > 2, jnp.nan, data * w**2)), _uniform, data=jnp.array([1.0, 2.0]), name="nan beyond 2"
    )
    ds = js.sweep(problem, js.optimizers.gd, {"learning_rate": [0.1, -0.0]}, steps=3, progress=False)
    assert not ds.status.any()
    up = js.simulate(problem, js.optimizers.gd(1.5), 20, probes=["loss"], init=np.array([1.0, 1.0]))
    assert int(up.status) == Status.DIVERGED


def _uniform(key):
    return jax.random.uniform(key, (2,))


def test_unconverged_probe_warns_without_stopping():
    problem = digits_network(widths=(5,), count=40)
    probe = js.probes.sharpness(k=1, tol=1e-9, max_matvecs=3)
    ds = js.simulate(problem, js.optimizers.gd(0.1), 4, probes=["loss", probe], every=2)
    assert int(ds.status) == Status.EIGENPAIR_UNCONVERGED
    assert np.isfinite(ds.loss).all()
    assert np.isnan(ds.diverged_at)
    assert not ds.sharpness_converged.any()
    assert int(ds.hvps) == int(ds.sharpness_products.sum()) <= 9


@pytest.mark.smoke
def test_other_values_do_not_recompile():
    problem = digits_network(widths=(5,), count=40)
    again = digits_network(widths=(5,), count=40)
    probes = ["loss", "sharpness", "effective_learning_rate"]
    run = lambda p, rates, decays, seeds: js.sweep(  # noqa: E731
        p,
        js.optimizers.gd,
        {"learning_rate": rates, "weight_decay": decays},
        seeds=seeds,
        steps=6,
        every=2,
        probes=probes,
        progress=False,
    )
    run(problem, [0.1, 0.2], [0.0, 0.01], 2)
    with count_compilations() as compiled:
        run(again, [0.3, 0.4], [0.02, 0.05], [7, 9])
    assert not compiled
    js.simulate(problem, js.optimizers.gd(0.1), 6, probes=probes, every=2)
    with count_compilations() as compiled:
        js.simulate(again, js.optimizers.gd(0.9, 0.1), 6, probes=probes, every=2, seed=5)
    assert not compiled


def test_small_buffers_give_the_same_run(monkeypatch):
    chosen, capacity = [], grid._capacity
    monkeypatch.setattr(grid, "_capacity", lambda *arguments: chosen.append(capacity(*arguments)) or chosen[-1])

    def run():
        return js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 9, init=START, probes=["loss", "parameters"], every=1)

    whole = run()
    monkeypatch.setattr(grid, "BUFFER_BYTES", 5 * 8 * 3)  # five rows of a loss and two parameters
    pieces = run()
    assert chosen == [8, 4]
    xr.testing.assert_equal(whole, pieces)


def test_a_program_is_traced_once():
    """A measurement, which may hold a whole search, once; a loss once more where a grid asks what its gradient costs."""
    seen = []

    def loss(w, data):
        seen.append("loss")
        return jnp.sum(w**2) + data

    def look(problem, w):
        seen.append("measurement")
        return jnp.sum(w)

    problem = js.problems.from_loss(loss, _uniform, data=jnp.zeros(()), name="traced")
    probe = js.probes.function("total", look)
    js.selfcheck.ensure()
    options = {"steps": 7, "probes": [probe], "every": 2}
    ways = {
        1: lambda rate: js.simulate(problem, js.optimizers.gd(rate), **options),
        2: lambda rate: js.sweep(problem, js.optimizers.gd, {"learning_rate": [rate, 0.1]}, progress=False, **options),
    }
    for losses, run in ways.items():
        run(0.2)
        assert (seen.count("measurement"), seen.count("loss")) == (1, losses)
        seen.clear()
        run(0.3)
        assert not seen


def test_one_program_for_any_size_of_grid_in_equal_batches():
    _valley([0.1, 0.2], batch_size=2)
    with count_compilations() as compiled:
        _valley([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], batch_size=2)
    assert not compiled


def test_any_optax_transformation():
    with jax.numpy_dtype_promotion("standard"):  # optax's bias correction relies on it
        ds = js.simulate(js.problems.valley(), optax.adam(0.1), 20, probes=["loss", "grad_norm"], every=10)
        assert float(ds.loss[-1]) < float(ds.loss[0])
        grid_of_adam = js.sweep(
            js.problems.valley(), optax.adam, {"learning_rate": [0.1, 0.01]}, steps=20, every=10, progress=False
        )
        np.testing.assert_allclose(grid_of_adam.loss.sel(learning_rate=0.1, seed=0), ds.loss, rtol=1e-10)
        with pytest.raises(ValueError, match="learning rate"):
            js.simulate(js.problems.valley(), optax.adam(0.1), 2, probes=["effective_learning_rate"])


def test_midpoint_is_the_mean_of_two_iterates():
    every = js.simulate(js.problems.valley(), js.optimizers.gd(0.9), 6, init=START, probes=["parameters"])
    probe = js.probes.parameters(midpoint=True)
    middle = js.simulate(js.problems.valley(), js.optimizers.gd(0.9), 6, init=START, probes=[probe], every=3)
    w = every.parameters.values
    np.testing.assert_allclose(middle.parameters, [w[0], (w[2] + w[3]) / 2, (w[5] + w[6]) / 2], rtol=1e-13)


def test_a_gradient_found_by_a_measurement_is_used_by_the_next_step():
    """The trajectory is the same to rounding, in a grid with a member that diverges, and each step saves one gradient."""
    evaluations = []

    def loss(w, data):
        jax.debug.callback(lambda _: evaluations.append(1), w[0])
        return 0.25 * jnp.sum((w**2 - data) ** 2)

    problem = js.problems.from_loss(loss, _uniform, data=jnp.arange(1.0, 3.0), name="counted")

    def run(every, rarely, **options):
        evaluations.clear()
        probes = [js.probes.sharpness(guards=0, tol=1e-6, every=rarely, **options), "parameters"]
        rates = {"learning_rate": [0.05, 30.0]}
        ds = js.sweep(problem, js.optimizers.gd, rates, steps=13, every=every, probes=probes, progress=False)
        jax.effects_barrier()
        return ds, len(evaluations)

    for every, rarely in ((1, 1), (2, 4)):  # in the last, every second stretch of steps starts without a measurement
        plain, most = run(every, rarely)
        reused, fewer = run(every, rarely, reuse_gradient=True)
        assert plain.status.values.ravel().tolist() == reused.status.values.ravel().tolist() != [0, 0]
        np.testing.assert_allclose(reused.parameters, plain.parameters, rtol=1e-10)
        np.testing.assert_allclose(reused.sharpness, plain.sharpness, rtol=1e-10)
        measurements = 13 // rarely + 1 + (13 % rarely > 0)
        assert most - fewer == 2 * (measurements - 1)  # two members, none after the last measurement
    with pytest.raises(ValueError, match="midpoint"):
        js.probes.sharpness(midpoint=True, reuse_gradient=True)


def test_a_fixed_number_of_steps_is_differentiable():
    """GD on ½ w² multiplies w by 0.9 a step, and so does the derivative."""
    problem = js.problems.from_loss(lambda w, data: 0.5 * jnp.sum(w**2), _uniform, name="bowl")
    dynamics = js.as_dynamics(js.optimizers.gd(0.1))

    def end(w):
        return dynamics.advance(problem, dynamics.init(problem, w), 3).params.sum()

    np.testing.assert_allclose(jax.jit(jax.grad(end))(jnp.ones(2)), 0.9**3)
    kept = js.as_dynamics(js.optimizers.gd(0.1), keep_slope=True)
    np.testing.assert_allclose(kept.advance(problem, kept.init(problem, jnp.ones(2)), 3).params, 0.9**3)


def test_initial_parameters_may_depend_on_the_grid_point():
    def init(key, learning_rate):
        return {"u": jax.random.uniform(key, dtype=float), "v": learning_rate}

    ds = js.sweep(
        js.problems.valley(),
        js.optimizers.gd,
        {"learning_rate": [0.1, 0.3], "weight_decay": [0.0, 0.1]},
        seeds=2,
        steps=0,
        probes=["parameters"],
        init=init,
        progress=False,
    )
    np.testing.assert_allclose(ds.parameters.isel(step=0, parameter=1), ds.learning_rate.broadcast_like(ds.status))
    first = ds.parameters.isel(step=0, parameter=0)
    assert (first.std("learning_rate") == 0).all()
    assert (first.std("seed") > 0).all()


@pytest.fixture
def interrupted(monkeypatch):
    """Makes a sweep stop after a number of compiled calls, saving after each."""
    monkeypatch.setattr(grid, "SAVE_EVERY", -1.0)

    def stop_after(calls):
        collect, count = grid._collect, iter(range(calls))

        def counted(*arguments):
            if next(count, None) is None:
                raise KeyboardInterrupt
            return collect(*arguments)

        monkeypatch.setattr(grid, "_collect", counted)
        return lambda: monkeypatch.setattr(grid, "_collect", collect)

    return stop_after


@pytest.mark.parametrize("calls", [1, 2, 4, 6])
def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path, interrupted, calls):
    options = {"steps": 40, "every": 4, "batch_size": 2, "probes": ["loss", js.probes.sharpness(every=8)]}
    whole = _valley([0.1, 0.2, 0.3], **options)
    go_on = interrupted(calls)
    with pytest.raises(KeyboardInterrupt):
        _valley([0.1, 0.2, 0.3], checkpoint=tmp_path, **options)
    go_on()
    spent = 0.0
    for path in tmp_path.glob("*.npz"):  # as if an hour had gone into each
        spent += 3600
        np.savez(path, **{**np.load(path), "seconds": 3600.0})
    resumed = _valley([0.1, 0.2, 0.3], checkpoint=tmp_path, **options)
    for name in whole.data_vars:
        np.testing.assert_array_equal(resumed[name], whole[name])
    assert spent < resumed.attrs["wall_time_seconds"] < spent + 3600


def test_an_interrupted_single_run_goes_on_too(tmp_path, interrupted):
    run = lambda **more: js.simulate(js.problems.valley(), js.optimizers.gd(0.3), 20, init=START, every=2, **more)  # noqa: E731
    go_on = interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path)
    assert list(tmp_path.glob("running-*.npz"))
    go_on()
    np.testing.assert_array_equal(run(checkpoint=tmp_path).loss, run().loss)


def test_checkpoints_of_another_run_or_damaged_ones_are_refused(tmp_path):
    _valley([0.1, 0.2], checkpoint=tmp_path)
    with pytest.raises(ValueError, match="holds another run"):
        _valley([0.1, 0.3], checkpoint=tmp_path)
    with pytest.raises(ValueError, match="holds another run"):
        _valley([0.1, 0.2], checkpoint=tmp_path, init=lambda key: {"u": jnp.array(0.5), "v": jnp.array(0.01)})
    batch = tmp_path / "batch-0000.npz"
    batch.write_bytes(batch.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        _valley([0.1, 0.2], checkpoint=tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="unreadable"):
        _valley([0.1, 0.2], checkpoint=tmp_path)
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        _valley([0.1], checkpoint=blocker / "inside")


def test_the_self_check_guards_every_run(monkeypatch):
    def fail():
        raise selfcheck.NumericalSelfCheckError("wrong")

    monkeypatch.setattr(selfcheck, "ensure", fail)
    with pytest.raises(selfcheck.NumericalSelfCheckError):
        js.simulate(js.problems.valley(), js.optimizers.gd(0.1), 1)
    with pytest.raises(selfcheck.NumericalSelfCheckError):
        _valley([0.1])


def test_several_devices_give_the_same_grid():
    script = (
        "import json, jax, jaxsharp as js\n"
        "assert len(jax.devices()) == 4\n"
        "run = lambda **o: js.sweep(js.problems.valley(), js.optimizers.gd, {'learning_rate': [0.1, 2.0, 0.3]}, steps=20,"
        " every=10, init={'u': 1.0, 'v': 0.01}, probes=['loss', 'sharpness'], progress=False, **o)\n"
        "a, b, c = run(devices=jax.devices()[:1]), run(), run(batch_size=2)\n"
        "print(json.dumps([[x.sharpness.values.tolist() for x in (a, b, c)], b.status.values.ravel().tolist()]))\n"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    (one, spread, batched), status = json.loads(done.stdout)
    assert status == [0, 1, 0]
    np.testing.assert_allclose(one, spread, rtol=1e-12)
    np.testing.assert_allclose(one, batched, rtol=1e-12)


def test_batch_sizes():
    assert grid.batch_length("auto", 3, 1) == 3
    assert grid.batch_length("auto", 33, 1) == 17
    assert grid.batch_length(5, 100, 4) == 8
    for bad in (0, -1, 2.5, "many", True):
        with pytest.raises(ValueError, match="batch_size"):
            grid.batch_length(bad, 4, 1)


MISUSE = {
    "empty axis": ({"over": {"learning_rate": []}}, "learning_rate"),
    "axis of words": ({"over": {"learning_rate": ["fast"]}}, "finite numbers"),
    "axis with nan": ({"over": {"learning_rate": [np.nan]}}, "finite numbers"),
    "axis with a value twice": ({"over": {"learning_rate": [0.1, 0.1]}}, "twice"),
    "negative rate": ({"over": {"learning_rate": [-0.1]}}, "learning_rate"),
    "unknown key": ({"over": {"lr": [0.1]}}, "'lr'.*learning_rate"),
    "seed as an axis": ({"over": {"seed": [1]}}, "seeds="),
    "no seeds": ({"seeds": 0}, "seeds"),
    "seeds twice": ({"seeds": [1, 1]}, "seeds"),
    "negative steps": ({"steps": -1}, "steps"),
    "fractional steps": ({"steps": 1.5}, "steps"),
    "no cadence": ({"every": 0}, "every"),
    "unknown probe": ({"probes": ["sharpnes"]}, "sharpnes"),
    "no probe": ({"probes": [3]}, "probe"),
    "two probes of one name": ({"probes": ["loss", "loss"]}, "same name"),
    "init of another structure": ({"init": {"u": 1.0}}, "init"),
    "init of another shape": ({"init": {"u": np.ones(2), "v": 1.0}}, "init"),
    "init with nan": ({"init": {"u": np.nan, "v": 1.0}}, "init"),
    "momentum of both kinds": ({"over": {"momentum": [0.0, 0.9]}}, "structure"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_names_the_argument(name):
    changes, words = MISUSE[name]
    options = {"over": {"learning_rate": [0.1]}, "steps": 2, "progress": False, **changes}
    factory = (lambda momentum: js.optimizers.gd(0.1, momentum=momentum)) if "momentum" in options["over"] else js.optimizers.gd
    with pytest.raises(ValueError, match=words):
        js.sweep(js.problems.valley(), factory, **options)


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="optimizer"):
        js.simulate(js.problems.valley(), 0.1, 2)
    with pytest.raises(ValueError, match="factory"):
        js.sweep(js.problems.valley(), js.optimizers.gd(0.1), {"learning_rate": [0.1]}, steps=1, progress=False)


def test_everything_below_the_engine_can_be_differentiated():
    """The slope of the final loss in the learning rate, against central differences."""
    problem = regression()
    w = problem.init(jax.random.key(0))

    def final_loss(rate):
        dynamics = js.as_dynamics(js.optimizers.gd(rate, 0.01))
        state = dynamics.init(problem, w)
        state, _ = jax.lax.scan(lambda s, _: (dynamics.step(problem, s), None), state, length=10)
        return problem.loss(state.params)

    step = 1e-6
    difference = (final_loss(0.05 + step) - final_loss(0.05 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(final_loss)(0.05), difference, rtol=1e-6)
