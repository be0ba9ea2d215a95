"""Hessian-vector products, the only place in the library that nests derivatives for the Hessian."""

import jax

from jaxsharp._types import Loss, MatVec, Params, PyTree


def hvp(loss: Loss, params: Params, v: PyTree) -> PyTree:
    """Multiplies the Hessian of a loss by a vector, H(w) v = d/dε ∇L(w + ε v) at ε = 0.

    Forward over reverse mode, so nothing of size D² is formed.

    Args:
        loss: `(params) -> scalar`, twice differentiable.
        params: the point w, any pytree of floating arrays.
        v: a pytree like params.

    Returns:
        H(w) v, a pytree like params. Cost: 1 product, about 2 gradients.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> js.curvature.hvp(lambda w: jnp.sum(w**4), jnp.ones(2), jnp.array([1.0, 0.0])).tolist()
        [12.0, 0.0]

    Source: Pearlmutter 1994.
    """
    return jax.jvp(jax.grad(loss), (params,), (v,))[1]


def hessian_operator(loss: Loss, params: Params) -> MatVec:
    """Linearizes the gradient once and returns the map v -> H(w) v, for many products at one point.

    Args:
        loss: `(params) -> scalar`, twice differentiable.
        params: the point w.

    Returns:
        A function on pytrees like params. Cost: the linearization about 1 gradient and its intermediate values held in
        memory, then 1 product per call.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> product = js.curvature.hessian_operator(lambda w: jnp.sum(w**4), jnp.ones(2))
        >>> product(jnp.array([0.0, 2.0])).tolist()
        [0.0, 24.0]
    """
    return jax.linearize(jax.grad(loss), params)[1]
