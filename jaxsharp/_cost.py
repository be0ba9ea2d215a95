"""How much arithmetic a traced function does, and how many members run well side by side.

Counted from the program, not timed, so that a result does not depend on a stopwatch.
"""

import math

from jax.extend import core

OPERATIONS_AT_ONCE = 5e7
"""Operations of one round, all members of a batch together, past which more members side by side do not pay on a CPU."""

MEMBERS_AT_ONCE = 32
"""Most members side by side on a CPU, where larger batches only cost memory."""


def members_at_once(cost: float) -> int:
    """Chooses how many members a CPU runs side by side; measured by `benchmarks/grid.py`.

    Args:
        cost: operations of one member in one round (a gradient, a product).

    Returns:
        From 1 to `MEMBERS_AT_ONCE`.

    Example:
        >>> members_at_once(1e3), members_at_once(2e7), members_at_once(1e9)
        (32, 2, 1)
    """
    return max(1, min(MEMBERS_AT_ONCE, int(OPERATIONS_AT_ONCE / max(cost, 1.0))))


def operations(jaxpr: core.Jaxpr) -> float:
    """Counts floating-point operations of a jaxpr: 2 per multiply-add of matrix products and convolutions, 1 per other element.

    A loop whose length is not known when tracing counts once. An estimate for choosing batch sizes, not for reporting.

    Args:
        jaxpr: of one member.

    Returns:
        A number of operations.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> operations(jax.make_jaxpr(lambda a: a @ a)(jnp.ones((10, 10))).jaxpr)
        2000.0
    """
    total = 0.0
    for equation in jaxpr.eqns:
        inner = [closed for value in equation.params.values() for closed in _jaxprs(value)]
        if inner:
            repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            total += repeats * sum(operations(jaxpr) for jaxpr in inner)
        else:
            total += _operations_of(equation)
    return total


def _jaxprs(value):
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, (tuple, list)):
        return [jaxpr for entry in value for jaxpr in _jaxprs(entry)]
    return []


def _operations_of(equation):
    size = float(sum(math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars))
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * size * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * size * math.prod(kernel) / outputs
    return size
