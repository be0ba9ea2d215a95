"""Architectures and normalizations: formulas in NumPy, exact scale invariance, third derivatives, full-batch statistics."""

from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support import flat

import jaxsharp as js
from jaxsharp.models.activations import gain
from jaxsharp.models.recipe import pool

# These programs run once; on CPU the cheapest code generation saves two thirds of their compilation.
jit_once = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})

NORMS = js.models.NORMALIZATIONS[1:]
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(6, 5))
SEQUENCES = RNG.normal(size=(3, 4, 8))
IMAGES = RNG.normal(size=(6, 8, 8, 2))
TOKENS = RNG.integers(0, 5, size=(6, 5)).astype(np.int32)
LABELS = np.arange(6) % 3


def standardized(x, axes):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axes, keepdims=True))


def in_groups(x, groups, axes):
    return standardized(x.reshape(*x.shape[:-1], groups, -1), axes).reshape(x.shape)


TRUTHS = {
    ("batch", 2): lambda x: standardized(x, 0),
    ("batch", 4): lambda x: standardized(x, (0, 1, 2)),
    ("layer", 2): lambda x: standardized(x, -1),
    ("layer", 3): lambda x: standardized(x, -1),
    ("layer", 4): lambda x: standardized(x, (1, 2, 3)),
    ("group", 3): lambda x: in_groups(x, 2, -1),
    ("group", 4): lambda x: in_groups(x, 2, (1, 2, 4)),
    ("instance", 3): lambda x: standardized(x, 1),
    ("instance", 4): lambda x: standardized(x, (1, 2)),
    ("rms", 2): lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True)),
    ("rms", 4): lambda x: x / np.sqrt((x**2).mean((1, 2, 3), keepdims=True)),
    ("none", 2): lambda x: x,
    ("weight", 2): lambda x: x,
}


@pytest.mark.parametrize(("kind", "axes"), TRUTHS)
def test_normalizations_are_their_formulas(kind, axes):
    x = {2: VECTORS, 3: SEQUENCES, 4: IMAGES}[axes]
    layer = js.models.Normalize(kind, affine=False, epsilon=0.0, groups=2)
    value = layer.apply({}, jnp.asarray(x), mutable=["batch_stats"])[0]
    np.testing.assert_allclose(value, TRUTHS[kind, axes](x), atol=1e-12)


@pytest.mark.parametrize("kind", ["weight", "weight_standardization"])
@pytest.mark.parametrize("window", [None, 3])
def test_normalized_weights_are_their_formulas(kind, window):
    x = jnp.asarray(VECTORS if window is None else IMAGES)
    layer = js.models.Linear(4, kind, window)
    kernel = RNG.normal(size=(5, 4) if window is None else (3, 3, 2, 4))
    scale, bias = RNG.normal(size=4), RNG.normal(size=4)
    params = {"kernel": jnp.asarray(kernel), "gain": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    v = kernel.reshape(-1, 4)
    v = v / np.linalg.norm(v, axis=0) if kind == "weight" else (v - v.mean(0)) / v.std(0) / np.sqrt(len(v))
    rows = VECTORS if window is None else windows(IMAGES, 1)
    np.testing.assert_allclose(layer.apply({"params": params}, x), rows @ (scale * v) + bias, atol=1e-12)


def windows(x, stride):
    """All 3 × 3 windows of zero-padded images as vectors, by loops."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [
        [padded[:, i : i + 3, j : j + 3].reshape(len(x), -1) for j in range(0, x.shape[2], stride)]
        for i in range(0, x.shape[1], stride)
    ]
    return np.moveaxis(np.asarray(rows), 2, 0)


def test_pooling():
    blocks = np.stack([IMAGES[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    np.testing.assert_allclose(pool(jnp.asarray(IMAGES), "average"), blocks.mean(0), atol=1e-15)
    np.testing.assert_allclose(pool(jnp.asarray(IMAGES), "max"), blocks.max(0))
    assert pool(jnp.ones((1, 5, 1, 2)), "max").shape == (1, 2, 1, 2)


def test_gains_undo_what_an_activation_does_to_size():
    assert gain("relu") == pytest.approx(2**0.5, abs=1e-6)
    assert gain("relu", centred=True) == pytest.approx((0.5 - 0.5 / np.pi) ** -0.5, abs=1e-6)
    sample = np.tanh(np.random.default_rng(0).normal(size=400_000))
    assert gain("tanh") == pytest.approx((sample**2).mean() ** -0.5, rel=5e-3)


@cache
def architecture(name, norm, activation="tanh", **fields):
    """A tiny network of each architecture, and its inputs."""
    models = js.models
    common = {"norm": norm, "activation": activation, **fields}
    return {
        "MLP": lambda: (models.MLP(widths=(6,), outputs=3, **common), VECTORS),
        "CNN": lambda: (models.CNN(widths=(4,), outputs=3, **common), IMAGES),
        "VGG": lambda: (models.VGG(plan=(1, "pool", 2, "pool"), width=4, outputs=3, **common), IMAGES),
        "ResNet": lambda: (models.ResNet(depth=8, width=4, outputs=3, **common), IMAGES),
        "ViT": lambda: (models.ViT(width=8, depth=1, heads=2, patch=4, outputs=3, **common), IMAGES),
        "Transformer": lambda: (models.Transformer(vocabulary=5, width=8, depth=1, heads=2, outputs=5, **common), TOKENS),
    }[name]()


def generic(model, inputs, seed=0):
    """Parameters of a model, none of them zero; drawn without running it."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


def loss_of(model, inputs):
    """A smooth loss that depends on every output."""
    inputs = jnp.asarray(inputs)

    def loss(params):
        outputs = model.apply({"params": params}, inputs, mutable=["batch_stats"])[0]
        weights = jnp.cos(jnp.arange(outputs.size, dtype=outputs.dtype)).reshape(outputs.shape)
        return jnp.mean(weights * outputs + jnp.sin(2 * outputs + weights))

    return loss


INVARIANT = [
    *((name, norm) for name in ("MLP", "CNN") for norm in NORMS if (name, norm) != ("MLP", "instance")),
    ("VGG", "batch"),
    ("ResNet", "batch"),
    ("ResNet", "weight"),
    ("ViT", "instance"),
    ("ViT", "batch"),
    ("Transformer", "layer"),
    ("Transformer", "weight_standardization"),
]


@pytest.mark.parametrize(("name", "norm"), INVARIANT)
def test_the_scale_invariant_form_is_exact_for_all_weights_and_for_each(name, norm):
    model, inputs = architecture(name, norm, scale_invariant=True)
    report = js.sphere.check_scale_invariance(loss_of(model, inputs), generic(model, inputs))
    assert report.invariant
    assert report.breaking == ()
    assert max(report.total) < 1e-14
    assert max(max(error) for error in report.leaves.values()) < 1e-14
    assert not any(name.endswith(("bias", "scale", "gain")) for name in report.leaves)


def test_a_fixed_read_out_has_no_parameters_and_is_invariant():
    model, inputs = architecture("CNN", "instance", scale_invariant=True, fixed_read_out=True)
    report = js.sphere.check_scale_invariance(loss_of(model, inputs), generic(model, inputs))
    assert report.invariant
    assert list(report.leaves) == ["conv_0/kernel"]


def test_the_check_names_the_leaves_that_break_it():
    model, inputs = architecture("MLP", "batch")
    report = js.sphere.check_scale_invariance(loss_of(model, inputs), generic(model, inputs))
    assert not report.invariant
    broken = {"dense_0/kernel", "dense_1/kernel", "dense_1/bias", "norm_0/batch/scale", "norm_0/batch/bias"}
    assert set(report.breaking) == broken  # not the bias before the normalization, which subtracts it
    assert report.breaking[-1] == "dense_0/kernel"  # by ε alone


def test_the_check_knows_scales_that_cancel():
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 5.0])}
    report = js.sphere.check_scale_invariance(lambda w: jnp.sum(jnp.sin(w["a"] / w["b"])), params)
    assert report.invariant
    assert report.breaking == ()
    assert min(report.leaves["a"]) > 1e-3
    nan = js.sphere.check_scale_invariance(lambda w: jnp.sum(w["a"]) * jnp.nan, params)
    assert not nan.invariant
    jumps = js.sphere.check_scale_invariance(lambda w: 2 + jnp.sign(jnp.sum(w**2) - 2), jnp.array([1.0, 0.5]))
    assert not jumps.invariant  # though its gradient is 0
    with pytest.raises(ValueError, match="factors"):
        js.sphere.check_scale_invariance(lambda w: 1.0, params, factors=(1.0,))


@pytest.mark.parametrize("norm", NORMS)
def test_third_derivatives_and_products_of_every_normalization(norm):
    """∇(vᵀHv) against differences of dense float64 Hessians, and batched products against these, in one program."""
    model, inputs = architecture("CNN" if norm == "instance" else "MLP", norm, scale_invariant=norm != "instance")
    if norm == "instance":
        model = model.clone(widths=(1,), outputs=1)
        inputs = inputs[:2, :4, :4]
    loss = loss_of(model, inputs)
    params = generic(model, inputs)
    w, unravel = ravel_pytree(params)
    v = np.random.default_rng(1).normal(size=(3, w.size))
    step = 1e-4

    @jit_once
    def evaluate(points, vectors):
        function = lambda w: loss(unravel(w))  # noqa: E731
        third = jax.grad(lambda w: js.curvature.rayleigh_quotient(function, w, vectors[0]))(points[0])
        products = jax.vmap(lambda v: js.curvature.hvp(function, points[0], v))(vectors)
        gradients = jax.lax.map(jax.grad(function), points)
        hessians = jax.lax.map(jax.hessian(function), points[:3])
        return third, products, gradients, hessians

    u = v[1] / np.linalg.norm(v[1])
    shift = step * np.concatenate([np.zeros((1, w.size)), [u, -u]])
    third, products, gradients, hessians = map(np.asarray, evaluate(jnp.asarray(np.asarray(w) + shift), jnp.asarray(v)))
    # the Hessian itself against differences of gradients, the products against the Hessian, the third against the Hessians
    np.testing.assert_allclose((gradients[1] - gradients[2]) / (2 * step), hessians[0] @ u, atol=1e-6 * np.abs(hessians[0]).max())
    np.testing.assert_allclose(products, v @ hessians[0], atol=1e-12 * np.abs(hessians[0]).max() * w.size)
    difference = (v[0] @ (hessians[1] - hessians[2]) @ v[0]) / (2 * step)
    assert abs(third @ u - difference) < 1e-6 * np.linalg.norm(third)
    if model.scale_invariant:  # H w = −∇L
        np.testing.assert_allclose(hessians[0] @ np.asarray(w), -gradients[0], atol=1e-10)


SECOND_ORDER = [("VGG", "group", "relu"), ("ResNet", "layer", "relu"), ("Transformer", "layer", "gelu")]


@pytest.mark.parametrize(("name", "norm", "activation"), SECOND_ORDER)
def test_batched_products_of_deep_networks_follow_the_gradient(name, norm, activation):
    model, inputs = architecture(name, norm, activation)
    loss = loss_of(model, inputs[:2])
    params = generic(model, inputs)
    w, unravel = ravel_pytree(params)
    v = np.random.default_rng(1).normal(size=(2, w.size))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    gradient = jax.grad(lambda w: loss(unravel(w)))

    @jit_once
    def evaluate(points, vectors):
        products = jax.vmap(lambda v: jax.jvp(gradient, (points[0],), (v,))[1])(vectors)
        return products, jax.lax.map(gradient, points)

    step = 1e-5
    points = np.asarray(w) + step * np.concatenate([np.zeros((1, w.size)), [v[1], -v[1]]])
    products, gradients = map(np.asarray, evaluate(jnp.asarray(points), jnp.asarray(v)))
    difference = (gradients[1] - gradients[2]) / (2 * step)
    assert np.linalg.norm(products[1] - difference) < 1e-5 * np.linalg.norm(difference)
    assert abs(products[1] @ v[0] - products[0] @ v[1]) < 1e-12 * np.linalg.norm(products)


def test_a_convolutional_network_in_numpy():
    """Training residuals with full-batch statistics, and test metrics with the statistics of the training set."""
    model = js.models.CNN(widths=(4,), norm="batch")
    train, test = (IMAGES, LABELS), (RNG.normal(loc=1.0, size=(5, 8, 8, 2)), np.arange(5) % 3)
    problem = js.problems.supervised(model, train, test)
    params = generic(model.clone(outputs=3), IMAGES)
    w = jax.tree.map(np.asarray, params)

    def hidden(x):
        return windows(x, 1) @ w["conv_0"]["kernel"].reshape(-1, 4) + w["conv_0"]["bias"]

    mean, variance = hidden(IMAGES).mean((0, 1, 2)), hidden(IMAGES).var((0, 1, 2))

    def predict(x):
        affine = w["norm_0"]["batch"]
        y = np.tanh((hidden(x) - mean) / np.sqrt(variance + 1e-5) * affine["scale"] + affine["bias"])
        y = sum(y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        return y.reshape(len(x), -1) @ w["dense_1"]["kernel"] + w["dense_1"]["bias"]

    residuals = predict(IMAGES) - np.eye(3)[LABELS]
    residuals_here, metrics = jit_once(lambda problem, w: (problem.residuals(w), problem.metrics(w)))(problem, params)
    np.testing.assert_allclose(residuals_here, residuals.ravel(), atol=1e-12)
    np.testing.assert_allclose(metrics["test_loss"], 0.5 * np.sum((predict(test[0]) - np.eye(3)[test[1]]) ** 2) / 5, rtol=1e-11)
    np.testing.assert_allclose(metrics["test_accuracy"], np.mean(predict(test[0]).argmax(1) == test[1]))


def test_a_residual_block_in_numpy():
    """ResNet with layers that pick pixels: the stem, one plain block and one that halves the image."""
    model = js.models.ResNet(depth=8, width=2, outputs=3, norm="none", activation="relu")
    params = jax.tree.map(lambda leaf: 0.1 * leaf, generic(model, IMAGES))
    w = jax.tree.map(np.asarray, params)

    def conv(x, index, stride=1):
        kernel = w[f"conv_{index}"]["kernel"]
        return windows(x, stride) @ kernel.reshape(-1, kernel.shape[-1]) + w[f"conv_{index}"]["bias"]

    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    x = relu(conv(IMAGES, 0))
    for index, stride in ((1, 1), (3, 2), (5, 2)):
        y = conv(relu(conv(x, index, stride)), index + 1)
        more = y.shape[-1] - x.shape[-1]
        x = relu(np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2))) + y)
    outputs = x.mean((1, 2)) @ w["dense_7"]["kernel"] + w["dense_7"]["bias"]
    np.testing.assert_allclose(jit_once(model.apply)({"params": params}, IMAGES), outputs, atol=1e-12)


def test_a_residual_network_predicts_with_training_statistics():
    model = js.models.ResNet(depth=8, width=4)
    halves = (IMAGES[:3], LABELS[:3]), (IMAGES[3:] + 1, LABELS[3:])
    both = tuple(np.concatenate(parts) for parts in zip(*halves, strict=True))
    make = lambda test: js.problems.supervised(model, (IMAGES, LABELS), test, loss="cross_entropy")  # noqa: E731
    params = generic(model.clone(outputs=3), IMAGES)
    evaluate = jit_once(lambda problem, w: (problem.loss(w), problem.metrics(w)))
    here = evaluate(make((IMAGES, LABELS)), params)
    np.testing.assert_allclose(here[1]["test_loss"], here[0], rtol=1e-12)
    parts = [evaluate(make(test), params)[1]["test_loss"] for test in (*halves, both)]
    np.testing.assert_allclose(parts[2], (parts[0] + parts[1]) / 2, rtol=1e-12)


def test_attention_is_causal_and_sees_positions():
    model, tokens = architecture("Transformer", "layer", "gelu")
    params = jax.tree.map(lambda leaf: 0.3 * leaf, generic(model, tokens))
    apply = jit_once(lambda tokens: model.apply({"params": params}, tokens))
    changed = tokens.copy()
    changed[:, 3] = (changed[:, 3] + 1) % 5
    first, second = np.asarray(apply(tokens)), np.asarray(apply(changed))
    np.testing.assert_array_equal(first[:, :3], second[:, :3])
    assert (np.abs(first - second)[:, 3:].max(-1) > 1e-3).all()
    same = np.asarray(apply(np.ones_like(tokens)))
    assert (np.abs(np.diff(same, axis=1)).max(-1) > 1e-3).all()


@pytest.mark.parametrize("name", ["VGG", "ViT", "Transformer"])
def test_models_follow_the_precision(name, precision):
    model, inputs = architecture(name, "group")
    inputs = inputs if name == "Transformer" else jnp.asarray(inputs, precision)
    variables, outputs = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), inputs))[::-1]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((variables, outputs))} == {precision}


def test_the_named_networks_have_their_layers():
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    count = lambda model: sum(  # noqa: E731
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    )
    # by hand: 9 c_in c_out + c_out for each convolution, 2 c for each affine map, one linear output
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    vgg = sum(9 * a * b + 3 * b for a, b in pairwise(channels)) + 512 * 10 + 10
    assert count(js.models.VGG11(outputs=10, norm="batch")) == vgg
    resnet = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64) + 64 * 10 + 10
    resnet += 3 * (7 * 16 + 6 * 32 + 6 * 64)
    assert count(js.models.ResNet20(outputs=10)) == resnet


MISUSE = {
    "no images": (lambda: js.models.CNN(outputs=3), VECTORS, "needs images"),
    "pooling": (lambda: js.models.CNN(widths=(2,), outputs=3, pooling="mean"), IMAGES, "pooling='mean'"),
    "even window": (lambda: js.models.CNN(widths=(2,), outputs=3, window=2), IMAGES, "window=2 must be odd"),
    "depth": (lambda: js.models.ResNet(depth=10, outputs=3), IMAGES, "depth=10 must be 6 n"),
    "patch": (lambda: js.models.ViT(patch=3, outputs=3), IMAGES, "patch=3"),
    "heads": (lambda: js.models.ViT(width=6, heads=4, outputs=3), IMAGES, "heads=4 does not divide"),
    "vocabulary": (lambda: js.models.Transformer(outputs=3), TOKENS, "vocabulary is not set"),
    "real tokens": (lambda: js.models.Transformer(vocabulary=5, outputs=3), VECTORS, "tokens must be integers"),
    "looking ahead": (lambda: js.models.Transformer(vocabulary=5, outputs=3, norm="instance"), TOKENS, "later positions"),
    "instance of vectors": (lambda: js.models.MLP(outputs=3, norm="instance"), VECTORS, "'instance' needs images"),
    "groups": (lambda: js.models.MLP(widths=(6,), outputs=3, norm="group", groups=4), VECTORS, "groups=4 does not divide the 6"),
    "two outputs": (lambda: js.models.MLP(outputs=2, norm="layer", scale_invariant=True), VECTORS, "at least 3"),
    "one weight": (lambda: js.models.MLP(outputs=2, norm="weight"), VECTORS[:, :1], "at least 2 weights"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_names_the_field(name):
    make, inputs, words = MISUSE[name]
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(make().init, jax.random.key(0), inputs)


def test_any_problem_on_the_sphere():
    problem = js.problems.supervised(js.models.MLP(widths=(4,)), (VECTORS, LABELS), (VECTORS + 1, LABELS))
    sphere = js.problems.scale_invariant(problem, radius=2.0)
    assert sphere.scale_invariant
    assert jax.tree.structure(sphere) == jax.tree.structure(js.problems.scale_invariant(problem, radius=2.0))
    w = generic(js.models.MLP(widths=(4,), outputs=3), VECTORS)
    there = jax.tree.map(lambda leaf: 2 * leaf / np.linalg.norm(flat(w)), w)
    evaluate = jit_once(lambda problem, w: (problem.loss(w), problem.residuals(w), problem.metrics(w)))
    for a, b in zip(jax.tree.leaves(evaluate(sphere, w)), jax.tree.leaves(evaluate(problem, there)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    assert js.sphere.check_scale_invariance(sphere, w).invariant
    assert js.problems.scale_invariant(js.problems.from_loss(lambda w, data: w @ w, lambda key: 0)).residuals_fn is None
    for wrong, words in (
        (lambda: js.problems.scale_invariant(3), "needs a Problem"),
        (lambda: js.problems.scale_invariant(problem, 0), "radius"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


def test_chunks_are_exact_and_save_memory():
    rng = np.random.default_rng(0)
    train, test = ((rng.normal(size=(n, 8, 8, 2)), np.arange(n) % 3) for n in (131, 10))
    model = js.models.CNN(widths=(4,), norm="group")
    params = generic(model.clone(outputs=3), train[0][:2])
    direction = generic(model.clone(outputs=3), train[0][:2], seed=1)

    def evaluate(problem, w, v):
        return problem.loss(w), problem.residuals(w), problem.metrics(w), js.curvature.hvp(problem.loss, w, v)

    values, memory = [], []
    for chunk in (None, 13):  # ten chunks and one sample
        compiled = jit_once(evaluate).lower(js.problems.supervised(model, train, test, chunk=chunk), params, direction).compile()
        values.append(compiled(js.problems.supervised(model, train, test, chunk=chunk), params, direction))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    for whole, chunked in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(chunked, whole, atol=1e-12 * np.abs(whole).max())
    assert memory[1] < memory[0] / 3


@pytest.mark.parametrize(("norm", "chunk", "words"), [("batch", 2, "statistics of the whole batch"), ("layer", 0, "chunk=0")])
def test_chunks_that_make_no_sense_are_refused(norm, chunk, words):
    with pytest.raises(ValueError, match=words):
        js.problems.supervised(js.models.MLP(widths=(4,), norm=norm), (VECTORS, LABELS), chunk=chunk)


def test_tokens_have_a_loss_each():
    """Cross-entropy and accuracy at the last positions, chunked or not, against the logits themselves."""
    targets = np.asarray(TOKENS[:, 2:])
    model = js.models.Transformer(width=8, depth=1, heads=2)
    whole, chunked = (
        js.problems.supervised(model, (TOKENS, targets), (TOKENS, targets), loss="cross_entropy", chunk=chunk)
        for chunk in (None, 4)
    )
    filled = model.clone(vocabulary=5, outputs=int(targets.max()) + 1)
    w = generic(filled, TOKENS)
    logits = np.asarray(jit_once(filled.apply)({"params": w}, TOKENS))[:, -3:]
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0])
    for problem in (whole, chunked):
        loss, metrics = jit_once(lambda problem, w: (problem.loss(w), problem.metrics(w)))(problem, w)
        np.testing.assert_allclose([loss, metrics["test_loss"]], expected, rtol=1e-12)
        np.testing.assert_allclose(metrics["train_accuracy"], np.mean(logits.argmax(-1) == targets))
    with pytest.raises(ValueError, match="one label for each token"):
        js.problems.supervised(js.models.MLP(), (VECTORS, np.eye(3, dtype=int)[LABELS]))
    with pytest.raises(ValueError, match="label 6 tokens"):
        js.problems.supervised(model, (TOKENS, np.ones((6, 6), int)), loss="cross_entropy")
