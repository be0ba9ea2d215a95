"""The largest eigenpairs by the plain block Davidson iteration, for evaluations inside flows.

A batched flow that searches with `top_eigenpairs` at every stage was seen to hang on a CPU (jax 0.10.1); with this one it does
not.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsharp._types import Array, Block, Count, MatVec, PyTree
from jaxsharp.curvature.eigenpairs import Eigenpairs


class _Search(NamedTuple):
    basis: Block  # orthonormal rows, then zero rows
    products: Block  # the operator applied to each row
    filled: Count  # rows in use, some of them possibly zero
    coordinates: Array  # (rows, rows) of all Ritz vectors in the basis, largest first, one a row
    values: Array  # of the k best directions in the basis
    residuals: Block  # the directions by which the basis grows next
    errors: Array  # relative norms of the residuals
    matvecs: Count


def davidson_eigenpairs(
    matvec: MatVec,
    like: PyTree,
    k: int = 1,
    guess: PyTree | None = None,
    tol: float = 1e-2,
    max_matvecs: int = 200,
    *,
    key: Array | None = None,
) -> Eigenpairs:
    """Finds the k largest (algebraic) eigenvalues of a symmetric operator, H vᵢ = λᵢ vᵢ.

    Block Davidson iteration without preconditioner: the basis grows by the residuals of the k best directions, each multiplied
    by the operator once; the products of everything kept are carried along, also through restarts. Started from a guess (the
    eigenvectors of a nearby point) it often ends after one or two rounds.

    Args:
        matvec: v -> H v on pytrees like `like`; symmetric.
        like: any pytree with the shapes and dtypes of one vector.
        k: how many pairs, at most the number of parameters.
        guess: pytree with a leading axis k; rows that are zero or not finite are replaced by random ones.
        tol: bound on the residuals, relative to the largest |λ| seen.
        max_matvecs: bound on the number of products.
        key: PRNG key of the random start; a fixed one by default.

    Returns:
        `Eigenpairs`. Where the bound on products is reached first, or a product is not finite, `converged` is False and the
        residuals say by how much. Cost: `matvecs` products; memory for 2 (3 k + 8) vectors.

    Raises:
        ValueError: when k is below 1 or above the number of parameters, or the bound allows no iteration.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> pairs = js.curvature.davidson_eigenpairs(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3), k=2)
        >>> [round(float(value), 3) for value in pairs.values], bool(pairs.converged)
        ([3.0, 1.0], True)

    Source: Davidson 1975; restarts after Wu and Simon 2000. The implementation is our own.
    """
    template, unravel = ravel_pytree(like)
    size, dtype = template.size, template.dtype
    if not 1 <= k <= size:
        raise ValueError(f"k={k} eigenpairs were asked for, but there are {size} parameters; choose 1 <= k <= {size}.")
    if max_matvecs < 2 * k:
        raise ValueError(f"max_matvecs={max_matvecs} allows no iteration for k={k}; give at least {2 * k}.")
    rows = 3 * k + 8
    kept = 2 * k + 2  # directions that survive a restart

    def apply(block):
        return _apply_rows(lambda row: ravel_pytree(matvec(unravel(row)))[0], block)

    def unfinished(search):
        wrong = jnp.isfinite(search.errors).all() & (search.errors > tol).any()
        return (search.matvecs == 0) | (wrong & (search.matvecs + k <= max_matvecs))

    def expand(search):
        basis, products, filled = _restart_when_full(search, k, kept)
        fresh = _orthonormalize(search.residuals, basis)
        at = (filled, jnp.zeros_like(filled))
        basis = jax.lax.dynamic_update_slice(basis, fresh, at)
        products = jax.lax.dynamic_update_slice(products, apply(fresh), at)
        values, coordinates = _ritz(basis, products)
        top, mixing = values[:k], coordinates[:k]
        residuals = mixing @ products - top[:, None] * (mixing @ basis)
        scale = jnp.max(jnp.where(jnp.isneginf(values), 0, jnp.abs(values)))
        norms = jnp.linalg.norm(residuals, axis=1)
        errors = jnp.where(norms > 0, norms / jnp.where(scale > 0, scale, 1), norms)
        return _Search(basis, products, filled + k, coordinates, top, residuals, errors, search.matvecs + k)

    empty = jnp.zeros((rows, size), dtype)
    zero = jnp.zeros((), jnp.int32)
    square, line = jnp.zeros((rows, rows), dtype), jnp.zeros((k,), dtype)
    block = _starting_block(guess, k, size, dtype, key)
    search = jax.lax.while_loop(unfinished, expand, _Search(empty, empty, zero, square, line, block, line, zero))
    return Eigenpairs(
        values=search.values,
        vectors=jax.vmap(unravel)(search.coordinates[:k] @ search.basis),
        residuals=search.errors,
        matvecs=search.matvecs,
        converged=(search.errors <= tol).all(),
    )


def _apply_rows(product, block):
    """Multiplies each row: one after the other on a CPU, where it is faster and smaller, else side by side."""
    if block.shape[0] == 1:
        return product(block[0])[None]
    if jax.default_backend() == "cpu":
        return jax.lax.map(product, block)
    return jax.vmap(product)(block)


def _starting_block(guess, k, size, dtype, key):
    key = jax.random.key(0) if key is None else key
    noise = jax.random.normal(key, (k, size), dtype)
    noise = noise / math.sqrt(size)
    if guess is None:
        return noise
    block = jax.vmap(lambda row: ravel_pytree(row)[0])(guess)[:k]
    if block.shape != noise.shape:
        raise ValueError(f"guess must hold {k} vectors of {size} parameters, got shape {block.shape}.")
    usable = jnp.isfinite(block).all(axis=1) & (jnp.linalg.norm(block, axis=1) > 0)
    return jnp.where(usable[:, None], block, noise)


def _ritz(basis, products):
    """Eigenpairs of the projection on the non-zero rows, largest first; the other rows come last, with the value −inf."""
    filled = jnp.sum(basis**2, axis=1) > 0.5
    projected = basis @ products.T
    projected = 0.5 * (projected + projected.T)
    below = -2 * jnp.linalg.norm(projected) - jnp.finfo(projected.dtype).tiny
    values, vectors = jnp.linalg.eigh(jnp.where(jnp.diag(~filled), below, projected))
    return jnp.where(jnp.arange(values.size) < filled.sum(), values[::-1], -jnp.inf), vectors[:, ::-1].T


def _restart_when_full(search, k, kept):
    """Replaces a full basis by its `kept` best directions; their products follow without a new one."""
    rows = search.basis.shape[0]

    def restart(search):
        best = jnp.where(jnp.arange(rows)[:, None] < kept, search.coordinates, 0)
        return best @ search.basis, best @ search.products, jnp.asarray(kept, jnp.int32)

    def leave(search):
        return search.basis, search.products, search.filled

    return jax.lax.cond(search.filled + k > rows, restart, leave, search)


def _orthonormalize(block, basis):
    """Makes the rows orthonormal to each other and to the basis; a row that depends on the others becomes zero."""
    tolerance = 10 * jnp.finfo(block.dtype).eps

    def improve(_, block):
        block = block - (block @ basis.T) @ basis
        block = _unit_rows(block, tolerance)
        weights, mixing = jnp.linalg.eigh(block @ block.T)
        weights = jnp.where(weights > block.shape[0] * tolerance, weights, jnp.inf)
        return (mixing / jnp.sqrt(weights)[None, :]).T @ block

    return jax.lax.fori_loop(0, 2, improve, _unit_rows(block, 0))  # twice is enough to be orthogonal to rounding


def _unit_rows(block, tolerance):
    norms = jnp.linalg.norm(block, axis=1, keepdims=True)
    return block / jnp.where(norms > tolerance, norms, jnp.inf)
