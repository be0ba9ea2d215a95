"""Central flows: the time-averaged path of an optimizer that oscillates at the edge of stability."""

from collections.abc import Callable

from jaxsharp import preconditioning
from jaxsharp._types import ScalarLike
from jaxsharp.flows.averaged import AveragedFlow
from jaxsharp.flows.stepped import check_counts


def central(
    optimizer,
    k: int = 3,
    *,
    schedule: Callable | None = None,
    substeps: int = 4,
    corrected: bool = False,
    threshold: ScalarLike = 0.95,
    eigen_tolerance: float | None = None,
    max_matvecs: int = 200,
) -> AveragedFlow:
    """The central flow of an optimizer, dw/dt = −P(ν, t)⁻¹ [∇L + ½ ∇_w ⟨H(w), Σ⟩], dν/dt = F(ν, ∇L) + ½ ⟨∂²F/∂g², H Σ H⟩.

    Σ ⪰ 0 is the covariance of the oscillation, supported where H = 2ρP and just so large that no direction passes it:
    2ρP − H ⪰ 0, ⟨2ρP − H, Σ⟩ = 0, with ρ = 1 except for the heavy ball. Below the edge Σ = 0, and this is the stable flow.
    Time counts optimizer steps.

    A complementarity system, not a smooth differential equation: each substep finds the k top eigenpairs from those of the
    last, the third derivatives for each pair of those that may oscillate in it, and X in Σ = D X Dᵀ from a small
    semidefinite problem, so that the linearized constraint holds at its end. Directions enter and leave by their eigenvalue.

    With `corrected`, the first backward-error correction is added on the directions that do not oscillate. An optimizer is
    Euler's method with step 1, so on slow directions it moves as w' = v − ½ dv/dt, with v the flow's velocity and the total
    derivative taken along it: −½ η² H ∇L for GD, and for preconditioned optimizers also what P and the schedule do within a
    step. With substeps = 1 that is the optimizer's own step: below the edge the flow is then the optimizer itself.

    The heavy ball w ← w − η m, m ← μ m + ∇L moves on slow directions as GD with rate η / (1 − μ) and is stable up to
    2 (1 + μ) / η. Its flow is stiff: take more substeps than ρ = (1 + μ) / (1 − μ).

    Args:
        optimizer: `js.optimizers.gd` (with weight decay: of L + ½ λ̂ ‖w‖²), `scalar_rmsprop` or `rmsprop`.
        k: how many directions to track, more than will oscillate at once.
        schedule: step -> factor of the learning rate, as `optax.scale_by_schedule` takes; the same function reuses a program.
        substeps: per optimizer step.
        corrected: whether to add the correction.
        threshold: an eigenvalue above 2 × this is treated as able to oscillate.
        eigen_tolerance: relative residual of the eigenpairs; by default 1e-4 in float64, 1e-3 in float32.
        max_matvecs: bound on products per substep; beyond it the member stops with FLOW_EIGENPAIR_UNCONVERGED.

    Returns:
        A `AveragedFlow`; the probe `oscillation` records what it predicts of the oscillation. Where all k directions are near the
        edge the bit SUBSPACE_FULL is set, where the complementarity problem was solved badly COMPLEMENTARITY_UNMET. Cost per
        substep: 2 gradients, k to 3 k products, and about 2 products for each pair of directions that oscillate or are about to.

    Raises:
        ValueError: for an optimizer without an averaged law, or numbers out of range.

    Example:
        >>> import jaxsharp as js
        >>> flow = js.flows.central(js.optimizers.gd(0.5), k=1)
        >>> ds = js.simulate(js.problems.valley(), flow, steps=10, probes=["loss"], every=5)
        >>> bool(ds.loss[-1] < ds.loss[0]), int(ds.status)
        (True, 0)

    Source: Cohen, Damian, Talwalkar, Kolter, Lee 2024; the correction and the heavy ball derived, theory §5.
    """
    rule = preconditioning.of(optimizer)
    check_counts(k=k, substeps=substeps)
    if corrected and "momentum" in optimizer.hyperparams:
        raise ValueError("corrected is not known for momentum; leave it out, or use plain gradient descent.")
    if isinstance(threshold, float) and not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    return AveragedFlow(
        dict(optimizer.hyperparams), threshold, eigen_tolerance, rule, schedule, k, substeps, corrected, True, max_matvecs
    )
