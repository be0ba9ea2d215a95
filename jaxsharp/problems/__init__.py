"""Problems: data, a pure model and a full-batch loss; one kind a file."""

from jaxsharp.problems.bn_linear_regression import bn_linear_regression, exact_angle, interpolant
from jaxsharp.problems.matrix_completion import matrix_completion
from jaxsharp.problems.problem import Problem, from_loss
from jaxsharp.problems.scale_invariant import scale_invariant
from jaxsharp.problems.supervised import SampleLoss, sample_loss, supervised
from jaxsharp.problems.valley import valley

__all__ = [
    "Problem",
    "SampleLoss",
    "bn_linear_regression",
    "exact_angle",
    "from_loss",
    "interpolant",
    "matrix_completion",
    "sample_loss",
    "scale_invariant",
    "supervised",
    "valley",
]
