"""Curvature of a loss function: products, eigenpairs, sharpness and its gradient."""

from jaxsharp.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from jaxsharp.curvature.products import hessian_operator, hvp
from jaxsharp.curvature.sharpness import default_tolerance, frozen_eigenpairs, rayleigh_quotient, sharpness
from jaxsharp.curvature.third import third_derivatives

__all__ = [
    "Eigenpairs",
    "default_tolerance",
    "frozen_eigenpairs",
    "hessian_operator",
    "hvp",
    "rayleigh_quotient",
    "sharpness",
    "third_derivatives",
    "top_eigenpairs",
]
