"""Curvature of a loss function: operators and their products, eigenpairs, sharpness, trace, diagonal, spectrum, derivatives."""

from jaxsharp.curvature.diagonal import diagonal, fisher_diagonal, sample_squared_gradients, squared_gradient
from jaxsharp.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from jaxsharp.curvature.eigenvalue_sum import EigenvalueSum, top_eigenvalue_sum
from jaxsharp.curvature.estimate import Estimate
from jaxsharp.curvature.gauss_newton import draw_targets, empirical_fisher_operator, fisher_operator, gauss_newton_operator
from jaxsharp.curvature.guards import Guards
from jaxsharp.curvature.likelihood import LIKELIHOODS, Likelihood
from jaxsharp.curvature.operator import Operator, as_operator, frozen, preconditioned
from jaxsharp.curvature.products import hessian_operator, hvp, slope_and_hessian
from jaxsharp.curvature.rematerialize import rematerialized
from jaxsharp.curvature.sharpness import default_tolerance, frozen_eigenpairs, log_sharpness, rayleigh_quotient, sharpness
from jaxsharp.curvature.spectral_density import SpectralDensity, smoothed_density, spectral_density
from jaxsharp.curvature.third import third_derivatives
from jaxsharp.curvature.trace import trace
from jaxsharp.curvature.tracker import EigenTracker, Tracked

__all__ = [
    "LIKELIHOODS",
    "EigenTracker",
    "Eigenpairs",
    "EigenvalueSum",
    "Estimate",
    "Guards",
    "Likelihood",
    "Operator",
    "SpectralDensity",
    "Tracked",
    "as_operator",
    "default_tolerance",
    "diagonal",
    "draw_targets",
    "empirical_fisher_operator",
    "fisher_diagonal",
    "fisher_operator",
    "frozen",
    "frozen_eigenpairs",
    "gauss_newton_operator",
    "hessian_operator",
    "hvp",
    "log_sharpness",
    "preconditioned",
    "rayleigh_quotient",
    "rematerialized",
    "sample_squared_gradients",
    "sharpness",
    "slope_and_hessian",
    "smoothed_density",
    "spectral_density",
    "squared_gradient",
    "third_derivatives",
    "top_eigenpairs",
    "top_eigenvalue_sum",
    "trace",
]
