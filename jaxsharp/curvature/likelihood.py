"""The Likelihood: what a loss on outputs says about the distribution of targets, for the Fisher information."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsharp._types import Array


@dataclass(frozen=True)
class Likelihood:
    """A loss per sample that is −log p(target | output) up to a constant.

    Attributes:
        loss: (outputs (n, ...), targets) -> (n,).
        sample: (key, outputs) -> targets drawn from the model, one per sample.
        information: (outputs, u) -> E_y[g gᵀ] u per sample with g = ∇ loss in the output and y drawn from the model; None where
            there is no closed form.
    """

    loss: Callable
    sample: Callable
    information: Callable | None = None


def _per_sample(values):
    return jnp.sum(values.reshape(values.shape[0], -1), axis=1)


def _squared_error(outputs, targets):
    return 0.5 * _per_sample((outputs - targets) ** 2)


def _sample_gaussian(key, outputs):
    return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


def _cross_entropy(outputs, targets):
    picked = jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[..., None], axis=-1)
    return -_per_sample(picked)


def _sample_label(key, outputs):
    return jax.random.categorical(key, outputs).astype(jnp.int32)


def _softmax_information(outputs, u):
    probabilities = jax.nn.softmax(outputs)
    return probabilities * (u - jnp.sum(probabilities * u, axis=-1, keepdims=True))


LIKELIHOODS = {
    "mse": Likelihood(_squared_error, _sample_gaussian, lambda outputs, u: u),
    "cross_entropy": Likelihood(_cross_entropy, _sample_label, _softmax_information),
}
"""`mse`: ½‖f − y‖², a Gaussian of unit variance; `cross_entropy`: softmax over the last axis, integer labels."""


def loss_of(loss: str | Callable | Likelihood) -> Callable:
    """Returns the loss per sample behind a name, a function or a Likelihood."""
    if isinstance(loss, str):
        return likelihood_of(loss).loss
    return loss.loss if isinstance(loss, Likelihood) else loss


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


def score_outer_product(scores: Array, u: Array) -> Array:
    """Multiplies u (n, ...) by the mean over s of g gᵀ, for scores g (n, s, ...)."""
    n, count = scores.shape[:2]
    rows = scores.reshape(n, count, math.prod(scores.shape[2:]))
    weights = jnp.einsum("nso,no->ns", rows, u.reshape(n, -1))
    return (jnp.einsum("ns,nso->no", weights, rows) / count).reshape(u.shape)
