"""Dense factorizations that are safe in a batch on a CPU: its members are factorized one after the other.

Batched LAPACK calls of jaxlib 0.10 are spread over the threads that run the program, and block the thread that made the call.
Two of them at a time on two cores wait for each other for ever; the QR and the SVD of a batch of four tall matrices were
enough. A call for one matrix never waits. Later releases factorize a batch one after the other themselves, so nothing is lost.
"""

from collections.abc import Callable
from functools import wraps

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular as _solve_triangular

from jaxsharp._members import one_after_another
from jaxsharp._types import Array


def one_by_one(function: Callable) -> Callable:
    """Makes a function of arrays run one member at a time under `vmap` on a CPU, however deep the nesting; elsewhere as usual.

    Args:
        function: arrays -> array or tuple of arrays.

    Returns:
        A function of the same arrays, with forward derivatives and without reverse ones.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> double = one_by_one(lambda a: 2 * a)
        >>> jax.vmap(double)(jnp.arange(3.0)).tolist()
        [0.0, 2.0, 4.0]
    """

    @jax.custom_batching.custom_vmap
    def call(*arrays):
        return function(*arrays)

    @call.def_vmap
    def _(size, batched, *arrays):
        if jax.default_backend() == "cpu":
            return one_after_another(call, batched, *arrays)
        values = jax.vmap(function, tuple(0 if has else None for has in batched))(*arrays)
        return values, jax.tree.map(lambda _: True, values)

    return wraps(function)(call)


SMALL_ON_GPU = 32
"""Largest matrices of which a GPU takes several at a time by Jacobi's method."""


@one_by_one
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, smallest first, and eigenvectors, a column each, of a symmetric matrix (n, n).

    On a GPU a small matrix is given twice: a batch goes to a solver that took 0.04 ms where that of a single 5 × 5 matrix took
    0.31 ms (H200), three times as long as a Hessian-vector product.
    """
    if jax.default_backend() == "gpu" and matrix.shape[0] <= SMALL_ON_GPU:
        values, vectors = jnp.linalg.eigh(jnp.stack([matrix, matrix]))
        return values[0], vectors[0]
    return tuple(jnp.linalg.eigh(matrix))


@one_by_one
def eigvalsh(matrix: Array) -> Array:
    """Eigenvalues of a symmetric matrix (n, n), smallest first."""
    return jnp.linalg.eigvalsh(matrix)


@one_by_one
def qr(matrix: Array) -> tuple[Array, Array]:
    """Orthonormal columns (m, min(m, n)) and the triangle of a matrix (m, n)."""
    return tuple(jnp.linalg.qr(matrix))


@one_by_one
def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Left vectors, singular values, largest first, and right vectors, a row each, of a matrix; the short form."""
    return tuple(jnp.linalg.svd(matrix, full_matrices=False))


@one_by_one
def cholesky(matrix: Array) -> Array:
    """Lower triangle L with L Lᵀ the positive matrix (n, n); NaN where it is not positive."""
    return jnp.linalg.cholesky(matrix)


@one_by_one
def solve_lower(triangle: Array, right: Array) -> Array:
    """Solves L x = b for a lower triangle (n, n) and b (n,) or (n, r)."""
    return _solve_triangular(triangle, right, lower=True)


@one_by_one
def solve_lower_transposed(triangle: Array, right: Array) -> Array:
    """Solves Lᵀ x = b for a lower triangle (n, n) and b (n,) or (n, r)."""
    return _solve_triangular(triangle, right, lower=True, trans=1)
