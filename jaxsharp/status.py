"""What can go wrong inside a grid, as bits of one integer per member.

A member's status is the bitwise or of everything that happened to it. Bits in `FATAL` come from the dynamics and freeze the
member; the others only warn about the values that were recorded.
"""

import enum


class Status(enum.IntFlag):
    """Bits of a member's status; 0 means that nothing went wrong.

    Example:
        >>> from jaxsharp.status import Status, describe
        >>> describe(Status.DIVERGED | Status.EIGENPAIR_UNCONVERGED)
        'diverged, eigenpair_unconverged'
    """

    OK = 0
    DIVERGED = 1
    EIGENGAP_LOST = 2
    STEP_LIMIT = 4
    OFF_MANIFOLD = 8
    FLOW_EIGENPAIR_UNCONVERGED = 16
    EIGENPAIR_UNCONVERGED = 32
    SUBSPACE_FULL = 64
    COMPLEMENTARITY_UNMET = 128


MEANINGS = {
    Status.DIVERGED: "the loss or a parameter became non-finite, or a parameter larger than 1e10 in absolute value",
    Status.EIGENGAP_LOST: "the two largest eigenvalues met, where the flow is not smooth",
    Status.STEP_LIMIT: "the integrator reached its step limit or its smallest step",
    Status.OFF_MANIFOLD: "the return to the minimizer manifold did not converge",
    Status.FLOW_EIGENPAIR_UNCONVERGED: "an eigenpair that the flow needs did not converge",
    Status.EIGENPAIR_UNCONVERGED: "an eigenpair of a probe or an optimizer did not converge within its products",
    Status.SUBSPACE_FULL: "all directions that a central flow tracks were near the edge at once, so it may have missed one",
    Status.COMPLEMENTARITY_UNMET: "the oscillation of a central flow was found less exactly than its tolerance",
}

FATAL = Status.DIVERGED | Status.EIGENGAP_LOST | Status.STEP_LIMIT | Status.OFF_MANIFOLD | Status.FLOW_EIGENPAIR_UNCONVERGED


def stopped(status):
    """Returns whether a status has a fatal bit; works on Python integers and on arrays.

    Example:
        >>> stopped(1), stopped(32)
        (True, False)
    """
    return (status & int(FATAL)) != 0


def describe(status: int) -> str:
    """Returns the names of the bits set in a status, separated by commas, or `ok`.

    Args:
        status: one member's status, an integer.

    Returns:
        Lower-case names, in the order of the bits.

    Example:
        >>> describe(0)
        'ok'
    """
    return ", ".join(bit.name.lower() for bit in MEANINGS if int(status) & bit) or "ok"
