"""Probes of the whole spectrum: trace and spectral density of the Hessian and of its relatives."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsharp import curvature, operators, sphere
from jaxsharp.curvature.spectral_density import check_settings
from jaxsharp.curvature.trace import METHODS
from jaxsharp.probes.probe import FunctionProbe, Variable


@dataclass(frozen=True)
class _Operator:
    """Which operator, where; the random vectors of all measurements come from one key, so that curves are smooth."""

    operator: str
    spherical: bool
    seed: int

    def at(self, problem, params):
        if self.spherical:
            params = sphere.normalize(params)
        return operators.BY_NAME[self.operator](problem, params), jax.random.key(self.seed)


@dataclass(frozen=True)
class _Trace(_Operator):
    method: str
    max_matvecs: int

    def __call__(self, problem, params, state):
        del state
        operator, key = self.at(problem, params)
        estimate = curvature.trace(operator, method=self.method, max_matvecs=self.max_matvecs, key=key)
        return {"trace": estimate.value, "trace_error": estimate.standard_error, "trace_products": estimate.matvecs}


@dataclass(frozen=True)
class _SpectralDensity(_Operator):
    samples: int
    steps: int
    points: int
    grid: tuple[float, ...] | None
    width: float | None
    moments: int

    def __call__(self, problem, params, state):
        del state
        operator, key = self.at(problem, params)
        spectrum = curvature.spectral_density(
            operator,
            samples=self.samples,
            steps=self.steps,
            grid=None if self.grid is None else jnp.asarray(self.grid),
            points=self.points,
            width=self.width,
            moments=self.moments,
            key=key,
        )
        return {
            "spectral_density": spectrum.density,
            "spectral_density_error": spectrum.standard_error,
            "spectral_density_at": spectrum.grid,
            "spectral_moments": spectrum.moments,
            "spectral_moments_error": spectrum.moments_error,
            "spectral_density_products": spectrum.matvecs,
        }


def trace(
    *,
    operator: str = "hessian",
    method: str = "hutchinson",
    max_matvecs: int = 32,
    spherical: bool = False,
    seed: int = 0,
    every: int | None = None,
    midpoint: bool = False,
) -> FunctionProbe:
    """Records the trace of the Hessian, or of a relative of it, at w or at w/‖w‖.

    Variables: `trace`; `trace_error`, its standard error; `trace_products`.

    Args:
        operator: `hessian`, `gauss_newton`, `fisher` or `empirical_fisher`; all but the first need a supervised problem.
        method: of `jaxsharp.curvature.trace`.
        max_matvecs: products per measurement.
        spherical: whether to measure at the direction w/‖w‖.
        seed: of the random vectors, the same at every measurement, so that a curve is smooth though each point has its error.
        every: cadence in steps; by default that of the run.
        midpoint: whether to measure at the mean of two consecutive iterates.

    Returns:
        A `Probe`. Cost: `max_matvecs` products, or as many as there are parameters if these are fewer.

    Raises:
        ValueError: for an unknown operator or method.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=4, probes=[js.probes.trace()], every=2)
        >>> ds.trace.dims, float(ds.trace_error.max())
        (('step',), 0.0)
    """
    _check(operator)
    if method not in METHODS or max_matvecs < METHODS[method]:
        raise ValueError(
            f"trace needs method in {', '.join(METHODS)} with max_matvecs >= {', '.join(map(str, METHODS.values()))}, got "
            f"{method!r}, {max_matvecs}."
        )
    title = f"trace of the {operator.replace('_', ' ')}"
    labels = (
        ("trace", Variable((), title)),
        ("trace_error", Variable((), f"standard error of the {title}")),
        ("trace_products", Variable((), f"products spent on the {title}", role="products")),
    )
    return FunctionProbe("trace", _Trace(operator, spherical, seed, method, max_matvecs), labels, every, midpoint)


def spectral_density(
    *,
    operator: str = "hessian",
    samples: int = 8,
    steps: int = 40,
    points: int = 256,
    grid: tuple[float, ...] | None = None,
    width: float | None = None,
    moments: int = 4,
    spherical: bool = False,
    seed: int = 0,
    every: int | None = None,
    midpoint: bool = False,
) -> FunctionProbe:
    """Records the density of the eigenvalues of the Hessian, or of a relative of it, at w or at w/‖w‖.

    Variables: `spectral_density` with the dimension `density_point`; `spectral_density_error`, its standard error;
    `spectral_density_at`, the eigenvalues at which it is given, which follow the spectrum unless `grid` is; `spectral_moments`
    with the dimension `moment`, tr(Hᵏ)/D for k = 1 …; `spectral_moments_error`; `spectral_density_products`.

    Args:
        operator: `hessian`, `gauss_newton`, `fisher` or `empirical_fisher`; all but the first need a supervised problem.
        samples: random vectors, at least 2.
        steps: Lanczos iterations for each.
        points: length of the grid that follows the spectrum, at least 2.
        grid: eigenvalues, the same at every measurement.
        width: of the smoothing, in units of eigenvalues, positive; by default 1 % of the range of the spectrum.
        moments: how many to record, at most 2 steps − 1 where there are more parameters than steps.
        spherical: whether to measure at the direction w/‖w‖.
        seed: of the random vectors, the same at every measurement.
        every: cadence in steps; by default that of the run. Mind the cost.
        midpoint: whether to measure at the mean of two consecutive iterates.

    Returns:
        A `Probe`. Cost: samples × steps products.

    Raises:
        ValueError: for an unknown operator, or a setting that `jaxsharp.curvature.spectral_density` rejects.

    Example:
        >>> import jaxsharp as js
        >>> probe = js.probes.spectral_density(points=50, moments=2)
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=4, probes=[probe], every=2)
        >>> ds.spectral_density.dims, ds.sizes["moment"]
        (('step', 'density_point'), 2)
    """
    _check(operator)
    check_settings(samples, steps, grid, points, width, moments)
    grid = None if grid is None else tuple(float(value) for value in grid)
    labels = (
        ("spectral_density", Variable(("density_point",), "spectral density")),
        ("spectral_density_error", Variable(("density_point",), "standard error of the spectral density")),
        ("spectral_density_at", Variable(("density_point",), "eigenvalue")),
        ("spectral_moments", Variable(("moment",), "mean power of the eigenvalues")),
        ("spectral_moments_error", Variable(("moment",), "standard error of the mean power of the eigenvalues")),
        ("spectral_density_products", Variable((), "products spent on the spectral density", role="products")),
    )
    evaluate = _SpectralDensity(operator, spherical, seed, samples, steps, points, grid, width, moments)
    return FunctionProbe("spectral_density", evaluate, labels, every, midpoint)


def _check(operator):
    if operator not in operators.BY_NAME:
        raise ValueError(f"operator={operator!r} is unknown; use one of {', '.join(operators.BY_NAME)}.")
