"""Problems and models: shapes, statistics, invariances, and errors that name the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import flat, regression, tolerance

import jaxsharp as js

RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(20, 4)), np.arange(20) % 3
VECTOR_NORMS = [norm for norm in js.models.NORMALIZATIONS if norm != "instance"]  # which needs positions
TEST_INPUTS, TEST_LABELS = RNG.normal(loc=2.0, size=(9, 4)), np.arange(9) % 3


def test_regression_loss_is_the_formula():
    inputs, targets = RNG.normal(size=(6, 9)), RNG.normal(size=6)
    problem = js.problems.bn_linear_regression(inputs, targets)
    w = RNG.normal(size=9)
    z = inputs @ w
    prediction = targets.std() * (z - z.mean()) / z.std() + targets.mean()
    np.testing.assert_allclose(problem.loss({"weights": jnp.asarray(w)}), np.mean((prediction - targets) ** 2), rtol=1e-12)
    np.testing.assert_allclose(problem.residuals({"weights": jnp.asarray(w)}), prediction - targets, rtol=1e-10)


def test_interpolants_are_minimizers_at_their_angle(precision):
    del precision
    inputs, targets = RNG.normal(size=(6, 12)), RNG.normal(size=6)
    problem = js.problems.bn_linear_regression(inputs, targets)
    for angle in (0.0, 0.5, 1.4):
        w = js.problems.interpolant(problem, jax.random.key(1), angle=angle)
        dtype = w["weights"].dtype
        assert float(problem.loss(w)) < tolerance(dtype, 1e4, 2)
        np.testing.assert_allclose(problem.metrics(w)["angle"], angle, atol=tolerance(dtype, 30, 1))
        np.testing.assert_allclose(js.sphere.norm(w), 1, rtol=tolerance(dtype, 10, 1))


def test_minimum_norm_interpolant_is_that_of_the_centred_data():
    problem = regression()
    centred = np.asarray(problem.data.inputs)
    solution = np.linalg.pinv(centred) @ (np.asarray(problem.data.targets) - np.mean(problem.data.targets))
    w = js.problems.interpolant(problem, jax.random.key(0), angle=0.0)
    np.testing.assert_allclose(w["weights"], solution / np.linalg.norm(solution), atol=1e-12)


def test_exact_angle_solves_the_flow():
    times = np.linspace(0, 3, 7)
    step = 1e-5
    slope = (js.problems.exact_angle(1.2, times + step) - js.problems.exact_angle(1.2, times - step)) / (2 * step)
    angle = np.asarray(js.problems.exact_angle(1.2, times))
    np.testing.assert_allclose(slope, -np.sin(angle) * np.cos(angle), rtol=1e-8)


def test_valley():
    problem = js.problems.valley()
    w = {"u": jnp.array(0.7), "v": jnp.array(0.3)}
    np.testing.assert_allclose(problem.loss(w), (1 + 0.49) * 0.09 / 2)
    np.testing.assert_allclose(problem.loss(w), 0.5 * jnp.sum(problem.residuals(w) ** 2))


@pytest.mark.parametrize("norm", VECTOR_NORMS)
def test_squared_loss_is_half_the_mean_squared_residual(norm):
    problem = js.problems.supervised(js.models.MLP(widths=(5,), norm=norm), (INPUTS, LABELS), (TEST_INPUTS, TEST_LABELS))
    loss, residuals = jax.jit(lambda w: (problem.loss(w), problem.residuals(w)))(problem.init(jax.random.key(0)))
    assert residuals.shape == (60,)
    np.testing.assert_allclose(loss, 0.5 * np.sum(residuals**2) / 20, rtol=1e-12)


def test_cross_entropy_is_the_formula():
    problem = js.problems.supervised(js.models.MLP(widths=()), (INPUTS, LABELS), loss="cross_entropy")
    w = problem.init(jax.random.key(0))
    logits = INPUTS @ np.asarray(w["dense_0"]["kernel"]) + np.asarray(w["dense_0"]["bias"])
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(20), LABELS])
    np.testing.assert_allclose(problem.loss(w), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="residuals"):
        problem.residuals(w)


def test_batch_normalization_uses_training_statistics_everywhere():
    """One linear layer, normalized: written out in NumPy for the training and the test set."""
    problem = js.problems.supervised(js.models.MLP(widths=(3,), norm="batch"), (INPUTS, LABELS), (TEST_INPUTS, TEST_LABELS))
    w = problem.init(jax.random.key(0))
    first, last = w["dense_0"], w["dense_1"]
    hidden = lambda x: x @ np.asarray(first["kernel"]) + np.asarray(first["bias"])  # noqa: E731
    mean, variance = hidden(INPUTS).mean(0), hidden(INPUTS).var(0)

    def predict(x):
        return np.tanh((hidden(x) - mean) / np.sqrt(variance + 1e-5)) @ np.asarray(last["kernel"]) + np.asarray(last["bias"])

    one_hot = np.eye(3)
    residuals = predict(INPUTS) - one_hot[LABELS]
    np.testing.assert_allclose(problem.residuals(w), residuals.ravel(), atol=1e-12)
    metrics = problem.metrics(w)
    test_loss = 0.5 * np.mean(np.sum((predict(TEST_INPUTS) - one_hot[TEST_LABELS]) ** 2, 1))
    np.testing.assert_allclose(metrics["test_loss"], test_loss, rtol=1e-10)
    np.testing.assert_allclose(metrics["test_accuracy"], np.mean(predict(TEST_INPUTS).argmax(1) == TEST_LABELS))
    np.testing.assert_allclose(metrics["train_accuracy"], np.mean(predict(INPUTS).argmax(1) == LABELS))


def test_scale_invariant_outputs_can_reach_the_targets():
    for norm, axis in (("batch", 0), ("layer", 1)):
        model = js.models.MLP(widths=(6,), norm=norm, scale_invariant=True)
        problem = js.problems.supervised(model, (INPUTS, LABELS))
        predictions = np.asarray(problem.residuals(problem.init(jax.random.key(0)))).reshape(20, 3) + np.eye(3)[LABELS]
        targets = np.eye(3)[LABELS]
        np.testing.assert_allclose(predictions.mean(axis), targets.mean(axis), atol=1e-12)
        np.testing.assert_allclose(predictions.std(axis), targets.std(axis), atol=1e-12)


def test_other_data_of_the_same_shape_share_a_structure():
    make = lambda shift: js.problems.supervised(js.models.MLP(widths=(5,), norm="layer"), (INPUTS + shift, LABELS))  # noqa: E731
    assert jax.tree.structure(make(0.0)) == jax.tree.structure(make(1.0))
    assert hash(jax.tree.structure(make(0.0))) == hash(jax.tree.structure(make(1.0)))


def test_models_take_the_dtype_of_their_inputs(precision):
    for norm in VECTOR_NORMS:
        problem = js.problems.supervised(js.models.MLP(widths=(4,), norm=norm), (INPUTS, LABELS))
        w = jax.eval_shape(problem.init, jax.random.key(0))
        found = (w, jax.eval_shape(jax.value_and_grad(problem.loss), w))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {precision}


def test_a_foreign_flax_module_works():
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, param_dtype=x.dtype)(x)

    problem = js.problems.supervised(Linear(), (INPUTS, LABELS), (TEST_INPUTS, TEST_LABELS), loss="cross_entropy")
    w = problem.init(jax.random.key(0))
    assert np.isfinite(flat(jax.grad(problem.loss)(w))).all()
    assert set(problem.metrics(w)) == {"train_accuracy", "test_loss", "test_accuracy"}


def test_a_loss_of_ones_own_and_real_targets():
    targets = RNG.normal(size=20)
    absolute = lambda prediction, target: jnp.abs(prediction - target).sum(-1)  # noqa: E731
    problem = js.problems.supervised(js.models.MLP(widths=(4,)), (INPUTS, targets), loss=absolute)
    assert float(problem.loss(problem.init(jax.random.key(0)))) > 0
    assert problem.metrics(problem.init(jax.random.key(0))) == {}


SUPERVISED_MISUSE = {
    "unknown loss": (((INPUTS, LABELS),), {"loss": "hinge"}, "hinge"),
    "no pair": ((INPUTS[0, 0],), {}, "train must be a pair"),
    "nan": (((INPUTS * np.nan, LABELS),), {}, "train inputs contains NaN"),
    "lengths differ": (((INPUTS, LABELS[:5]),), {}, "same number of samples"),
    "empty": (((INPUTS[:0], LABELS[:0]),), {}, "empty"),
    "flat inputs": (((INPUTS[:, 0], LABELS),), {}, "samples, features"),
    "words": (((np.array([["a"]]), LABELS[:1]),), {}, "numeric"),
    "negative labels": (((INPUTS, LABELS - 1),), {}, "labels"),
    "real targets for cross-entropy": (((INPUTS, LABELS + 0.5),), {"loss": "cross_entropy"}, "integer labels"),
    "a label that training lacks": (((INPUTS, LABELS), (TEST_INPUTS, TEST_LABELS + 3)), {}, "test targets has the label 5"),
}


@pytest.mark.parametrize("name", SUPERVISED_MISUSE)
def test_misuse_of_supervised_names_the_argument(name):
    arguments, options, words = SUPERVISED_MISUSE[name]
    with pytest.raises(ValueError, match=words):
        js.problems.supervised(js.models.MLP(widths=(3,)), *arguments, **options)


REGRESSION_MISUSE = {
    "constant feature": ((np.c_[INPUTS[:4], np.ones((4, 3))], np.arange(4.0)), "zero variance"),
    "constant targets": ((INPUTS[:3], np.ones(3)), "all equal"),
    "more samples than features": ((INPUTS, RNG.normal(size=20)), "interpolate"),
    "two columns of targets": ((INPUTS[:3], np.ones((3, 2))), r"targets \(n,\)"),
    "infinity": ((INPUTS[:3], np.array([1.0, np.inf, 0.0])), "targets contains NaN or infinity"),
}


@pytest.mark.parametrize("name", REGRESSION_MISUSE)
def test_misuse_of_the_regression_names_the_argument(name):
    arguments, words = REGRESSION_MISUSE[name]
    with pytest.raises(ValueError, match=words):
        js.problems.bn_linear_regression(*arguments)


MODEL_MISUSE = {
    "activation": ({"activation": "tan"}, "activation='tan'"),
    "norm": ({"norm": "bach"}, "norm='bach'"),
    "scale-invariant without normalization": ({"scale_invariant": True}, "needs a normalization"),
}


@pytest.mark.parametrize("name", MODEL_MISUSE)
def test_misuse_of_a_model_names_the_field(name):
    fields, words = MODEL_MISUSE[name]
    with pytest.raises(ValueError, match=words):
        js.models.MLP(widths=(3,), outputs=2, **fields).init(jax.random.key(0), INPUTS)


def test_other_misuse():
    with pytest.raises(ValueError, match="loss must be a function"):
        js.problems.from_loss(3, lambda key: key)
    with pytest.raises(ValueError, match="bn_linear_regression"):
        js.problems.interpolant(js.problems.valley(), jax.random.key(0), angle=1.0)
    with pytest.raises(ValueError, match="outputs is not set"):
        js.models.MLP().init(jax.random.key(0), INPUTS)
