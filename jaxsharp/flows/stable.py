"""Stable flows: an optimizer without its oscillation and without its edge."""

from collections.abc import Callable

from jaxsharp import preconditioning
from jaxsharp.flows.averaged import AveragedFlow
from jaxsharp.flows.stepped import check_counts


def stable(optimizer, *, schedule: Callable | None = None, substeps: int = 4, corrected: bool = False) -> AveragedFlow:
    """The stable flow of an optimizer, dw/dt = −P(ν, t)⁻¹ ∇L, dν/dt = F(ν, ∇L): gradient flow, preconditioned.

    What an optimizer would do if it did not oscillate; past the edge of stability it goes on where the optimizer cannot.
    Time counts optimizer steps.

    Args:
        optimizer: as for `central`.
        schedule: as for `central`.
        substeps: of Heun's method per optimizer step; stable while the largest eigenvalue of P⁻¹H is below 2 × this, so sharp
            regions need more. For plain gradient descent `gradient` chooses its steps itself.
        corrected: whether to add the first backward-error correction, as in `central`.

    Returns:
        An `AveragedFlow`. Cost: 2 gradients a substep.

    Raises:
        ValueError: for an optimizer without an averaged law, or numbers out of range.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.flows.stable(js.optimizers.rmsprop(0.01)), steps=10, every=5)
        >>> bool(ds.loss[-1] < ds.loss[0]), int(ds.status)
        (True, 0)

    Source: Cohen, Damian, Talwalkar, Kolter, Lee 2024; theory §5.
    """
    check_counts(substeps=substeps)
    rule = preconditioning.of(optimizer)
    return AveragedFlow(dict(optimizer.hyperparams), 1.0, None, rule, schedule, 1, substeps, corrected, False, 2)
