"""The pair that every loader returns twice, for training and for testing."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Samples and what to predict for them; a plain (inputs, targets) tuple serves as well everywhere.

    Attributes:
        inputs: (n, ...), float64, which a run casts to its own precision; or (n, length) int32 tokens.
        targets: (n,) int32 labels, (n, length) int32 labels of tokens, or (n,) or (n, outputs) float64.
    """

    inputs: np.ndarray
    targets: np.ndarray
