"""Flows: differential equations that predict optimizers; one law a file."""

from jaxsharp.flows.averaged import AveragedFlow
from jaxsharp.flows.central import central
from jaxsharp.flows.flow import Flow
from jaxsharp.flows.gradient import gradient
from jaxsharp.flows.sharpness_reduction import sharpness_reduction
from jaxsharp.flows.stable import stable

__all__ = ["AveragedFlow", "Flow", "central", "gradient", "sharpness_reduction", "stable"]
