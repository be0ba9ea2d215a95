"""Derivatives of sharpness, sums of eigenvalues and traces against dense float64 eigenvalues and their perturbation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support import count_compilations, tolerance

import jaxsharp as js

SIZE = 12


def cubic_tensor():
    tensor = np.random.default_rng(1).normal(size=(SIZE, SIZE, SIZE))
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0)]
    return sum(np.transpose(tensor, order) for order in orders) / 6


def base(spectrum):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
    return (basis * spectrum) @ basis.T


TENSOR = cubic_tensor()
CROSSING = base(np.r_[5.0, 5.0, 3.0, np.linspace(1, -1, SIZE - 3)])  # λ1 = λ2 at w = 0
SIMPLE = base(np.r_[6.0, 5.0, 3.0, np.linspace(1, -1, SIZE - 3)])


def loss(w, matrix):
    """Its Hessian is matrix + T w, so eigenvalues and their derivatives are known: ∂λᵢ = vᵢᵀ T vᵢ."""
    tensor = jnp.asarray(TENSOR, w.dtype)
    return 0.5 * w @ matrix @ w + jnp.einsum("ijk,i,j,k", tensor, w, w, w) / 6


def dense_sum(w, matrix, k):
    return np.linalg.eigvalsh(matrix + TENSOR @ np.asarray(w, np.float64))[::-1][:k].sum()


def differences(function, w, step=1e-5):
    """Central finite differences in every coordinate."""
    return np.array([(function(w + step * e) - function(w - step * e)) / (2 * step) for e in np.eye(w.size)])


@partial(jax.jit, static_argnames=("k", "strict"))
def total_and_gradient(w, matrix, k, strict=True):
    def total(w):
        operator = js.curvature.hessian_operator(lambda w: loss(w, matrix), w)
        at = js.curvature.top_eigenvalue_sum(operator, k=k, strict=strict)
        return at.value, at

    gradient, at = jax.grad(total, has_aux=True)(w)
    return at, gradient


@pytest.mark.parametrize("k", [1, 2])
def test_gradient_of_the_sum_is_that_of_dense_eigenvalues(k):
    w = jnp.asarray(0.01 * np.random.default_rng(2).normal(size=SIZE))
    at, gradient = total_and_gradient(w, jnp.asarray(SIMPLE), k)
    assert at.reliable
    np.testing.assert_allclose(at.value, dense_sum(w, SIMPLE, k), rtol=1e-11)
    values = np.linalg.eigvalsh(SIMPLE + TENSOR @ np.asarray(w))[::-1]
    np.testing.assert_allclose(at.gap, values[k - 1] - values[k], rtol=1e-9)
    exact = differences(lambda w: dense_sum(w, SIMPLE, k), np.asarray(w))
    np.testing.assert_allclose(gradient, exact, atol=1e-5 * np.abs(exact).max())


def test_the_sum_is_smooth_where_eigenvalues_cross_inside_it_and_only_there():
    w = jnp.zeros(SIZE)  # λ1 = λ2 > λ3
    both, gradient = total_and_gradient(w, jnp.asarray(CROSSING), 2)
    assert both.reliable
    exact = differences(lambda w: dense_sum(w, CROSSING, 2), np.zeros(SIZE))
    np.testing.assert_allclose(gradient, exact, atol=1e-5 * np.abs(exact).max())
    one, gradient = total_and_gradient(w, jnp.asarray(CROSSING), 1)
    assert not one.reliable
    assert abs(float(one.gap)) < 1e-5
    np.testing.assert_allclose(one.value, 5, rtol=1e-9)
    assert np.isnan(gradient).all()
    # without the veto it is vᵀ T v of one unit vector v of the eigenspace
    one, gradient = total_and_gradient(w, jnp.asarray(CROSSING), 1, strict=False)
    assert not one.reliable
    v = np.asarray(one.pairs.vectors[0])
    np.testing.assert_allclose(CROSSING @ v, 5 * v, atol=1e-4)
    np.testing.assert_allclose(gradient, np.einsum("ijk,i,j->k", TENSOR, v, v), atol=1e-9)


@partial(jax.jit, static_argnames="budget")
def two_of_eighty(matrix, guess, budget=16):
    return js.curvature.top_eigenvalue_sum(lambda v: matrix @ v, matrix[0], 2, guess, tol=1e-8, max_matvecs=budget)


COLD = jnp.zeros((3, 80))


@pytest.mark.parametrize("budget", [9, 16])
def test_the_angle_bounds_that_of_the_eigenspaces(budget):
    rng = np.random.default_rng(5)
    for _ in range(4):
        basis = np.linalg.qr(rng.normal(size=(80, 80)))[0]
        matrix = (basis * np.r_[9.0, 8.0, np.linspace(3, -1, 78)]) @ basis.T
        at = two_of_eighty(jnp.asarray(matrix), COLD, budget)
        found = np.asarray(at.pairs.vectors[:2])
        sine = np.linalg.norm(found - found @ basis[:, :2] @ basis[:, :2].T)
        assert sine <= float(at.angle) * (1 + 1e-6) + 1e-12
        vectors = np.asarray(at.pairs.vectors)
        values = np.einsum("ij,jk,ik->i", vectors, matrix, vectors)
        residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
        certain = values[1] - values[2] - residuals[2]  # the third may be that much higher than its estimate
        np.testing.assert_allclose(at.angle, np.linalg.norm(residuals[:2]) / certain if certain > 0 else np.inf, rtol=1e-5)
        assert bool(at.reliable) == (float(at.angle) <= 0.1)


def test_an_unconverged_or_broken_operator_is_not_reliable():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(80, 80)))[0]
    close = (basis * np.r_[5.0, 4.999, 4.998, np.linspace(4.9, 0, 77)]) @ basis.T
    assert not two_of_eighty(jnp.asarray(close), COLD).reliable
    at = two_of_eighty(jnp.full((80, 80), jnp.nan), COLD)
    assert not at.reliable
    assert np.isnan(at.value)


def test_a_guess_saves_products():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(80, 80)))[0]
    matrix = jnp.asarray((basis * np.r_[9.0, 8.0, 7.0, np.linspace(1, -1, 77)]) @ basis.T)
    cold, warm = two_of_eighty(matrix, COLD), two_of_eighty(matrix, jnp.asarray(basis[:, :3].T))
    assert 2 * int(warm.pairs.matvecs) < int(cold.pairs.matvecs) <= 16
    np.testing.assert_allclose(warm.value, 17, rtol=1e-10)


def test_the_sum_of_all_is_the_trace():
    matrix = jnp.asarray(SIMPLE)

    def total(scale):
        at = js.curvature.top_eigenvalue_sum(lambda v: scale * (matrix @ v), matrix[0], SIZE)
        return at.value, at

    slope, at = jax.jit(jax.grad(total, has_aux=True))(2.0)
    np.testing.assert_allclose(slope, np.trace(SIMPLE), rtol=1e-10)
    assert at.gap == np.inf
    assert at.reliable


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(1)
    problem = js.problems.supervised(
        js.models.MLP(widths=(4,)), (rng.normal(size=(15, 3)), rng.integers(0, 3, 15)), loss="cross_entropy"
    )
    return problem, problem.init(jax.random.key(2))


def test_derivatives_on_a_network(network):
    problem, w = network
    vector, unravel = ravel_pytree(w)
    direction = jnp.asarray(np.random.default_rng(4).normal(size=vector.size))

    def functions(x):
        at = unravel(x)
        operator = js.operators.hessian(problem, at)
        total = js.curvature.top_eigenvalue_sum(operator, k=2, tol=1e-8).value
        logarithm = js.curvature.log_sharpness(problem.loss, at, tol=1e-9)
        return jnp.stack([logarithm, total, js.curvature.trace(operator, max_matvecs=100).value])

    values, forward = jax.jit(lambda x: jax.jvp(functions, (x,), (direction,)))(vector)
    hessian = jax.jit(jax.hessian(lambda x: problem.loss(unravel(x))))

    def exact(x):
        values = np.linalg.eigvalsh(hessian(x))[::-1]
        return np.array([np.log(values[0]), values[:2].sum(), values.sum()])

    np.testing.assert_allclose(values, exact(vector), rtol=1e-10)
    step = 1e-5
    slopes = (exact(vector + step * direction) - exact(vector - step * direction)) / (2 * step)
    np.testing.assert_allclose(forward, slopes, rtol=1e-6)


def test_the_sum_of_a_gauss_newton_matrix_in_chunks(network):
    problem, w = network
    vector, unravel = ravel_pytree(w)
    direction = np.random.default_rng(6).normal(size=vector.size)

    def total(x):
        return js.curvature.top_eigenvalue_sum(js.operators.gauss_newton(problem, unravel(x), chunk=4), k=2, tol=1e-8).value

    gradient = jax.jit(jax.grad(total))(vector)

    @jax.jit
    def matrix(x):
        outputs = lambda x: problem.loss_fn.network.predict(unravel(x), problem.data, problem.data.train)[0]  # noqa: E731
        derivative, p = jax.jacrev(outputs)(x), jax.nn.softmax(outputs(x))
        second = jnp.eye(3)[None] * p[:, :, None] - p[:, :, None] * p[:, None, :]
        return jnp.einsum("nci,ncd,ndj->ij", derivative, second, derivative) / p.shape[0]

    top = lambda x: np.linalg.eigvalsh(matrix(x))[-2:].sum()  # noqa: E731
    step = 1e-5
    slope = (top(vector + step * direction) - top(vector - step * direction)) / (2 * step)
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-6)


@partial(jax.jit, static_argnames="method")
def trace_gradients(w, keys, method):
    def gradient(key):
        def value(w):
            operator = js.curvature.hessian_operator(lambda w: loss(w, jnp.zeros((SIZE, SIZE), w.dtype)), w)
            return js.curvature.trace(operator, method=method, max_matvecs=8, key=key).value

        return jax.value_and_grad(value)(w)

    return jax.vmap(gradient)(keys)


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_gradient_of_a_sampled_trace_is_unbiased_with_frozen_probes(method):
    w = jnp.asarray(np.random.default_rng(3).normal(size=SIZE))
    keys = jax.random.split(jax.random.key(0), 400)
    values, gradients = trace_gradients(w, keys, method)
    exact = np.einsum("iik->k", TENSOR)
    scores = (gradients.mean(axis=0) - exact) / (gradients.std(axis=0) / 20)
    assert np.abs(scores).max() < 4.5
    # this Hessian is linear in w, so an estimate linear in H with everything else frozen equals its gradient times w
    np.testing.assert_allclose(gradients @ w, values, rtol=1e-9)


def test_xtrace_freezes_its_range():
    # with everything frozen the value is ⟨W, A⟩ with W on the span of the 3 test vectors and the range of 3; a range that moves
    # brings further directions
    slope = jax.jit(jax.grad(lambda m: js.curvature.trace(lambda v: m @ v, m[0], method="xtrace", max_matvecs=6).value))
    weights = np.asarray(slope(jnp.asarray(SIMPLE)))
    assert np.linalg.matrix_rank(weights + weights.T, tol=1e-9) == 6


def test_members_of_a_batch_fail_alone_and_nothing_compiles_twice():
    matrices = jnp.stack([jnp.asarray(SIMPLE), jnp.asarray(CROSSING)])
    run = jax.jit(jax.vmap(lambda w, m: total_and_gradient(w, m, 1)))
    at, gradients = run(jnp.zeros((2, SIZE)), matrices)
    assert at.reliable.tolist() == [True, False]
    assert np.isfinite(gradients[0]).all()
    assert np.isnan(gradients[1]).all()
    _, alone = total_and_gradient(jnp.zeros(SIZE), matrices[0], 1)
    np.testing.assert_allclose(gradients[0], alone, atol=1e-8)
    with count_compilations() as compiled:
        run(jnp.ones((2, SIZE)), matrices)
    assert not compiled


def test_derivatives_in_float32():
    with jax.enable_x64(False):
        w = jnp.full(SIZE, 0.01, jnp.float32)
        at, gradient = total_and_gradient(w, jnp.asarray(SIMPLE, jnp.float32), 2)
        assert at.reliable
        assert at.value.dtype == gradient.dtype == jnp.float32
    exact = differences(lambda w: dense_sum(w, SIMPLE, 2), np.full(SIZE, 0.01))
    np.testing.assert_allclose(gradient, exact, atol=tolerance(np.float32, 10, 0.5) * np.abs(exact).max())


def sharpness(w, matrix, **options):
    return js.curvature.sharpness(lambda w: loss(w, matrix), w, **options)


def dense_second(w, matrix):
    """∂ₐ∂_b λ1 = 2 Σⱼ (v1ᵀ Tₐ vⱼ) (v1ᵀ T_b vⱼ) / (λ1 − λⱼ), since the Hessian is linear in w."""
    values, vectors = np.linalg.eigh(matrix + TENSOR @ np.asarray(w, np.float64))
    turns = np.einsum("ijk,i,jl->kl", TENSOR, vectors[:, -1], vectors[:, :-1])
    return 2 * (turns / (values[-1] - values[:-1])) @ turns.T


@pytest.mark.parametrize(
    "nested",
    [
        jax.hessian,
        lambda f: jax.jacrev(jax.jacrev(f)),
        lambda f: jax.jacfwd(jax.jit(jax.grad(jax.jit(f)))),
    ],
    ids=["forward over reverse", "reverse over reverse", "of what was compiled"],
)
def test_second_derivatives_of_sharpness_follow_the_eigenvector(nested):
    points = jnp.asarray(0.01 * np.random.default_rng(2).normal(size=(2, SIZE)))
    seconds = jax.jit(jax.vmap(nested(lambda w: sharpness(w, jnp.asarray(SIMPLE), tol=1e-10))))(points)
    for w, second in zip(points, seconds, strict=True):
        exact = dense_second(w, SIMPLE)
        np.testing.assert_allclose(second, exact, atol=1e-9 * np.abs(exact).max())


def test_so_do_third_derivatives():
    w, along = jnp.full(SIZE, 0.01), np.random.default_rng(7).normal(size=SIZE)
    gradient = jax.grad(lambda w: sharpness(w, jnp.asarray(SIMPLE), tol=1e-10))

    def second(w):
        return jax.jvp(gradient, (w,), (along,))[1]

    third = jax.jit(lambda w: jax.jvp(second, (w,), (along,))[1])(w)
    step = 1e-5
    exact = (dense_second(w + step * along, SIMPLE) - dense_second(w - step * along, SIMPLE)) @ along / (2 * step)
    np.testing.assert_allclose(third, exact, atol=1e-7 * np.abs(exact).max())


@jax.jit
def second_along(w, matrix, tol):
    return jax.jvp(jax.grad(lambda w: sharpness(w, matrix, tol=tol)), (w,), (jnp.ones_like(w),))[1]


@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 0.0])
def test_a_second_derivative_is_right_or_nan_as_the_gap_closes(gap, precision):
    dtype = jnp.result_type(float)
    matrix = base(np.r_[5.0 + gap, 5.0, 3.0, np.linspace(1, -1, SIZE - 3)])
    tol = 1e-6 if precision == "float64" else 1e-3
    found = np.asarray(second_along(jnp.zeros(SIZE, dtype), jnp.asarray(matrix, dtype), tol))
    assert found.dtype == dtype
    if gap < (1e-7 if precision == "float64" else 1e-3):
        assert np.isnan(found).all()
        return
    exact = dense_second(np.zeros(SIZE), matrix).sum(axis=1)
    np.testing.assert_allclose(found, exact, atol=tolerance(dtype, 1e2 if precision == "float64" else 3) * np.abs(exact).max())


def test_so_it_is_where_the_tolerance_leaves_the_eigenvector_open():
    for gap, known in ((0.1, True), (1e-4, False)):
        matrix = base(np.r_[5.0 + gap, 5.0, 3.0, np.linspace(1, -1, SIZE - 3)])
        found = np.asarray(second_along(jnp.zeros(SIZE), jnp.asarray(matrix), 3e-2))
        exact = dense_second(np.zeros(SIZE), matrix).sum(axis=1)
        np.testing.assert_allclose(found, exact if known else np.nan, atol=1e-2 * np.abs(exact).max())


def test_derivatives_in_what_the_loss_closes_over_and_through_a_flow():
    index = jnp.array([2, 0, 1])  # of whole numbers, which have no derivative

    def quartic(w, scale, index):
        return scale * jnp.sum(w**4) + w[index[2]] * w[0] ** 2 + jnp.sum(w * w[index]) ** 2

    def found(w, scale, index):
        return js.curvature.log_sharpness(lambda w: quartic(w, scale, index), w, tol=1e-10)

    def exact(w, scale, index):
        return jnp.log(jnp.linalg.eigvalsh(jax.hessian(quartic)(w, scale, index))[-1])

    def moved(w, scale, index, quantity):
        return jax.lax.scan(lambda w, _: (w - 0.1 * jax.grad(quantity)(w, scale, index), None), w, length=2)[0]

    w = jnp.array([1.0, 2.0, 0.5])
    for derivative in (jax.jacfwd, jax.jacrev):
        of_flow = jax.jit(derivative(moved, argnums=(0, 1)), static_argnums=3)
        one, other = of_flow(w, 2.0, index, jax.jit(found)), of_flow(w, 2.0, index, exact)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), one, other)


def test_second_derivative_of_log_sharpness_on_a_network(network):
    problem, w = network
    vector, unravel = ravel_pytree(w)
    direction = jnp.asarray(np.random.default_rng(4).normal(size=vector.size)) / 5

    def logarithm(x):
        return js.curvature.log_sharpness(problem.loss, unravel(x), tol=1e-10)

    found = jax.jit(lambda x: jax.jvp(jax.grad(logarithm), (x,), (direction,))[1])(vector)
    hessian = jax.jit(jax.hessian(lambda x: problem.loss(unravel(x))))
    slope = jax.jit(jax.grad(lambda x: jnp.log(jnp.linalg.eigvalsh(jax.hessian(lambda x: problem.loss(unravel(x)))(x))[-1])))
    assert np.diff(np.linalg.eigvalsh(hessian(vector)))[-1] > 0.01
    step = 1e-5
    exact = (slope(vector + step * direction) - slope(vector - step * direction)) / (2 * step)
    np.testing.assert_allclose(found, exact, atol=1e-6 * np.abs(exact).max())


@partial(jax.jit, static_argnames="max_matvecs")
def strict(w, matrix, guess=None, max_matvecs=200):
    return jax.value_and_grad(lambda w: sharpness(w, matrix, guess=guess, max_matvecs=max_matvecs, strict=True))(w)


def test_strict_sharpness_is_nan_where_it_is_not_known():
    w = jnp.full(SIZE, 0.01)
    exact = differences(lambda w: dense_sum(w, SIMPLE, 1), np.asarray(w))
    guess = jnp.ones((1, SIZE))
    value, gradient = strict(w, jnp.asarray(SIMPLE), guess)
    np.testing.assert_allclose(value, dense_sum(w, SIMPLE, 1), rtol=1e-11)
    np.testing.assert_allclose(gradient, exact, atol=1e-5 * np.abs(exact).max())
    value, gradient = strict(w, jnp.asarray(SIMPLE), guess, max_matvecs=5)  # neither is known
    assert np.isnan(value)
    assert np.isnan(gradient).all()
    value, gradient = strict(jnp.zeros(SIZE), jnp.asarray(CROSSING), guess)  # the value is
    np.testing.assert_allclose(value, 5, rtol=1e-9)
    assert np.isnan(gradient).all()
    one = jnp.array(2.0)  # a single eigenvalue has no gap
    assert float(js.curvature.sharpness(lambda w: w**4, one, guess=jnp.ones(2), strict=True)) == pytest.approx(48)
    assert float(jax.grad(lambda w: js.curvature.log_sharpness(lambda w: w**4, w, strict=True))(one)) == pytest.approx(1)


def test_a_second_derivative_through_strict_sharpness():
    w = jnp.full(SIZE, 0.01)
    along = jax.jit(lambda w, m: jax.jvp(lambda w: strict(w, m, jnp.eye(SIZE)[:2])[1], (w,), (jnp.ones_like(w),))[1])
    exact = dense_second(w, SIMPLE).sum(axis=1)
    np.testing.assert_allclose(along(w, jnp.asarray(SIMPLE)), exact, atol=1e-5 * np.abs(exact).max())
    assert np.isnan(along(jnp.zeros(SIZE), jnp.asarray(CROSSING))).all()


def test_parameters_may_be_numbers():
    assert float(js.curvature.sharpness(lambda w: w**4, 2.0)) == pytest.approx(48)
    assert float(jax.hessian(lambda w: js.curvature.sharpness(lambda w: w["a"] ** 4, {"a": w}))(2.0)) == pytest.approx(24)
    assert float(js.curvature.frozen_eigenpairs(lambda w: w**4, 2.0).values[0]) == pytest.approx(48)


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_the_error_of_a_trace_has_a_derivative_where_it_is_zero(method):
    # every estimate of a multiple of the identity is alike, and all numbers here are powers of two
    def error(scale):
        return js.curvature.trace(lambda v: scale * v, jnp.zeros(64), method=method, max_matvecs=8).standard_error

    for scale in (0.0, 2.0) if method == "hutchinson" else (0.0,):
        value, slope = jax.jit(jax.value_and_grad(error))(scale)
        assert value == 0
        np.testing.assert_allclose(slope, 0, atol=1e-11)


def test_misuse_names_the_argument():
    with pytest.raises(ValueError, match="k=4"):
        js.curvature.top_eigenvalue_sum(lambda v: v, jnp.ones(3), 4)
    with pytest.raises(ValueError, match=r"params must be floating.*got int"):
        js.curvature.sharpness(lambda w: w**4, 2)
    with pytest.raises(ValueError, match="params has no entries"):
        js.curvature.log_sharpness(lambda w: 0.0, {})
    with pytest.raises(ValueError, match=r"max_matvecs=3 .* at least 4"):
        js.curvature.sharpness(lambda w: jnp.sum(w**4), jnp.ones(3), max_matvecs=3, strict=True)


def test_a_sum_is_reliable_at_any_scale_and_never_without_a_value(precision):
    """In float32 squares of 1e-30 vanish and of 1e30 overflow; of all eigenvalues there is no next one to be confused with."""
    del precision
    spectrum = jnp.r_[3.0, 2.0, jnp.linspace(-1, 1, 28)].astype(float)

    @jax.jit
    def total(scale):
        found = js.curvature.top_eigenvalue_sum(lambda v: scale * (spectrum * v), spectrum, 2)
        return found.value, found

    for scale in (1.0, 1e-30, 1e30):
        (value, found), slope = jax.value_and_grad(total, has_aux=True)(jnp.asarray(scale, spectrum.dtype))
        np.testing.assert_allclose((np.float64(value) / scale, np.float64(found.gap) / scale, slope), (5, 1, 5), rtol=2e-5)
        assert found.reliable
    for k in (2, 30):
        lost = jax.jit(lambda nothing, k=k: js.curvature.top_eigenvalue_sum(lambda v: nothing * v, spectrum, k))(jnp.nan)
        assert not lost.reliable
        assert np.isnan(lost.angle)
    with pytest.raises(ValueError, match="k=1 eigenvalues and the next; give at least 4"):
        js.curvature.top_eigenvalue_sum(lambda v: v, spectrum, 1, max_matvecs=3)
