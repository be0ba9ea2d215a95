"""What an optimizer may ask of the loss beyond its gradient, out of optax's extra arguments of `update`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsharp._types import Array, Params, PyTree, Scalar


class Objective(NamedTuple):
    """The loss near the parameters, for rules that evaluate it elsewhere than at w.

    Made of the extra arguments of optax's `update`, each needed only by the rules that say so:

    - `loss_fn(params) -> scalar`: the loss whose gradient the updates are; close over the minibatch.
    - `grad_fn(params) -> gradient`: instead of `jax.grad(loss_fn)`, for example with a mean over devices.
    - `batch_loss_fn(params, batch) -> scalar` and `batch`: the mean loss of part of the samples; every array of `batch` has a
      leading sample axis.
    - `sampled_loss_fn(params, key) -> scalar`: the loss with labels drawn from the model's own predictions, which are
      constants of differentiation.
    - `full_params`: all parameters, needed inside `optax.masked` and `optax.partition`, which hide some from the rule.
    - `key`: PRNG key of the run; without it random numbers come from the rule's `seed`.
    - `step`: a count of completed steps that is not batched under `vmap`; by default the rule's own.

    Attributes:
        rule: who asks, for messages.
        params: where the parameters are; None where `update` got none.
        extra: the extra arguments.
    """

    rule: str
    params: Params
    extra: dict[str, Any]

    def gradient(self, params: Params) -> PyTree:
        """Evaluates ∇L, cost 1 gradient."""
        if self.extra.get("grad_fn") is None:
            return jax.grad(self.loss)(params)
        full = self.extra["grad_fn"](self.complete(params))
        return jax.tree.map(lambda seen, all_: seen if _is_hidden(seen) else all_, params, full, is_leaf=_is_hidden)

    def loss(self, params: Params) -> Scalar:
        """Evaluates L."""
        return self._required("loss_fn", "(params) -> scalar")(self.complete(params))

    def batch_loss(self, params: Params, batch: PyTree) -> Scalar:
        """Evaluates the mean loss of some samples."""
        return self._required("batch_loss_fn", "(params, batch) -> scalar")(self.complete(params), batch)

    @property
    def batch(self) -> PyTree:
        """All samples of this step, leading sample axis."""
        return self._required("batch", "arrays with a leading sample axis")

    def sampled_loss(self, params: Params, key: Array) -> Scalar:
        """Evaluates the loss with labels drawn from the model."""
        return self._required("sampled_loss_fn", "(params, key) -> scalar")(self.complete(params), key)

    def here(self) -> Params:
        """Returns the parameters, which these rules need."""
        if self.params is None:
            raise ValueError(f"{self.rule} needs the parameters; pass them as the third argument of update.")
        return self.params

    def complete(self, params: Params) -> Params:
        """Fills in the parameters that `optax.masked` hides."""
        full = self.extra.get("full_params")
        hidden = [leaf for leaf in jax.tree.leaves(params, is_leaf=_is_hidden) if _is_hidden(leaf)]
        if not hidden:
            return params
        if full is None:
            raise ValueError(
                f"{self.rule} sees only part of the parameters (optax.masked or optax.partition hides the others); pass all of "
                "them as the extra argument full_params of update."
            )
        return jax.tree.map(lambda seen, all_: all_ if _is_hidden(seen) else seen, params, full, is_leaf=_is_hidden)

    def _required(self, name, kind):
        if self.extra.get(name) is None:
            raise ValueError(
                f"{self.rule} needs the extra argument {name}, {kind}: call update(gradient, state, params, {name}=...); "
                "js.simulate and js.sweep pass it where the problem has it."
            )
        return self.extra[name]


def _is_hidden(node) -> bool:
    return isinstance(node, optax.MaskedNode)


def random_key(extra: dict[str, Any], seed, step, tag: int) -> Array:
    """Makes the PRNG key of one step of one rule.

    Args:
        extra: the extra arguments; `key` where the caller has a stream of its own.
        seed: of the rule, a whole number.
        step: completed steps.
        tag: distinguishes rules that wrap each other.

    Returns:
        A key.
    """
    key = extra.get("key")
    key = jax.random.key(0) if key is None else key
    for number in (tag, jnp.asarray(seed).astype(jnp.uint32), step):
        key = jax.random.fold_in(key, number)
    return key


def random_like(key: Array, params: Params, sample: Callable) -> Params:
    """Draws a pytree like the parameters.

    Args:
        key: PRNG key.
        params: gives shapes and dtypes.
        sample: `(key, shape, dtype) -> array`.

    Returns:
        A pytree like params, its leaves independent.
    """
    leaves, structure = jax.tree.flatten(params)
    drawn = [sample(jax.random.fold_in(key, index), leaf.shape, leaf.dtype) for index, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)
