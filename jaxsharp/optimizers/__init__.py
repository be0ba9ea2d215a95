"""Optimizers: optax transformations whose hyper-parameters are data; one rule a file."""

from jaxsharp.optimizers.gd import gd
from jaxsharp.optimizers.normalized_gd import normalized_gd
from jaxsharp.optimizers.optimizer import Optimizer, from_factory
from jaxsharp.optimizers.projected_gd import projected_gd
from jaxsharp.optimizers.rmsprop import rmsprop
from jaxsharp.optimizers.scalar_rmsprop import scalar_rmsprop
from jaxsharp.optimizers.scheduled_gd import scheduled_gd
from jaxsharp.optimizers.sqrt_loss_gd import sqrt_loss_gd

__all__ = [
    "Optimizer",
    "from_factory",
    "gd",
    "normalized_gd",
    "projected_gd",
    "rmsprop",
    "scalar_rmsprop",
    "scheduled_gd",
    "sqrt_loss_gd",
]
