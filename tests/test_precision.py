"""In which precision matrices are multiplied, read off the traced programs: a CPU rounds alike whatever they say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.flatten_util import ravel_pytree

import jaxsharp as js
from jaxsharp.curvature import turns

HIGHEST, HIGH = jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH


def precisions(function, *args):
    """Of every product of matrices and every convolution in a traced program, at any depth."""
    found = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found.add(equation.params["precision"])
            for value in jax.tree.leaves(equation.params, is_leaf=lambda v: isinstance(v, (core.Jaxpr, core.ClosedJaxpr))):
                if isinstance(value, core.ClosedJaxpr):
                    walk(value.jaxpr)
                elif isinstance(value, core.Jaxpr):
                    walk(value)

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return found


@pytest.fixture(scope="module", params=["dense", "convolutional"])
def network(request):
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(6, 4, 4, 1)), np.arange(6) % 3
    if request.param == "dense":
        problem = js.problems.supervised(js.models.MLP(widths=(5,)), (images.reshape(6, -1), targets), loss="cross_entropy")
    else:
        problem = js.problems.supervised(js.models.CNN(widths=(3,), norm="none"), (images, targets), loss="cross_entropy")
    return problem, problem.init(jax.random.key(0))


ON_LOSSES = {
    "hvp": lambda loss, w: js.curvature.hvp(loss, w, w),
    "linearized": lambda loss, w: js.curvature.hessian_operator(loss, w)(w),
    "with its slope": lambda loss, w: js.curvature.slope_and_hessian(loss, w)[2](w),
    "in segments": lambda loss, w: js.curvature.hessian_operator(loss, w, segments=2)(w),
    "squared gradient": js.curvature.squared_gradient,
    "eigenpairs": lambda loss, w: js.curvature.frozen_eigenpairs(loss, w, 2),
    "sharpness and its gradient": lambda loss, w: jax.value_and_grad(partial(js.curvature.sharpness, loss))(w),
    "the gradient of what was compiled": lambda loss, w: jax.grad(jax.jit(partial(js.curvature.log_sharpness, loss)))(w),
    "sum and its gradient": lambda loss, w: jax.grad(
        lambda w: js.curvature.top_eigenvalue_sum(js.curvature.hessian_operator(loss, w), k=2).value
    )(w),
    "spherical sharpness": js.sphere.spherical_sharpness,
    "third derivatives": lambda loss, w: js.curvature.third_derivatives(
        lambda flat: loss(ravel_pytree(w)[1](flat)), ravel_pytree(w)[0], ravel_pytree(w)[0][None], 1
    ),
}


@pytest.mark.parametrize("name", ON_LOSSES)
def test_the_curvature_of_a_loss_is_taken_in_full_precision_unless_another_is_chosen(name, network):
    problem, params = network
    call = partial(ON_LOSSES[name], problem.loss)
    with jax.default_matmul_precision(None):
        assert precisions(call, params) == {(HIGHEST, HIGHEST)}
        assert precisions(problem.loss, params) == {None}  # what is not ours is left as it is
    with jax.default_matmul_precision("tensorfloat32"):
        assert (HIGH, HIGH) in precisions(call, params)


ON_OUTPUTS = {
    "gauss_newton_operator": {},
    "gauss_newton_operator, chunks": {"chunk": 4},
    "empirical_fisher_operator": {},
    "fisher_operator": {},
    "fisher_operator, samples": {"samples": 2},
    "draw_targets": {},
    "sample_squared_gradients": {},
    "fisher_diagonal": {"samples": 2},
}


@pytest.mark.parametrize("name", ON_OUTPUTS)
def test_so_are_the_operators_of_a_model(name, network):
    problem, params = network
    method = getattr(js.curvature, name.split(",")[0])
    parts = js.problems.sample_loss(problem, params)
    given = parts.data[0] if name == "draw_targets" else parts.data

    def call(w):
        made = method(parts.predict, parts.loss, w, given, **ON_OUTPUTS[name])
        return made(w) if isinstance(made, js.curvature.Operator) else made

    with jax.default_matmul_precision(None):
        assert precisions(call, params) == {(HIGHEST, HIGHEST)}


def _scaled(v):
    return jnp.linspace(1.0, 3.0, v.size, dtype=v.dtype) * v


def _tracked(v):
    tracker = js.curvature.EigenTracker(k=2)
    return tracker.measure(_scaled, tracker.measure(_scaled, tracker.init(v))[0])


ALGEBRA = {
    "eigenpairs": lambda v: js.curvature.top_eigenpairs(_scaled, v, 2),
    "many side by side": lambda v: js.curvature.top_eigenpairs(_scaled, v, 10, block=10),
    "in chunks": lambda v: js.curvature.top_eigenpairs(_scaled, v, 3, chunk=2),
    "a hopeful search": lambda v: js.curvature.top_eigenpairs(_scaled, v, 1, v[None]),
    "tracker": _tracked,
    "trace": lambda v: js.curvature.trace(_scaled, v, max_matvecs=8),
    "xtrace": lambda v: js.curvature.trace(_scaled, v, method="xtrace", max_matvecs=8),
    "spectral density": lambda v: js.curvature.spectral_density(_scaled, v, steps=5),
    "sum": lambda v: js.curvature.top_eigenvalue_sum(_scaled, v, 2),
}


@pytest.mark.parametrize("name", ALGEBRA)
@pytest.mark.parametrize("chosen", [None, "default", "tensorfloat32"])
def test_the_algebra_around_the_products_is_exact_whatever_is_chosen(name, chosen):
    with jax.default_matmul_precision(chosen):
        assert precisions(ALGEBRA[name], jnp.ones(30)) == {(HIGHEST, HIGHEST)}


@pytest.mark.parametrize("members", [1, 2, 3])
def test_it_is_exact_in_batches_of_what_was_compiled_before(members, monkeypatch):
    monkeypatch.setattr(turns, "MEMBERS_ON_CPU", members)
    with jax.default_matmul_precision("tensorfloat32"):
        together = jax.vmap(jax.jit(lambda v: js.curvature.top_eigenpairs(_scaled, v, 2, block=3)))
        assert precisions(together, jnp.ones((3, 30))) == {(HIGHEST, HIGHEST)}


WITH_OPERATORS = {
    "eigenpairs": lambda matvec, v: js.curvature.top_eigenpairs(matvec, v, 2),
    "trace": lambda matvec, v: js.curvature.trace(matvec, v, max_matvecs=8),
    "diagonal": lambda matvec, v: js.curvature.diagonal(matvec, v, max_matvecs=8),
    "spectral density": lambda matvec, v: js.curvature.spectral_density(matvec, v, steps=5),
    "sum": lambda matvec, v: js.curvature.top_eigenvalue_sum(matvec, v, 2),
    "frozen": lambda matvec, v: js.curvature.frozen(js.curvature.Operator(matvec, v))(v),
    "preconditioned": lambda matvec, v: js.curvature.preconditioned(js.curvature.Operator(matvec, v), v)(v),
}


@pytest.mark.parametrize("name", WITH_OPERATORS)
def test_products_by_the_caller_s_own_matrix_are_in_full_precision_too(name):
    def call(matrix):
        return WITH_OPERATORS[name](lambda v: matrix @ v, jnp.ones(30))

    with jax.default_matmul_precision(None):
        assert precisions(call, jnp.eye(30)) == {(HIGHEST, HIGHEST)}
    with jax.default_matmul_precision("tensorfloat32"):
        assert (HIGH, HIGH) in precisions(call, jnp.eye(30))


def test_projections_on_minimizers_and_their_complementarity_are_exact():
    data = np.random.default_rng(0).normal(size=(4, 6)), np.arange(4.0)
    problem = js.problems.supervised(js.models.MLP(widths=(5,)), data)
    params = problem.init(jax.random.key(0))

    regression = js.problems.bn_linear_regression(*data)

    def oscillation(alpha):
        return js.complementarity.solve(alpha, jnp.eye(3))

    def interpolant(key):
        return js.problems.interpolant(regression, key, angle=1.0)

    for call in (
        js.minimizers.retraction,
        partial(js.minimizers.project_tangent, v=params),
        js.minimizers.log_sharpness_gradient,
    ):
        with jax.default_matmul_precision(None):
            assert precisions(partial(call, problem), params) == {(HIGHEST, HIGHEST)}
    with jax.default_matmul_precision("tensorfloat32"):
        assert precisions(oscillation, -jnp.eye(2)) == {(HIGHEST, HIGHEST)}
        assert precisions(interpolant, jax.random.key(0)) == {(HIGHEST, HIGHEST)}


def test_what_ire_takes_out_of_a_step_is_exact():
    rule = js.optimizers.ire(js.optimizers.gd(0.1), 2.0, None, estimator=js.optimizers.Eigenspace(2))

    def update(w):
        return rule.update(w, rule.init(w), w, loss_fn=lambda w: jnp.sum(w**4))

    with jax.default_matmul_precision("tensorfloat32"):
        assert precisions(update, jnp.arange(1.0, 9.0)) == {(HIGHEST, HIGHEST)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, HIGHEST), ({"precision": "tensorfloat32"}, HIGH), ({"precision": None}, jax.lax.Precision.DEFAULT)],
)
def test_a_run_takes_its_products_in_the_precision_it_is_told(options, expected):
    seen = []

    def loss(w, data):
        del data
        seen.append(precisions(lambda w: w @ w, w))
        return jnp.sum(w**4)

    problem = js.problems.from_loss(loss, lambda key: jnp.ones(3))
    js.simulate(problem, js.optimizers.gd(0.01), 2, probes=["sharpness"], **options)
    assert seen
    assert all(precision == {(expected, expected)} for precision in seen)
