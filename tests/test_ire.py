"""IRE: against a NumPy reading of the algorithm, exact counts, estimators against dense truth, cost, and optax's contract."""

import os
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import count_compilations, dense_hessian, flat

import jaxsharp as js
from jaxsharp import optimizers
from jaxsharp.cli.configuration import factory_from
from jaxsharp.optimizers import Eigenspace, Fisher, Hutchinson, ire, sam, smallest, smallest_fraction
from jaxsharp.status import Status

SHAPES = {"a": (3, 2), "b": (5,)}
SIZE = 11
SLOPES = np.linspace(0.2, 3.0, SIZE)[np.random.default_rng(3).permutation(SIZE)]


def tree(vector, dtype=None):
    vector = jnp.asarray(vector, dtype or jnp.result_type(float))
    return {"a": vector[:6].reshape(3, 2), "b": vector[6:]}


START = np.random.default_rng(0).normal(size=SIZE)


def start(dtype=None):
    return tree(START, dtype)


def loss(w):
    """Σ aᵢ wᵢ²/2 + wᵢ⁴/4, plus (Σ wᵢ)²/20, which couples the coordinates."""
    v = jnp.concatenate([w["a"].ravel(), w["b"]])
    return jnp.sum(jnp.asarray(SLOPES, v.dtype) * v**2) / 2 + jnp.sum(v**4) / 4 + jnp.sum(v) ** 2 / 20


def gradient(v):
    return SLOPES * v + v**3 + np.sum(v) / 10


# --- A NumPy reading: bases as generators of displacements, IRE around them. ---------------------------------------------------


class HeavyBall:
    def __init__(self, rate, decay, momentum):
        self.rate, self.decay, self.momentum, self.m = rate, decay, momentum, 0.0

    def displacement(self, w):
        self.m = self.momentum * self.m + gradient(w) + self.decay * w
        return -self.rate * self.m


class AdamW:
    def __init__(self, rate, decay, b1=0.9, b2=0.999, eps=1e-8):
        self.rate, self.decay, self.b1, self.b2, self.eps = rate, decay, b1, b2, eps
        self.m, self.v, self.t = 0.0, 0.0, 0

    def displacement(self, w):
        g = gradient(w)
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return -self.rate * (m / (np.sqrt(v) + self.eps) + self.decay * w)


class Sam:
    def __init__(self, rate, rho):
        self.rate, self.rho = rate, rho

    def displacement(self, w):
        g = gradient(w)
        return -self.rate * gradient(w + self.rho * g / np.linalg.norm(g))


BASES = {
    "gd with momentum": (lambda: HeavyBall(0.05, 0.1, 0.8), lambda: optimizers.gd(0.05, 0.1, 0.8)),
    "adamw": (lambda: AdamW(0.1, 0.1), lambda: optax.adamw(0.1, weight_decay=0.1)),
    "sam": (lambda: Sam(0.2, 0.1), lambda: sam(optimizers.gd(0.2), 0.1)),
}
STEPS = 25


def allow(name):
    """optax's Adam adds floats to integer counts, which strict promotion refuses; for its tests alone that is allowed."""
    return jax.numpy_dtype_promotion("standard" if "adam" in name else "strict")


def read(base, w, kappa, gamma, every, warmup, ema, schedule):
    """The algorithm, step by step: the end point and every mask."""
    h, mask, masks = np.zeros(SIZE), np.zeros(SIZE, bool), []
    for t in range(STEPS):
        if t >= warmup and (t - warmup) % every == 0:
            h = ema * h + (1 - ema) * gradient(w) ** 2
            mask = np.zeros(SIZE, bool)
            mask[np.argsort(h, kind="stable")[: round(gamma * SIZE)]] = True
        d = base.displacement(w)
        w = w + d + schedule(t) * kappa * mask * d
        masks.append(mask)
    return w, masks


def fade(step):
    return 1 - jnp.asarray(step, jnp.result_type(float)) / 50


@jax.jit
def trajectory(rule, w):
    """The end point and every mask of `STEPS` steps."""

    def step(carry, _):
        w, state = carry
        updates, state = rule.update(jax.grad(loss)(w), state, w, loss_fn=loss)
        return (optax.apply_updates(w, updates), state), getattr(state, "flat_mask", 0)

    (w, _), masks = jax.lax.scan(step, (w, rule.init(w)), length=STEPS)
    return w, masks


@pytest.mark.parametrize("name", BASES)
def test_is_the_algorithm_step_by_step(name, precision):
    numpy_base, base = BASES[name]
    base = base()
    for kappa, gamma, ema, every, warmup in [(0.8, 0.7, 0.2, 3, 2), (0.5, 0.3, 0.6, 3, 2)]:
        wanted, masks = read(numpy_base(), START, kappa, gamma, every, warmup, ema, lambda t: 1 - t / 50)
        rule = ire(base, kappa, gamma, every, warmup, ema=ema, kappa_schedule=fade)
        with allow(name):
            found, seen = trajectory(rule, start())
        np.testing.assert_allclose(flat(found), wanted, rtol=1e-9 if precision == "float64" else 2e-4, atol=1e-5 * SIZE**-0.5)
        seen = np.concatenate([np.asarray(leaf).reshape(STEPS, -1) for leaf in jax.tree.leaves(seen)], axis=1)
        np.testing.assert_array_equal(seen, masks)
        assert len({mask.tobytes() for mask in masks}) > 2  # the mask moved


def test_the_whole_displacement_is_scaled_decay_and_momentum_too():
    w = start()
    zero = jax.tree.map(jnp.zeros_like, w)
    rule = ire(optimizers.gd(0.1, weight_decay=0.5), 4.0, 0.5)
    updates, state = rule.update(zero, rule.init(w), w)  # all gradients equal: ties go to the first by index
    mask = np.arange(SIZE) < round(0.5 * SIZE)
    np.testing.assert_array_equal(flat(state.flat_mask), mask)
    np.testing.assert_allclose(flat(updates), -0.05 * flat(w) * (1 + 4 * mask), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [*((name, "squared_gradient") for name in BASES), ("gd with momentum", "hutchinson"), ("gd with momentum", "eigenspace")],
)
def test_without_kappa_the_updates_are_the_base_bit_for_bit(name, estimator, precision):
    del precision
    base = BASES[name][1]()
    rule = ire(base, 0.0, None if estimator == "eigenspace" else 0.8, every=2, estimator=estimator)
    w = start()
    w["b"] = w["b"].at[0].set(-0.0)
    found = []
    for each in (rule, base):
        update = jax.jit(lambda g, s, w, each=each: optax.with_extra_args_support(each).update(g, s, w, loss_fn=loss))
        state, at, history = each.init(w), w, []
        for _ in range(3):
            with allow(name):
                updates, state = update(_slope(at), state, at)
            at = jax.tree.map(jnp.add, at, updates)
            history.append(flat(updates).tobytes())
        found.append(history)
    assert found[0] == found[1]


_slope = jax.jit(jax.grad(loss))


@cache
def network():
    """23 parameters on 8 samples, and where its gradient and Hessian are far from diagonal."""
    rng = np.random.default_rng(1)
    data = rng.normal(size=(8, 3)), rng.integers(0, 3, size=8)
    problem = js.problems.supervised(js.models.MLP(widths=(3,)), data, loss="cross_entropy")
    return problem, problem.init(jax.random.key(0))


def test_without_kappa_the_engine_takes_the_base_s_path_bit_for_bit():
    paths = []
    with jax.enable_x64(False), allow("adamw"):
        problem, _ = network.__wrapped__()
        for rule in (optax.adamw(1e-2), ire(optax.adamw(1e-2), 0.0, 0.5)):
            paths.append(js.simulate(problem, rule, 8, probes=["parameters"], every=4).parameters.values)
    np.testing.assert_array_equal(*paths)


# --- Which coordinates are flat. ------------------------------------------------------------------------------------------------

_select = jax.jit(smallest_fraction)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.25, 0.35, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("kind", ["distinct", "ties", "equal", "special"])
def test_the_count_is_exact_and_ties_go_to_the_first(kind, gamma, precision):
    rng = np.random.default_rng(2)
    values = {
        "distinct": rng.normal(size=30) ** 3,
        "ties": rng.integers(-2, 3, size=30).astype(float),
        "equal": np.full(30, 7.0),
        "special": np.resize([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1e30, -1e30, 5e-324, 2.0], 30),
    }[kind].astype(precision)
    tiny = (np.abs(values) < np.finfo(precision).tiny) & (values != 0)
    values = np.where(tiny, 0, values)  # XLA may flush denormal numbers to zero
    parts = {"x": values[:12].reshape(3, 4), "y": {"z": values[12:]}}
    mask = flat(_select(jax.tree.map(jnp.asarray, parts), jnp.asarray(gamma, precision)))
    assert mask.sum() == round(gamma * 30)  # 0.25 · 30 = 7.5 and 0.35 · 30 = 10.5 are halves: to even
    order = np.argsort(values, kind="stable")  # NaN last
    wanted = np.zeros(30, bool)
    wanted[order[: round(gamma * 30)]] = True
    np.testing.assert_array_equal(mask, wanted)


def test_a_count_may_be_given_and_low_precision_is_ordered_too():
    values = jnp.asarray([1.5, -2.0, 0.25, 3.0], jnp.bfloat16)
    assert smallest(values, jnp.asarray(3)).tolist() == [True, True, True, False]


def test_large_counts_are_exact():
    values = np.random.default_rng(0).integers(0, 50, size=200_003).astype(np.float32)
    mask = np.asarray(jax.jit(smallest_fraction)(jnp.asarray(values), jnp.float32(0.8)))
    order = np.argsort(values, kind="stable")[: round(0.8 * 200_003)]
    assert mask.sum() == order.size
    assert mask[order].all()


# --- Estimators against dense truth. --------------------------------------------------------------------------------------------


def _estimate(estimator, objective_loss, w, draws_key=0, **extra):
    objective = optimizers.Objective("test", w, {"loss_fn": objective_loss, **extra})
    gradient = jax.grad(objective_loss)(w)
    return jax.jit(lambda key: estimator.estimate(objective, gradient, key).diagonal)(jax.random.key(draws_key))


def test_hutchinson_is_exact_on_a_diagonal_hessian_and_unbiased_on_any():
    diagonal = _estimate(Hutchinson(), lambda w: sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(w)), start())
    np.testing.assert_allclose(flat(diagonal), 12 * flat(start()) ** 2, rtol=1e-12)
    problem, w = network()
    hessian = dense_hessian(problem.loss, w)
    probes = 4000
    spread = np.sqrt((hessian**2).sum(axis=1) - np.diag(hessian) ** 2)  # of zᵢ (H z)ᵢ, exactly
    found = flat(_estimate(Hutchinson(probes), problem.loss, w))
    error = np.abs(found - np.diag(hessian)) / (spread / np.sqrt(probes))
    assert error.max() < 4.5
    assert np.abs(np.diag(hessian)).max() > 20 * spread.max() / np.sqrt(probes)  # so that a wrong diagonal would be seen


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
def test_fisher_is_the_gauss_newton_diagonal(name):
    rng = np.random.default_rng(1)
    inputs, labels = rng.normal(size=(8, 3)), rng.integers(0, 3, size=8)
    labels[:3] = [0, 1, 2]
    model = js.models.MLP(widths=(3,), outputs=3)
    problem = js.problems.supervised(model, (inputs, labels), loss=name)
    w = problem.init(jax.random.key(0))
    outputs = lambda w: model.apply({"params": w}, jnp.asarray(inputs))  # noqa: E731
    theta, unravel = jax.flatten_util.ravel_pytree(w)
    jacobian = np.asarray(jax.jit(jax.jacobian(lambda v: outputs(unravel(v))))(theta))  # (n, 3, D)
    p = np.asarray(jax.nn.softmax(outputs(w)))
    inner = np.eye(3) - 0 * p[:, :, None] if name == "mse" else np.einsum("ni,ij->nij", p, np.eye(3)) - p[:, :, None] * p[:, None]
    truth = np.einsum("nid,nij,njd->d", jacobian, np.broadcast_to(inner, (8, 3, 3)), jacobian) / 8
    draws = 4000
    found = 8 * flat(_estimate(Fisher(draws), problem.loss, w, sampled_loss_fn=problem.sampled_loss))
    # the square of a nearly normal gradient has the relative spread √2
    np.testing.assert_allclose(found, truth, rtol=5 * np.sqrt(2.5 / draws), atol=1e-12)
    assert truth.max() > 3 * truth.min()


def test_eigenspace_enlarges_what_is_orthogonal_to_the_dense_eigenvectors():
    problem, w = network()
    k, kappa = 3, 7.0
    vectors = np.linalg.eigh(dense_hessian(problem.loss, w))[1][:, -k:]
    rule = ire(optimizers.gd(0.1), kappa, None, estimator=Eigenspace(k, tol=1e-9))
    slope = jax.tree.map(lambda leaf: jnp.ones_like(leaf) + leaf, w)
    updates, state = jax.jit(lambda: rule.update(slope, rule.init(w), w, loss_fn=problem.loss))()
    d = -0.1 * flat(slope)
    np.testing.assert_allclose(flat(updates), d + kappa * (d - vectors @ (vectors.T @ d)), atol=1e-8)
    assert bool(state.converged)
    assert int(state.hvps) > k


def test_random_estimates_differ_between_times_and_follow_the_seed_and_the_key():
    w = start()

    def diagonal(seed=0, step=0, **extra):
        rule = ire(optimizers.gd(0.1), 1.0, 0.5, every=2, estimator="hutchinson", ema=0.5, seed=seed)
        return tuple(flat(rule.update(w, rule.init(w), w, loss_fn=loss, step=jnp.asarray(step), **extra)[1].diagonal))

    assert len({diagonal(), diagonal(seed=1), diagonal(step=2), diagonal(key=jax.random.key(7))}) == 4
    assert diagonal() == diagonal()


# --- What it costs. -------------------------------------------------------------------------------------------------------------


class Counting:
    """Says how often a member's curvature was estimated."""

    def __init__(self):
        self.calls = []

    def estimate(self, objective, gradient, key):
        del objective, key
        jax.debug.callback(lambda: self.calls.append(1))
        return optimizers.Estimate(jax.tree.map(jnp.square, gradient), 0)


def test_a_grid_pays_for_an_estimate_once_every_n_steps():
    """Counted at run time: one execution for the whole grid each time, also while members stand still at a due step."""
    counting = Counting()
    base = optimizers.gd
    ds = js.sweep(
        js.problems.valley(),
        lambda learning_rate: ire(base(learning_rate), 1.0, 0.5, every=5, warmup=1, estimator=counting),
        over={"learning_rate": [0.1, 0.5, 3.0, 4.0, 5.0, 6.0, 8.0]},
        steps=61,
        init={"u": 1.0, "v": 0.01},
        every=61,
        progress=False,
    )
    jax.effects_barrier()
    assert ds.status.values.ravel().tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert (ds.steps_completed % 5 == 1).isel(learning_rate=slice(2, None)).any()
    assert len(counting.calls) == len(range(1, 61, 5))


def test_under_vmap_the_estimate_stays_behind_a_condition():
    rule = ire(optimizers.gd(0.1), 1.0, 0.5, estimator="hutchinson")
    w = start()

    def update(state, w):
        return rule.update(w, state, w, loss_fn=loss)

    states = jax.vmap(lambda _: rule.init(w))(jnp.arange(2))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), w)
    jaxpr = jax.make_jaxpr(jax.vmap(update))(states, many)
    conditions = [equation for equation in jaxpr.eqns if equation.primitive.name == "cond"]
    assert len(conditions) == 1
    assert conditions[0].invars[0].aval.shape == ()


def test_members_out_of_step_each_keep_their_own_count():
    rule = ire(optimizers.gd(0.1), 1.0, 0.5, every=3)
    w = start()
    early = rule.init(w)
    _, late = rule.update(tree(np.arange(SIZE)), early, w)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), early, late)
    slope = tree(-np.arange(SIZE)[::-1])
    _, after = jax.vmap(lambda state: rule.update(slope, state, w))(both)
    wanted = [rule.update(slope, state, w)[1].flat_mask for state in (early, late)]
    for index in range(2):
        np.testing.assert_array_equal(flat(jax.tree.map(lambda leaf, i=index: leaf[i], after.flat_mask)), flat(wanted[index]))
    assert flat(wanted[0]).tolist() != flat(wanted[1]).tolist()


def test_state_is_as_large_as_promised():
    w = start(jnp.float32)
    size = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(state))  # noqa: E731
    base = optimizers.gd(0.1, momentum=0.9)
    assert size(ire(base, 1.0, 0.5).init(w)) - size(base.init(w)) == SIZE + 8
    assert size(ire(base, 1.0, 0.5, ema=0.9).init(w)) - size(base.init(w)) == SIZE + 8 + 4 * SIZE
    assert size(ire(base, 1.0, None, estimator=Eigenspace(3)).init(w)) - size(base.init(w)) == 3 * 4 * SIZE + 9
    assert size(sam(base, 0.1).init(w)) - size(base.init(w)) == 4


# --- Probes. --------------------------------------------------------------------------------------------------------------------


def test_probes_see_the_mask_and_what_it_protects():
    problem, w = network()
    rule = ire(optimizers.gd(0.3), 4.0, 0.6, every=3, warmup=1)
    probes = [js.probes.mask(), js.probes.protection(k=3, tol=1e-9), "parameters"]
    ds = js.simulate(problem, rule, 9, init=w, probes=probes, every=3)
    gradient, hessian = jax.jit(jax.grad(problem.loss)), jax.jit(jax.hessian(lambda v: problem.loss(unravel(v))))
    theta, unravel = jax.flatten_util.ravel_pytree(w)
    theta = np.asarray(theta)
    size, previous, turnovers = theta.size, np.zeros(theta.size, bool), []
    mask = previous
    for step in range(10):
        if step % 3 == 0:
            values, vectors = (part[..., ::-1][..., :3] for part in np.linalg.eigh(hessian(theta)))
            shares = (vectors[~mask] ** 2).sum(axis=0)
            here = ds.sel(step=step)
            np.testing.assert_allclose(here.parameters, theta, rtol=1e-10)
            np.testing.assert_allclose(here.protection_eigenvalue, values, rtol=1e-9)
            np.testing.assert_allclose(here.protection_of, shares, atol=1e-7)
            np.testing.assert_allclose(here.protection, shares.mean(), atol=1e-7)
            np.testing.assert_allclose(here.mask_fraction, mask.mean(), rtol=1e-12)
            turnovers.append((mask != previous).mean())
            previous = mask
        g = flat(gradient(unravel(theta)))
        if step >= 1 and (step - 1) % 3 == 0:
            mask = np.zeros(size, bool)
            mask[np.argsort(g**2, kind="stable")[: round(0.6 * size)]] = True
        theta = theta - 0.3 * g * (1 + 4 * mask)
    assert np.isnan(ds.mask_turnover[0])
    np.testing.assert_allclose(ds.mask_turnover[1:], turnovers[1:], rtol=1e-12)
    assert 0 < turnovers[2] < 0.5
    assert int(ds.status) == 0


def test_an_exact_eigenspace_protects_all_and_a_plain_optimizer_has_nothing_to_show():
    problem, w = network()
    rule = ire(optimizers.gd(1e-6), 1.0, None, estimator=Eigenspace(2, tol=1e-8))
    ds = js.simulate(problem, rule, 4, init=w, probes=[js.probes.protection(k=2, tol=1e-8)], every=4)
    np.testing.assert_allclose(ds.protection_of, [[0, 0], [1, 1]], atol=1e-6)
    for probe in ("mask", "protection"):
        with pytest.raises(ValueError, match=f"the probe {probe} needs an optimizer"):
            js.simulate(problem, optimizers.gd(0.1), 1, probes=[probe])
    with pytest.raises(ValueError, match="k >= 1"):
        js.probes.protection(k=0)


def test_the_mask_probe_counts_what_masked_hides_as_not_flat():
    inner = ire(optimizers.gd(0.1), 1.0, 1.0)
    ds = js.simulate(js.problems.valley(), optax.masked(inner, {"u": True, "v": False}), 2, probes=["mask"], every=1)
    assert ds.mask_fraction.values.tolist() == [0, 0.5, 0.5]


# --- Grids, optax and sharding. -------------------------------------------------------------------------------------------------


def test_vmap_over_kappa_and_gamma_equals_a_loop_and_compiles_once():
    make = lambda kappa, gamma: ire(optimizers.gd(0.05), kappa, gamma, every=4)  # noqa: E731
    kappas, gammas = jnp.array([0.0, 1.0, 4.0]), jnp.array([0.2, 0.55, 0.9])
    together = jax.jit(jax.vmap(lambda kappa, gamma: trajectory(make(kappa, gamma), start())[0]))(kappas, gammas)
    trajectory(make(jnp.asarray(0.1), jnp.asarray(0.1)), start())
    with count_compilations() as compiled:
        alone = [trajectory(make(kappa, gamma), start())[0] for kappa, gamma in zip(kappas, gammas, strict=True)]
    for index, one in enumerate(alone):
        np.testing.assert_allclose(flat(jax.tree.map(lambda leaf, i=index: leaf[i], together)), flat(one), rtol=1e-12)
    assert not compiled[3:]  # slicing the axes above may lower a program for each


def test_a_sweep_over_kappa_and_gamma_is_the_single_runs_and_its_probes_see_the_base():
    problem, _ = network()
    base = optimizers.gd(0.1, weight_decay=0.01)
    options = {"steps": 12, "probes": ["loss", "effective_learning_rate", "parameters"], "every": 6}
    make = lambda kappa, gamma: ire(base, kappa, gamma, every=4, estimator="fisher", ema=0.5)  # noqa: E731
    grid = js.sweep(problem, make, over={"kappa": [0.0, 5.0], "gamma": [0.3, 0.8]}, progress=False, **options)
    one = js.simulate(problem, make(5.0, 0.8), **options)
    np.testing.assert_allclose(grid.loss.sel(kappa=5.0, gamma=0.8, seed=0), one.loss, rtol=1e-10)
    expected = 0.1 / ((1 - 0.1 * 0.01) * (one.parameters.values**2).sum(axis=1))
    np.testing.assert_allclose(one.effective_learning_rate, expected, rtol=1e-12)
    assert np.ptp(grid.loss.isel(step=-1).values) > 1e-3
    with count_compilations() as compiled:
        js.sweep(problem, make, over={"kappa": [1.0, 2.0], "gamma": [0.5, 0.6]}, progress=False, **options)
        js.simulate(problem, make(2.0, 0.4), **options)
    assert not compiled


def test_the_engine_counts_products_and_passes_doubts_on():
    problem, _ = network()
    rule = ire(optimizers.gd(0.1), 1.0, None, every=5, estimator=Eigenspace(2, tol=1e-14, max_matvecs=4))
    ds = js.simulate(problem, rule, 11, every=11)
    assert ds.attrs["hvp_count"] == 3 * 4
    assert int(ds.status) == int(Status.EIGENPAIR_UNCONVERGED)
    assert np.isfinite(ds.loss.values).all()


def test_a_configuration_file_nests_what_is_wrapped():
    inner = {"name": "sam", "rho": 0.1, "base": {"name": "gd", "learning_rate": 0.2}}
    make = factory_from({"optimizer": {"name": "ire", "gamma": 0.5, "base": inner}}, {"kappa": [1.0, 2.0]})
    assert repr(make(kappa=2.0)) == repr(ire(sam(optimizers.gd(0.2), 0.1), 2.0, 0.5))
    with pytest.raises(ValueError, match="optimizer needs learning_rate"):
        factory_from({"optimizer": {**inner, "base": {"name": "gd"}}}, {})
    with pytest.raises(ValueError, match="use one of gd, ire"):
        factory_from({"optimizer": {"name": "smallest"}}, {})


def test_works_in_chain_with_injected_hyperparameters_and_schedules():
    w = start()
    inject = optax.inject_hyperparams(ire, static_args=("every", "warmup"))
    injected = inject(optimizers.gd(0.1), kappa=optax.linear_schedule(0.0, 4.0, 4), gamma=0.5, every=2, warmup=0)
    chained = optax.chain(optax.clip_by_global_norm(1.0), injected)
    state = chained.init(w)
    for step in range(3):
        slope = jax.grad(loss)(w)
        clipped = flat(slope) / max(1.0, np.linalg.norm(flat(slope)))
        updates, state = chained.update(slope, state, w)
        mask = flat(state[1].inner_state.flat_mask)
        assert mask.sum() == round(0.5 * SIZE)
        np.testing.assert_allclose(flat(updates), -0.1 * clipped * (1 + step * mask), rtol=1e-12)
        w = optax.apply_updates(w, updates)


def test_traced_cadences_work_in_a_grid_of_cadences():
    make = lambda every: ire(optimizers.gd(0.05), 2.0, 0.5, every=every)  # noqa: E731
    together = jax.jit(jax.vmap(lambda every: trajectory(make(every), start())[0]))(jnp.array([2, 7]))
    for index, every in enumerate((2, 7)):
        one = trajectory(make(every), start())[0]
        np.testing.assert_allclose(flat(jax.tree.map(lambda leaf, i=index: leaf[i], together)), flat(one), rtol=1e-12)


def test_inside_masked_only_what_is_seen_is_ranked_and_moved():
    w = start()
    for estimator in ("squared_gradient", "hutchinson"):
        inner = ire(optimizers.gd(0.1), 3.0, 0.5, estimator=estimator)
        rule = optax.masked(inner, {"a": True, "b": False})
        slope = jax.grad(loss)(w)
        updates, state = rule.update(slope, rule.init(w), w, loss_fn=loss, full_params=w)
        np.testing.assert_array_equal(updates["b"], slope["b"])
        mask = np.asarray(state.inner_state.flat_mask["a"])
        assert mask.sum() == 3
        np.testing.assert_allclose(updates["a"], -0.1 * np.asarray(slope["a"]) * (1 + 3 * mask), rtol=1e-12)
    with pytest.raises(ValueError, match="full_params"):
        rule.update(slope, rule.init(w), w, loss_fn=loss)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jaxsharp as js
mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("x"))
rule = js.optimizers.ire(js.optimizers.sam(optax.adam(0.1), 0.1), 3.0, 0.7, every=2, ema=0.5)
loss = lambda w: jnp.sum(jnp.cos(w) * jnp.arange(16.0)) + jnp.sum(w) ** 2
@jax.jit
def step(w, state):
    updates, state = rule.update(jax.grad(loss)(w), state, w, loss_fn=loss)
    return optax.apply_updates(w, updates), state
w = np.linspace(-1, 1, 16)
ends = []
for here in (jnp.asarray(w), jax.device_put(w, split)):
    state = jax.jit(rule.init)(here)
    for _ in range(5):
        here, state = step(here, state)
    ends.append(np.asarray(here))
assert here.sharding.is_equivalent_to(split, 1) and state.flat_mask.sharding.is_equivalent_to(split, 1)
np.testing.assert_allclose(*ends, rtol=1e-4)
"""


def test_sharded_parameters_stay_sharded():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kappa": -1.0}, "kappa must be finite"),
        ({"gamma": 1.2}, r"gamma must lie in \[0, 1\]"),
        ({"gamma": None}, r"gamma must lie in \[0, 1\]"),
        ({"ema": 1.0}, r"ema in \[0, 1\)"),
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"every": 2.5}, "every must be a whole number"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0"),
        ({"estimator": "exact"}, "estimator must be one of squared_gradient, fisher"),
        ({"estimator": "eigenspace"}, "pass gamma=None"),
        ({"base": optimizers.gd}, "call the factory first"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words):
    arguments = {"base": optimizers.gd(0.1), "kappa": 1.0, "gamma": 0.5, **arguments}
    with pytest.raises(ValueError, match=words):
        ire(**arguments)


@pytest.mark.parametrize(
    ("estimator", "gamma", "missing"),
    [("fisher", 0.5, "sampled_loss_fn"), ("hutchinson", 0.5, "loss_fn"), ("eigenspace", None, "loss_fn")],
)
def test_a_missing_extra_argument_is_named(estimator, gamma, missing):
    rule = ire(optimizers.gd(0.1), 1.0, gamma, estimator=estimator)
    w = start()
    with pytest.raises(ValueError, match=f"extra argument {missing}"):
        rule.update(w, rule.init(w), w)


def test_a_problem_without_a_likelihood_says_so():
    with pytest.raises(ValueError, match="sampled_loss_fn"):
        js.simulate(js.problems.valley(), ire(optimizers.gd(0.1), 1.0, 0.5, estimator="fisher"), 2)
    with pytest.raises(ValueError, match="no samples"):
        _ = js.problems.valley().samples
