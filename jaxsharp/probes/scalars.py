"""Probes that need no memory: loss, gradient norm, effective learning rate, metrics, parameters."""

import jax
from jax.flatten_util import ravel_pytree

from jaxsharp import sphere
from jaxsharp.probes.probe import FunctionProbe, Variable


def _loss(problem, params, state):
    del state
    return problem.loss(params)


def _grad_norm(problem, params, state):
    del state
    return sphere.norm(jax.grad(problem.loss)(params))


def _effective_learning_rate(problem, params, state):
    del problem
    if state.rate is not None:
        return state.rate
    if "learning_rate" not in state.hyperparams:
        raise ValueError(
            "the probe effective_learning_rate needs to know the learning rate; use an optimizer of js.optimizers, or "
            "js.optimizers.from_factory(optax.sgd, learning_rate=...)."
        )
    return sphere.effective_learning_rate(params, state.hyperparams["learning_rate"], state.hyperparams.get("weight_decay", 0.0))


def _metrics(problem, params, state):
    del state
    return problem.metrics(params)


def _parameters(problem, params, state):
    del problem, state
    return ravel_pytree(params)[0]


def _norm(problem, params, state):
    del problem, state
    return sphere.norm(params)


def loss(*, every: int | None = None, midpoint: bool = False) -> FunctionProbe:
    """Records the full-batch loss L(w), variable `loss`.

    Args:
        every: cadence in steps; by default that of the run.
        midpoint: whether to evaluate at the mean of two consecutive iterates.

    Returns:
        A `Probe`. Cost: 1 evaluation of the loss.

    Example:
        >>> import jaxsharp as js
        >>> js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=2, probes=[js.probes.loss(every=2)]).sizes["step_2"]
        2
    """
    return FunctionProbe("loss", _loss, (("loss", Variable((), "training loss")),), every, midpoint)


def grad_norm(*, every: int | None = None, midpoint: bool = False) -> FunctionProbe:
    """Records ‖∇L(w)‖, variable `grad_norm`.

    Args:
        every: cadence in steps; by default that of the run.
        midpoint: whether to evaluate at the mean of two consecutive iterates.

    Returns:
        A `Probe`. Cost: 1 gradient.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=2, probes=["grad_norm"])
        >>> bool((ds.grad_norm > 0).all())
        True
    """
    return FunctionProbe("grad_norm", _grad_norm, (("grad_norm", Variable((), "gradient norm")),), every, midpoint)


def effective_learning_rate(*, every: int | None = None) -> FunctionProbe:
    """Records η̃ = η̂ / ((1 − η̂ λ̂) ‖w‖²), or the rate that the rule itself sets, variable `effective_learning_rate`.

    Args:
        every: cadence in steps; by default that of the run.

    Returns:
        A `Probe`. Cost: a norm.

    Raises:
        ValueError: while tracing, for an optimizer whose learning rate is not known.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=2, probes=["effective_learning_rate"])
        >>> bool((ds.effective_learning_rate > 0).all())
        True

    Source: Lyu, Li, Arora 2022; theory §1.
    """
    labels = (("effective_learning_rate", Variable((), "effective learning rate")),)
    return FunctionProbe("effective_learning_rate", _effective_learning_rate, labels, every)


def metrics(*, every: int | None = None, midpoint: bool = False) -> FunctionProbe:
    """Records the problem's metrics, one variable each under its own name.

    Args:
        every: cadence in steps; by default that of the run.
        midpoint: whether to evaluate at the mean of two consecutive iterates.

    Returns:
        A `Probe`. Cost: usually 1 evaluation on the training and 1 on the test set.

    Example:
        >>> import numpy as np, jaxsharp as js
        >>> rng = np.random.default_rng(0)
        >>> problem = js.problems.bn_linear_regression(rng.normal(size=(5, 8)), rng.normal(size=5))
        >>> "angle" in js.simulate(problem, js.optimizers.gd(0.1), steps=2, probes=["metrics"])
        True
    """
    return FunctionProbe("metrics", _metrics, (("angle", Variable((), "angle α", "rad")),), every, midpoint)


def parameters(*, every: int | None = None, midpoint: bool = False) -> FunctionProbe:
    """Records all parameters as one vector, variable `parameters` with the dimension `parameter`.

    Args:
        every: cadence in steps; by default that of the run. Mind the size: members × measurements × parameters.
        midpoint: whether to record the mean of two consecutive iterates.

    Returns:
        A `Probe`.

    Example:
        >>> import jaxsharp as js
        >>> js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=2, probes=["parameters"]).sizes["parameter"]
        2
    """
    labels = (("parameters", Variable(("parameter",), "parameters")),)
    return FunctionProbe("parameters", _parameters, labels, every, midpoint)


def parameter_norm(*, every: int | None = None) -> FunctionProbe:
    """Records ‖w‖, variable `parameter_norm`.

    Args:
        every: cadence in steps; by default that of the run.

    Returns:
        A `Probe`.

    Example:
        >>> import jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=2, probes=["parameter_norm"])
        >>> ds.parameter_norm.dims
        ('step',)
    """
    return FunctionProbe("parameter_norm", _norm, (("parameter_norm", Variable((), "parameter norm")),), every)
