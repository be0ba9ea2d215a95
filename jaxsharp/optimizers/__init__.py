"""Optimizers: optax transformations whose hyper-parameters are data; one rule a file."""

from jaxsharp.optimizers.chain import chain
from jaxsharp.optimizers.estimators import Eigenspace, Estimate, Fisher, Hutchinson, SquaredGradient
from jaxsharp.optimizers.gd import gd
from jaxsharp.optimizers.ire import ire
from jaxsharp.optimizers.normalized_gd import normalized_gd
from jaxsharp.optimizers.objective import Objective
from jaxsharp.optimizers.optimizer import Optimizer, from_factory
from jaxsharp.optimizers.projected_gd import projected_gd
from jaxsharp.optimizers.rmsprop import rmsprop
from jaxsharp.optimizers.sam import sam
from jaxsharp.optimizers.scalar_rmsprop import scalar_rmsprop
from jaxsharp.optimizers.scheduled_gd import scheduled_gd
from jaxsharp.optimizers.selection import smallest, smallest_fraction
from jaxsharp.optimizers.sqrt_loss_gd import sqrt_loss_gd

__all__ = [
    "Eigenspace",
    "Estimate",
    "Fisher",
    "Hutchinson",
    "Objective",
    "Optimizer",
    "SquaredGradient",
    "chain",
    "from_factory",
    "gd",
    "ire",
    "normalized_gd",
    "projected_gd",
    "rmsprop",
    "sam",
    "scalar_rmsprop",
    "scheduled_gd",
    "smallest",
    "smallest_fraction",
    "sqrt_loss_gd",
]
