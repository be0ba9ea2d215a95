"""Matrix completion by two factors behind a batch normalization."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._factorizations import qr, svd
from jaxsharp._types import Array
from jaxsharp.problems.problem import Problem


class _Entries(NamedTuple):
    rows: Array  # (m,) indices
    columns: Array
    values: Array  # (m,)


class _Data(NamedTuple):
    observed: _Entries
    hidden: _Entries | None
    mean: Array  # of the observed values
    scale: Array  # their standard deviation


@dataclass(frozen=True)
class _Init:
    """Standard normal factors, scaled to unit norm together."""

    rows: int
    columns: int
    rank: int

    def __call__(self, key, data):
        left, right = jax.random.split(key)
        factors = {
            "left": jax.random.normal(left, (self.rows, self.rank), data.mean.dtype),
            "right": jax.random.normal(right, (self.columns, self.rank), data.mean.dtype),
        }
        length = jnp.sqrt(sum(jnp.sum(factor**2) for factor in factors.values()))
        return jax.tree.map(lambda factor: factor / length, factors)


def _product(params, entries):
    # the whole of U Vᵀ, since gathering rows of factors costs more: their derivative scatters rank times as many numbers
    return (params["left"] @ params["right"].T)[entries.rows, entries.columns]


def _predict(params, data, entries):
    """Predictions for entries, normalized with the statistics of the observed ones."""
    observed = _product(params, data.observed)
    outputs = (_product(params, entries) - jnp.mean(observed)) / jnp.std(observed)
    return data.scale * outputs + data.mean


def _residuals(params, data):
    return _predict(params, data, data.observed) - data.observed.values


def _loss(params, data):
    return jnp.mean(_residuals(params, data) ** 2)


def _metrics(params, data):
    # the singular values of U Vᵀ are those of the product of the triangles of U and V
    left, right = (qr(params[name])[1] for name in ("left", "right"))
    singular = svd(left @ right.T)[1]
    values = {"nuclear_norm": data.scale * jnp.sum(singular) / jnp.std(_product(params, data.observed))}
    if data.hidden is not None:
        values["test_loss"] = jnp.mean((_predict(params, data, data.hidden) - data.hidden.values) ** 2)
    return values


def matrix_completion(matrix, observed, rank: int | None = None) -> Problem:
    """Makes L(U, V) = mean over observed (i, j) of (σ_y BN((U Vᵀ)_ij) + μ_y − M_ij)², scale-invariant.

    BN subtracts the mean and divides by the standard deviation of U Vᵀ over all N observed entries; μ_y and σ_y are those of
    the observed M_ij and fixed. Hidden entries are predicted with the same statistics. What follows from this:

    - L depends on the directions of U and of V, each by itself, so L(c U, c' V) = L(U, V) for c, c' > 0; and on U Vᵀ alone, so
      L(U A, V A⁻ᵀ) = L(U, V) for every invertible A.
    - The minimizers are the factors with (U Vᵀ)_ij = a M_ij + b on the observed entries, for any a > 0 and b. There the
      Jacobian of the N residuals has rank at most N − 2: BN fixes the mean and the norm of its outputs.
    - There the Hessian is (2/N) Jᵀ J with J = (σ_y/s) (I − 11ᵀ/N − ttᵀ/N) 𝒜, where s is the standard deviation of U Vᵀ over
      the observed entries, t the standardized M_ij, and 𝒜(δU, δV) = δU Vᵀ + U δVᵀ on them. So at a fixed ‖U‖² + ‖V‖² the
      spherical sharpness falls as s grows: less sharp is who needs shorter factors for the same spread, which is in the spirit
      of a small nuclear norm, 2 ‖Z‖_* = min ‖U‖² + ‖V‖² over Z = U Vᵀ.

    Args:
        matrix: (rows, columns) real values M; hidden entries may be NaN, and are then not part of the test loss.
        observed: (rows, columns), true where an entry is observed; at least 3 of them, not all equal. A row or a column without
            any gets no gradient, and with weight decay vanishes.
        rank: columns of U and V; None takes the smaller side of M, so that every matrix can be represented.

    Returns:
        A `Problem` with params `{"left": (rows, rank), "right": (columns, rank)}`, residuals (N,) and the metrics `test_loss`
        (mean squared error over the known hidden entries, if any) and `nuclear_norm` (of U Vᵀ, in units of M: times σ_y/s).

    Raises:
        ValueError: for wrong shapes, NaN where observed, a rank below 1, or observed values that are all equal.

    Example:
        >>> import jax, jaxsharp as js
        >>> problem = js.problems.matrix_completion(*js.data.low_rank(6, 5, rank=1))
        >>> w = problem.init(jax.random.key(0))
        >>> w["left"].shape, sorted(problem.metrics(w))
        ((6, 5), ['nuclear_norm', 'test_loss'])

    Source: Lyu, Li, Arora 2022 study matrix completion with batch normalization; the exact form here and what follows from it
    are ours.
    """
    matrix, mask = np.asarray(matrix), np.asarray(observed)
    if matrix.ndim != 2 or matrix.shape != mask.shape or not np.issubdtype(matrix.dtype, np.number):
        raise ValueError(f"matrix and observed must be two tables of one shape, got {matrix.shape} and {mask.shape}.")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("observed must be true or false (1 or 0) for each entry.")
    mask, rank = mask.astype(bool), min(matrix.shape) if rank is None else rank
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)) or rank < 1:
        raise ValueError(f"rank={rank!r} must be a whole number, at least 1.")
    if mask.sum() < 3:
        raise ValueError(f"observed marks {mask.sum()} entries; batch normalization needs at least 3.")
    if not np.isfinite(matrix[mask]).all():
        raise ValueError("matrix contains NaN or infinity where observed is true.")
    if np.ptp(matrix[mask]) == 0:
        raise ValueError("the observed values are all equal; batch normalization cannot fit a constant.")
    dtype = jnp.result_type(float)

    def entries(chosen):
        rows, columns = np.nonzero(chosen)
        return _Entries(jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32), jnp.asarray(matrix[chosen], dtype))

    hidden = ~mask & np.isfinite(matrix)
    seen = entries(mask)
    data = _Data(seen, entries(hidden) if hidden.any() else None, jnp.mean(seen.values), jnp.std(seen.values))
    return Problem(
        data=data,
        init_fn=_Init(*matrix.shape, int(rank)),
        loss_fn=_loss,
        residuals_fn=_residuals,
        metrics_fn=_metrics,
        scale_invariant=True,
        name="matrix_completion",
    )
