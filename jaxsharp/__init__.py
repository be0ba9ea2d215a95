"""jaxsharp: simulate how full-batch optimizers move through sharp and flat regions of a loss.

Three nouns (Problem, Dynamics, Probe) and two verbs (simulate, sweep); see the README for a tour.
"""

from importlib import metadata as _metadata

from jaxsharp import (
    compare,
    curvature,
    data,
    flows,
    minimizers,
    models,
    operators,
    optimizers,
    probes,
    problems,
    selfcheck,
    sphere,
)
from jaxsharp.results import load, save
from jaxsharp.simulation import simulate, sweep
from jaxsharp.transformation import as_dynamics

try:
    __version__ = _metadata.version("jaxsharp")
except _metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "unknown"

__all__ = [
    "as_dynamics",
    "compare",
    "curvature",
    "data",
    "flows",
    "load",
    "minimizers",
    "models",
    "operators",
    "optimizers",
    "probes",
    "problems",
    "save",
    "selfcheck",
    "simulate",
    "sphere",
    "sweep",
]
