"""Probes of the largest Hessian eigenvalues, warm-started from one measurement to the next."""

from dataclasses import dataclass
from functools import partial

from jaxsharp import sphere
from jaxsharp._types import Params, PyTree
from jaxsharp.curvature import EigenTracker, hessian_operator, slope_and_hessian
from jaxsharp.curvature.turns import in_turns
from jaxsharp.dynamics import State
from jaxsharp.probes.probe import SLOPE, Variable, point
from jaxsharp.problems import Problem


@dataclass(frozen=True)
class SharpnessProbe:
    """The k largest Hessian eigenvalues at w, or at w/‖w‖; carries the tracker's memory."""

    name: str
    spherical: bool
    tracker: EigenTracker
    every: int | None
    midpoint: bool
    reuse_gradient: bool = False

    @property
    def variables(self) -> dict[str, Variable]:
        """Labels of the eigenvalues, their residuals, whether they converged, and the products spent."""
        dims = ("eigenvalue",) if self.tracker.k > 1 else ()
        title = "spherical sharpness" if self.spherical else "sharpness"
        return {
            self.name: Variable(dims, title),
            f"{self.name}_residual": Variable(dims, f"relative residual of the {title}"),
            f"{self.name}_converged": Variable((), f"whether the {title} converged", role="converged"),
            f"{self.name}_products": Variable((), f"products spent on the {title}", role="products"),
        }

    def init(self, problem: Problem, params: Params) -> PyTree:
        """Carries no eigenvector yet: the first measurement starts cold."""
        del problem
        return self.tracker.init(params)

    def measure(self, problem: Problem, state: State, carry: PyTree) -> tuple[PyTree, dict]:
        """Finds the eigenpairs from the previous eigenvectors."""
        return in_turns(partial(self._measure_at, problem), point(state, self.midpoint), carry)

    def _measure_at(self, problem, params, carry):
        if self.spherical:
            params = sphere.normalize(params)
        if self.reuse_gradient:
            value, gradient, hessian = slope_and_hessian(problem.loss, params)
        else:
            hessian = hessian_operator(problem.loss, params)
        carry, pairs = self.tracker.measure(hessian, carry)
        shape = (self.tracker.k,) if self.tracker.k > 1 else ()
        values = {
            self.name: pairs.values.reshape(shape),
            f"{self.name}_residual": pairs.residuals.reshape(shape),
            f"{self.name}_converged": pairs.converged,
            f"{self.name}_products": pairs.matvecs,
        }
        if self.reuse_gradient:
            values[SLOPE] = value, gradient
        return carry, values


def sharpness(
    k: int = 1,
    *,
    tol: float = 1e-2,
    max_matvecs: int = 200,
    guards: int = 1,
    guard_every: int = 2,
    every: int | None = None,
    midpoint: bool = False,
    reuse_gradient: bool = False,
) -> SharpnessProbe:
    """Records the k largest eigenvalues of the Hessian, λ1(H(w)) ≥ … ≥ λk(H(w)).

    Variables: `sharpness`, with the dimension `eigenvalue` (1 … k) when k > 1; `sharpness_residual`, relative to the largest;
    `sharpness_converged`; `sharpness_products`. The eigenvectors of one measurement start the next.

    Args:
        k: how many eigenvalues; where several overtake at once, those below the first can be late by some ten measurements, see
            `curvature.EigenTracker`.
        tol: relative residual; the error of an isolated eigenvalue is about tol² λ1² / gap, so 1e-2 is usually 1e-4 of λ1.
        max_matvecs: bound on products per measurement; where it is reached the bit EIGENPAIR_UNCONVERGED is set.
        guards: how many further eigenvalues are followed loosely, so that one that overtakes is noticed; 0 for none.
        guard_every: measurements from one look at these to the next; at 1 an overtaking is noticed sooner, for more products.
        every: cadence in steps; by default that of the run.
        midpoint: whether to measure at the mean of two consecutive iterates, the better place at the edge of stability.
        reuse_gradient: whether the optimizer's next step takes the gradient that the measurement has found on its way, which
            saves one per measurement. The run then equals the unmeasured one up to rounding, not bit for bit.

    Returns:
        A `Probe`. Cost: about 15 to 30 products for the first measurement, then 1 to 2 per eigenvalue where it changes slowly,
        up to 10 where it changes fast, guard included.

    Raises:
        ValueError: for k < 1, max_matvecs < 2 k, guards < 0 or guard_every < 1, or for a gradient to be reused from a midpoint.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=4, probes=[js.probes.sharpness(k=2)], every=2)
        >>> dict(ds.sharpness.sizes)
        {'step': 3, 'eigenvalue': 2}
    """
    if midpoint and reuse_gradient:
        raise ValueError("reuse_gradient needs a measurement at the parameters themselves; pass midpoint=False.")
    return _make("sharpness", False, k, tol, max_matvecs, guards, guard_every, every, midpoint, reuse_gradient)


def spherical_sharpness(
    k: int = 1,
    *,
    tol: float = 1e-2,
    max_matvecs: int = 200,
    guards: int = 1,
    guard_every: int = 2,
    every: int | None = None,
    midpoint: bool = False,
) -> SharpnessProbe:
    """Records the k largest eigenvalues of the Hessian at the direction θ = w/‖w‖.

    Variables as for `sharpness`, named `spherical_sharpness…`. On a scale-invariant loss λ1(H(θ)) = ‖w‖² λ1(H(w)).

    Args:
        k: how many eigenvalues.
        tol: relative residual.
        max_matvecs: bound on products per measurement.
        guards: how many further eigenvalues are followed loosely.
        guard_every: measurements from one look at these to the next.
        every: cadence in steps; by default that of the run.
        midpoint: whether to measure at the mean of two consecutive iterates.

    Returns:
        A `Probe`. Cost: as `sharpness`.

    Raises:
        ValueError: for k < 1, max_matvecs < 2 k, guards < 0 or guard_every < 1.

    Example:
        >>> import numpy as np, jaxsharp as js
        >>> rng = np.random.default_rng(0)
        >>> problem = js.problems.bn_linear_regression(rng.normal(size=(5, 8)), rng.normal(size=5))
        >>> ds = js.simulate(problem, js.optimizers.gd(0.1), steps=2, probes=["spherical_sharpness"], every=2)
        >>> ds.spherical_sharpness.dims
        ('step',)

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    return _make("spherical_sharpness", True, k, tol, max_matvecs, guards, guard_every, every, midpoint)


def _make(name, spherical, k, tol, max_matvecs, guards, guard_every, every, midpoint, reuse_gradient=False):
    if k < 1 or max_matvecs < 2 * k or guards < 0:
        raise ValueError(
            f"{name} needs k >= 1, max_matvecs >= 2 k and guards >= 0, got k={k}, max_matvecs={max_matvecs}, guards={guards}."
        )
    tracker = EigenTracker(k, tol=tol, max_matvecs=max_matvecs, guards=guards, guard_every=guard_every)
    return SharpnessProbe(name, spherical, tracker, every, midpoint, reuse_gradient)
