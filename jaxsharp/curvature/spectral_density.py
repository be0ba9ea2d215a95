"""The density of the eigenvalues of an operator, by stochastic Lanczos quadrature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._precision import dot
from jaxsharp._types import Array, Count, MatVec, PyTree, Scalar
from jaxsharp.curvature._batches import map_batched
from jaxsharp.curvature.lanczos import quadrature
from jaxsharp.curvature.operator import as_operator, flat_product
from jaxsharp.curvature.trace import mean_and_error, signs

REACH = 4.0
"""How many smoothing widths the default grid goes beyond the outermost nodes."""


class SpectralDensity(NamedTuple):
    """A density of eigenvalues, of integral 1, with what it was made of.

    Attributes:
        grid: (points,) eigenvalues at which the density is given.
        density: (points,) mean over the random vectors, smoothed by a Gaussian.
        standard_error: (points,) of the density, from the scatter over the random vectors; the bias of smoothing is not in it.
        width: standard deviation of the Gaussian.
        moments: (r,) tr(Aᵏ)/D for k = 1 … r, of the spectrum without smoothing; infinite beyond the range of the dtype.
        moments_error: (r,) their standard errors.
        nodes: (samples, steps) Ritz values; D Σ weights f(nodes), averaged over samples, estimates tr f(A) for any smooth f.
        weights: (samples, steps), summing to 1 for each sample.
        matvecs: number of products used.
    """

    grid: Array
    density: Array
    standard_error: Array
    width: Scalar
    moments: Array
    moments_error: Array
    nodes: Array
    weights: Array
    matvecs: Count


def spectral_density(
    matvec: MatVec,
    like: PyTree | None = None,
    *,
    samples: int = 8,
    steps: int = 40,
    grid: Array | None = None,
    points: int = 256,
    width: float | Array | None = None,
    moments: int = 4,
    key: Array | None = None,
    batch: int | None = None,
) -> SpectralDensity:
    """Estimates the spectral density φ(t) = (1/D) Σᵢ N(t; λᵢ, width²) of a symmetric operator.

    From each of several random sign vectors `steps` Lanczos iterations with full reorthogonalization give a Gauss quadrature of
    that vector's spectral measure, whose mean over vectors is the density. A single eigenvalue apart from the bulk carries the
    weight 1/D: see it in `nodes`, not in the density.

    Args:
        matvec: an `Operator`, or v -> A v on pytrees like `like`.
        like: any pytree with the shapes of one vector; not needed for an Operator.
        samples: how many random vectors, at least 2.
        steps: Lanczos iterations for each, at most the number of parameters; more resolve structure finer than range/steps.
        grid: (points,) eigenvalues; by default evenly over the nodes and 4 widths beyond.
        points: length of the default grid, at least 2.
        width: of the smoothing, in units of eigenvalues, positive; by default 1 % of the range of the nodes.
        moments: how many moments to return, at most 2 steps − 1, up to which each quadrature is exact; any number where there
            are as many steps as parameters.
        key: PRNG key; a fixed one by default.
        batch: how many random vectors side by side; by default 1 on a CPU and 16 elsewhere.

    Returns:
        `SpectralDensity`; all NaN where a product was not finite, the density also where a traced width is not positive. Cost:
        samples × steps products; memory for `steps` vectors per random vector side by side.

    Raises:
        ValueError: for fewer than 2 samples or points, no steps, too many moments, a width that is not a positive number, a grid
            that is not a list of numbers, or no parameters.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> spectrum = js.curvature.spectral_density(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3))
        >>> int(spectrum.matvecs), round(float(spectrum.moments[0]), 5), round(float(spectrum.moments[1]), 4)
        (24, -0.33333, 11.6667)

    Source: Golub, Meurant 2010; Ubaru, Chen, Saad 2017; for Hessians Ghorbani, Krishnan, Xiao 2019.
    """
    check_settings(samples, steps, grid, points, width, moments)
    product, template, _ = flat_product(as_operator(matvec, like))
    dtype = template.dtype
    if steps < template.size and moments >= 2 * steps:
        raise ValueError(f"moments={moments} are not known from steps={steps}; ask for at most {2 * steps - 1}.")
    steps = min(steps, template.size)
    length = template.size**0.5

    def sample(key):
        return quadrature(product, signs(key, template) / length, steps)

    keys = jax.random.split(jax.random.key(0) if key is None else key, samples)
    nodes, weights = map_batched(sample, keys, batch)
    # Nodes without weight say nothing: they are what rounding, or an iteration that ended early, leaves.
    seen = weights > float(jnp.finfo(dtype).eps)
    low = jnp.min(jnp.where(seen, nodes, jnp.inf))
    high = jnp.max(jnp.where(seen, nodes, -jnp.inf))
    if width is None:
        width = jnp.maximum((high - low) / 100, 1e-3 * jnp.maximum(jnp.abs(low), jnp.abs(high)))
        width = jnp.where(width > 0, width, 1)  # all eigenvalues are zero
    width = jnp.asarray(width, dtype)
    if grid is None:
        grid = jnp.linspace(low - REACH * width, high + REACH * width, points, dtype=dtype)
    grid = jnp.asarray(grid, dtype)
    density, error = smoothed_density(nodes, weights, grid, width)
    count = jnp.asarray(samples * steps, jnp.int32)
    return SpectralDensity(grid, density, error, width, *_moments(nodes, weights, moments), nodes, weights, count)


def check_settings(samples: int, steps: int, grid, points: int, width, moments: int) -> None:
    """Raises for a setting of `spectral_density` that is wrong whatever the operator."""
    if samples < 2 or steps < 1:
        raise ValueError(f"spectral_density needs samples >= 2 and steps >= 1, got samples={samples}, steps={steps}.")
    if points < 2:
        raise ValueError(f"points={points} make no grid; give at least 2.")
    if moments < 0:
        raise ValueError(f"moments={moments} is negative; give 0 for none.")
    if grid is not None and (np.ndim(grid) != 1 or np.size(grid) == 0):
        raise ValueError(f"grid must be a list of eigenvalues, of shape (points,), got shape {np.shape(grid)}.")
    _check_width(width)


def _check_width(width):
    """Raises for a width that is not one or not positive; a traced one, and one that is not a number, become NaN later."""
    if width is None:
        return
    if np.ndim(width) > 0 or (not isinstance(width, jax.core.Tracer) and (width <= 0 or width == np.inf)):
        raise ValueError(f"width={width} must be a positive number, in units of eigenvalues.")


def _moments(nodes, weights, count):
    """Means of the powers of the nodes, and their errors; in units of the largest node, so that no power overflows early."""
    powers = jnp.arange(1, count + 1, dtype=nodes.dtype)
    largest = jnp.max(jnp.abs(nodes))
    unit = jnp.where(largest > 0, largest, 1)
    means = jnp.sum(weights[:, :, None] * (nodes / unit)[:, :, None] ** powers[None, None, :], axis=1)
    return tuple(jnp.where(part == 0, 0, part * unit**powers) for part in mean_and_error(means))


def smoothed_density(nodes: Array, weights: Array, grid: Array, width: Array) -> tuple[Array, Array]:
    """Smooths quadratures by a Gaussian; for another width or grid without new products.

    Args:
        nodes: (samples, steps).
        weights: (samples, steps).
        grid: (points,).
        width: standard deviation of the Gaussian, positive; where a traced one is not the density is NaN.

    Returns:
        The density (points,) and its standard error over the samples.

    Raises:
        ValueError: for a width that is not a positive number.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> spectrum = js.curvature.spectral_density(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3))
        >>> grid = jnp.linspace(-20.0, 20.0, 400)
        >>> density, _ = js.curvature.smoothed_density(spectrum.nodes, spectrum.weights, grid, jnp.array(1.0))
        >>> round(float(jnp.trapezoid(density, grid)), 3)
        1.0
    """
    _check_width(width)
    width = jnp.asarray(width, nodes.dtype)
    width = jnp.where(width > 0, width, jnp.nan)

    def of_one(node, weight):
        distance = (grid[:, None] - node[None, :]) / width
        return dot(jnp.exp(-0.5 * distance**2), weight) / (width * jnp.asarray(2 * jnp.pi, width.dtype) ** 0.5)

    return mean_and_error(jax.vmap(of_one)(nodes, weights))
