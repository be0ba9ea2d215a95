"""Pure flax models whose parameters take the dtype of their inputs; one architecture a file."""

from jaxsharp.models.mlp import ACTIVATIONS, MLP
from jaxsharp.models.normalization import NORMALIZATIONS, Normalize

__all__ = ["ACTIVATIONS", "MLP", "NORMALIZATIONS", "Normalize"]
