"""The Likelihood: what a loss on outputs says about the distribution of targets, for the Fisher information."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._types import PyTree


@dataclass(frozen=True)
class Likelihood:
    """A loss that is −log p(target | output) up to a constant.

    Attributes:
        loss: (outputs (n, ...), targets) -> (n,), one loss for each sample, or (n, T), one for each of its T targets (tokens),
            which are independent given the outputs.
        sample: (key, outputs) -> targets drawn from the model, as many as `loss` takes.
        information: (outputs, u) -> Σ E_y[g gᵀ] u over the losses of each sample, with g = ∇ loss in the outputs and y drawn from
            the model, shaped like u; None where there is no closed form.
    """

    loss: Callable
    sample: Callable
    information: Callable | None = None


def _squared_error(outputs, targets):
    if outputs.shape != targets.shape:
        raise ValueError(
            f"loss='mse' needs targets of the outputs' shape {outputs.shape}, got targets of shape {targets.shape}; reshape "
            "either, as by targets[:, None]."
        )
    squares = 0.5 * (outputs - targets) ** 2
    return squares if squares.ndim == 1 else jnp.sum(squares, axis=-1)


def _sample_gaussian(key, outputs):
    return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


def _cross_entropy(outputs, targets):
    _check_logits(outputs)
    if targets.shape != outputs.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"loss='cross_entropy' needs targets that are integer labels of shape {outputs.shape[:-1]} for outputs of shape "
            f"{outputs.shape}, got {targets.dtype} of shape {targets.shape}; of one-hot targets take the argmax, and cut outputs "
            "that have no label."
        )
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[..., None], axis=-1)[..., 0]


def _check_logits(outputs):
    if outputs.ndim < 2:
        raise ValueError(
            f"loss='cross_entropy' needs outputs of shape (n, ..., classes), got {outputs.shape}; let predict return one for "
            "each class."
        )


def _sample_label(key, outputs):
    _check_logits(outputs)
    return jax.random.categorical(key, outputs).astype(jnp.int32)


def _softmax_information(outputs, u):
    probabilities = jax.nn.softmax(outputs)
    return probabilities * (u - jnp.sum(probabilities * u, axis=-1, keepdims=True))


LIKELIHOODS = {
    "mse": Likelihood(_squared_error, _sample_gaussian, lambda outputs, u: u),
    "cross_entropy": Likelihood(_cross_entropy, _sample_label, _softmax_information),
}
"""`mse`: ½‖f − y‖², a Gaussian of unit variance; `cross_entropy`: softmax, integer labels. Both are taken over the last axis of
the outputs, so that outputs (n, T, c) have the losses (n, T); for outputs (n,) `mse` is ½(f − y)²."""


def loss_of(loss: str | Callable | Likelihood) -> Callable:
    """Returns the function behind a name, a function or a Likelihood: (outputs, targets) -> losses."""
    if isinstance(loss, str) and loss in LIKELIHOODS:
        return LIKELIHOODS[loss].loss
    if isinstance(loss, Likelihood):
        return loss.loss
    if callable(loss):
        return loss
    raise ValueError(
        f"loss={loss!r} is unknown; use one of {', '.join(LIKELIHOODS)}, a function (outputs, targets) -> (n,) or (n, T), or a "
        "js.curvature.Likelihood."
    )


def likelihood_of(loss: str | Likelihood) -> Likelihood:
    """Returns the Likelihood behind a name."""
    if isinstance(loss, Likelihood):
        return loss
    if isinstance(loss, str) and loss in LIKELIHOODS:
        return LIKELIHOODS[loss]
    raise ValueError(
        f"the Fisher information needs a distribution of targets, and loss={loss!r} names none; use one of "
        f"{', '.join(LIKELIHOODS)}, or a js.curvature.Likelihood."
    )


def check_rows(outputs, samples: int) -> None:
    """Raises where outputs are not one array with a row for each sample."""
    shape = getattr(outputs, "shape", None)
    if shape is None or shape[:1] != (samples,):
        got = f"an array of shape {shape}" if shape is not None else f"{jax.tree.structure(outputs)}"
        raise ValueError(f"predict must return one array of outputs with a row for each of {samples} samples, got {got}.")


def count_losses(loss: Callable, outputs, targets: PyTree, samples: int) -> int:
    """Returns how many losses there are, n or n T, and raises where outputs, targets and losses do not belong to the samples.

    Shapes alone are looked at, and labels where they are known, that is outside of a compilation or constants of it.
    """
    check_rows(outputs, samples)
    losses = jax.eval_shape(lambda f: loss(f, targets), outputs)
    shape = getattr(losses, "shape", None)
    if shape is None or shape[:1] != (samples,):
        raise ValueError(
            f"loss must return one number for each of {samples} samples, shape ({samples},), or for each of their targets, "
            f"({samples}, T), got {losses if shape is None else shape}; leave the mean over them to the operator."
        )
    if len(shape) > 1:
        first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), (outputs, targets))
        alone = jax.eval_shape(loss, *first)
        if alone.shape != (1, *shape[1:]):
            raise ValueError(
                f"loss must take each sample alone, but returns shape {shape} for {samples} samples and {alone.shape} for one: "
                f"give outputs, here {outputs.shape}, and targets, here {jax.tree.map(jnp.shape, targets)}, shapes that do not "
                "broadcast."
            )
    if loss is _cross_entropy and not isinstance(targets, jax.core.Tracer):
        labels, classes = np.asarray(targets), outputs.shape[-1]
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"targets must be labels from 0 to {classes - 1} for the {classes} outputs of each, got {labels.min()} to "
                f"{labels.max()}; drop those samples, or give the model more outputs."
            )
    return losses.size
