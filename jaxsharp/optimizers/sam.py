"""Sharpness-aware minimization around any optimizer."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsharp import sphere
from jaxsharp._types import Count, Params, PyTree, ScalarLike
from jaxsharp.optimizers.objective import Objective, random_key, random_like
from jaxsharp.optimizers.optimizer import Optimizer, check_base, check_rates
from jaxsharp.transformation import as_transformation

TOGETHER = 8
"""Most groups whose gradients are held at once."""


class SamState(NamedTuple):
    """Memory of `sam`: 4 bytes and the base's.

    Attributes:
        count: completed steps.
        base: state of the base optimizer.
    """

    count: Count
    base: optax.OptState


@dataclass(frozen=True)
class _Sam:
    ascent: str
    adaptive: bool
    group: int | None
    directions: int

    __name__ = "sam"

    def __call__(self, base, rho, floor, seed):
        base = optax.with_extra_args_support(base)

        def init(params):
            return SamState(jnp.zeros((), jnp.int32), base.init(params))

        def update(updates, state, params=None, **extra):
            objective = Objective("sam", params, extra)
            key = random_key(extra, seed, extra.get("step", state.count), tag=1) if self.ascent == "random" else None
            gradient = self._gradient(updates, objective, rho, floor, key)
            moved, inner = base.update(gradient, state.base, params, **extra)
            return moved, SamState(optax.safe_increment(state.count), inner)

        return optax.GradientTransformationExtraArgs(init, update)

    def _gradient(self, updates, objective, rho, floor, key):
        """The gradient that the base gets in place of ∇L(w)."""
        params = objective.here()
        if self.group is not None:
            return self._mean_over_groups(objective, rho, floor)
        if self.ascent == "gradient":
            return objective.gradient(self._ascend(params, updates, rho, floor))

        def add(index, total):
            noise = random_like(jax.random.fold_in(key, index), params, jax.random.normal)
            return jax.tree.map(jnp.add, total, objective.gradient(self._ascend(params, noise, rho, floor)))

        total = jax.lax.fori_loop(0, self.directions, add, optax.tree.zeros_like(updates))
        return jax.tree.map(lambda leaf: leaf / self.directions, total)

    def _ascend(self, params, direction, rho, floor) -> Params:
        """The point w + ρ T² d / ‖T d‖, T = 1, or |w| + floor where adaptive."""
        if self.adaptive:
            metric = jax.tree.map(lambda w: jnp.abs(w) + jnp.asarray(floor, w.dtype), params)
            direction = jax.tree.map(jnp.multiply, metric, direction)
        length = sphere.norm(direction)
        scale = jnp.asarray(rho, length.dtype) / jnp.where(length > 0, length, 1)
        if self.adaptive:
            direction = jax.tree.map(jnp.multiply, metric, direction)
        return jax.tree.map(lambda w, d: w + scale.astype(w.dtype) * d, params, direction)

    def _mean_over_groups(self, objective, rho, floor) -> PyTree:
        """The mean over groups of samples of ∇Lⱼ(w + εⱼ), a few groups at a time."""
        params, batch = objective.here(), objective.batch
        samples = jax.tree.leaves(batch)[0].shape[0]
        if samples % self.group:
            raise ValueError(f"sam with group={self.group} needs a number of samples that it divides, got {samples}.")
        groups = samples // self.group
        together = max(size for size in range(1, TOGETHER + 1) if groups % size == 0)
        shape = (groups // together, together, self.group)
        blocks = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), batch)

        def one(part):
            gradient = jax.grad(objective.batch_loss)
            return gradient(self._ascend(params, gradient(params, part), rho, floor), part)

        def add(total, block):
            several = jax.vmap(one)(block)
            return jax.tree.map(lambda sum_, leaf: sum_ + jnp.sum(leaf, axis=0), total, several), None

        total, _ = jax.lax.scan(add, optax.tree.zeros_like(params), blocks)
        return jax.tree.map(lambda leaf: leaf / groups, total)


def sam(
    base: optax.GradientTransformation,
    rho: ScalarLike,
    *,
    ascent: str = "gradient",
    adaptive: bool = False,
    group: int | None = None,
    directions: int = 1,
    floor: ScalarLike = 0.01,
    seed: ScalarLike = 0,
) -> Optimizer:
    """Sharpness-aware minimization: the base optimizer gets the gradient at w + ε in place of the one at w.

    Standard: ε = ρ ∇L(w) / ‖∇L(w)‖. `ascent="random"` (average-direction): the mean over `directions` draws of
    ε = ρ ξ / ‖ξ‖, ξ ~ N(0, I). `group=m` (m-sharpness; 1-sample SAM for m = 1): the mean over groups j of m consecutive samples
    of ∇Lⱼ(w + ρ ∇Lⱼ(w) / ‖∇Lⱼ(w)‖). `adaptive`: ε = ρ T² g / ‖T g‖ with T = |w| + floor per coordinate.

    The parameters never leave the true iterate: w + ε exists only inside `update`. The updates that come in are taken as
    ∇L(w). In an optax loop of your own pass what the rule needs as extra arguments (see `js.optimizers.Objective`):
    `update(gradient, state, params, loss_fn=lambda w: loss(w, batch))`, with `group` instead
    `batch_loss_fn=loss, batch=batch`; `js.simulate` and `js.sweep` pass it themselves.

    Args:
        base: an optimizer of jaxsharp or any optax transformation, which applies weight decay at w.
        rho: radius ρ ≥ 0, traced.
        ascent: `gradient` or `random`.
        adaptive: whether the radius is measured relative to the parameters.
        group: m, samples in a group; a whole number that divides the number of samples, or None.
        directions: draws a step for `ascent="random"`.
        floor: added to |w| where adaptive, ≥ 0.
        seed: of the random directions where the loop passes no `key`.

    Returns:
        An `Optimizer`. Cost beyond the base: 1 gradient a step (`directions` gradients with `ascent="random"`, 2 with `group`);
        4 bytes of state, and while it runs one vector (8 with `group`).

    Raises:
        ValueError: for numbers out of range, a choice that does not exist, or, while tracing, a missing extra argument.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxsharp as js
        >>> loss = lambda w: jnp.sum(w**4)
        >>> rule = js.optimizers.sam(optax.sgd(0.1), rho=0.5)
        >>> w = jnp.array([1.0, 0.0])
        >>> updates, _ = rule.update(jax.grad(loss)(w), rule.init(w), w, loss_fn=loss)
        >>> round(float(updates[0]), 3)  # −0.1 · 4 · 1.5³
        -1.35

    Source: Foret et al. 2021; m-sharpness and 1-sample SAM, Wen, Ma, Li 2023; adaptive, Kwon et al. 2021; average-direction,
    Wang et al. 2024; theory §6.
    """
    check_base("sam", base)
    check_rates(rho=rho, floor=floor, seed=seed)
    if ascent not in ("gradient", "random"):
        raise ValueError(f"ascent must be 'gradient' or 'random', got {ascent!r}.")
    for name, value in (("group", group), ("directions", directions)):
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__") or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1 that is not traced, got {value!r}.")
    if group is not None and ascent == "random":
        raise ValueError("group has no meaning for ascent='random', which looks at no samples; leave one of them out.")
    rule = _Sam(ascent, bool(adaptive), None if group is None else int(group), int(directions))
    return Optimizer(rule, {"base": as_transformation(base), "rho": rho, "floor": floor, "seed": seed})
