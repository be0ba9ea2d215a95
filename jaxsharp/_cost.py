"""How much arithmetic a traced function does, and how many members run well side by side.

Counted from the program, not timed, so that a result does not depend on a stopwatch.
"""

import math

from jax.extend import core

BURDEN_AT_ONCE = 6e8
"""Burden of one gradient, all members of a batch together, past which more members side by side do not pay on a CPU."""

MEMBERS_AT_ONCE = 32
"""Most members side by side on a CPU, where larger batches only cost memory."""

CONVOLUTION = 150.0
"""What an operation of a convolution counts for: on a CPU those of several members, each with its own kernel, do not run well
together."""


def members_at_once(burden: float) -> int:
    """Chooses how many members a CPU runs side by side; measured by `benchmarks/grid.py`.

    Only what all do alike, such as gradients: what takes each its own number of rounds, such as an eigen-search, runs one member
    after the other on a CPU, however small the network is.

    Args:
        burden: of one member's gradient.

    Returns:
        From 1 to `MEMBERS_AT_ONCE`.

    Example:
        >>> members_at_once(1e3), members_at_once(1e8), members_at_once(1e9)
        (32, 6, 1)
    """
    return max(1, min(MEMBERS_AT_ONCE, int(BURDEN_AT_ONCE / max(burden, 1.0))))


def burden_of(jaxpr: core.Jaxpr) -> float:
    """Counts operations as `operations` does, each of a convolution `CONVOLUTION` times.

    Args:
        jaxpr: of one member.

    Returns:
        What decides how many members run side by side.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> burden_of(jax.make_jaxpr(lambda a: a @ a)(jnp.ones((10, 10))).jaxpr)
        2000.0
    """
    return operations(jaxpr, CONVOLUTION)


def operations(jaxpr: core.Jaxpr, convolution: float = 1.0) -> float:
    """Counts floating-point operations of a jaxpr: 2 per multiply-add of matrix products and convolutions, 1 per other element.

    A loop whose length is not known when tracing counts once. Good for choosing batch sizes, and for comparing programs that
    spend their time on such products.

    Args:
        jaxpr: of one member.
        convolution: what an operation of a convolution counts for.

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
            total += repeats * sum(operations(jaxpr, convolution) for jaxpr in inner)
        else:
            total += _operations_of(equation, convolution)
    return total


def _jaxprs(value):
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, (tuple, list)):
        return [jaxpr for entry in value for jaxpr in _jaxprs(entry)]
    return []


def _operations_of(equation, convolution):
    size = float(sum(math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars))
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * size * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return convolution * 2 * size * math.prod(kernel) / outputs
    return size
