"""Experiments: named reproductions, each a problem, its runs, a table and a figure; one a file."""

from jaxsharp.experiments.bn_regression import bn_regression
from jaxsharp.experiments.experiment import Experiment
from jaxsharp.experiments.matrix_completion import matrix_completion

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (bn_regression, matrix_completion)}

__all__ = ["EXPERIMENTS", "Experiment", "bn_regression", "matrix_completion"]
