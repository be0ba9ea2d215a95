"""Supervised learning on the full batch: a flax model, a training set and a test set."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxsharp._types import Array
from jaxsharp.problems import chunks
from jaxsharp.problems.problem import Problem, check_table


class _Table(NamedTuple):
    inputs: Array
    targets: Array  # (n, outputs) real values, or integer labels (n,) or (n, length)
    labels: Array | None  # (n,) or (n, length) integers where the task is classification


class _Data(NamedTuple):
    train: _Table
    test: _Table | None
    shift: Array  # of the fixed read-out: predictions = scale * outputs + shift
    scale: Array


def squared_error(outputs: Array, targets: Array) -> Array:
    """Half the squared distance per sample, ½‖f(x) − y‖², shape (n,)."""
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


LOSSES = {"mse": squared_error, "cross_entropy": optax.softmax_cross_entropy_with_integer_labels}


@dataclass(frozen=True)
class _Network:
    """The model as pure functions of (params, data); compares by value."""

    model: nn.Module
    takes_train: bool

    def _apply(self, variables, inputs, train):
        options = {"train": train} if self.takes_train else {}
        return self.model.apply(variables, inputs, mutable=["batch_stats"], **options)

    def first_outputs(self, key, inputs):
        """Outputs of an untrained model, for their shape."""
        return self._apply(self.model.init(key, inputs), inputs, True)[0]

    def initialize(self, key, inputs):
        return self.model.init(key, inputs)["params"]

    def outputs(self, params, inputs):
        """Outputs before the read-out, with the inputs' own statistics, and these statistics."""
        return self._apply({"params": params}, inputs, True)

    def predict(self, params, data, table):
        """Predictions on a table with its own statistics, and these statistics."""
        outputs, statistics = self.outputs(params, table.inputs)
        return _read_out(outputs, data, table), statistics

    def predict_test(self, params, statistics, data, table):
        """Predictions on a table with the statistics of the training set."""
        outputs, _ = self._apply({"params": params, **statistics}, table.inputs, False)
        return _read_out(outputs, data, table)


def _read_out(outputs, data, table):
    """Predictions for the targets: those of tokens may be fewer than the positions, and are then those of the last."""
    if table.labels is not None and table.labels.ndim == 2:
        outputs = outputs[:, outputs.shape[1] - table.labels.shape[1] :]
    shift, scale = (jnp.expand_dims(x, range(outputs.ndim - x.ndim)) for x in (data.shift, data.scale))
    return scale * outputs + shift


@dataclass(frozen=True)
class _Init:
    network: _Network

    def __call__(self, key, data):
        return self.network.initialize(key, data.train.inputs)


@dataclass(frozen=True)
class _Loss:
    network: _Network
    per_sample: Callable
    chunk: int | None

    def __call__(self, params, data):
        def losses(table):
            return self.per_sample(self.network.predict(params, data, table)[0], table.targets)

        if self.chunk is None:
            return jnp.mean(losses(data.train))
        count = jax.eval_shape(losses, data.train).size  # samples, or tokens
        return chunks.total(lambda table: jnp.sum(losses(table)), data.train, self.chunk) / count


@dataclass(frozen=True)
class _SampledLoss:
    network: _Network
    per_sample: Callable

    def __call__(self, params, data, key):
        predictions, _ = self.network.predict(params, data, data.train)
        fixed = jax.lax.stop_gradient(predictions)
        if self.per_sample is squared_error:  # the negative log-likelihood of a normal distribution of variance 1
            labels = fixed + jax.random.normal(key, fixed.shape, fixed.dtype)
        else:
            labels = jax.random.categorical(key, fixed)
        return jnp.mean(self.per_sample(predictions, labels))


def _take(data, indices):
    if indices is None:
        return data.train.inputs.shape[0]
    return data._replace(train=jax.tree.map(lambda leaf: leaf[indices], data.train))


@dataclass(frozen=True)
class _Residuals:
    network: _Network
    chunk: int | None

    def __call__(self, params, data):
        def residuals(table):
            return self.network.predict(params, data, table)[0] - table.targets

        return chunks.each(residuals, data.train, self.chunk).ravel()


@dataclass(frozen=True)
class _Metrics:
    network: _Network
    per_sample: Callable
    chunk: int | None

    def __call__(self, params, data):
        if self.chunk is None:
            predictions, statistics = self.network.predict(params, data, data.train)
        else:
            predictions = chunks.each(lambda table: self.network.predict(params, data, table)[0], data.train, self.chunk)
            statistics = {}
        values = {}
        if data.train.labels is not None:
            values["train_accuracy"] = _accuracy(predictions, data.train.labels)
        if data.test is not None:
            predict = lambda table: self.network.predict_test(params, statistics, data, table)  # noqa: E731
            predictions = chunks.each(predict, data.test, self.chunk)
            values["test_loss"] = jnp.mean(self.per_sample(predictions, data.test.targets))
            if data.test.labels is not None:
                values["test_accuracy"] = _accuracy(predictions, data.test.labels)
        return values


def _accuracy(predictions, labels):
    return jnp.mean(jnp.argmax(predictions, axis=-1).astype(labels.dtype) == labels, dtype=predictions.dtype)


def supervised(
    model: nn.Module, train: Any, test: Any = None, loss: str | Callable = "mse", *, chunk: int | None = None
) -> Problem:
    """Makes the full-batch training loss of a flax model, L(w) = (1/n) Σᵢ ℓ(f(xᵢ; w), yᵢ).

    Training predictions use the statistics of the full training batch; test metrics use the statistics of the training set.
    A model with a field `outputs` (and `vocabulary`) left at None gets it from the data. For `loss="mse"` and a model with
    `scale_invariant=True` the normalized outputs pass a fixed affine read-out with the mean and scale of the training targets,
    so that they can reach them.

    Labels of shape (n, length) are one for each token: the loss and the accuracy are means over tokens, and where a sequence is
    longer than its labels these are those of its last positions. Integer inputs stay integers for a model with a field
    `vocabulary`, or where the labels are of tokens; all others become real numbers.

    Args:
        model: a flax linen module, called as `model(inputs)` or `model(inputs, train=bool)`; its params take the data's dtype
            if it follows `jaxsharp.models`. Its initial batch statistics, if any, live in the collection `batch_stats`.
        train: (inputs (n, ...), targets): vectors (n, features), images (n, height, width, channels) or tokens (n, length);
            integer labels (n,) or (n, length), or real targets (n,) or (n, outputs).
        test: the same, or None.
        loss: `mse` (ℓ = ½‖f − y‖², labels as one-hot), `cross_entropy` (labels), or a function (predictions, targets) -> (n,).
        chunk: number of samples evaluated at a time; None takes all at once. The sum over chunks is the same loss to rounding,
            and each chunk's intermediate values are recomputed for its derivative (about one more evaluation) instead of kept,
            so that the memory of a gradient or of a product follows the chunk, not n. Not with batch normalization, whose
            statistics join all samples.

    Returns:
        A `Problem`; for `mse` its residuals are (f(xᵢ) − yᵢ), flattened to (n · outputs,).

    Raises:
        ValueError: for wrong shapes, NaN, an unknown loss, labels of the wrong type, or chunks of a model with batch statistics.

    Example:
        >>> import jax, jaxsharp as js
        >>> train, test = js.data.digits(count=50)
        >>> problem = js.problems.supervised(js.models.MLP(widths=(8,)), train, test)
        >>> sorted(problem.metrics(problem.init(jax.random.key(0))))
        ['test_accuracy', 'test_loss', 'train_accuracy']
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is unknown; use one of {', '.join(LOSSES)} or a function.")
        per_sample = LOSSES[loss]
    else:
        per_sample = loss
    tokens = hasattr(model, "vocabulary")
    train_table = _table(train, "train", None, per_sample, tokens)
    outputs = _width(train_table, per_sample)
    known = outputs  # a model that says how many classes there are may meet new ones in the test set
    if per_sample is LOSSES["cross_entropy"]:
        known = max(outputs, getattr(model, "outputs", None) or 0)
    test_table = None if test is None else _table(test, "test", known, per_sample, tokens)
    if getattr(model, "outputs", 0) is None:
        model = model.clone(outputs=outputs)
    if tokens and model.vocabulary is None:
        model = model.clone(vocabulary=max(int(table.inputs.max()) + 1 for table in (train_table, test_table) if table))
    scale_invariant = bool(getattr(model, "scale_invariant", False))
    network = _Network(model, "train" in inspect.signature(type(model).__call__).parameters)
    squared = per_sample is squared_error
    shift, scale = _read_out_constants(train_table, model) if squared and scale_invariant else (0.0, 1.0)
    dtype = jnp.result_type(float)
    data = _Data(train_table, test_table, jnp.asarray(shift, dtype), jnp.asarray(scale, dtype))
    if train_table.labels is not None and train_table.labels.ndim == 2:
        _check_positions(network, train_table)
    if chunk is not None:
        _check_chunk(chunk, model, train_table)
    return Problem(
        data=data,
        init_fn=_Init(network),
        loss_fn=_Loss(network, per_sample, chunk),
        residuals_fn=_Residuals(network, chunk) if squared else None,
        metrics_fn=_Metrics(network, per_sample, chunk),
        scale_invariant=scale_invariant,
        name=f"supervised {type(model).__name__}",
        take_fn=_take,
        sampled_loss_fn=_SampledLoss(network, per_sample) if per_sample in LOSSES.values() else None,
    )


class SampleLoss(NamedTuple):
    """A full-batch loss taken apart into samples, L(w) = (1/n) Σᵢ loss(predict(w, inputs), targets)ᵢ.

    With a label for each token there is a loss for each, and L is the mean of all n T.

    Attributes:
        predict: `(params, inputs) -> outputs (n, ...)`, of tokens the T that have a label.
        loss: `mse` or `cross_entropy`, or a function `(outputs, targets) -> (n,)`, or `-> (n, T)`.
        data: (inputs, targets) of the training set.
        coupled: whether the output of a sample depends on the other samples, as with batch normalization.
    """

    predict: Callable
    loss: str | Callable
    data: tuple[Array, Array]
    coupled: bool


def sample_loss(problem: Problem, params: Any) -> SampleLoss:
    """Takes the loss of a supervised problem apart into model, loss per sample and data.

    Args:
        problem: made by `supervised`.
        params: any of its parameters, for their shapes.

    Returns:
        `SampleLoss`.

    Raises:
        ValueError: for another problem, or one that was left without samples.

    Example:
        >>> import jax, jaxsharp as js
        >>> problem = js.problems.supervised(js.models.MLP(widths=(8,)), js.data.digits(count=50)[0])
        >>> parts = js.problems.sample_loss(problem, problem.init(jax.random.key(0)))
        >>> parts.loss, parts.coupled
        ('mse', False)
    """
    if not isinstance(problem.loss_fn, _Loss):
        raise ValueError(
            f"the problem {problem.name!r} is not made of a model and a loss per sample; hand your own predict function to "
            "js.curvature.gauss_newton_operator and its like."
        )
    network, per_sample, data = problem.loss_fn.network, problem.loss_fn.per_sample, problem.data
    if data.train.inputs.shape[0] == 0:
        raise ValueError(f"the problem {problem.name!r} has no samples; take at least one.")

    def predict(params, inputs):
        return _read_out(network.outputs(params, inputs)[0], data, data.train)

    statistics = jax.eval_shape(lambda w: network.outputs(w, data.train.inputs)[1], params)
    name = next((name for name, function in LOSSES.items() if function is per_sample), per_sample)
    return SampleLoss(predict, name, (data.train.inputs, data.train.targets), bool(jax.tree.leaves(statistics)))


def _check_positions(network, table):
    outputs = jax.eval_shape(lambda key: network.first_outputs(key, table.inputs), jax.random.key(0)).shape
    if len(outputs) != 3 or outputs[1] < table.labels.shape[1]:
        raise ValueError(
            f"train targets are integers of shape {table.labels.shape}, one label for each token, but the model returns outputs "
            f"of shape {outputs} instead of (n, length, outputs); labels of samples have the shape (n,), and one-hot targets are "
            "real numbers."
        )


def _check_chunk(chunk, model, table):
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk={chunk!r} must be a whole number of samples, at least 1, or None.")
    variables = jax.eval_shape(model.init, jax.random.key(0), table.inputs)
    if "batch_stats" in variables:
        raise ValueError(
            "chunk= would change the loss: this model normalizes with the statistics of the whole batch, which a chunk does not "
            "have; pass chunk=None, or another norm."
        )


def _table(pair, label, outputs, per_sample, tokens):
    try:
        inputs, targets = pair
    except (TypeError, ValueError):
        raise ValueError(f"{label} must be a pair (inputs, targets), got {type(pair).__name__}.") from None
    inputs, targets = check_table(inputs, targets, names=(f"{label} inputs", f"{label} targets"), tokens=tokens)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        if targets.ndim > 2 or bool((targets < 0).any()):
            raise ValueError(f"{label} targets are integers, so they must be labels of shape (n,) or (n, length), 0 or larger.")
        if targets.ndim == 2 and (inputs.ndim < 2 or targets.shape[1] > inputs.shape[1]):
            raise ValueError(f"{label} targets label {targets.shape[1]} tokens, but a sequence has {inputs.shape[1]}.")
        labels = targets.astype(jnp.int32)
        if outputs is not None and (per_sample in LOSSES.values() or labels.ndim == 2) and int(labels.max()) >= outputs:
            raise ValueError(f"{label} targets has the label {int(labels.max())}, which the training set does not have.")
        if per_sample is not squared_error:
            return _Table(inputs, labels, labels)
        classes = int(labels.max()) + 1 if outputs is None else outputs
        return _Table(inputs, jax.nn.one_hot(labels, classes, dtype=jnp.result_type(float)), labels)
    if per_sample is LOSSES["cross_entropy"]:
        raise ValueError(f"loss='cross_entropy' needs integer labels, but {label} targets have dtype {targets.dtype}.")
    return _Table(inputs, targets[:, None] if targets.ndim == 1 else targets, None)


def _width(table, per_sample):
    if table.labels is not None and per_sample is not squared_error:
        return int(table.labels.max()) + 1
    return table.targets.shape[-1]


def _read_out_constants(table, model):
    """Mean and scale that let normalized outputs reach the targets: per output for batch statistics, else over all."""
    per_output = getattr(model, "norm", None) == "batch" and not getattr(model, "fixed_read_out", False)
    axis = tuple(range(table.targets.ndim - 1)) if per_output else None
    scale = jnp.std(table.targets, axis=axis, keepdims=True)
    if bool(jnp.any(scale == 0)):
        raise ValueError("train targets have an output that never varies; drop that class or output.")
    return jnp.mean(table.targets, axis=axis, keepdims=True), scale
