"""Minibatches: every sample once an epoch, streams by seed, probes on all samples; chains with schedules and clipping."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import count_compilations, digits_network

import jaxsharp as js
from jaxsharp import optimizers

SAMPLES = 7


def _loss(w, ids):
    """The mean over samples i of wᵢ: its gradient says which samples were looked at."""
    return jnp.mean(w[ids])


def _take(ids, indices):
    return SAMPLES if indices is None else ids[indices]


@cache
def counter():
    return js.problems.Problem(
        data=jnp.arange(SAMPLES), init_fn=lambda key, ids: jnp.zeros(SAMPLES), loss_fn=_loss, take_fn=_take, name="counter"
    )


def visits(ds):
    """(step, samples) booleans: which samples each step looked at; the rate is 1."""
    return np.diff(-ds.parameters.values, axis=-2) > 0


def _run(**options):
    return js.simulate(counter(), optimizers.gd(1.0), 12, probes=["parameters", "loss"], **{"minibatch": 3, **options})


def test_each_epoch_sees_every_sample_at_most_once_in_a_new_order():
    seen = visits(_run())
    np.testing.assert_array_equal(seen.sum(axis=1), 3)  # 7 samples are two batches of 3, and one is left over
    epochs = seen.reshape(6, 2, SAMPLES)
    np.testing.assert_array_equal(epochs.sum(axis=1).max(axis=1), 1)
    assert len({epoch.tobytes() for epoch in epochs}) > 4
    assert (epochs.sum(axis=(0, 1)) > 0).all()


def test_the_loss_of_a_batch_is_its_mean_and_probes_look_at_all_samples():
    ds = _run()
    steps = np.diff(-ds.parameters.values, axis=0)
    np.testing.assert_allclose(steps[steps > 0], 1 / 3, rtol=1e-9)
    np.testing.assert_allclose(ds.loss, ds.parameters.mean("parameter"), atol=1e-12)


def test_the_seed_alone_decides_in_a_grid_as_alone():
    probes = ["parameters"]
    ds = js.sweep(
        counter(),
        optimizers.gd,
        {"learning_rate": [1.0, 2.0]},
        seeds=[0, 5],
        steps=12,
        probes=probes,
        minibatch=3,
        progress=False,
    )
    np.testing.assert_array_equal(visits(ds.sel(learning_rate=1.0)), visits(ds.sel(learning_rate=2.0)))
    assert (visits(ds)[0, 0] != visits(ds)[0, 1]).any()
    for seed in (0, 5):
        np.testing.assert_array_equal(visits(ds.sel(learning_rate=1.0, seed=seed)), visits(_run(seed=seed)))


def test_another_seed_compiles_nothing_and_measuring_more_often_changes_nothing():
    sparse = _run(every=4)
    with count_compilations() as compiled:
        other = _run(every=4, seed=3)
    assert not compiled
    np.testing.assert_allclose(sparse.parameters, _run().parameters[::4], atol=1e-12)
    assert (other.parameters != sparse.parameters).any()


def test_a_grid_shuffles_behind_a_condition():
    dynamics = js.as_dynamics(optimizers.gd(1.0), seed=0, minibatch=3)
    states = jax.vmap(lambda w: dynamics.init(counter(), w))(jnp.zeros((2, SAMPLES)))
    jaxpr = jax.make_jaxpr(jax.vmap(lambda state: dynamics.step(counter(), state)))(states)
    conditions = [equation for equation in jaxpr.eqns if equation.primitive.name == "cond"]
    assert [equation.invars[0].aval.shape for equation in conditions] == [()]


def test_all_samples_in_one_batch_are_the_full_batch():
    problem = digits_network(count=30, widths=(4,))
    rule = optimizers.gd(0.3)
    full = js.simulate(problem, rule, 6, probes=["loss"], every=3)
    batch = js.simulate(problem, rule, 6, probes=["loss"], every=3, minibatch=30)
    part = js.simulate(problem, rule, 6, probes=["loss"], every=3, minibatch=10)
    np.testing.assert_allclose(batch.loss, full.loss, rtol=1e-12)
    assert np.abs(part.loss - full.loss)[1:].min() > 1e-6


def test_random_optimizers_follow_the_seed_of_a_member():
    rule = optimizers.sam(optimizers.gd(0.1), 0.5, ascent="random")
    options = {"init": {"u": 1.0, "v": 0.5}, "probes": ["parameters"], "every": 3}
    ds = js.sweep(js.problems.valley(), rule, seeds=[0, 4], steps=3, progress=False, **options)
    assert np.abs(ds.parameters[0] - ds.parameters[1])[-1].max() > 1e-4
    for seed in (0, 4):
        one = js.simulate(js.problems.valley(), rule, 3, seed=seed, **options)
        np.testing.assert_allclose(ds.parameters.sel(seed=seed), one.parameters, rtol=1e-12)


@pytest.mark.parametrize("size", [0, 8, 2.5, True])
def test_a_size_that_makes_no_sense_is_refused(size):
    with pytest.raises(ValueError, match="minibatch must be a whole number from 1 to the 7 samples"):
        _run(minibatch=size)


def test_what_has_no_minibatches_says_so():
    with pytest.raises(ValueError, match="no samples"):
        js.simulate(js.problems.valley(), optimizers.gd(0.1), 2, minibatch=1)
    with pytest.raises(ValueError, match="a flow follows the full-batch loss"):
        js.simulate(counter(), js.flows.gradient(0.1), 2, minibatch=3)
    dynamics = js.as_dynamics(optimizers.gd(1.0), minibatch=3)
    state = dynamics.init(counter(), jnp.zeros(SAMPLES))
    with pytest.raises(ValueError, match="need a seed"):
        dynamics.step(counter(), state)


CLIP = optax.clip_by_global_norm(0.5)
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=3, decay_steps=9)
SCALE = optax.scale_by_schedule(SCHEDULE)


def _clipped(learning_rate):
    return optimizers.chain(CLIP, optimizers.gd(learning_rate, momentum=0.5), SCALE)


def test_a_chain_clips_schedules_and_keeps_the_rate_traced():
    options = {"steps": 9, "init": {"u": 1.0, "v": 0.9}, "probes": ["parameters", "effective_learning_rate"]}
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules need it
        ds = js.sweep(js.problems.valley(), _clipped, {"learning_rate": [0.1, 0.4]}, progress=False, **options)
        with count_compilations() as compiled:
            js.sweep(js.problems.valley(), _clipped, {"learning_rate": [0.2, 0.3]}, progress=False, **options)
    assert not compiled
    for rate in (0.1, 0.4):
        w, m = np.array([1.0, 0.9]), 0.0
        for step in range(10):
            here = ds.sel(learning_rate=rate, seed=0, step=step)
            np.testing.assert_allclose(here.parameters, w, rtol=1e-6)  # optax evaluates schedules in float32
            np.testing.assert_allclose(here.effective_learning_rate, rate / (w @ w), rtol=1e-6)
            g = np.array([w[0] * w[1] ** 2, (1 + w[0] ** 2) * w[1]])
            factor = step / 3 if step < 3 else 0.5 * (1 + np.cos(np.pi * (step - 3) / 6))
            m = 0.5 * m + g * min(1, 0.5 / np.linalg.norm(g))
            w = w - rate * factor * m


def test_ire_inside_a_chain_still_reports_its_products():
    rule = optimizers.chain(CLIP, optimizers.ire(optimizers.gd(0.1), 1.0, 0.5, every=2, estimator="hutchinson"))
    ds = js.simulate(js.problems.valley(), rule, 5, every=5)
    assert ds.attrs["hvp_count"] == 3


def test_a_chain_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        optimizers.chain()
    with pytest.raises(ValueError, match="wraps an optimizer"):
        optimizers.chain(3)
