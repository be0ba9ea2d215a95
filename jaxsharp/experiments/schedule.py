"""The learning-rate schedule of training with minibatches, its length as data."""

import jax.numpy as jnp

from jaxsharp._types import Scalar, ScalarLike


def rise_and_fall(step: ScalarLike, horizon: ScalarLike, rise: float) -> Scalar:
    """The factor of the learning rate: up to 1 in a straight line, then down to 0 as half a cosine.

    Args:
        step: completed steps.
        horizon: steps of the run; traced, so that runs of any length share a program.
        rise: share of them in which it rises.

    Returns:
        A number from 0 to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(rise_and_fall(step, jnp.asarray(100.0), 0.1)), 3) for step in (0, 9, 10, 55, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    horizon = jnp.asarray(horizon)
    done = jnp.asarray(step).astype(horizon.dtype) / horizon
    rising = (done + 1 / horizon) / rise  # the first step is not lost
    falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((done - rise) / (1 - rise), 0, 1)))
    return jnp.where(done < rise, jnp.minimum(rising, 1), falling)
