"""Names for the kinds of value that pass between the layers."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

PyTree = Any
Params = PyTree
Vector = Float[Array, " parameter"]
Block = Float[Array, "k parameter"]
Scalar = Float[Array, ""]
Count = Int[Array, ""]
ScalarLike = float | int | np.ndarray | jax.Array
Loss = Callable[[Params], Scalar]
MatVec = Callable[[PyTree], PyTree]

__all__ = ["Array", "Block", "Count", "Float", "Int", "Loss", "MatVec", "Params", "PyTree", "Scalar", "ScalarLike", "Vector"]
