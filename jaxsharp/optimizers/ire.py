"""Implicit regularization enhancement (IRE): larger steps along flat directions, around any optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsharp._members import any_member
from jaxsharp._precision import tensordot
from jaxsharp._types import Array, Count, PyTree, ScalarLike
from jaxsharp.optimizers.estimators import Eigenspace, resolve
from jaxsharp.optimizers.objective import Objective, random_key
from jaxsharp.optimizers.optimizer import Optimizer, check_base, check_rates
from jaxsharp.optimizers.selection import smallest_fraction
from jaxsharp.transformation import as_transformation


class MaskState(NamedTuple):
    """Memory of `ire` with a mask: 1 byte a parameter, a parameter's own size more with `ema`, 8 bytes, and the base's.

    Attributes:
        count: completed steps.
        flat_mask: pytree of booleans, which coordinates are flat; none before the end of the warm-up.
        diagonal: running mean of the curvature estimates, up to a common factor; None without `ema`.
        hvps: Hessian-vector products spent so far.
        base: state of the base optimizer.
    """

    count: Count
    flat_mask: PyTree
    diagonal: PyTree | None
    hvps: Count
    base: optax.OptState


class SubspaceState(NamedTuple):
    """Memory of `ire` with an eigenspace: k vectors, 9 bytes, and the base's.

    Attributes:
        count: completed steps.
        sharp_vectors: pytree with a leading axis k, orthonormal eigenvectors of the sharp subspace; zero before the first search.
        converged: whether the last search converged.
        hvps: Hessian-vector products spent so far.
        base: state of the base optimizer.
    """

    count: Count
    sharp_vectors: PyTree
    converged: Array
    hvps: Count
    base: optax.OptState


@dataclass(frozen=True)
class _Ire:
    """The part of IRE that all estimators share: when to look, and by how much to enlarge."""

    flatness: Any
    cadence: tuple[int | None, int | None]
    kappa_schedule: Callable | None

    __name__ = "ire"

    def __call__(self, base, kappa, seed, every=None, warmup=None, **hyperparams):
        base = optax.with_extra_args_support(base)
        every, warmup = (
            static if static is not None else jnp.asarray(traced).astype(jnp.int32)
            for static, traced in zip(self.cadence, (every, warmup), strict=True)
        )

        def init(params):
            return self.flatness.start(params, base.init(params), **hyperparams)

        def update(updates, state, params=None, **extra):
            step = jnp.asarray(extra.get("step", state.count))
            displacement, inner = base.update(updates, state.base, params, **extra)
            objective = Objective("ire", params, extra)
            active = step >= warmup
            due = active & ((step - warmup) % every == 0)

            def look(state):
                found = self.flatness.look(state, objective, updates, random_key(extra, seed, step, tag=2), **hyperparams)
                return jax.tree.map(lambda new, old: jnp.where(due, new, old), found, state)

            # one branch runs for a whole grid, so what is due every n steps costs nothing between
            state = jax.lax.cond(any_member(due), look, lambda state: state, state._replace(base=None))
            strength = jnp.asarray(kappa, updates_dtype(updates))
            if self.kappa_schedule is not None:
                strength = strength * jnp.asarray(self.kappa_schedule(step), strength.dtype)
            strength = jnp.where(active, strength, 0)
            enlarged = self.flatness.enlarge(state, displacement, strength)
            return enlarged, state._replace(count=optax.safe_increment(state.count), base=inner)

        return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class _Mask:
    """Flat are the coordinates of least estimated curvature."""

    estimator: Any

    def start(self, params, inner, gamma, ema=None):
        del gamma
        nowhere = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=bool), params)
        mean = None if ema is None else optax.tree.zeros_like(params)
        zero = jnp.zeros((), jnp.int32)
        return MaskState(zero, nowhere, mean, zero, inner)

    def look(self, state, objective, gradient, key, gamma, ema=None):
        diagonal, hvps = self.estimator.estimate(objective, gradient, key)
        if ema is not None:  # from 0 without correction: a common factor changes no mask
            diagonal = jax.tree.map(
                lambda mean, new: mean * ema.astype(mean.dtype) + (1 - ema).astype(mean.dtype) * new.astype(mean.dtype),
                state.diagonal,
                diagonal,
            )
        mask = smallest_fraction(diagonal, gamma)
        kept = None if ema is None else diagonal
        return state._replace(flat_mask=mask, diagonal=kept, hvps=state.hvps + jnp.asarray(hvps, state.hvps.dtype))

    def enlarge(self, state, displacement, strength):
        one = jnp.ones((), strength.dtype)
        scale = lambda flat, dtype: jnp.where(flat, one + strength, one).astype(dtype)  # noqa: E731
        return jax.tree.map(lambda flat, d: d * scale(flat, d.dtype), state.flat_mask, displacement)


@dataclass(frozen=True)
class _Complement:
    """Flat is what is orthogonal to the top eigenvectors."""

    estimator: Eigenspace

    def start(self, params, inner):
        empty = jax.tree.map(lambda leaf: jnp.zeros((self.estimator.k, *leaf.shape), leaf.dtype), params)
        zero = jnp.zeros((), jnp.int32)
        return SubspaceState(zero, empty, jnp.ones((), bool), zero, inner)

    def look(self, state, objective, gradient, key):
        del gradient, key
        pairs = self.estimator.eigenpairs(objective, state.sharp_vectors)
        hvps = state.hvps + pairs.matvecs.astype(state.hvps.dtype)
        return state._replace(sharp_vectors=pairs.vectors, converged=pairs.converged, hvps=hvps)

    def enlarge(self, state, displacement, strength):
        rows, leaves = jax.tree.leaves(state.sharp_vectors), jax.tree.leaves(displacement)
        weights = sum(tensordot(row, leaf, leaf.ndim) for row, leaf in zip(rows, leaves, strict=True))

        def add(row, leaf):
            sharp = tensordot(weights.astype(leaf.dtype), row, 1)
            return leaf * (1 + strength).astype(leaf.dtype) - strength.astype(leaf.dtype) * sharp

        return jax.tree.map(add, state.sharp_vectors, displacement)


def updates_dtype(updates):
    """The dtype of the first leaf, in which hyper-parameters are kept."""
    leaves = jax.tree.leaves(updates)
    return leaves[0].dtype if leaves else jnp.result_type(float)


def ire(
    base: optax.GradientTransformation,
    kappa: ScalarLike,
    gamma: ScalarLike | None = 0.8,
    every: ScalarLike = 10,
    warmup: ScalarLike = 0,
    *,
    estimator="squared_gradient",
    ema: ScalarLike = 0.0,
    kappa_schedule: Callable | None = None,
    seed: ScalarLike = 0,
) -> Optimizer:
    """Implicit regularization enhancement: w ← w + d + κ P d, with d the base's whole displacement and P onto flat directions.

    Every `every` steps after a warm-up the curvature of each coordinate is estimated, h ← ema · h + (1 − ema) ĥ, and the
    round(γ D) coordinates of smallest h over all parameters are flat until the next time: P = diag(n), n ∈ {0, 1}^D. Halves are
    rounded to even; of equal entries the first by index are flat. With `js.optimizers.Eigenspace` P = I − V Vᵀ instead, V the
    top eigenvectors. The displacement d holds all that the base does, momentum and weight decay too. κ = 0 gives the base's
    updates bit for bit.

    Works in any optax loop, in `optax.chain`, `optax.masked` and `optax.inject_hyperparams`, under jit, vmap and sharding. An
    estimator may need extra arguments of `update`, see `js.optimizers.Objective`: none for `squared_gradient`,
    `sampled_loss_fn` for `fisher`, `loss_fn` for `hutchinson` and `eigenspace`, for example
    `update(gradient, state, params, loss_fn=lambda w: loss(w, batch))`. `js.simulate` and `js.sweep` pass them.

    Args:
        base: an optimizer of jaxsharp (`sam` too) or any optax transformation. In the factory of a sweep use one made outside
            of it, or `js.optimizers.from_factory`: an optax transformation hides its numbers and compares by identity.
        kappa: κ ≥ 0, traced.
        gamma: fraction γ in [0, 1] of flat coordinates, traced; None for `Eigenspace`.
        every: steps between estimates; a Python integer is static, an array is traced.
        warmup: steps of the base alone; the first estimate is at its end.
        estimator: `squared_gradient`, `fisher`, `hutchinson`, `eigenspace`, or an object such as
            `js.optimizers.Hutchinson(probes=4)`.
        ema: weight in [0, 1) of earlier estimates, traced; the number 0 keeps no running mean.
        kappa_schedule: step -> factor of κ, for example the learning rate's schedule over its largest value.
        seed: of the estimator's random numbers where the loop passes no `key`.

    Returns:
        An `Optimizer`. Cost beyond the base: one estimate and 32 comparisons a parameter (64 in float64) every `every` steps, in
        a grid too; one multiplication a parameter and step. Memory: `MaskState` and `SubspaceState` say.

    Raises:
        ValueError: for numbers out of range, an unknown estimator, or, while tracing, a missing extra argument.

    Example:
        >>> import jax.numpy as jnp, optax, jaxsharp as js
        >>> rule = js.optimizers.ire(optax.sgd(0.1), kappa=9.0, gamma=0.5)
        >>> gradient = jnp.array([1.0, 0.01])
        >>> updates, _ = rule.update(gradient, rule.init(gradient), gradient)
        >>> [round(float(x), 4) for x in updates]
        [-0.1, -0.01]

    Source: Wang et al. 2024; theory §7.
    """
    check_base("ire", base)
    check_rates(kappa=kappa, gamma=gamma, ema=ema, seed=seed)
    estimator = resolve(estimator)
    numbers = {"every": _whole("every", every, 1), "warmup": _whole("warmup", warmup, 0)}
    traced = {name: value for name, value in numbers.items() if not isinstance(value, int)}
    cadence = tuple(value if isinstance(value, int) else None for value in numbers.values())
    hyperparams = {"base": as_transformation(base), "kappa": kappa, "seed": seed, **traced}
    if isinstance(estimator, Eigenspace):
        if gamma is not None or not _is_zero(ema):
            raise ValueError("gamma and ema have no meaning for an eigenspace, which is no mask; pass gamma=None and ema=0.")
        return Optimizer(_Ire(_Complement(estimator), cadence, kappa_schedule), hyperparams)
    if gamma is None or _exceeds(gamma, 1) or _exceeds(ema, 1) or (not _is_traced(ema) and float(ema) == 1):
        raise ValueError(f"gamma must lie in [0, 1] and ema in [0, 1), got gamma={gamma!r} and ema={ema!r}.")
    hyperparams |= {"gamma": gamma} if _is_zero(ema) else {"gamma": gamma, "ema": ema}
    return Optimizer(_Ire(_Mask(estimator), cadence, kappa_schedule), hyperparams)


def _whole(name, value, least):
    """A static whole number, or an array as it is."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least:
        return int(value)
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return value


def _is_traced(value) -> bool:
    return isinstance(value, jax.core.Tracer)


def _is_zero(value) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _exceeds(value, bound) -> bool:
    return not _is_traced(value) and np.ndim(value) == 0 and float(value) > bound
