"""A low-rank matrix, some of whose entries are observed."""

import numpy as np


def low_rank(
    rows: int = 20, columns: int = 20, *, rank: int = 2, observed: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Generates a matrix M = A Bᵀ of standard normal factors, scaled to mean square 1, and a random mask.

    Args:
        rows: number of rows.
        columns: number of columns.
        rank: columns of A and B.
        observed: fraction of entries that are observed, rounded to a whole number of them.
        seed: of factors and mask.

    Returns:
        (matrix, mask): (rows, columns) float64 and bool. A row or column may be without any observed entry where few are.

    Raises:
        ValueError: for a rank that does not fit, or a fraction that leaves fewer than 3 entries observed or none to predict.

    Example:
        >>> import numpy as np, jaxsharp as js
        >>> matrix, mask = js.data.low_rank(6, 5, rank=2)
        >>> int(np.linalg.matrix_rank(matrix)), int(mask.sum())
        (2, 15)
    """
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(f"rank={rank} does not fit a {rows} × {columns} matrix; pass 1 to {min(rows, columns)}.")
    total = round(observed * rows * columns) if np.isfinite(observed) else -1
    if not 3 <= total < rows * columns:
        raise ValueError(
            f"observed={observed} gives {total} of {rows * columns} entries; pass a fraction that leaves at least 3 and not all."
        )
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, rank)) @ rng.normal(size=(columns, rank)).T
    mask = np.zeros(rows * columns, bool)
    mask[rng.permutation(rows * columns)[:total]] = True
    return matrix / np.sqrt(np.mean(matrix**2)), mask.reshape(rows, columns)
