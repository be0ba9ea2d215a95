"""An optax transformation as a Dynamics."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxsharp._members import common_count
from jaxsharp._types import Array, Count, Params
from jaxsharp.dynamics import LARGEST, Dynamics, Slope, State
from jaxsharp.problems import Problem
from jaxsharp.status import Status, stopped


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["optimizer", "seed"],
    meta_fields=["keep_previous", "minibatch", "keep_slope"],
)
@dataclass(frozen=True)
class OptimizerDynamics:
    """The Dynamics of training with an optax transformation, w ← w + update(∇L(w)), L over all samples or over a minibatch.

    Minibatches go through the samples in a new random order each epoch, without those left over at its end; step and seed alone
    decide which samples a step sees.

    `update` gets these extra arguments, which transformations that do not know them ignore: `value` and `grad` (loss and
    gradient here), `value_fn` and `loss_fn` (the loss as a function of the parameters), `full_params` (all parameters, also
    inside `optax.masked`), `step` (the completed steps, one number for all members of a grid), and where the problem has
    samples `batch` with `batch_loss_fn(params, batch)`, where it has a likelihood `sampled_loss_fn(params, key)`, and with a
    seed `key`; the functions are those of the minibatch. A state
    with the fields `hvps` and `converged` (`js.optimizers.ire`) adds its products, and its doubts, to the member's.

    Attributes:
        optimizer: anything with optax's `init` and `update`, as a pytree whose leaves are hyper-parameters.
        keep_previous: whether states keep the parameters of one step earlier.
        seed: of minibatches and of the optimizer's random numbers, a whole number; None for an optimizer that brings its own.
        minibatch: samples a step, None for all.
        keep_slope: whether a step takes the loss and the gradient from a measurement at the same parameters, if there was one.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> problem = js.problems.valley()
        >>> dynamics = js.as_dynamics(js.optimizers.gd(0.5))
        >>> state = dynamics.init(problem, {"u": jnp.array(1.0), "v": jnp.array(0.5)})
        >>> float(dynamics.step(problem, state).params["v"])
        0.0
    """

    optimizer: optax.GradientTransformationExtraArgs
    keep_previous: bool = False
    seed: Array | int | None = None
    minibatch: int | None = None
    keep_slope: bool = False

    @property
    def hyperparams(self) -> dict:
        """Hyper-parameters by name, those of a wrapped optimizer too; empty for a bare optax transformation."""
        return _all_hyperparams(self.optimizer)

    @property
    def time_per_step(self) -> None:
        """An optimizer has no flow time."""
        return None

    def init(self, problem: Problem, params: Params) -> State:
        """Returns the state of step 0."""
        inner = self.optimizer.init(params)
        return State(
            params=params,
            inner=inner,
            hyperparams={name: value for name, value in self.hyperparams.items() if _is_scalar(value)},
            count=jnp.zeros((), jnp.int32),
            status=jnp.zeros((), jnp.int32),
            hvps=jnp.zeros((), jnp.int32),
            previous=params if self.keep_previous else None,
            rate=_find(inner, "rate"),
            order=None if self.minibatch is None else jnp.arange(_checked_samples(problem, self.minibatch), dtype=jnp.int32),
            slope=_no_slope(params) if self.keep_slope else None,
        )

    def step(self, problem: Problem, state: State) -> State:
        """Takes one optimizer step; a step from a loss, or to parameters, not finite or huge is not taken and sets DIVERGED."""
        if state.slope is not None:
            return self.advance(problem, state, jnp.ones((), jnp.int32))
        return self._move(problem, state, lambda part: jax.value_and_grad(part.loss)(state.params))

    def _move(self, problem, state, slope):
        """A step by the loss and the gradient that `slope(problem of the samples)` gives."""
        step = common_count(state.count)
        problem, order = self._minibatch_of(problem, state, step)
        value, gradient = slope(problem)
        extra = _extra_arguments(problem, state.params, step, value, gradient)
        if self.seed is not None:
            extra["key"] = jax.random.fold_in(jax.random.key(self.seed), _OPTIMIZER)
        update = optax.with_extra_args_support(self.optimizer).update
        updates, inner = update(gradient, state.inner, state.params, **extra)
        still = stopped(state.status)
        updates = jax.tree.map(lambda leaf, w: leaf * _gate(still, w), updates, state.params)
        params = optax.apply_updates(state.params, updates)
        bounded = jnp.stack([jnp.all(jnp.abs(leaf) < LARGEST) for leaf in jax.tree.leaves(params)]).all() & jnp.isfinite(value)
        moves = bounded & ~still
        after = replace(
            state,
            params=params,
            inner=inner,
            count=state.count + 1,
            previous=state.params if self.keep_previous else None,
            rate=_find(inner, "rate"),
            order=order,
            hvps=state.hvps + _spent(inner, state.inner),
        )
        kept = jax.tree.map(lambda new, old: jnp.where(moves, new, old), after, state)
        diverged = jnp.where(bounded, 0, int(Status.DIVERGED)).astype(state.status.dtype)
        doubtful = jnp.where(_find(kept.inner, "converged", True), 0, int(Status.EIGENPAIR_UNCONVERGED))
        return replace(kept, status=state.status | jnp.where(still, 0, diverged | doubtful.astype(diverged.dtype)))

    def advance(self, problem: Problem, state: State, steps: Count) -> State:
        """Takes steps, a number that may be traced; the first by the slope that a measurement has handed on, where one has."""

        def evaluated(_, state):
            return self._move(problem, state, lambda part: jax.value_and_grad(part.loss)(state.params))

        def handed_on(_, state):
            return self._move(problem, state, lambda _: (state.slope.value, state.slope.gradient))

        if state.slope is None:
            return jax.lax.fori_loop(0, steps, evaluated, state)
        known = common_count(state.slope.count) == common_count(state.count)
        steps = jnp.asarray(steps)
        first = jnp.where(known, jnp.minimum(steps, 1), 0).astype(steps.dtype)
        state = jax.lax.fori_loop(0, first, handed_on, state)
        return jax.lax.fori_loop(first, steps, evaluated, state)

    def params(self, state: State) -> Params:
        """Reads the parameters."""
        return state.params

    def _minibatch_of(self, problem, state, step):
        """The problem of this step's samples, and the order of samples in this epoch; all members share the step."""
        if self.minibatch is None:
            return problem, None
        if self.seed is None:
            raise ValueError("minibatches need a seed; pass seed= to js.as_dynamics.")
        samples = problem.samples
        epoch, position = jnp.divmod(step, jnp.asarray(samples // self.minibatch, step.dtype))

        def shuffle(order):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), _MINIBATCH), epoch)
            return jax.random.permutation(key, samples).astype(order.dtype)

        order = jax.lax.cond(position == 0, shuffle, lambda order: order, state.order)
        return problem.take(jax.lax.dynamic_slice(order, (position * self.minibatch,), (self.minibatch,))), order


_MINIBATCH, _OPTIMIZER = 1, 2  # streams of random numbers under one seed


def _no_slope(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Slope(jnp.zeros((), jax.tree.leaves(params)[0].dtype), zeros, jnp.full((), -1, jnp.int32))


def as_dynamics(
    rule, *, keep_previous: bool = False, seed: int | None = None, minibatch: int | None = None, keep_slope: bool = False
) -> Dynamics:
    """Makes a Dynamics of a flow, an optimizer of jaxsharp, or any optax transformation.

    Args:
        rule: a Dynamics (returned as it is), or anything with optax's `init` and `update`.
        keep_previous: whether an optimizer's states keep the parameters of one step earlier.
        seed: of an optimizer's minibatches and random numbers.
        minibatch: samples a step of an optimizer sees, None for all.
        keep_slope: whether an optimizer's step uses the loss and gradient of a measurement at the same parameters.

    Returns:
        A `Dynamics`.

    Raises:
        ValueError: for anything else, and for a flow with minibatches.

    Example:
        >>> import optax, jaxsharp as js
        >>> js.as_dynamics(optax.adam(1e-3)).hyperparams
        {}
    """
    if isinstance(rule, Dynamics):
        if minibatch is not None:
            raise ValueError("minibatch is for optimizers; a flow follows the full-batch loss.")
        return rule
    if hasattr(rule, "init") and hasattr(rule, "update"):
        return OptimizerDynamics(as_transformation(rule), keep_previous, seed, minibatch, keep_slope and minibatch is None)
    raise ValueError(
        f"expected an optimizer, a flow or an optax transformation, got {type(rule).__name__}; "
        "call the factory first, for example js.optimizers.gd(0.1)."
    )


def as_transformation(rule) -> optax.GradientTransformationExtraArgs:
    """Makes any optax transformation a pytree whose leaves are its hyper-parameters, so that it may wrap and be wrapped.

    Args:
        rule: an optimizer of jaxsharp (returned as it is), or anything with optax's `init` and `update`, whose numbers are
            then static: pass the same object again to reuse a compiled program.

    Returns:
        A transformation that takes extra arguments.

    Example:
        >>> import jax, optax
        >>> jax.tree.leaves(as_transformation(optax.sgd(0.1)))
        []
    """
    return rule if hasattr(rule, "hyperparams") else _BareTransformation(rule)


def _checked_samples(problem, minibatch) -> int:
    samples = problem.samples
    if isinstance(minibatch, bool) or not hasattr(minibatch, "__index__") or not 1 <= minibatch <= samples:
        raise ValueError(f"minibatch must be a whole number from 1 to the {samples} samples, got {minibatch!r}.")
    return samples


def _extra_arguments(problem, params, step, value, gradient) -> dict:
    def value_fn(
        params, loss_fn=None, full_params=None, step=None, sampled_loss_fn=None, batch_loss_fn=None, batch=None, key=None
    ):
        # optax's line searches refuse extra arguments that value_fn does not take
        return problem.loss(params)

    extra = {
        "value": value,
        "grad": gradient,
        "value_fn": value_fn,
        "loss_fn": problem.loss,
        "full_params": params,
        "step": step,
    }
    if problem.sampled_loss_fn is not None:
        extra["sampled_loss_fn"] = problem.sampled_loss
    if problem.take_fn is not None:
        extra["batch_loss_fn"] = lambda params, indices: problem.take(indices).loss(params)
        extra["batch"] = jnp.arange(problem.samples)
    return extra


def _gate(still, leaf):
    """Ones that the compiler does not know to be ones, zeros where nothing moves.

    Without this product a compiler rounds w − η g once where it rounds a wrapped w + 1 · (−η g) twice, and a wrapper that does
    nothing would not be the base bit for bit.
    """
    return jnp.where(still | jnp.isnan(leaf), 0, 1).astype(leaf.dtype)


def _all_hyperparams(rule) -> dict:
    own = dict(getattr(rule, "hyperparams", {}))
    wrapped = [_all_hyperparams(value) for value in own.values() if hasattr(value, "hyperparams")]
    return {name: value for found in [*wrapped, own] for name, value in found.items()}


def _find(inner, name, default=None):
    """A field of an optimizer's state, or of a state inside it."""
    if hasattr(inner, name):
        return getattr(inner, name)
    found = (_find(part, name) for part in inner) if isinstance(inner, tuple) else ()
    return next((part for part in found if part is not None), default)


def _spent(after, before):
    """Products that the optimizer spent in a step."""
    spent = _find(after, "hvps", 0) - _find(before, "hvps", 0)
    return jnp.asarray(spent, jnp.int32)


class _BareTransformation(optax.GradientTransformationExtraArgs):
    """An optax transformation as a static pytree; compares by identity, since its numbers are hidden in closures."""

    hyperparams: dict = {}  # noqa: RUF012

    def __new__(cls, transformation):
        extended = optax.with_extra_args_support(transformation)
        self = super().__new__(cls, extended.init, extended.update)
        self.original = transformation
        return self


jax.tree_util.register_pytree_node(
    _BareTransformation, lambda rule: ((), rule.original), lambda original, _: _BareTransformation(original)
)


def _is_scalar(value) -> bool:
    return (hasattr(value, "dtype") or isinstance(value, (int, float))) and jnp.ndim(value) == 0
