"""Lanczos iteration with full reorthogonalization: a symmetric operator seen from one vector."""

import jax
import jax.numpy as jnp

from jaxsharp._factorizations import eigh
from jaxsharp._precision import dot
from jaxsharp._types import Array


def quadrature(product, start: Array, steps: int) -> tuple[Array, Array]:
    """Returns the Gauss quadrature of startᵀ f(A) start, for a unit vector: nodes and weights (steps,).

    Σⱼ weightⱼ f(nodeⱼ) is exact for polynomials of degree below 2 steps. Where the vector lies in an invariant subspace of fewer
    dimensions than steps, the iteration ends there, the quadrature is exact and the remaining nodes have weight zero. A product
    that is not finite makes all of it NaN.

    Args:
        product: v -> A v on flat vectors.
        start: a unit vector.
        steps: number of products, at most its length.
    """
    tiny = 10 * float(jnp.finfo(start.dtype).eps) * start.size**0.5

    def expand(index, carry):
        basis, diagonal, side, vector, scale = carry
        basis = basis.at[index].set(vector)
        image = product(vector)
        scale = jnp.maximum(scale, jnp.max(jnp.abs(image)))
        image = image / jnp.where(scale > 0, scale, 1)  # so that squares neither vanish nor overflow
        projection = dot(vector, image)
        for _ in range(2):  # twice is enough to be orthogonal to rounding
            image = image - dot(dot(basis, image), basis)
        length = jnp.linalg.norm(image)
        goes_on = length > tiny
        vector = jnp.where(goes_on, image / jnp.where(goes_on, length, 1), 0)
        side = side.at[index].set(jnp.where(goes_on, length, 0) * scale)
        return basis, diagonal.at[index].set(projection * scale), side, vector, scale

    line = jnp.zeros((steps,), start.dtype)
    empty = jnp.zeros((steps, start.size), start.dtype)
    _, diagonal, side, _, scale = jax.lax.fori_loop(0, steps, expand, (empty, line, line, start, jnp.zeros((), start.dtype)))
    finite = jnp.isfinite(diagonal).all() & jnp.isfinite(side).all() & jnp.isfinite(scale)
    unit = jnp.where(finite & (scale > 0), scale, 1)
    matrix = jnp.diag(diagonal) + jnp.diag(side[:-1], 1) + jnp.diag(side[:-1], -1)
    values, vectors = eigh(jnp.where(finite, matrix / unit, 0))
    nodes = jnp.where(finite, values * unit, jnp.nan)
    return nodes, jnp.where(finite, vectors[0] ** 2, jnp.nan)
