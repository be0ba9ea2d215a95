"""Experiments: named reproductions, each a problem, its runs, a table and a figure; one a file."""

from jaxsharp.experiments.bn_regression import bn_regression
from jaxsharp.experiments.experiment import Experiment
from jaxsharp.experiments.ire_heatmap import ire_heatmap
from jaxsharp.experiments.ire_valley import ire_valley

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (bn_regression, ire_heatmap, ire_valley)}

__all__ = ["EXPERIMENTS", "Experiment", "bn_regression", "ire_heatmap", "ire_valley"]
