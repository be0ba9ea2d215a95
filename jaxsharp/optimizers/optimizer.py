"""The Optimizer: an optax transformation whose hyper-parameters are data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsharp._types import ScalarLike


class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation built anew from its hyper-parameters at each call, so that these can be traced.

    Has optax's `init` and `update`, so it works in any optax loop and in `optax.chain`. A pytree: the hyper-parameters are its
    leaves, the rule is static and compares by value, so a learning-rate axis costs one compile.

    Attributes:
        rule: `(**hyperparams) -> optax transformation`, a function at module level.
        hyperparams: name -> scalar, or a nested pytree such as another Optimizer.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> optimizer = js.optimizers.gd(0.5)
        >>> updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
        >>> updates.tolist()
        [-0.5, -0.5]
    """

    def __new__(cls, rule: Callable, hyperparams: dict):
        """Makes the transformation of a rule and its hyper-parameters."""

        def init(params):
            return rule(**hyperparams).init(params)

        def update(updates, state, params=None, **extra):
            typed = {name: _like(value, updates) for name, value in hyperparams.items()}
            transformation = optax.with_extra_args_support(rule(**typed))
            return transformation.update(updates, state, params, **extra)

        self = super().__new__(cls, init, update)
        self.rule = rule
        self.hyperparams = hyperparams
        return self

    def __repr__(self) -> str:
        """Shows the rule and its hyper-parameters."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.hyperparams.items())
        return f"{self.rule.__name__.strip('_')}({arguments})"


def _flatten(optimizer):
    names = tuple(optimizer.hyperparams)
    return tuple(optimizer.hyperparams.values()), (optimizer.rule, names)


jax.tree_util.register_pytree_node(
    Optimizer, _flatten, lambda aux, values: Optimizer(aux[0], dict(zip(aux[1], values, strict=True)))
)


def _like(value, updates):
    """A number in the dtype of the gradients, so that a float64 rate does not promote float32 parameters."""
    leaves = jax.tree.leaves(updates)
    is_number = isinstance(value, (float, int, np.generic, np.ndarray, jax.Array)) and not isinstance(value, bool)
    return jnp.asarray(value, leaves[0].dtype) if is_number and leaves else value


def from_factory(factory: Callable, **hyperparams: ScalarLike) -> Optimizer:
    """Makes an Optimizer of any optax factory, with the given arguments as traced hyper-parameters.

    Args:
        factory: for example `optax.adam`; must accept traced scalars for these arguments.
        **hyperparams: its numeric arguments by name.

    Returns:
        An `Optimizer`; `learning_rate` and `weight_decay`, where given, are seen by the probes.

    Example:
        >>> import optax, jaxsharp as js
        >>> js.optimizers.from_factory(optax.adam, learning_rate=1e-3).hyperparams
        {'learning_rate': 0.001}
    """
    return Optimizer(factory, hyperparams)


def check_base(rule: str, base) -> None:
    """Raises a ValueError where what should be wrapped is no optimizer."""
    if not (hasattr(base, "init") and hasattr(base, "update")):
        raise ValueError(
            f"{rule} wraps an optimizer or an optax transformation, got {type(base).__name__}; "
            f"call the factory first, for example js.optimizers.{rule}(js.optimizers.gd(0.1), ...)."
        )


def check_rates(**rates: ScalarLike) -> None:
    """Raises a ValueError for a concrete rate that is negative or not a number; traced rates pass."""
    for name, value in rates.items():
        if isinstance(value, jax.core.Tracer) or value is None:
            continue
        try:
            number = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be a number, got {value!r}.") from None
        if number.ndim == 0 and not (np.isfinite(number) and number >= 0):
            raise ValueError(f"{name} must be finite and at least 0, got {value!r}.")
