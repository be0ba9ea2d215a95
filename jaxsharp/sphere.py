"""Geometry of scale-invariant losses: directions on the unit sphere, and the rates that act on them."""

import jax
import jax.numpy as jnp

from jaxsharp._types import Array, Loss, Params, Scalar, ScalarLike
from jaxsharp.curvature import sharpness


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
