"""Any problem on the unit sphere."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp.problems.problem import Problem


@dataclass(frozen=True)
class _OnSphere:
    """A function of (params, data, ...) at the radial projection of params on a sphere."""

    function: Callable
    radius: float

    def __call__(self, params, data, *more):
        length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)))
        factor = jnp.asarray(self.radius, length.dtype) / length
        return self.function(jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, params), data, *more)


def scale_invariant(problem: Problem, radius: float = 1.0) -> Problem:
    """Puts a problem on the sphere, L̃(w) = L(r w/‖w‖), which is scale-invariant whatever L is.

    Its minimizers are rays through those of L on the sphere of radius r, where L̃ has the gradient and, on tangent vectors at
    minimizers of L, the Hessian of L. Of any other loss the sphere may hold no minimizer with L = 0.

    Args:
        problem: with any loss.
        radius: r, of the sphere in the parameters of L; a network needs about the norm of its initial parameters.

    Returns:
        A `Problem` with the same data and initial parameters, and residuals and metrics taken at the same projection.

    Raises:
        ValueError: for anything but a Problem, or a radius that is not above 0.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> problem = js.problems.scale_invariant(js.problems.valley())
        >>> [round(float(problem.loss({"u": jnp.array(3.0 * c), "v": jnp.array(4.0 * c)})), 4) for c in (1, 5)]
        [0.4352, 0.4352]

    Source: derived, see theory §1.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"scale_invariant needs a Problem, got {type(problem).__name__}; make one with js.problems.from_loss.")
    if not (np.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be above 0, got {radius}.")
    wrap = lambda function: None if function is None else _OnSphere(function, float(radius))  # noqa: E731
    return Problem(
        data=problem.data,
        init_fn=problem.init_fn,
        loss_fn=wrap(problem.loss_fn),
        residuals_fn=wrap(problem.residuals_fn),
        metrics_fn=wrap(problem.metrics_fn),
        scale_invariant=True,
        name=f"scale-invariant {problem.name}",
        take_fn=problem.take_fn,
        sampled_loss_fn=wrap(problem.sampled_loss_fn),
    )
