"""Flows: differential equations that predict optimizers; one law a file."""

from jaxsharp.flows.flow import Flow
from jaxsharp.flows.gradient import gradient
from jaxsharp.flows.sharpness_reduction import sharpness_reduction

__all__ = ["Flow", "gradient", "sharpness_reduction"]
