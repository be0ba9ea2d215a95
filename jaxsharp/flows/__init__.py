"""Flows: differential equations that predict optimizers; one law a file."""

from jaxsharp.flows.averaged import AveragedFlow, Oscillation
from jaxsharp.flows.central import central
from jaxsharp.flows.constrained import constrained
from jaxsharp.flows.edge import edge
from jaxsharp.flows.flow import Flow
from jaxsharp.flows.gradient import gradient
from jaxsharp.flows.label_noise import label_noise
from jaxsharp.flows.normalized_gd import normalized_gd
from jaxsharp.flows.one_sample_sam import one_sample_sam
from jaxsharp.flows.rod import rod
from jaxsharp.flows.sam import sam
from jaxsharp.flows.self_stabilization import self_stabilization
from jaxsharp.flows.sharpness_reduction import sharpness_reduction
from jaxsharp.flows.sqrt_loss_gd import sqrt_loss_gd
from jaxsharp.flows.stable import stable

__all__ = [
    "AveragedFlow",
    "Flow",
    "Oscillation",
    "central",
    "constrained",
    "edge",
    "gradient",
    "label_noise",
    "normalized_gd",
    "one_sample_sam",
    "rod",
    "sam",
    "self_stabilization",
    "sharpness_reduction",
    "sqrt_loss_gd",
    "stable",
]
