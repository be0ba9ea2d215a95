"""The Problem: data, a pure model and a full-batch loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from jaxsharp._types import Array, Params, PyTree, Scalar


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["data"],
    meta_fields=[
        "init_fn",
        "loss_fn",
        "residuals_fn",
        "metrics_fn",
        "scale_invariant",
        "name",
        "take_fn",
        "sampled_loss_fn",
    ],
)
@dataclass(frozen=True)
class Problem:
    """A full-batch loss L(w) with everything needed to minimize and to measure it.

    A pytree: `data` is the only leaf-bearing field, the functions are static and compare by value, so other data of the same
    shape reuse a compiled program. Build one with a function of `jaxsharp.problems`.

    Attributes:
        data: arrays of any structure, handed to every function as its last argument.
        init_fn: `(key, data) -> params`.
        loss_fn: `(params, data) -> scalar`.
        residuals_fn: `(params, data) -> (m,)`, zero exactly on the minimizer manifold; None where there is none.
        metrics_fn: `(params, data) -> {name: scalar}`; None where there are none.
        scale_invariant: whether L(c w) = L(w) for every c > 0.
        name: for labels.
        take_fn: `(data, indices) -> data`, the training samples of these indices; `(data, None) -> how many there are`. None
            where the loss is no mean over samples.
        sampled_loss_fn: `(params, data, key) -> scalar`, the loss with labels drawn from the model's own predictions, which
            are constants of differentiation; None where the loss is no negative log-likelihood.

    Example:
        >>> import jax, jaxsharp as js
        >>> problem = js.problems.valley()
        >>> float(problem.loss({"u": 1.0, "v": 1.0}))
        1.0
    """

    data: PyTree
    init_fn: Callable
    loss_fn: Callable
    residuals_fn: Callable | None = None
    metrics_fn: Callable | None = None
    scale_invariant: bool = False
    name: str = "problem"
    take_fn: Callable | None = None
    sampled_loss_fn: Callable | None = None

    def init(self, key: Array) -> Params:
        """Draws initial parameters from a PRNG key."""
        return self.init_fn(key, self.data)

    def loss(self, params: Params) -> Scalar:
        """Evaluates the full-batch loss."""
        return self.loss_fn(params, self.data)

    def residuals(self, params: Params) -> Array:
        """Evaluates the residual vector (m,), which is zero exactly on the minimizer manifold."""
        if self.residuals_fn is None:
            raise ValueError(
                f"The problem {self.name!r} has no residuals, so it has no minimizer manifold to project on; "
                "use a squared loss, or pass residuals= to js.problems.from_loss."
            )
        return self.residuals_fn(params, self.data)

    def metrics(self, params: Params) -> dict[str, Scalar]:
        """Evaluates the problem's metrics by name; an empty dictionary where it has none."""
        return {} if self.metrics_fn is None else self.metrics_fn(params, self.data)

    @property
    def samples(self) -> int:
        """How many training samples there are."""
        return self._required("take_fn", "samples")(self.data, None)

    def take(self, indices: Array) -> "Problem":
        """Returns the problem whose training set are the samples of these indices."""
        return replace(self, data=self._required("take_fn", "samples")(self.data, indices))

    def sampled_loss(self, params: Params, key: Array) -> Scalar:
        """Evaluates the loss with labels drawn from the model; n times its squared gradient estimates the Fisher diagonal."""
        return self._required("sampled_loss_fn", "likelihood to draw labels from")(params, self.data, key)

    def _required(self, field, what):
        if getattr(self, field) is None:
            raise ValueError(
                f"The problem {self.name!r} has no {what}; use js.problems.supervised, or pass {field}= to js.problems.Problem."
            )
        return getattr(self, field)


@dataclass(frozen=True)
class _IgnoresData:
    function: Callable

    def __call__(self, argument, data):
        del data
        return self.function(argument)


def from_loss(
    loss: Callable,
    init: Callable,
    residuals: Callable | None = None,
    metrics: Callable | None = None,
    scale_invariant: bool = False,
    *,
    data: PyTree = (),
    name: str = "custom",
) -> Problem:
    """Makes a Problem of any differentiable full-batch loss L(w).

    Args:
        loss: `(params, data) -> scalar`.
        init: `(key) -> params`, initial parameters from a PRNG key.
        residuals: `(params, data) -> (m,)`, zero exactly on the minimizer manifold; needed by flows that stay on it.
        metrics: `(params, data) -> {name: scalar}`, recorded by the probe `metrics`.
        scale_invariant: whether L(c w) = L(w) for every c > 0, so that the sphere is the right place to measure.
        data: arrays of any structure, passed to the functions and never baked into a compiled program.
        name: for labels.

    Returns:
        A `Problem`. Pass the same function objects again to reuse compiled programs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> problem = js.problems.from_loss(
        ...     lambda w, data: jnp.sum(data * w**2), lambda key: jax.random.normal(key, (2,)), data=jnp.array([1.0, 4.0]))
        >>> float(problem.loss(jnp.ones(2)))
        5.0
    """
    for label, value in {"loss": loss, "init": init}.items():
        if not callable(value):
            raise ValueError(f"{label} must be a function, got {type(value).__name__}.")
    return Problem(
        data=data,
        init_fn=_IgnoresData(init),
        loss_fn=loss,
        residuals_fn=residuals,
        metrics_fn=metrics,
        scale_invariant=scale_invariant,
        name=name,
    )


def check_table(inputs, targets, *, names=("inputs", "targets"), tokens=False) -> tuple[Array, Array]:
    """Returns inputs and targets as arrays of the run's precision, checked; integer targets stay integer.

    Integer inputs stay integer, as int32, if they are tokens: where told so, or where the targets are integers of two axes.
    """
    arrays = []
    for label, value in zip(names, (inputs, targets), strict=True):
        try:
            array = jnp.asarray(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{label} must be a numeric array, got {type(value).__name__}: {error}") from None
        if array.size == 0:
            raise ValueError(f"{label} is empty (shape {array.shape}); give at least one sample.")
        if jnp.issubdtype(array.dtype, jnp.floating):
            if not bool(jnp.isfinite(array).all()):
                raise ValueError(f"{label} contains NaN or infinity; remove or impute those samples first.")
            array = array.astype(jnp.result_type(float))
        arrays.append(array)
    first, second = arrays
    if first.ndim < 2:
        raise ValueError(f"{names[0]} must have shape (samples, features, ...), got {first.shape}.")
    if second.ndim < 1 or second.shape[0] != first.shape[0]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of samples, got shapes {first.shape} and {second.shape}."
        )
    if not jnp.issubdtype(first.dtype, jnp.floating):
        integers = jnp.issubdtype(first.dtype, jnp.integer)
        tokens = integers and (tokens or (jnp.issubdtype(second.dtype, jnp.integer) and second.ndim == 2))
        if tokens and bool((first < 0).any()):
            raise ValueError(f"{names[0]} are tokens, so they must be 0 or larger.")
        first = first.astype(jnp.int32 if tokens else jnp.result_type(float))
    return first, second
