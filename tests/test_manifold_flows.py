"""Flows on minimizer manifolds: closed forms on the valley, and their constants against the optimizers themselves."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import flat, tanh_network

import jaxsharp as js
from jaxsharp.flows.on_manifold import Descent

# On the floor of the valley L = (1 + u²) v²/2 both λ1 and tr H are 1 + u².
CASES = {
    "normalized_gd": (js.flows.normalized_gd(0.2), lambda u: -(0.2**2) / 4 * 2 * u / (1 + u**2)),
    "sqrt_loss_gd": (js.flows.sqrt_loss_gd(0.2), lambda u: -(0.2**2) / 8 * 2 * u),
    "sam": (js.flows.sam(0.2, 0.3), lambda u: -0.2 * 0.3**2 / 2 * 2 * u),
    "one_sample_sam": (js.flows.one_sample_sam(0.2, 0.3), lambda u: -0.2 * 0.3**2 / 2 * 2 * u),
    "label_noise": (js.flows.label_noise(0.2, 0.3), lambda u: -(0.2**2) * 0.3 / 4 * 2 * u),
}


def integrate(slope, u, steps, parts=2000):
    h = steps / parts
    for _ in range(parts):
        u = u + h * slope(u + h / 2 * slope(u))
    return u


@pytest.mark.parametrize("name", CASES)
def test_on_the_valley(name):
    flow, slope = CASES[name]
    ds = js.simulate(js.problems.valley(), flow, 60, init={"u": 1.0, "v": 0.2}, probes=["parameters"], every=60)
    assert int(ds.status) == 0
    start, end = ds.parameters.values
    assert abs(start[1]) + abs(end[1]) < 1e-6  # on the floor
    np.testing.assert_allclose(end[0], integrate(slope, start[0], 60), atol=1e-5)


def _run(rule, w, steps):
    """The last two iterates, averaged, of an optimizer of jaxsharp on the valley."""
    problem = js.problems.valley()
    dynamics = js.as_dynamics(rule, keep_previous=True)
    state = jax.jit(lambda w: dynamics.advance(problem, dynamics.init(problem, w), jnp.asarray(steps)))(w)
    return 0.5 * (float(state.params["u"]) + float(state.previous["u"]))


@pytest.mark.parametrize("name", ["normalized_gd", "sqrt_loss_gd"])
def test_the_optimizer_drifts_at_the_rate_of_its_flow(name):
    errors = []
    for eta in (0.1, 0.05):
        steps = round(2 / eta**2)
        # at its equilibrium each iterate lies x across the floor: |x| = η/2 for steps of length η, η √λ1 / (2 √2) for the root
        across = eta / 2 if name == "normalized_gd" else eta * np.sqrt(2) / (2 * np.sqrt(2))
        end = _run(getattr(js.optimizers, name)(eta), {"u": jnp.asarray(1.0), "v": jnp.asarray(across)}, steps)
        slope = {
            "normalized_gd": lambda u, e=eta: -(e**2) / 4 * 2 * u / (1 + u**2),
            "sqrt_loss_gd": lambda u, e=eta: -(e**2) / 4 * u,
        }
        predicted = integrate(slope[name], 1.0, steps)
        errors.append(abs(end - predicted) / (1 - predicted))
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 1.5


def _residuals(w):
    u, a, b = w
    return jnp.stack([jnp.sqrt(1 + u**2) * a, (1 + 0.5 * u) * b])


def _trace(u):
    return 0.5 * ((1 + u**2) + (1 + 0.5 * u) ** 2)  # of L = ½ mean r² on the floor a = b = 0


@partial(jax.jit, static_argnums=0)
def _average_end(step, start, keys):
    def alone(key):
        return jax.lax.fori_loop(0, STEPS, lambda t, w: step(w, jax.random.fold_in(key, t)), start)

    return jax.vmap(alone)(keys)


STEPS, RATE, RHO = 4000, 0.05, 0.1


def _sam_step(w, key):
    index = jax.random.randint(key, (), 0, 2)
    gradient = jax.grad(lambda w: 0.5 * _residuals(w)[index] ** 2)
    g = gradient(w)
    return w - RATE * gradient(w + RHO * g / (jnp.linalg.norm(g) + 1e-30))


NOISE = 0.15


def _label_noise_step(w, key):
    first, second = jax.random.split(key)
    index = jax.random.randint(first, (), 0, 2)
    label = NOISE * jax.random.normal(second, (), w.dtype)
    return w - RATE * jax.grad(lambda w: 0.5 * (_residuals(w)[index] - label) ** 2)(w)


@pytest.mark.parametrize(
    ("step", "speed"), [(_sam_step, RATE * RHO**2 / 2), (_label_noise_step, RATE**2 * NOISE**2 / 4)], ids=["sam", "label noise"]
)
def test_the_constants_of_the_trace_flows(step, speed):
    """One-sample SAM and label-noise SGD, averaged over 64 runs, drift down tr H at the flow's speed to first order in η."""
    ends = _average_end(step, jnp.array([1.0, 1e-3, 1e-3]), jax.random.split(jax.random.key(0), 64))[:, 0]
    predicted = integrate(lambda u: -speed * (u + 0.5 * (1 + 0.5 * u)), 1.0, STEPS)
    moved, error = 1 - float(ends.mean()), float(ends.std()) / 8
    assert error < 0.1 * (1 - predicted)
    assert abs(moved - (1 - predicted)) < 0.06 * (1 - predicted) + 3 * error


@cache
def derivatives():
    """Point, Hessian, its derivative, and Jacobian of the residuals of a network at a minimizer."""
    problem, point = tanh_network()
    w, unravel = jax.flatten_util.ravel_pytree(point)
    hessian, jacobian = jax.hessian(lambda w: problem.loss(unravel(w))), jax.jacobian(lambda w: problem.residuals(unravel(w)))
    return [np.asarray(value) for value in jax.jit(lambda w: (w, hessian(w), jax.jacfwd(hessian)(w), jacobian(w)))(w)]


@pytest.mark.parametrize("quantity", ["trace", "log_sharpness"])  # for the sharpness itself the second is scaled, see the valley
def test_velocities_by_dense_derivatives_on_a_network(quantity):
    problem, point = tanh_network()
    w, hessian, third, jacobian = derivatives()
    values, vectors = np.linalg.eigh(hessian)
    top = vectors[:, -1]
    gradient = np.einsum("aab", third) if quantity == "trace" else np.einsum("abc,a,b", third, top, top) / values[-1]
    normal = np.concatenate([jacobian, w[None]])
    expected = -(gradient - normal.T @ np.linalg.lstsq(normal.T, gradient, rcond=None)[0])
    law = Descent("sam", quantity)

    def velocity(point):
        _, memory, _ = law.start(problem, {}, point)
        return law.velocity(problem, {}, point, memory)

    found = flat(jax.jit(velocity)(point).params)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.linalg.norm(expected))
