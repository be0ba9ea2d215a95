"""SAM: each variant against its definition or its expectation in closed form; the iterate is always the true one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import count_compilations, flat

import jaxsharp as js
from jaxsharp import optimizers
from jaxsharp.optimizers import sam

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(6, 4)), RNG.normal(size=6)
START = RNG.normal(size=4)


def loss(w, batch):
    """The mean of (⟨x, w⟩ − y)⁴ / 4 over a batch (inputs, targets), w in two parts."""
    inputs, targets = batch
    v = jnp.concatenate([w["a"], w["b"]])
    return jnp.mean((inputs @ v - targets) ** 4) / 4


def gradient(v, rows=slice(None)):
    """Its gradient, in NumPy."""
    return INPUTS[rows].T @ (INPUTS[rows] @ v - TARGETS[rows]) ** 3 / len(TARGETS[rows])


def tree(v):
    v = jnp.asarray(v, jnp.result_type(float))
    return {"a": v[:1], "b": v[1:]}


def _batch():
    return jnp.asarray(INPUTS, jnp.result_type(float)), jnp.asarray(TARGETS, jnp.result_type(float))


def ascend(v, g, rho, adaptive):
    metric = np.abs(v) + 0.05 if adaptive else np.ones_like(v)
    return v + rho * metric**2 * g / np.linalg.norm(metric * g)


def definition(v, rho, adaptive, group):
    if group is None:
        return gradient(ascend(v, gradient(v), rho, adaptive))
    parts = [slice(first, first + group) for first in range(0, 6, group)]
    return np.mean([gradient(ascend(v, gradient(v, rows), rho, adaptive), rows) for rows in parts], axis=0)


@jax.jit
def trajectory(rule, w, batch):
    def step(carry, _):
        w, state = carry
        here = lambda w: loss(w, batch)  # noqa: E731
        updates, state = rule.update(jax.grad(here)(w), state, w, loss_fn=here, batch_loss_fn=loss, batch=batch)
        w = optax.apply_updates(w, updates)
        return (w, state), jnp.concatenate([w["a"], w["b"]])

    return jax.lax.scan(step, (w, rule.init(w)), length=5)[1]


@pytest.mark.parametrize(("adaptive", "group"), [(False, None), (True, None), (False, 1), (True, 2), (False, 6)])
def test_is_its_definition_step_by_step(adaptive, group, precision):
    rule = sam(optimizers.gd(0.02, momentum=0.5), 0.1, adaptive=adaptive, group=group, floor=0.05)
    path = trajectory(rule, tree(START), _batch())
    v, m = START, 0.0
    for found in path:
        m = 0.5 * m + definition(v, 0.1, adaptive, group)
        v = v - 0.02 * m
        np.testing.assert_allclose(found, v, rtol=1e-10 if precision == "float64" else 2e-4)


def test_a_group_of_all_samples_is_the_standard_rule_and_one_sample_is_another():
    ends = [trajectory(sam(optimizers.gd(0.02), 0.1, group=m), tree(START), _batch())[-1] for m in (None, 6, 1)]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)
    assert np.abs(ends[0] - ends[2]).max() > 1e-3


def test_is_what_optax_s_own_sam_computes():
    rule = sam(optax.sgd(0.02, momentum=0.5), 0.1)
    peer = optax.contrib.sam(
        optax.sgd(0.02, momentum=0.5), optax.chain(optax.contrib.normalize(), optax.sgd(0.1)), opaque_mode=True
    )
    w, batch = tree(START), _batch()
    slope = jax.grad(lambda w: loss(w, batch))
    ours, theirs = rule.init(w), peer.init(w)
    for _ in range(2):
        updates, ours = rule.update(slope(w), ours, w, grad_fn=slope)
        expected, theirs = peer.update(slope(w), theirs, w, grad_fn=lambda w, _: slope(w))
        np.testing.assert_allclose(flat(updates), flat(expected), rtol=1e-12)
        w = optax.apply_updates(w, updates)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_average_direction_has_the_expected_gradient(adaptive):
    """For L = Σ wᵢ⁴/4 and the radius ρ the mean over the sphere of (wᵢ + ρ uᵢ)³ is wᵢ³ + 3 ρ² wᵢ E uᵢ², E uᵢ² = 1/D."""
    draws, rho = 20_000, 0.7
    w = jnp.asarray(START)
    quartic = lambda w: jnp.sum(w**4) / 4  # noqa: E731
    rule = sam(optax.identity(), rho, ascent="random", directions=draws, adaptive=adaptive, floor=0.05)
    found, _ = jax.jit(lambda w: rule.update(jax.grad(quartic)(w), rule.init(w), w, loss_fn=quartic))(w)
    noise = np.random.default_rng(1).normal(size=(100_000, 4))
    points = START + rho * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    if adaptive:
        metric = np.abs(START) + 0.05
        points = START + rho * metric**2 * noise / np.linalg.norm(metric * noise, axis=1, keepdims=True)
    spread = (points**3).std(axis=0) / np.sqrt(draws)
    expected = (points**3).mean(axis=0) if adaptive else START**3 + 3 * rho**2 * START / 4
    assert (np.abs(found - expected) < 5 * spread).all()
    assert (np.abs(START**3 - expected) > 5 * spread).any()  # the plain gradient would not pass


def test_random_directions_follow_the_seed_the_step_and_the_key():
    def updates(seed=0, steps=1, **extra):
        rule = sam(optax.identity(), 0.5, ascent="random", seed=seed)
        w = tree(START)
        state = rule.init(w)
        for _ in range(steps):
            found, state = rule.update(w, state, w, loss_fn=lambda w: loss(w, _batch()), **extra)
        return flat(found).tolist()

    different = [updates(), updates(seed=1), updates(steps=2), updates(key=jax.random.key(7))]
    assert len({tuple(found) for found in different}) == 4
    assert updates() == updates()
    assert updates(steps=2) == updates(step=jnp.asarray(1))


def test_another_radius_compiles_nothing_and_vmap_equals_a_loop():
    w, batch = tree(START), _batch()
    radii = np.array([0.0, 0.1, 0.3])
    together = jax.jit(jax.vmap(lambda rho: trajectory(sam(optimizers.gd(0.02), rho), w, batch)))(jnp.asarray(radii))
    trajectory(sam(optimizers.gd(0.02), 0.2), w, batch)
    with count_compilations() as compiled:
        alone = [trajectory(sam(optimizers.gd(0.02), float(rho)), w, batch) for rho in radii]
    assert not compiled
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-12)
    plain = trajectory(optimizers.gd(0.02), w, batch)
    np.testing.assert_allclose(alone[0], plain, rtol=1e-12)  # ρ = 0
    assert np.abs(alone[1] - plain).max() > 1e-4


def test_a_vanishing_gradient_moves_nothing():
    rule = sam(optimizers.gd(0.1), 0.5)
    w = jnp.zeros(3)
    updates, _ = rule.update(w, rule.init(w), w, loss_fn=lambda w: jnp.sum(w**2))
    np.testing.assert_array_equal(updates, 0)


def test_the_engine_passes_the_loss_and_records_the_true_iterate():
    model = js.models.MLP(widths=(), outputs=1)
    problem = js.problems.supervised(model, (INPUTS, TARGETS))
    design = np.concatenate([np.ones((6, 1)), INPUTS], axis=1)
    grad = lambda v, rows: design[rows].T @ (design[rows] @ v - TARGETS[rows]) / len(TARGETS[rows])  # noqa: E731
    for group in (None, 2):
        rule = sam(optimizers.gd(0.1, weight_decay=0.2), 0.3, group=group)
        ds = js.simulate(problem, rule, 3, probes=["parameters", "effective_learning_rate"], every=1)
        path = ds.parameters.values  # bias, then weights
        rows = [slice(first, first + (group or 6)) for first in range(0, 6, group or 6)]
        for before, after in itertools.pairwise(path):
            g = [grad(before + 0.3 * grad(before, r) / np.linalg.norm(grad(before, r)), r) for r in rows]
            np.testing.assert_allclose(after, before - 0.1 * (np.mean(g, axis=0) + 0.2 * before), rtol=1e-10)
        np.testing.assert_allclose(ds.effective_learning_rate, 0.1 / ((1 - 0.02) * (path**2).sum(axis=1)), rtol=1e-12)


def test_works_inside_masked_and_partition():
    w, batch = tree(START), _batch()
    here = lambda w: loss(w, batch)  # noqa: E731
    slope = jax.grad(here)(w)
    inner = sam(optimizers.gd(0.1), 0.2)
    part = np.asarray(slope["b"])
    moved = np.concatenate([START[:1], START[1:] + 0.2 * part / np.linalg.norm(part)])
    rules = [
        optax.masked(inner, {"a": False, "b": True}),
        optax.partition({"sam": inner, "plain": optax.sgd(0.5)}, {"a": "plain", "b": "sam"}),
    ]
    for rule in rules:
        for function in ({"loss_fn": here}, {"grad_fn": jax.grad(here)}):
            updates, _ = rule.update(slope, rule.init(w), w, full_params=w, **function)
            np.testing.assert_allclose(updates["b"], -0.1 * gradient(moved)[1:], rtol=1e-10)
        with pytest.raises(ValueError, match="full_params"):
            rule.update(slope, rule.init(w), w, loss_fn=here)


def test_line_searches_of_optax_run_in_the_engine():
    with jax.numpy_dtype_promotion("standard"):  # optax's needs it
        ds = js.simulate(js.problems.valley(), optax.lbfgs(), 5, init={"u": 1.0, "v": 0.5}, every=5)
    assert float(ds.loss[-1]) < 1e-4 * float(ds.loss[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rho": -0.1}, "rho must be finite"),
        ({"ascent": "up"}, "ascent must be 'gradient' or 'random'"),
        ({"group": 0}, "group must be a whole number"),
        ({"group": 2.5}, "group must be a whole number"),
        ({"directions": 0}, "directions must be a whole number"),
        ({"ascent": "random", "group": 2}, "leave one of them out"),
        ({"base": 3}, "wraps an optimizer or an optax transformation"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        sam(**{"base": optimizers.gd(0.1), "rho": 0.1, **arguments})


def test_what_is_missing_is_named():
    w, batch = tree(START), _batch()
    for rule, extra, words in [
        (sam(optimizers.gd(0.1), 0.1), {}, "extra argument loss_fn"),
        (sam(optimizers.gd(0.1), 0.1, group=2), {"loss_fn": loss}, "extra argument batch"),
        (sam(optimizers.gd(0.1), 0.1, group=4), {"batch_loss_fn": loss, "batch": batch}, "group=4 needs a number of samples"),
    ]:
        with pytest.raises(ValueError, match=words):
            rule.update(w, rule.init(w), w, **extra)
    with pytest.raises(ValueError, match="third argument"):
        sam(optimizers.gd(0.1), 0.1).update(w, sam(optimizers.gd(0.1), 0.1).init(w), loss_fn=loss)
