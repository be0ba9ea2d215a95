"""Operators against dense matrices: Hessian, Gauss–Newton, Fisher, in one piece, in chunks of data and rematerialized."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from support import count_compilations, dense_hessian, flat, tolerance

import jaxsharp as js

SAMPLES, CLASSES = 17, 3
CHUNK = 5  # does not divide 17


def predict(params, inputs):
    return jnp.tanh(inputs @ params["first"]) @ params["second"] + params["shift"][None, :]


def log_cosh(outputs, targets):
    return jnp.sum(jnp.log(jnp.cosh(outputs - jax.nn.one_hot(targets, CLASSES, dtype=outputs.dtype))), axis=1)


def network(dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = {"first": (4, 5), "second": (5, CLASSES), "shift": (CLASSES,)}
    params = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    inputs = jnp.asarray(rng.normal(size=(SAMPLES, 4)), dtype)
    targets = {"cross_entropy": jnp.asarray(rng.integers(0, CLASSES, SAMPLES))}
    targets["mse"] = jnp.asarray(rng.normal(size=(SAMPLES, CLASSES)), dtype)
    return params, inputs, targets


@cache
def jacobian():
    """Outputs (n, c) and their Jacobian (n, c, D), in float64."""
    params, inputs, _ = network()
    vector, unravel = ravel_pytree(params)
    function = lambda w: predict(unravel(w), inputs)  # noqa: E731
    return np.asarray(function(vector)), np.asarray(jax.jit(jax.jacrev(function))(vector))


def softmax(outputs):
    weights = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def outer(scores):
    """(1/n) Σ gᵢ gᵢᵀ of scores in the outputs (n, c)."""
    gradients = np.einsum("ncd,nc->nd", jacobian()[1], scores)
    return gradients.T @ gradients / SAMPLES


def dense(kind, loss):
    params, inputs, targets = network()
    outputs, derivative = jacobian()
    probabilities, labels = softmax(outputs), np.eye(CLASSES)
    if kind == "hessian":
        return dense_hessian(lambda w: LOSSES[loss](w, (inputs, targets[loss])), params)
    if kind == "empirical":
        return outer(probabilities - labels[targets[loss]] if loss == "cross_entropy" else outputs - np.asarray(targets[loss]))
    if loss == "mse":
        return np.einsum("nci,ncj->ij", derivative, derivative) / SAMPLES
    # both are the expectation over the labels, written out
    return sum(outer((probabilities - labels[c]) * np.sqrt(probabilities[:, c : c + 1])) for c in range(CLASSES))


LOSSES = {
    "cross_entropy": lambda w, data: jnp.mean(
        jax.nn.logsumexp(predict(w, data[0]), axis=1) - predict(w, data[0])[jnp.arange(data[1].size), data[1]]
    ),
    "mse": lambda w, data: jnp.mean(0.5 * jnp.sum((predict(w, data[0]) - data[1]) ** 2, axis=1)),
}


def make(kind, loss, params, data, **options):
    if kind == "hessian":
        return js.curvature.hessian_operator(LOSSES[loss], params, data, **options)
    maker = {
        "gauss_newton": js.curvature.gauss_newton_operator,
        "fisher": js.curvature.fisher_operator,
        "empirical": js.curvature.empirical_fisher_operator,
    }[kind]
    return maker(predict, loss, params, data, **options)


def products(operator, rows):
    unravel = ravel_pytree(operator.like)[1]
    return jax.lax.map(lambda row: ravel_pytree(operator(unravel(row)))[0], rows)


def vectors(dtype=np.float64, count=3):
    return jnp.asarray(np.random.default_rng(7).normal(size=(count, 38)), dtype)


CASES = [("hessian", "cross_entropy"), ("gauss_newton", "cross_entropy"), ("fisher", "cross_entropy"), ("fisher", "mse")]
CASES += [("empirical", "cross_entropy")]


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_products_are_those_of_the_dense_matrix_whole_and_in_chunks(kind, loss):
    params, inputs, targets = network()
    rows = vectors()

    @jax.jit
    def both(params, data):
        whole, chunked = make(kind, loss, params, data), make(kind, loss, params, data, chunk=CHUNK)
        return products(whole, rows), products(chunked, rows)

    whole, chunked = both(params, (inputs, targets[loss]))
    exact = np.asarray(rows) @ dense(kind, loss)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(whole, exact, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(chunked, whole, rtol=0, atol=1e-14 * scale)


def test_operators_in_float32():
    with jax.enable_x64(False):
        params, inputs, targets = network(np.float32)
        rows = vectors(np.float32)

        @jax.jit
        def all_kinds(params, inputs, labels):
            kinds = ("hessian", "gauss_newton", "empirical")
            return {kind: products(make(kind, "cross_entropy", params, (inputs, labels), chunk=CHUNK), rows) for kind in kinds}

        results = all_kinds(params, inputs, targets["cross_entropy"].astype(jnp.int32))
    for kind, result in results.items():
        exact = np.asarray(rows, np.float64) @ dense(kind, "cross_entropy")
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, exact, rtol=0, atol=tolerance(np.float32, 30, 1) * np.abs(exact).max())


def test_chunks_of_one_sample_give_the_same_product():
    params, inputs, targets = network()
    v = jax.tree.map(jnp.ones_like, params)
    operator = js.curvature.gauss_newton_operator(predict, "cross_entropy", params, (inputs, targets["cross_entropy"]), chunk=1)
    exact = dense("gauss_newton", "cross_entropy") @ np.ones(38)
    np.testing.assert_allclose(flat(jax.jit(lambda: operator(v))()), exact, rtol=0, atol=1e-13 * np.abs(exact).max())


def test_gauss_newton_of_any_loss_per_sample():
    params, inputs, targets = network()
    operator = js.curvature.gauss_newton_operator(predict, log_cosh, params, (inputs, targets["cross_entropy"]))
    outputs, derivative = jacobian()
    curvature = 1 / np.cosh(outputs - np.eye(CLASSES)[targets["cross_entropy"]]) ** 2
    exact = np.einsum("nci,nc,ncj->ij", derivative, curvature, derivative) / SAMPLES
    rows = vectors()
    np.testing.assert_allclose(jax.jit(lambda: products(operator, rows))(), np.asarray(rows) @ exact, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_sampled_fisher_is_the_second_moment_of_scores_at_its_labels(loss):
    params, inputs, targets = network()
    rows, key = vectors(), jax.random.key(3)

    @jax.jit
    def sampled(params):
        data = inputs, targets[loss]
        labels = js.curvature.draw_targets(predict, loss, params, inputs, samples=4, key=key)
        whole = js.curvature.fisher_operator(predict, loss, params, data, samples=4, key=key)
        chunked = js.curvature.fisher_operator(predict, loss, params, data, samples=4, key=key, chunk=CHUNK)
        return labels, products(whole, rows), products(chunked, rows)

    labels, whole, chunked = sampled(params)
    outputs, _ = jacobian()
    if loss == "cross_entropy":
        scores = [softmax(outputs) - np.eye(CLASSES)[labels[:, s]] for s in range(4)]
    else:
        scores = [outputs - np.asarray(labels[:, s]) for s in range(4)]
    exact = np.asarray(rows) @ (sum(outer(score) for score in scores) / 4)
    np.testing.assert_allclose(whole, exact, atol=1e-12 * np.abs(exact).max())
    np.testing.assert_allclose(chunked, whole, atol=1e-13 * np.abs(exact).max())


def test_labels_are_drawn_from_the_model():
    params, inputs, _ = network()
    count = 4000
    outputs, _ = jacobian()
    drawn = jax.jit(
        lambda params: [
            js.curvature.draw_targets(predict, loss, params, inputs, samples=count) for loss in ("cross_entropy", "mse")
        ]
    )(params)
    frequency = np.eye(CLASSES)[drawn[0]].mean(axis=1)
    probabilities = softmax(outputs)
    scores = (frequency - probabilities) / np.sqrt(probabilities * (1 - probabilities) / count)
    assert np.abs(scores).max() < 4.5
    assert np.sqrt((scores**2).mean()) < 1.3
    noise = np.asarray(drawn[1]) - outputs[:, None]
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)


def deep(depth=16, width=16, rows=600):
    rng = np.random.default_rng(2)
    model = js.models.MLP(widths=(width,) * depth)
    inputs = rng.normal(size=(rows, 8)).astype(np.float32)
    problem = js.problems.supervised(model, (inputs, rng.integers(0, 3, rows)), loss="cross_entropy")
    return problem, problem.init(jax.random.key(0))


def test_segments_give_the_same_product_in_less_memory():
    with jax.enable_x64(False):
        problem, params = deep()
        v = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), params)

        def compiled(make, segments):
            product = jax.jit(lambda problem, params, v: make(problem, params, segments=segments)(v))
            program = product.lower(problem, params, v).compile()
            return flat(program(problem, params, v)), program.memory_analysis().temp_size_in_bytes

        for make in (js.operators.hessian, js.operators.gauss_newton):
            plain, memory = compiled(make, 1)
            cut, less = compiled(make, 4)
            np.testing.assert_allclose(cut, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
            assert less < 0.75 * memory


def test_segments_with_chunks_a_custom_rule_and_integers_against_dense():
    params, inputs, targets = network()

    def loss(w, data):
        hidden = jax.nn.relu(data[0] @ w["first"]) ** 2  # relu carries its own rule of differentiation
        outputs = jnp.sin(hidden @ w["second"]) + w["shift"][None, :]
        picked = jnp.take_along_axis(outputs, data[1][:, None], axis=1)  # integers pass between the segments
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - picked[:, 0])

    data = inputs, targets["cross_entropy"]
    rows = vectors()
    exact = np.asarray(rows) @ dense_hessian(lambda w: loss(w, data), params)

    @jax.jit
    def run(params):
        both = js.curvature.hessian_operator(loss, params, data, segments=3, chunk=CHUNK)
        inside = js.curvature.hessian_operator(jax.jit(lambda w: loss(w, data)), params, segments=2)
        return products(both, rows), products(inside, rows)

    for result in run(params):
        np.testing.assert_allclose(result, exact, rtol=0, atol=1e-12 * np.abs(exact).max())


@pytest.mark.smoke
def test_cuts_leave_little_inside_each_segment():
    def chain(x):
        for _ in range(12):
            x = jnp.sin(x)
        return x

    function = js.curvature.rematerialized(chain, 4)
    text = str(jax.make_jaxpr(function)(jnp.ones(3)))
    assert text.count("custom_vjp_call") == 3  # the last segment is evaluated plainly
    np.testing.assert_allclose(function(jnp.ones(3)), chain(jnp.ones(3)), rtol=1e-15)
    with pytest.raises(ValueError, match="segments must be"):
        js.curvature.rematerialized(chain, 0)


def test_an_operator_passes_between_compiled_functions_and_compiles_once():
    params, inputs, targets = network()
    build = jax.jit(lambda w: js.curvature.hessian_operator(LOSSES["cross_entropy"], w, (inputs, targets["cross_entropy"])))
    use = jax.jit(lambda operator, v: operator(v))
    v = jax.tree.map(jnp.ones_like, params)
    use(build(params), v)
    other = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    with count_compilations() as compiled:
        result = use(build(other), v)
    assert not compiled
    exact = js.curvature.hvp(lambda w: LOSSES["cross_entropy"](w, (inputs, targets["cross_entropy"])), other, v)
    np.testing.assert_allclose(flat(result), flat(exact), rtol=1e-12)


def test_batched_operators_equal_single_ones():
    params, inputs, targets = network()
    points = jax.tree.map(lambda leaf: jnp.stack([leaf, -0.5 * leaf]), params)
    v = jax.tree.map(jnp.ones_like, params)

    def product(w):
        return make("fisher", "cross_entropy", w, (inputs, targets["cross_entropy"]), chunk=CHUNK)(v)

    together = jax.jit(jax.vmap(product))(points)
    np.testing.assert_allclose(
        flat(jax.tree.map(lambda leaf: leaf[0], together)), dense("fisher", "cross_entropy") @ np.ones(38), atol=1e-13
    )


def test_eigenpairs_of_a_preconditioned_operator():
    params, inputs, targets = network()
    diagonal = jax.tree.map(lambda leaf: 0.3 + leaf**2, params)
    operator = make("hessian", "cross_entropy", params, (inputs, targets["cross_entropy"]))

    @jax.jit
    def solve(operator, diagonal):
        scaled = js.curvature.preconditioned(operator, diagonal)
        return js.curvature.top_eigenpairs(scaled, k=2, tol=1e-8)

    pairs = solve(operator, diagonal)
    matrix = dense("hessian", "cross_entropy") / flat(diagonal)[:, None]  # P⁻¹ H
    exact = np.sort(np.linalg.eigvals(matrix).real)[::-1]
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, exact[:2], rtol=1e-10)
    u = flat(jax.tree.map(lambda leaf: leaf[0], pairs.vectors)) / np.sqrt(flat(diagonal))
    np.testing.assert_allclose(matrix @ u, exact[0] * u, atol=1e-6)


def test_a_frozen_operator_has_no_derivative():
    def height(scale, freeze):
        operator = js.curvature.Operator(lambda v: scale * v, jnp.ones(2))
        return jnp.sum((js.curvature.frozen(operator) if freeze else operator)(jnp.ones(2)))

    assert jax.grad(height)(3.0, False) == 2
    assert jax.grad(height)(3.0, True) == 0


@pytest.fixture(scope="module")
def supervised():
    rng = np.random.default_rng(5)
    data = rng.normal(size=(11, 4)), rng.integers(0, 3, 11)
    made = {}
    for norm in ("none", "batch"):
        problem = js.problems.supervised(js.models.MLP(widths=(4,), norm=norm), data, loss="cross_entropy")
        made[norm] = problem, problem.init(jax.random.key(1))
    return made


def test_operators_of_a_problem(supervised):
    problem, params = supervised["none"]
    v = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def run(problem, params):
        made = [js.operators.hessian(problem, params), js.operators.hessian(problem, params, chunk=4)]
        for maker in (js.operators.gauss_newton, js.operators.fisher):
            made += [maker(problem, params), maker(problem, params, chunk=4)]
        return [operator(v) for operator in made]

    results = [flat(result) for result in run(problem, params)]
    np.testing.assert_allclose(results[0], flat(jax.jit(js.curvature.hvp, static_argnums=0)(problem.loss, params, v)), rtol=1e-10)
    np.testing.assert_allclose(results[1], results[0], atol=1e-14)
    for result in results[3:]:
        np.testing.assert_allclose(result, results[2], atol=1e-14)


def test_empirical_fisher_through_batch_normalization(supervised):
    problem, params = supervised["batch"]
    vector, unravel = ravel_pytree(params)
    parts = js.problems.sample_loss(problem, params)
    assert parts.coupled

    def losses(w):
        outputs = parts.predict(unravel(w), parts.data[0])
        return jax.nn.logsumexp(outputs, axis=1) - outputs[jnp.arange(11), parts.data[1]]

    gradients = np.asarray(jax.jit(jax.jacrev(losses))(vector))
    v = jax.tree.map(jnp.ones_like, params)
    product = flat(jax.jit(lambda w: js.operators.empirical_fisher(problem, w)(v))(params))
    np.testing.assert_allclose(product, gradients.T @ gradients @ np.ones(vector.size) / 11, atol=1e-13)
    for maker in (js.operators.hessian, js.operators.gauss_newton):
        with pytest.raises(ValueError, match="batch normalization"):
            maker(problem, params, chunk=4)


class Reader(nn.Module):
    """A language model in a line: every position sees the tokens up to it."""

    vocabulary: int
    outputs: int

    @nn.compact
    def __call__(self, tokens):
        read = jnp.cumsum(nn.Embed(self.vocabulary, 3, param_dtype=float)(tokens), axis=1)
        return nn.Dense(self.outputs, param_dtype=float)(jnp.tanh(read))


@cache
def sequences():
    """Five sequences of 4 tokens with labels for the last 3; the model, its parameters, its outputs and their Jacobian, dense."""
    rng = np.random.default_rng(8)
    tokens, labels = rng.integers(0, 4, (5, 4)), rng.integers(0, 3, (5, 3))
    model = Reader(vocabulary=4, outputs=3)
    params = jax.jit(model.init)(jax.random.key(2), jnp.asarray(tokens))["params"]
    vector, unravel = ravel_pytree(params)

    def outputs(w):
        return model.apply({"params": unravel(w)}, jnp.asarray(tokens))[:, 1:]

    values, derivative = jax.jit(lambda w: (outputs(w), jax.jacrev(outputs)(w)))(vector)
    return model, (tokens, labels), params, (np.asarray(values).reshape(15, 3), np.asarray(derivative).reshape(15, 3, -1))


@cache
def token_problem(loss):
    model, data, _, _ = sequences()
    return js.problems.supervised(model, data, loss=loss)


def token_scores(loss, labels):
    """∇ℓ in the outputs of each of the 15 tokens, (15, c)."""
    outputs = sequences()[3][0]
    predictions = softmax(outputs) if loss == "cross_entropy" else outputs
    return predictions - (labels.reshape(15, 3) if labels.dtype.kind == "f" else np.eye(3)[labels.ravel()])


def mean_square(scores):
    """The mean of g gᵀ over tokens, for their scores (15, c)."""
    gradients = np.einsum("tcd,tc->td", sequences()[3][1], scores)
    return gradients.T @ gradients / 15


def dense_of_tokens(kind, loss):
    _, (_, labels), params, (outputs, derivative) = sequences()
    if kind == "hessian":
        return dense_hessian(token_problem(loss).loss, params)
    if kind == "empirical_fisher":
        return mean_square(token_scores(loss, labels))
    if loss == "mse":
        return np.einsum("tci,tcj->ij", derivative, derivative) / 15
    weights = np.sqrt(softmax(outputs))
    return sum(mean_square(token_scores(loss, np.full(15, c)) * weights[:, c : c + 1]) for c in range(3))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "fisher", "empirical_fisher"])
def test_operators_of_tokens_are_those_of_the_mean_over_all_tokens(kind, loss):
    params = sequences()[2]
    make = js.operators.BY_NAME[kind]

    @jax.jit
    def run(params, rows):
        return [products(make(token_problem(loss), params, chunk=chunk), rows) for chunk in (None, 2)]

    exact = dense_of_tokens(kind, loss)
    rows = np.random.default_rng(9).normal(size=(3, len(exact)))
    for result in run(params, rows):
        np.testing.assert_allclose(result, rows @ exact, rtol=0, atol=1e-12 * np.abs(rows @ exact).max())


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_sampled_fisher_of_tokens_is_the_mean_over_all_scores(loss):
    problem, params, key = token_problem(loss), sequences()[2], jax.random.key(4)

    @jax.jit
    def run(params, rows):
        parts = js.problems.sample_loss(problem, params)
        made = [js.operators.fisher(problem, params, samples=2, key=key, chunk=chunk) for chunk in (None, 2)]
        labels = js.curvature.draw_targets(parts.predict, loss, params, parts.data[0], samples=2, key=key)
        return labels, [products(operator, rows) for operator in made]

    rows = np.random.default_rng(9).normal(size=(3, ravel_pytree(params)[0].size))
    labels, results = run(params, rows)
    assert labels.shape[:3] == (5, 2, 3)
    exact = rows @ sum(mean_square(token_scores(loss, np.asarray(labels)[:, s])) / 2 for s in range(2))
    for result in results:
        np.testing.assert_allclose(result, exact, rtol=0, atol=1e-12 * np.abs(exact).max())


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_squared_gradients_of_tokens_are_the_diagonals_of_their_operators(loss):
    problem, params = token_problem(loss), sequences()[2]
    parts = js.problems.sample_loss(problem, params)

    @jax.jit
    def run(params):
        squares = [js.curvature.sample_squared_gradients(*given(params), chunk=chunk) for chunk in (None, 2)]
        return squares, js.curvature.fisher_diagonal(*given(params), samples=300, chunk=2)

    def given(params):
        return parts.predict, parts.loss, params, parts.data

    squares, drawn = run(params)
    exact = np.diag(dense_of_tokens("empirical_fisher", loss))
    for square in squares:
        np.testing.assert_allclose(flat(square), exact, rtol=1e-10, atol=1e-14 * exact.max())
    exact = np.diag(dense_of_tokens("fisher", loss))
    errors = (flat(drawn.value) - exact) / flat(drawn.standard_error)
    assert np.abs(errors).max() < 5
    assert 0.5 < np.sqrt((errors**2).mean()) < 1.6


def test_a_function_may_return_a_loss_for_each_target():
    params, inputs, targets = network()
    data = inputs, jnp.stack([targets["cross_entropy"], (targets["cross_entropy"] + 1) % CLASSES], axis=1)

    def losses(outputs, targets):  # log cosh of the distance of every output to each of two targets
        wanted = jax.nn.one_hot(targets, CLASSES, dtype=outputs.dtype)
        return jnp.sum(jnp.log(jnp.cosh(outputs[:, None] - wanted)), axis=-1)

    rows = vectors()

    @jax.jit
    def run(params):
        makers = js.curvature.gauss_newton_operator, js.curvature.empirical_fisher_operator
        return [[products(make(predict, losses, params, data, chunk=c), rows) for c in (None, CHUNK)] for make in makers]

    outputs, derivative = jacobian()
    distances = outputs[:, None] - np.eye(CLASSES)[np.asarray(data[1])]  # (n, 2, c)
    curvature = np.einsum("nci,ntc,ncj->ij", derivative, np.cosh(distances) ** -2, derivative) / (2 * SAMPLES)
    gradients = np.einsum("nci,ntc->nti", derivative, np.tanh(distances)).reshape(2 * SAMPLES, -1)
    for results, exact in zip(run(params), (curvature, gradients.T @ gradients / (2 * SAMPLES)), strict=True):
        for result in results:
            np.testing.assert_allclose(result, np.asarray(rows) @ exact, atol=1e-12)


ON_TARGETS = {
    "gauss_newton_operator": {},
    "gauss_newton_operator, chunks": {"chunk": 2},
    "gauss_newton_operator, segments": {"segments": 2},
    "empirical_fisher_operator": {},
    "sample_squared_gradients": {},
}
WITHOUT_TARGETS = {"fisher_operator": {}, "fisher_operator, samples": {"samples": 2}, "fisher_diagonal": {}}
WIDE, TALL, ROWS = np.ones((6, 1)), np.ones(6), np.ones((6, 3))


def refused(name, predict, loss, data, match):
    options = {**ON_TARGETS, **WITHOUT_TARGETS}[name]
    method = getattr(js.curvature, name.split(",")[0])
    for call in (jax.jit, lambda function: function):  # shapes are known to a compilation too
        with pytest.raises(ValueError, match=match):
            call(lambda w, data: method(predict, loss, w, data, **options))(jnp.ones(3), data)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ON_TARGETS)
def test_targets_and_losses_that_would_broadcast_are_refused(name):
    def column(w, x):
        return (x @ w)[:, None]

    def logits(w, x):
        return x[:, :, None] * w[None, None, :]  # (6, 3, 3)

    refused(name, column, "mse", (ROWS, TALL), "targets of the outputs' shape")
    refused(name, lambda w, x: x @ w, "mse", (ROWS, WIDE), "targets of the outputs' shape")
    refused(name, lambda w, x: x * w[None], "cross_entropy", (ROWS, np.zeros((6, 1), int)), "integer labels of shape")
    refused(name, logits, "cross_entropy", (ROWS, np.zeros((6, 1), int)), "integer labels of shape")
    refused(name, lambda w, x: x * w[None], "cross_entropy", (ROWS, TALL), "integer labels of shape")
    refused(name, lambda w, x: x @ w, "cross_entropy", (ROWS, np.zeros(6, int)), "outputs of shape .n, ..., classes")
    for scalar in (lambda f, y: jnp.mean((f - y) ** 2), lambda f, y: jnp.sum((f - y) ** 2, axis=0)):
        refused(name, column, scalar, (ROWS, WIDE), "one number for each of 6 samples")
    with jax.numpy_rank_promotion("allow"):
        refused(name, column, lambda f, y: (f - y) ** 2, (ROWS, TALL), "take each sample alone")


@pytest.mark.smoke
@pytest.mark.parametrize("name", [*ON_TARGETS, *WITHOUT_TARGETS])
def test_outputs_without_a_row_for_each_sample_are_refused(name):
    refused(name, lambda w, x: jnp.sum(x @ w), "mse", (ROWS, TALL), "a row for each of 6 samples")
    refused(name, lambda w, x: (x @ w)[:4], "mse", (ROWS, TALL), "a row for each of 6 samples")
    refused(name, lambda w, x: (x @ w, w), "mse", (ROWS, TALL), "a row for each of 6 samples")
    refused(name, lambda w, x: x @ w, "mse", (ROWS[:0], TALL[:0]), "no samples")
    if name in WITHOUT_TARGETS:
        refused(name, lambda w, x: x @ w, "cross_entropy", (ROWS, np.zeros(6, int)), "outputs of shape .n, ..., classes")


@pytest.mark.smoke
@pytest.mark.parametrize("name", ON_TARGETS)
@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_without_an_output_are_refused_where_they_are_known(name, wrong):
    labels = jnp.asarray([0, 1, 2, 0, 1, wrong])
    method, options = getattr(js.curvature, name.split(",")[0]), ON_TARGETS[name]

    def make(w, labels):
        return method(lambda w, x: x * w[None], "cross_entropy", w, (jnp.asarray(ROWS), labels), **options)

    for call, w in ((make, jnp.ones(3)), (jax.jit(lambda w, _: make(w, labels)), jnp.ones(3))):
        with pytest.raises(ValueError, match="labels from 0 to 2"):
            call(w, labels)
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        jax.vmap(lambda w: make(w, labels))(jnp.ones((2, 3)))
    jax.jit(make)(jnp.ones(3), labels)  # not known


@pytest.mark.smoke
def test_chunks_of_a_hessian_need_a_loss_for_each_sample():
    data = np.ones((6, 2)), np.zeros(6, int)

    def make(loss, outputs=3, samples=6):
        problem = js.problems.supervised(js.models.MLP(widths=(), outputs=outputs), data, loss=loss)
        return js.operators.hessian(problem.take(jnp.arange(samples)), problem.init(jax.random.key(0)), chunk=2)

    with pytest.raises(ValueError, match="one number for each of 6 samples"):
        make(lambda f, y: jnp.mean(f))
    with pytest.raises(ValueError, match="no samples"):
        make("cross_entropy", samples=0)
    with pytest.raises(ValueError, match="chunk must be"):
        js.operators.hessian(js.problems.valley(), {"u": jnp.ones(()), "v": jnp.ones(())}, chunk=0)
    data = np.ones((6, 2)), np.arange(6)
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        make("cross_entropy")
    for chunk in (None, 2):
        with pytest.raises(ValueError, match="no samples"):
            js.curvature.hessian_operator(lambda w, x: jnp.sum(x @ w), jnp.ones(2), jnp.ones((0, 2)), chunk=chunk)


def test_misuse_names_the_argument():
    params, inputs, targets = network()
    data = inputs, targets["cross_entropy"]
    with pytest.raises(ValueError, match="chunk must be"):
        js.curvature.gauss_newton_operator(predict, "mse", params, data, chunk=0)
    with pytest.raises(ValueError, match="needs data="):
        js.curvature.hessian_operator(lambda w: 0.0, params, chunk=3)
    with pytest.raises(ValueError, match="leading axis"):
        js.curvature.gauss_newton_operator(predict, "mse", params, (inputs, targets["mse"][:5]))
    with pytest.raises(ValueError, match="names none"):
        js.curvature.fisher_operator(predict, log_cosh, params, data)
    for make in (js.curvature.gauss_newton_operator, js.curvature.empirical_fisher_operator):
        for wrong in ("foo", None):
            with pytest.raises(ValueError, match=r"is unknown; use one of mse, cross_entropy, a function") as error:
                make(predict, wrong, params, data)
            assert "Fisher" not in str(error.value)
    with pytest.raises(ValueError, match="no closed form"):
        js.curvature.fisher_operator(predict, js.curvature.Likelihood(log_cosh, lambda key, f: f), params, data)
    with pytest.raises(ValueError, match="samples must be"):
        js.curvature.fisher_operator(predict, "mse", params, data, samples=0)
    with pytest.raises(ValueError, match="shapes of the parameters"):
        js.curvature.preconditioned(js.curvature.Operator(lambda v: v, jnp.ones(3)), jnp.ones(2))
    for estimate in (js.curvature.trace, js.curvature.top_eigenpairs):
        with pytest.raises(ValueError, match="like="):
            estimate(lambda v: v)
    with pytest.raises(ValueError, match="not made of a model"):
        js.operators.fisher(js.problems.valley(), {"u": jnp.ones(()), "v": jnp.ones(())})
