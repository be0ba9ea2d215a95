"""Linear regression behind a batch normalization: the problem whose flow has an exact solution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._factorizations import svd
from jaxsharp._precision import dot
from jaxsharp._types import Array, Params, Scalar
from jaxsharp.problems.problem import Problem, check_table


class _Data(NamedTuple):
    inputs: Array  # (n, d), centred
    targets: Array  # (n,)
    target_mean: Array
    target_scale: Array
    minimum_norm: Array  # (d,), unit vector


def _predict(weights, data):
    outputs = data.inputs @ weights
    outputs = outputs / jnp.sqrt(jnp.mean(outputs**2))
    return data.target_scale * outputs + data.target_mean


def _init(key, data):
    weights = jax.random.normal(key, data.minimum_norm.shape, data.inputs.dtype)
    return {"weights": weights / jnp.linalg.norm(weights)}


def _residuals(params, data):
    return _predict(params["weights"], data) - data.targets


def _loss(params, data):
    return jnp.mean(_residuals(params, data) ** 2)


def _metrics(params, data):
    return {"angle": _angle(params["weights"], data.minimum_norm)}


def _angle(weights, direction):
    along = weights @ direction
    across = jnp.linalg.norm(weights - along * direction)
    return jnp.arctan2(across, along)


def bn_linear_regression(inputs, targets) -> Problem:
    """Makes L(w) = mean((σ_y BN(X w) + μ_y − y)²), scale-invariant, with more features than samples.

    BN subtracts the full-batch mean and divides by the full-batch standard deviation; μ_y and σ_y are those of the targets
    and fixed. The minimizers are the interpolants of the centred data up to a positive scale. With α the angle between w and
    the interpolant of minimum norm, the spherical sharpness is proportional to 1/cos²α there, and the sharpness-reduction
    flow has the exact solution tan α(τ) = tan α(0) e^{−τ} in the time τ = η̂ λ̂ t.

    Args:
        inputs: (n, d) features, d ≥ n, none of them constant.
        targets: (n,) real values, not all equal.

    Returns:
        A `Problem` with params `{"weights": (d,)}`, residuals (n,) and the metric `angle` (α, in radians). Its residual
        Jacobian has rank n − 2 on the minimizers: BN fixes the mean and the norm of its output.

    Raises:
        ValueError: for wrong shapes, NaN, constant features, constant targets, or data that no interpolant fits.

    Example:
        >>> import numpy as np, jaxsharp as js
        >>> rng = np.random.default_rng(0)
        >>> problem = js.problems.bn_linear_regression(rng.normal(size=(5, 8)), rng.normal(size=5))
        >>> start = js.problems.interpolant(problem, jax.random.key(0), angle=1.0)
        >>> round(float(problem.metrics(start)["angle"]), 6), float(problem.loss(start)) < 1e-10
        (1.0, True)

    Source: Lyu, Li, Arora 2022, the case of linear regression; derived, see theory §3.
    """
    inputs, targets = check_table(inputs, targets)
    if inputs.ndim != 2 or targets.ndim != 1:
        raise ValueError(f"inputs must be (n, d) and targets (n,), got {inputs.shape} and {targets.shape}.")
    targets = targets.astype(inputs.dtype)
    constant = np.flatnonzero(np.ptp(np.asarray(inputs), axis=0) == 0)
    if constant.size:
        raise ValueError(
            f"inputs has {constant.size} features with zero variance (columns {constant[:5].tolist()}…); drop them, for "
            "example with js.data.digits(drop_constant=True)."
        )
    scale = jnp.std(targets)
    if scale == 0:
        raise ValueError("targets are all equal; batch normalization cannot fit a constant.")
    centred, wanted = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    centred, wanted = centred - centred.mean(axis=0), wanted - wanted.mean()
    eps = float(jnp.finfo(inputs.dtype).eps)
    solution = np.linalg.lstsq(centred, wanted, rcond=max(inputs.shape) * eps)[0]
    misfit = np.linalg.norm(centred @ solution - wanted) / np.linalg.norm(wanted)
    if misfit > 100 * eps**0.5:
        raise ValueError(
            f"inputs with shape {inputs.shape} do not interpolate the targets (relative misfit {misfit:.1e}); "
            "use fewer samples than features, and no repeated samples."
        )
    direction = jnp.asarray(solution / np.linalg.norm(solution), inputs.dtype)
    data = _Data(jnp.asarray(centred, inputs.dtype), targets, jnp.mean(targets), scale, direction)
    return Problem(
        data=data,
        init_fn=_init,
        loss_fn=_loss,
        residuals_fn=_residuals,
        metrics_fn=_metrics,
        scale_invariant=True,
        name="bn_linear_regression",
    )


def interpolant(problem: Problem, key: Array, *, angle) -> Params:
    """Draws a minimizer of a batch-normalized regression at a given angle from the minimum-norm one.

    θ = cos α · θ_min + sin α · e, with e a random unit vector in the null space of the centred inputs.

    Args:
        problem: made by `bn_linear_regression`.
        key: PRNG key of the direction e.
        angle: α in radians, in [0, π/2).

    Returns:
        params `{"weights": (d,)}` of unit norm, on the minimizer manifold.

    Raises:
        ValueError: for another kind of problem.

    Example:
        See `bn_linear_regression`.
    """
    if not isinstance(problem.data, _Data):
        raise ValueError(f"interpolant needs a problem made by bn_linear_regression, got {problem.name!r}.")
    data = problem.data
    noise = jax.random.normal(key, data.minimum_norm.shape, data.inputs.dtype)
    _, singular, rows = svd(data.inputs)
    kept = (singular > singular[0] * max(data.inputs.shape) * jnp.finfo(singular.dtype).eps).astype(noise.dtype)
    for _ in range(2):  # twice is enough to be orthogonal to rounding
        noise = noise - dot(rows.T, kept * dot(rows, noise))
    noise = noise / jnp.linalg.norm(noise)
    angle = jnp.asarray(angle, noise.dtype)
    return {"weights": jnp.cos(angle) * data.minimum_norm + jnp.sin(angle) * noise}


def exact_angle(initial_angle: Scalar, flow_time: Array) -> Array:
    """Evaluates the exact solution tan α(τ) = tan α(0) e^{−τ} of the sharpness-reduction flow.

    Args:
        initial_angle: α(0) in radians.
        flow_time: τ = η̂ λ̂ t, any shape that broadcasts with it.

    Returns:
        α(τ) in radians.

    Example:
        >>> round(float(exact_angle(1.2, 0.5)), 4)
        1.0008

    Source: derived, see theory §3.
    """
    return jnp.arctan(jnp.tan(initial_angle) * jnp.exp(-jnp.asarray(flow_time)))
