"""Transformations one after the other, with their hyper-parameters in sight."""

import optax

from jaxsharp.optimizers.optimizer import Optimizer, check_base
from jaxsharp.transformation import as_transformation


def _chain(**transformations):
    return optax.chain(*transformations.values())


def chain(*transformations: optax.GradientTransformation) -> Optimizer:
    """Applies transformations one after the other, as `optax.chain`, and keeps their hyper-parameters traced and in sight.

    For clipping and schedules around an optimizer of jaxsharp: what `optax.chain` makes hides the numbers inside, so that each
    learning rate compiles a program of its own and no probe knows it. A schedule multiplies the whole displacement; make optax's
    transformations once, outside of the factory of a sweep, since they compare by identity.

    Args:
        *transformations: optimizers of jaxsharp or optax transformations, at least one.

    Returns:
        An `Optimizer`. Of hyper-parameters with one name the probes see the last.

    Raises:
        ValueError: for none, or something else.

    Example:
        >>> import optax, jaxsharp as js
        >>> rise_and_fall = optax.scale_by_schedule(optax.warmup_cosine_decay_schedule(0.0, 1.0, 100, 1000))
        >>> rule = js.optimizers.chain(optax.clip_by_global_norm(1.0), js.optimizers.gd(0.1), rise_and_fall)
        >>> js.as_dynamics(rule).hyperparams["learning_rate"]
        0.1
    """
    if not transformations:
        raise ValueError("chain needs at least one transformation.")
    for transformation in transformations:
        check_base("chain", transformation)
    return Optimizer(_chain, {f"link_{index}": as_transformation(each) for index, each in enumerate(transformations)})
