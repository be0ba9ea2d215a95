"""The slow motion of stochastic gradient descent with label noise along its minimizer manifold."""

from jaxsharp._types import ScalarLike
from jaxsharp.flows.flow import Flow
from jaxsharp.flows.on_manifold import descent


def label_noise(
    learning_rate: ScalarLike,
    noise: ScalarLike,
    *,
    on_sphere: bool | None = None,
    tolerance: float | None = None,
    max_steps: int = 10_000,
) -> Flow:
    """The slow motion of SGD with fresh label noise near Γ, dφ/ds = −∇_Γ tr H(φ), with η² κ / 4 of s in a step.

    κ is the gradient noise over the Hessian: for labels with variance σ² and batches of B samples it is σ² / B where L is half
    the mean squared residual and 2 σ² / B where L is the mean squared residual. To first order in η: at a curvature λ the spread
    of SGD is larger by 1 / (1 − η λ / 2). For a loss that is a constant times the sum of squared residuals.

    The start is first returned to Γ, and so is every accepted step.

    Args:
        learning_rate: η.
        noise: κ.
        on_sphere: whether the manifold is cut with the unit sphere; by default where the problem is scale-invariant.
        tolerance: local error per integration step relative to ‖w‖; by default 1e-6 in float64, 1e-4 in float32.
        max_steps: bound on integration steps between two measurements; beyond it the member stops with STEP_LIMIT.

    Returns:
        A `Flow` whose time is s. Cost: 6 evaluations per integration step, each the gradient of ‖J‖² over all
        residuals and a projection on Γ.

    Example:
        >>> import jaxsharp as js
        >>> start = {"u": 1.0, "v": 0.0}
        >>> flow = js.flows.label_noise(0.1, 0.1)
        >>> ds = js.simulate(js.problems.valley(), flow, 1000, init=start, probes=["parameters"], every=1000)
        >>> sharpness = 1 + ds.parameters[:, 0] ** 2  # on the floor of the valley
        >>> round(float(sharpness[0]), 3), bool(sharpness[1] < 1.99)
        (2.0, True)

    Source: Li, Wang, Arora 2022; the constant derived, theory §6.
    """
    hyperparams = {"learning_rate": learning_rate, "noise": noise}
    return descent("label_noise", "trace", hyperparams, on_sphere, tolerance, None, 1e-3, max_steps)
