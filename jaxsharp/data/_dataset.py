"""The pair that every loader returns twice, for training and for testing."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Samples and what to predict for them; a plain (inputs, targets) tuple serves as well everywhere.

    Attributes:
        inputs: (n, ...), float64; a run casts them to its own precision.
        targets: (n,) int32 labels, or (n,) or (n, outputs) float64.
    """

    inputs: np.ndarray
    targets: np.ndarray
