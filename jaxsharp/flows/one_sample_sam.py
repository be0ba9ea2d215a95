"""The slow motion of SAM with one sample a step along its minimizer manifold."""

from jaxsharp._types import ScalarLike
from jaxsharp.flows.flow import Flow
from jaxsharp.flows.on_manifold import descent


def one_sample_sam(
    learning_rate: ScalarLike,
    rho: ScalarLike,
    *,
    on_sphere: bool | None = None,
    tolerance: float | None = None,
    max_steps: int = 10_000,
) -> Flow:
    """The slow motion of SAM with one random sample a step near Γ, dφ/ds = −∇_Γ tr H(φ), with η ρ² / 2 of s in a step.

    For a loss that is a constant times the sum of squared residuals, L the mean over samples.

    The start is first returned to Γ, and so is every accepted step.

    Args:
        learning_rate: η.
        rho: ρ.
        on_sphere: whether the manifold is cut with the unit sphere; by default where the problem is scale-invariant.
        tolerance: local error per integration step relative to ‖w‖; by default 1e-6 in float64, 1e-4 in float32.
        max_steps: bound on integration steps between two measurements; beyond it the member stops with STEP_LIMIT.

    Returns:
        A `Flow` whose time is s. Cost: 6 evaluations per integration step, each the gradient of ‖J‖² over all
        residuals and a projection on Γ.

    Example:
        >>> import jaxsharp as js
        >>> start = {"u": 1.0, "v": 0.0}
        >>> flow = js.flows.one_sample_sam(0.1, 0.1)
        >>> ds = js.simulate(js.problems.valley(), flow, 1000, init=start, probes=["parameters"], every=1000)
        >>> sharpness = 1 + ds.parameters[:, 0] ** 2  # on the floor of the valley
        >>> round(float(sharpness[0]), 3), bool(sharpness[1] < 1.99)
        (2.0, True)

    Source: Wen, Ma, Li 2023; theory §6.
    """
    hyperparams = {"learning_rate": learning_rate, "rho": rho}
    return descent("sam", "trace", hyperparams, on_sphere, tolerance, None, 1e-3, max_steps)
