"""Every optimizer: one table of rules, the same properties for each; then each rule against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import count_compilations, flat, tanh_network

import jaxsharp as js
from jaxsharp import optimizers

RULES = {
    "gd": lambda rate: optimizers.gd(rate),
    "gd with weight decay": lambda rate: optimizers.gd(rate, weight_decay=0.1),
    "gd with momentum": lambda rate: optimizers.gd(rate, weight_decay=0.1, momentum=0.9),
    "projected_gd": lambda rate: optimizers.projected_gd(rate),
    "scheduled_gd": lambda rate: optimizers.scheduled_gd(rate, 0.9),
    "scheduled_gd on the sphere": lambda rate: optimizers.scheduled_gd(rate, 0.9, on_sphere=True),
    "from_factory": lambda rate: optimizers.from_factory(optax.sgd, learning_rate=rate),
    "sam": lambda rate: optimizers.sam(optimizers.gd(rate), 0.1),
    "ire of sam": lambda rate: optimizers.ire(optimizers.sam(optimizers.gd(rate), 0.1), 2.0, 0.5, every=2, ema=0.5),
}


def _loss(w):
    return sum(-jnp.sum(jnp.cos(3 * leaf)) / 3 for leaf in jax.tree.leaves(w))


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


def _loop(optimizer, w, steps=4):
    state = optimizer.init(w)
    for _ in range(steps):
        gradient = jax.tree.map(lambda leaf: jnp.sin(3 * leaf), w)
        updates, state = optimizer.update(gradient, state, w, loss_fn=_loss, unknown=None)
        w = optax.apply_updates(w, updates)
    return w, state


def _params(dtype=None):
    dtype = dtype or jnp.result_type(float)
    return {"a": jnp.linspace(0.1, 1, 3, dtype=dtype), "b": jnp.linspace(-1, 1, 4, dtype=dtype).reshape(2, 2)}


def test_keeps_structure_and_dtype(rule, precision):
    del precision
    for dtype in (jnp.float32, jnp.result_type(float)):
        w = _params(dtype)
        after, _ = _loop(rule(0.1), w)
        assert jax.tree.structure(after) == jax.tree.structure(w)
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(dtype)}
        assert np.isfinite(flat(after)).all()
        assert not np.allclose(flat(after), flat(w))


def test_state_keeps_its_structure_and_dtype(rule):
    w = _params()
    optimizer = rule(0.1)
    before = optimizer.init(w)
    _, after = optimizer.update(w, before, w, loss_fn=_loss)
    describe = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)  # noqa: E731
    assert describe(before) == describe(after)


def test_jit_equals_eager_and_other_rates_do_not_recompile(rule):
    step = jax.jit(lambda optimizer, w: _loop(optimizer, w)[0])
    np.testing.assert_allclose(flat(step(rule(0.1), _params())), flat(_loop(rule(0.1), _params())[0]), rtol=1e-13)
    with count_compilations() as compiled:
        jax.block_until_ready(step(rule(0.2), _params()))
    assert not compiled


def test_vmap_over_the_rate_equals_a_loop(rule):
    rates = np.array([0.05, 0.1, 0.3])
    together = jax.vmap(lambda rate: _loop(rule(rate), _params())[0])(jnp.asarray(rates))
    for index, rate in enumerate(rates):
        alone = _loop(rule(float(rate)), _params())[0]
        np.testing.assert_allclose(flat(jax.tree.map(lambda leaf, i=index: leaf[i], together)), flat(alone), rtol=1e-12)


def test_works_inside_optax_chain_and_is_an_optax_transformation(rule):
    optimizer = rule(0.1)
    assert isinstance(optimizer, optax.GradientTransformation)
    chained = optax.chain(optax.clip_by_global_norm(1e6), optimizer)
    np.testing.assert_allclose(flat(_loop(chained, _params())[0]), flat(_loop(optimizer, _params())[0]), rtol=1e-13)


def test_is_a_pytree_of_its_hyperparameters(rule):
    leaves, structure = jax.tree.flatten(rule(0.1))
    assert structure == jax.tree.structure(rule(0.7))
    rebuilt = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(flat(_loop(rebuilt, _params())[0]), flat(_loop(rule(0.1), _params())[0]))


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf"), "fast"])
def test_a_bad_rate_is_named(rate):
    for make in (optimizers.gd, optimizers.projected_gd):
        with pytest.raises(ValueError, match="learning_rate"):
            make(rate)


def test_gd_formula():
    w, g = np.array([1.0, -2.0]), np.array([0.3, 0.4])
    optimizer = optimizers.gd(0.1, 0.05)
    updates, _ = optimizer.update(jnp.asarray(g), optimizer.init(w), jnp.asarray(w))
    np.testing.assert_allclose(w + updates, (1 - 0.1 * 0.05) * w - 0.1 * g, rtol=1e-15)


def test_momentum_formula():
    w, m = np.array([1.0, -2.0]), np.zeros(2)
    jw = jnp.asarray(w)
    optimizer = optimizers.gd(0.1, 0.05, 0.8)
    state = optimizer.init(jw)
    for _ in range(6):
        m = 0.8 * m + np.sin(w) + 0.05 * w
        w = w - 0.1 * m
        updates, state = optimizer.update(jnp.sin(jw), state, jw)
        jw = jw + updates
    np.testing.assert_allclose(jw, w, rtol=1e-13)


def test_projected_gd_stays_on_the_sphere():
    after, _ = _loop(optimizers.projected_gd(0.3), js.sphere.normalize(_params()))
    np.testing.assert_allclose(js.sphere.norm(after), 1, rtol=1e-14)


def test_scheduled_gd_formula():
    w, v = np.array([0.6, 0.8]), 2.0
    jw = jnp.asarray(w)
    optimizer = optimizers.scheduled_gd(0.1, 0.9, initial=2.0, on_sphere=True)
    state = optimizer.init(jw)
    for _ in range(5):
        g = np.sin(3 * w)
        w = w - 0.1 / np.sqrt(v) * g
        w = w / np.linalg.norm(w)
        v = 0.9 * v + 0.1 * g @ g
        updates, state = optimizer.update(jnp.sin(3 * jw), state, jw)
        jw = jw + updates
    np.testing.assert_allclose(jw, w, rtol=1e-13)
    np.testing.assert_allclose(state.second_moment, v, rtol=1e-13)
    np.testing.assert_allclose(state.rate, 0.1 / np.sqrt(v), rtol=1e-13)


def test_scheduled_gd_follows_the_direction_of_gd_with_weight_decay_to_fourth_order():
    """In one step (η_in/η̃)² of GD+WD differs from the RMSProp schedule by O(η_in⁴), and the direction not at all."""
    problem, w = tanh_network()
    theta = js.sphere.normalize(jax.tree.map(lambda leaf: leaf + 0.02, w))
    gradient = jax.grad(problem.loss)(theta)
    moment = 2 * float(js.sphere.norm(gradient)) ** 2
    gaps = []
    for product in (1e-2, 1e-3):
        rate, decay = 0.1, product / 0.1
        eta = float(js.sphere.intrinsic_learning_rate(rate, decay))
        length = (rate * np.sqrt(moment) / ((1 - product) * eta)) ** 0.5  # so that (η_in/η̃)² = moment
        start = jax.tree.map(lambda leaf, s=length: s * leaf, theta)
        np.testing.assert_allclose((eta / js.sphere.effective_learning_rate(start, rate, decay)) ** 2, moment, rtol=1e-12)
        descent = optimizers.gd(rate, decay)
        updates, _ = descent.update(jax.grad(problem.loss)(start), descent.init(start), start)
        moved = jax.tree.map(jnp.add, start, updates)
        schedule = optimizers.scheduled_gd(eta, (1 - product) ** 4, initial=moment, on_sphere=True)
        updates, state = schedule.update(gradient, schedule.init(theta), theta)
        np.testing.assert_allclose(flat(js.sphere.normalize(moved)), flat(theta) + flat(updates), atol=1e-14)
        after = float(eta / js.sphere.effective_learning_rate(moved, rate, decay)) ** 2
        gaps.append(abs(float(state.second_moment) - after) / moment)
    assert gaps[1] < gaps[0] / 50  # η_in² falls tenfold, so η_in⁴ a hundredfold


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="beta"):
        optimizers.scheduled_gd(0.1, 1.0)
    with pytest.raises(ValueError, match="initial"):
        optimizers.scheduled_gd(0.1, 0.9, initial=0.0)
