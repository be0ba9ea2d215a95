"""Experiments: named reproductions, each a problem, its runs, a table and a figure; one a file."""

from jaxsharp.experiments.bn_regression import bn_regression
from jaxsharp.experiments.central_flow import central_flow
from jaxsharp.experiments.cifar10_study import cifar10_resnet20, cifar10_vgg11
from jaxsharp.experiments.digits_study import bn_digits, norm_zoo
from jaxsharp.experiments.experiment import Experiment
from jaxsharp.experiments.flow_vs_gd import flow_vs_gd
from jaxsharp.experiments.flow_zoo import flow_zoo
from jaxsharp.experiments.ire_heatmap import ire_heatmap
from jaxsharp.experiments.ire_images import ire_images
from jaxsharp.experiments.ire_llama import ire_llama
from jaxsharp.experiments.ire_valley import ire_valley
from jaxsharp.experiments.matrix_completion import matrix_completion
from jaxsharp.experiments.normalized_gd import normalized_gd
from jaxsharp.experiments.oscillation import oscillation
from jaxsharp.experiments.sam_rates import sam_rates

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        bn_regression,
        bn_digits,
        norm_zoo,
        matrix_completion,
        flow_vs_gd,
        flow_zoo,
        central_flow,
        normalized_gd,
        oscillation,
        cifar10_vgg11,
        cifar10_resnet20,
        ire_valley,
        ire_heatmap,
        ire_images,
        ire_llama,
        sam_rates,
    )
}

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "bn_digits",
    "bn_regression",
    "central_flow",
    "cifar10_resnet20",
    "cifar10_vgg11",
    "flow_vs_gd",
    "flow_zoo",
    "ire_heatmap",
    "ire_images",
    "ire_llama",
    "ire_valley",
    "matrix_completion",
    "norm_zoo",
    "normalized_gd",
    "oscillation",
    "sam_rates",
]
