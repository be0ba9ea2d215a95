"""Geometry of scale-invariant losses: directions on the unit sphere, and the rates that act on them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._precision import in_full_precision, vdot
from jaxsharp._types import Array, Loss, Params, Scalar, ScalarLike
from jaxsharp.curvature import sharpness
from jaxsharp.problems import Problem


def norm(params: Params) -> Scalar:
    """Evaluates the Euclidean norm ‖w‖ over all parameters at once.

    Args:
        params: any pytree of floating arrays.

    Returns:
        A scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> float(norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])}))
        5.0
    """
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)))


def normalize(params: Params) -> Params:
    """Projects parameters to the unit sphere, θ = w / ‖w‖.

    Args:
        params: any pytree of floating arrays, not all zero.

    Returns:
        A pytree like params, of unit norm.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> [round(float(x), 3) for x in js.sphere.normalize(jnp.array([3.0, 4.0]))]
        [0.6, 0.8]
    """
    length = norm(params)
    return jax.tree.map(lambda leaf: leaf / length.astype(leaf.dtype), params)


def effective_learning_rate(params: Params, learning_rate: ScalarLike, weight_decay: ScalarLike = 0.0) -> Scalar:
    """Evaluates η̃ = η̂ / ((1 − η̂ λ̂) ‖w‖²), the learning rate of the direction θ under GD with weight decay.

    On a scale-invariant loss the direction of GD+WD does projected GD on the sphere with this rate.

    Args:
        params: the parameters w.
        learning_rate: η̂.
        weight_decay: λ̂.

    Returns:
        A scalar.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> float(js.sphere.effective_learning_rate(jnp.array([2.0, 0.0]), 1.0))
        0.25

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    return learning_rate / ((1 - learning_rate * weight_decay) * norm(params) ** 2)


def intrinsic_learning_rate(learning_rate: ScalarLike, weight_decay: ScalarLike) -> Array:
    """Evaluates η_in = √(2 η̂ λ̂), which sets the size and the period of the oscillation of GD with weight decay.

    Args:
        learning_rate: η̂.
        weight_decay: λ̂.

    Returns:
        η_in, in the shape of the arguments.

    Example:
        >>> import jaxsharp as js
        >>> round(float(js.sphere.intrinsic_learning_rate(0.5, 0.01)), 6)
        0.1

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    return jnp.sqrt(2 * jnp.asarray(learning_rate) * jnp.asarray(weight_decay))


def spherical_sharpness(loss: Loss, params: Params, **options) -> Scalar:
    """Evaluates λ1(H(θ)) at θ = w / ‖w‖, which for a scale-invariant loss equals ‖w‖² λ1(H(w)).

    Args:
        loss: `(params) -> scalar`.
        params: the parameters w, of any norm.
        **options: of `jaxsharp.curvature.sharpness`.

    Returns:
        A scalar, differentiable in params. Cost: that of `jaxsharp.curvature.sharpness`.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> loss = lambda w: (w[0] ** 2 + 2 * w[1] ** 2) / jnp.sum(w**2)
        >>> round(float(js.sphere.spherical_sharpness(loss, jnp.array([5.0, 0.0]))), 3)
        2.0

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    return sharpness(loss, normalize(params), **options)


class ScaleError(NamedTuple):
    """How far a loss is from invariance under scaling of some parameters.

    Attributes:
        change: largest |L(with them times c) − L(w)| over the factors c, relative to the larger of the two losses.
        radial: |⟨part, ∂L/∂part⟩| / (‖w‖ ‖∇L‖), which is 0 where infinitesimal scaling changes nothing.
    """

    change: float
    radial: float


class ScaleInvariance(NamedTuple):
    """What `check_scale_invariance` saw.

    Attributes:
        invariant: whether L(c w) = L(w) within the tolerance, all parameters scaled at once.
        total: the errors of all parameters at once.
        leaves: the errors of each leaf scaled by itself, by name, such as `dense_0/bias`.
        breaking: names of the leaves that break the invariance, those with an error above the tolerance, worst first; empty
            where the whole is invariant, which single leaves need not be (as factors whose scales cancel).
    """

    invariant: bool
    total: ScaleError
    leaves: dict[str, ScaleError]
    breaking: tuple[str, ...]


@in_full_precision
def check_scale_invariance(
    loss: Loss | Problem, params: Params, *, factors: Sequence[float] = (0.5, 4.0), tol: float | None = None
) -> ScaleInvariance:
    """Checks numerically that L(c w) = L(w) and ⟨w, ∇L(w)⟩ = 0, and names the leaves that break it.

    Powers of two as factors scale without rounding, so that an exactly scale-invariant loss returns nearly the same bits.

    Args:
        loss: `(params) -> scalar`, or a Problem.
        params: where to check, not a minimizer; generic, so give zero biases other values first (see the example).
        factors: values of c, above 0.
        tol: largest acceptable error; by default the dtype's resolution to the power 3/4, 2e-12 in float64 and 6e-6 in float32.

    Returns:
        A `ScaleInvariance`. Cost: 1 gradient, and for each factor one evaluation more than there are leaves.

    Raises:
        ValueError: for factors that are not above 0, or that are all 1.

    Example:
        >>> import jax, numpy as np, jaxsharp as js
        >>> data = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6) % 3
        >>> problem = js.problems.supervised(js.models.MLP(widths=(4,), norm="batch"), data)
        >>> params = jax.tree.map(lambda leaf: leaf + 0.1, problem.init(jax.random.key(0)))
        >>> report = js.sphere.check_scale_invariance(problem, params)
        >>> report.invariant, "norm_0/batch/scale" in report.breaking
        (False, True)

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    if not all(factor > 0 for factor in factors) or all(factor == 1 for factor in factors):
        raise ValueError(f"factors must be above 0 and not all 1, got {tuple(factors)}.")
    evaluate = loss.loss if isinstance(loss, Problem) else loss
    paths, structure = jax.tree.flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    leaves = [jnp.asarray(leaf) for _, leaf in paths]
    count = len(leaves)
    rows = [np.ones((1, count))]
    for factor in factors:
        rows += [np.full((1, count), factor), 1 + (factor - 1) * np.eye(count)]
    dtype = jnp.result_type(*(leaf.dtype for leaf in leaves))

    def scaled(row, leaves):
        return evaluate(structure.unflatten([leaf * row[i].astype(leaf.dtype) for i, leaf in enumerate(leaves)]))

    def measure(rows, leaves):
        losses = jax.lax.map(lambda row: scaled(row, leaves), rows)
        gradient = jax.grad(lambda leaves: evaluate(structure.unflatten(leaves)))(leaves)
        along = jnp.stack([vdot(leaf, slope).astype(dtype) for leaf, slope in zip(leaves, gradient, strict=True)])
        return losses, along, norm(leaves) * norm(gradient)

    losses, along, size = (np.asarray(value) for value in jax.jit(measure)(jnp.asarray(np.concatenate(rows), dtype), leaves))
    here, there = losses[0], losses[1:].reshape(len(factors), 1 + count)
    changes = np.max(np.abs(there - here) / np.maximum(np.maximum(np.abs(there), np.abs(here)), np.finfo(dtype).tiny), axis=0)
    radial = np.abs(np.concatenate([[along.sum()], along])) / np.maximum(size, np.finfo(dtype).tiny)
    errors = [ScaleError(float(change), float(slope)) for change, slope in zip(changes, radial, strict=True)]
    tol = float(np.finfo(dtype).eps) ** 0.75 if tol is None else tol
    invariant = all(error <= tol for error in errors[0])  # a NaN is not
    found = dict(zip(names, errors[1:], strict=True))
    worst = sorted((name for name in names if not all(error <= tol for error in found[name])), key=lambda name: -max(found[name]))
    return ScaleInvariance(invariant, errors[0], found, () if invariant else tuple(worst))
