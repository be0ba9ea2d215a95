"""The Estimate: a number with its statistical error and its cost."""

from typing import NamedTuple

from jaxsharp._types import Count, PyTree


class Estimate(NamedTuple):
    """A stochastic estimate, unbiased over its random vectors.

    Attributes:
        value: the estimate; NaN where a product was not finite.
        standard_error: estimated standard deviation of `value`, in the same units and of the same structure; 0 where it is exact.
        matvecs: number of products used.
    """

    value: PyTree
    standard_error: PyTree
    matvecs: Count
