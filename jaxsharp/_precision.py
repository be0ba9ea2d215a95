"""How exactly matrices are multiplied: accelerators round float32 to some three digits for it unless told otherwise."""

from collections.abc import Callable
from functools import partial, wraps

import jax
import jax.numpy as jnp

dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
"""The product of two matrices or vectors in the precision of their type, whatever the caller has chosen: for orthogonality,
residuals and other algebra that is worth nothing at three digits."""

vdot = partial(jnp.vdot, precision=jax.lax.Precision.HIGHEST)
"""The inner product of two arrays, as exact as `dot`."""

tensordot = partial(jnp.tensordot, precision=jax.lax.Precision.HIGHEST)
"""A product over several axes, as exact as `dot`."""


def in_full_precision(function: Callable) -> Callable:
    """Lets a function multiply matrices in the precision of their type, unless the caller has chosen another.

    Chosen is what `jax.default_matmul_precision` says, as a context or in JAX's configuration; `"default"` chooses JAX's own
    habit, which is TF32 on NVIDIA GPUs and bfloat16 on TPUs. It covers what the function it is given calls, such as a loss.

    Args:
        function: any; a method too.

    Returns:
        The same function, in that precision.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> square = in_full_precision(lambda v: v @ v)
        >>> for chosen in (None, "tensorfloat32"):
        ...     with jax.default_matmul_precision(chosen):
        ...         print(jax.make_jaxpr(square)(jnp.ones(2)).eqns[0].params["precision"][0].name)
        HIGHEST
        HIGH
    """

    @wraps(function)
    def precise(*args, **options):
        with jax.default_matmul_precision(jax.config.jax_default_matmul_precision or "highest"):
            return function(*args, **options)

    return precise
