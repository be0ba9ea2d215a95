"""The two-parameter valley of the IRE paper."""

import jax
import jax.numpy as jnp

from jaxsharp.problems.problem import Problem


def _init(key, data):
    del data
    noise = jax.random.uniform(key, (2,), minval=0.5, maxval=1.5)
    return {"u": noise[0], "v": 0.01 * noise[1]}


def _loss(params, data):
    del data
    return (1 + params["u"] ** 2) * params["v"] ** 2 / 2


def _residuals(params, data):
    del data
    return jnp.atleast_1d(jnp.sqrt(1 + jnp.square(params["u"])) * params["v"])


def valley() -> Problem:
    """Makes the valley L(u, v) = (1 + u²) v² / 2, flat along u at v = 0 with sharpness 1 + u².

    The smallest problem with a minimizer manifold: {v = 0}, on which the only nonzero Hessian eigenvalue is 1 + u², least at
    u = 0. For seeing and testing, not for conclusions.

    Returns:
        A `Problem` whose params are `{"u": scalar, "v": scalar}`, drawn near (1, 0.01).

    Example:
        >>> import jaxsharp as js
        >>> float(js.problems.valley().loss({"u": 1.0, "v": 2.0}))
        4.0

    Source: Wang et al. 2024 (IRE), the two-dimensional example; see theory §7.
    """
    return Problem(data=(), init_fn=_init, loss_fn=_loss, residuals_fn=_residuals, name="valley")
