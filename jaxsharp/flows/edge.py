"""The edge flow."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsharp._types import Array, Block, Loss, Scalar, ScalarLike, Vector
from jaxsharp.curvature import hvp
from jaxsharp.flows.stepped import SteppedFlow, Substep, check_counts


class Alternation(NamedTuple):
    direction: Vector
    amplitude: Scalar  # log
    values: Array
    covariance: Array
    variances: Array
    gradient_variance: Scalar
    active: Scalar


@dataclass(frozen=True)
class _Edge:
    corrected: bool

    def start(self, loss, hyperparams, w):
        rate = hyperparams["learning_rate"]
        gradient = jax.grad(loss)
        first = gradient(w)
        second = gradient(w - rate * first)
        part = 0.25 * rate * (first - second)
        length = jnp.linalg.norm(part)
        noise = jax.random.normal(jax.random.key(0), w.shape, w.dtype)
        direction = jnp.where(length > 0, part / jnp.where(length > 0, length, 1), noise / jnp.linalg.norm(noise))
        centre = w - part
        amplitude = jnp.log(jnp.maximum(length, self._floor(hyperparams, centre)))
        _, bend, value = self._look(loss, rate, centre, direction, amplitude)
        zero = jnp.zeros((), jnp.int32)
        return Substep(centre, _described(rate, direction, amplitude, bend), zero, zero + 1)

    def _floor(self, hyperparams, w):
        return jnp.finfo(w.dtype).eps * jnp.linalg.norm(w) / jnp.sqrt(jnp.asarray(w.size, w.dtype)) + jnp.finfo(w.dtype).tiny

    def _look(self, loss, rate, centre, direction, amplitude):
        length = jnp.exp(amplitude)
        gradient = jax.grad(loss)
        ahead, behind = gradient(centre + length * direction), gradient(centre - length * direction)
        bend = hvp(loss, centre, direction)
        far = length > jnp.finfo(centre.dtype).eps ** (1 / 3) * jnp.linalg.norm(centre)
        bend = jnp.where(far, 0.5 * (ahead - behind) / length, bend)
        return 0.5 * (ahead + behind), bend, jnp.sum(direction * bend)

    def _velocity(self, loss, rate, centre, direction, amplitude):
        mean, bend, value = self._look(loss, rate, centre, direction, amplitude)
        factor = rate * value - 1
        growth = jnp.log(jnp.maximum(factor, 0.1))
        return -rate * mean, rate * (bend - value * direction), growth, bend

    def substep(self, loss, hyperparams, w, inner, h):
        rate = hyperparams["learning_rate"]
        u, amplitude = inner.direction, inner.amplitude
        v0, t0, g0, bend = self._velocity(loss, rate, w, u, amplitude)
        bottom = jnp.log(self._floor(hyperparams, w))
        unit = lambda x: x / jnp.linalg.norm(x)
        a1 = jnp.maximum(amplitude + h * g0, bottom)
        v1, t1, g1, bend = self._velocity(loss, rate, w + h * v0, unit(u + h * t0), a1)
        velocity = 0.5 * (v0 + v1)
        if self.corrected:
            velocity = velocity - (v1 - v0) / (2 * h)
        u = unit(u + 0.5 * h * (t0 + t1))
        amplitude = jnp.maximum(amplitude + 0.5 * h * (g0 + g1), bottom)
        zero = jnp.zeros((), jnp.int32)
        return Substep(w + h * velocity, _described(rate, u, amplitude, bend), zero, zero + 2)


def _described(rate, direction, amplitude, bend):
    variance = jnp.exp(2 * amplitude)
    value = rate * jnp.sum(direction * bend)
    return Alternation(direction, amplitude, value[None], variance[None, None] / rate, variance[None], variance * jnp.sum(bend**2), jnp.where(value > 2, 1.0, 0.0).astype(bend.dtype))


def edge(learning_rate, weight_decay=0.0, *, substeps=4, corrected=True):
    check_counts(substeps=substeps)
    return SteppedFlow({"learning_rate": learning_rate, "weight_decay": weight_decay}, _Edge(corrected), substeps)
