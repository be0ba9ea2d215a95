"""The sphere and minimizer manifolds: identities, and projections against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support import dense_hessian, digits_network, flat, regression, tanh_network, tolerance

import jaxsharp as js


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_identities_of_scale_invariance(norm):
    problem = digits_network(norm, widths=(5,), scale_invariant=True)
    w = problem.init(jax.random.key(1))
    vector, unravel = ravel_pytree(w)
    gradient = flat(jax.grad(problem.loss)(w))
    c = 1.7
    scaled = unravel(c * vector)
    np.testing.assert_allclose(problem.loss(scaled), problem.loss(w), rtol=1e-12)
    assert abs(gradient @ vector) < 1e-12 * np.linalg.norm(gradient) * np.linalg.norm(vector)
    np.testing.assert_allclose(flat(jax.grad(problem.loss)(scaled)), gradient / c, rtol=1e-9, atol=1e-14)
    v = unravel(jnp.asarray(np.random.default_rng(0).normal(size=vector.size)))
    product = flat(js.curvature.hvp(problem.loss, w, v))
    np.testing.assert_allclose(flat(js.curvature.hvp(problem.loss, scaled, v)), product / c**2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(flat(js.curvature.hvp(problem.loss, w, w)), -gradient, rtol=1e-9, atol=1e-13)


def test_spherical_sharpness_does_not_see_the_scale():
    problem, w = tanh_network()
    w = jax.tree.map(lambda leaf: leaf + 0.1, w)
    sharpness = jax.jit(lambda problem, w: js.sphere.spherical_sharpness(problem.loss, w))
    value = sharpness(problem, w)
    top = np.linalg.eigvalsh(dense_hessian(problem.loss, w))[-1]
    np.testing.assert_allclose(value, top * float(js.sphere.norm(w)) ** 2, rtol=1e-9)
    larger = jax.tree.map(lambda leaf: 5 * leaf, w)
    np.testing.assert_allclose(sharpness(problem, larger), value, rtol=1e-9)


def test_gd_with_weight_decay_is_projected_gd_with_the_effective_learning_rate():
    problem, w = tanh_network()
    w = jax.tree.map(lambda leaf: 1.3 * leaf + 0.1, w)
    rate, decay = 0.05, 0.02
    descent = js.optimizers.gd(rate, decay)
    for _ in range(5):
        theta, length = js.sphere.normalize(w), float(js.sphere.norm(w))
        effective = float(js.sphere.effective_learning_rate(w, rate, decay))
        gradient = jax.grad(problem.loss)(w)
        updates, _ = descent.update(gradient, descent.init(w), w)
        w = jax.tree.map(jnp.add, w, updates)
        on_sphere = jax.grad(problem.loss)(theta)
        projected = js.sphere.normalize(jax.tree.map(lambda t, g, e=effective: t - e * g, theta, on_sphere))
        np.testing.assert_allclose(flat(js.sphere.normalize(w)), flat(projected), rtol=0, atol=1e-14)
        shrunk = (1 - rate * decay) ** 2 * length**2
        grown = rate**2 * float(js.sphere.norm(on_sphere)) ** 2 / length**2
        np.testing.assert_allclose(float(js.sphere.norm(w)) ** 2, shrunk + grown, rtol=1e-14)


def test_intrinsic_learning_rate():
    np.testing.assert_allclose(js.sphere.intrinsic_learning_rate(0.5, np.array([0.01, 0.04])), [0.1, 0.2], rtol=1e-15)


def _projector(problem, w):
    vector, unravel = ravel_pytree(w)
    jacobian = np.asarray(jax.jacobian(lambda x: problem.residuals(unravel(x)))(vector))
    normal = np.linalg.pinv(jacobian, rcond=1e-10) @ jacobian
    return np.eye(vector.size) - normal, jacobian


@pytest.mark.parametrize("limit", [500, 1], ids=["dense", "matrix-free"])
@pytest.mark.parametrize("case", ["regression", "network"])
def test_tangent_projection_is_the_dense_projector(case, limit):
    if case == "regression":
        problem = regression()
        w = js.problems.interpolant(problem, jax.random.key(0), angle=0.8)
    else:
        problem, w = tanh_network()
    projector, jacobian = _projector(problem, w)
    assert np.linalg.matrix_rank(jacobian, tol=1e-10 * np.linalg.norm(jacobian)) == jacobian.shape[0] - 2
    vector, unravel = ravel_pytree(w)
    v = np.random.default_rng(0).normal(size=vector.size)
    project = jax.jit(lambda w, v: js.minimizers.project_tangent(problem, w, v, dense_limit=limit))
    tangent = flat(project(w, unravel(jnp.asarray(v))))
    theta = np.asarray(vector / jnp.linalg.norm(vector))
    expected = projector @ v
    expected = expected - (theta @ expected) * theta
    np.testing.assert_allclose(tangent, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(jacobian @ tangent, 0, atol=1e-9 * np.linalg.norm(jacobian))
    np.testing.assert_allclose(flat(project(w, unravel(jnp.asarray(tangent)))), tangent, rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [500, 1], ids=["dense", "matrix-free"])
def test_retraction_returns_to_the_manifold_along_the_normal(limit, precision):
    del precision
    rng = np.random.default_rng(3)
    problem = js.problems.bn_linear_regression(rng.normal(size=(8, 15)), rng.normal(size=8))
    point = js.problems.interpolant(problem, jax.random.key(0), angle=0.7)
    dtype = point["weights"].dtype
    noise = js.sphere.normalize({"weights": jax.random.normal(jax.random.key(1), (15,), dtype)})
    retraction = jax.jit(lambda problem, w: js.minimizers.retraction(problem, w, dense_limit=limit))
    distances = []
    for size in (0.1, 0.01):
        moved = js.sphere.normalize(jax.tree.map(lambda a, b, s=size: a + s * b, point, noise))
        back = retraction(problem, moved)
        assert back.converged
        assert float(problem.loss(back.params)) < tolerance(dtype, 100, 2) + 1e-20
        np.testing.assert_allclose(js.sphere.norm(back.params), 1, rtol=tolerance(dtype, 10, 1))
        distances.append(np.linalg.norm(flat(back.params) - flat(moved)))
    assert distances[1] < distances[0]


def test_retraction_that_fails_says_so():
    impossible = js.problems.from_loss(
        lambda w, data: jnp.mean((jnp.tanh(w) - data) ** 2),
        lambda key: jax.random.normal(key, (3,)),
        residuals=lambda w, data: jnp.tanh(w) - data,
        data=jnp.array([2.0, 0.0, 0.0]),
    )
    back = js.minimizers.retraction(impossible, jnp.array([0.5, 0.5, 0.5]))
    assert not back.converged


def test_log_sharpness_gradient_is_the_slope_along_the_manifold():
    problem, w = tanh_network()
    at = jax.jit(lambda problem, w: js.minimizers.log_sharpness_gradient(problem, w, tol=1e-10))(problem, w)
    vector, unravel = ravel_pytree(w)
    retract, hessian = jax.jit(js.minimizers.retract), jax.jit(jax.hessian(lambda x: problem.loss(unravel(x))))
    direction = jnp.asarray(np.random.default_rng(5).normal(size=vector.size))
    tangent = ravel_pytree(js.minimizers.project_tangent(problem, w, unravel(direction)))[0]
    step = 1e-4

    def log_sharpness(moved):
        back = ravel_pytree(retract(problem, unravel(moved)))[0]
        return np.log(np.linalg.eigvalsh(hessian(back))[-1])

    difference = (log_sharpness(vector + step * tangent) - log_sharpness(vector - step * tangent)) / (2 * step)
    np.testing.assert_allclose(flat(at.gradient) @ np.asarray(tangent), difference, rtol=1e-5)


def test_sharpness_of_the_regression_is_proportional_to_one_over_cosine_squared():
    problem = regression()
    gradient = jax.jit(js.minimizers.log_sharpness_gradient)
    values = []
    for angle in (0.2, 0.9, 1.3):
        w = js.problems.interpolant(problem, jax.random.key(0), angle=angle)
        at = gradient(problem, w)
        values.append(float(at.value) * np.cos(angle) ** 2)
        np.testing.assert_allclose(js.sphere.norm(at.gradient), 2 * np.tan(angle), rtol=1e-6)
    np.testing.assert_allclose(values, values[0], rtol=1e-9)


def test_edge_of_stability_start_refuses_a_problem_with_a_scale():
    with pytest.raises(ValueError, match="scale-invariant"):
        js.minimizers.edge_of_stability_start(js.problems.valley(), {"u": 1.0, "v": 0.0}, 0.1, 0.1)


def test_a_problem_without_residuals_has_no_manifold():
    problem = js.problems.from_loss(lambda w, data: jnp.sum(w**2), lambda key: jax.random.normal(key, (2,)))
    with pytest.raises(ValueError, match="residuals"):
        js.minimizers.retract(problem, jnp.ones(2))
