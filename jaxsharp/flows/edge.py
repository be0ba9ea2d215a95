"""The edge flow: gradient descent as a centre and one alternating displacement, which grows from almost nothing."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsharp._types import Array, Loss, Scalar, ScalarLike, Vector
from jaxsharp.curvature import hvp
from jaxsharp.flows.stepped import SteppedFlow, Substep, centre_step, check_counts

SLOWEST = 0.1
"""|ηS − 1| counts as at least this: what decays faster is gone within a few steps, and no logarithm is infinite."""


class Alternation(NamedTuple):
    """What an edge flow carries besides the centre; the fields that the probe `oscillation` reads have a central flow's meaning.

    Attributes:
        direction: u, (D,), of unit length.
        log_amplitude: log r.
        values: (1,), η S, an oscillation grows above 2.
        covariance: r² / η, (1, 1).
        variances: (1,), r².
        gradient_variance: tr HΣH = r² ‖H u‖².
        active: 1 where the oscillation grows, 0 elsewhere.
    """

    direction: Vector
    log_amplitude: Scalar
    values: Array
    covariance: Array
    variances: Array
    gradient_variance: Scalar
    active: Scalar


@dataclass(frozen=True)
class _Edge:
    corrected: bool

    def start(self, loss: Loss, hyperparams: dict, w: Vector) -> Substep:
        rate = hyperparams["learning_rate"]
        gradient = jax.grad(loss)
        first = gradient(w)
        flips = 0.25 * rate * (first - gradient(w - rate * first))  # (w₀ − 2 w₁ + w₂) / 4
        length = jnp.linalg.norm(flips)
        some = jax.random.normal(jax.random.key(0), w.shape, w.dtype)
        direction = _unit(jnp.where(length > 0, flips / jnp.where(length > 0, length, 1), some))
        centre = w - flips
        log_amplitude = jnp.log(jnp.maximum(length, _floor(hyperparams, centre)))
        _, bend = _averages(loss, centre, direction, log_amplitude)
        zero = jnp.zeros((), jnp.int32)
        return Substep(centre, _described(rate, direction, log_amplitude, bend), zero, zero + 1)

    def substep(self, loss: Loss, hyperparams: dict, w: Vector, inner: Alternation, h: Scalar) -> Substep:
        rate = hyperparams["learning_rate"]
        u, log_amplitude = inner.direction, inner.log_amplitude
        lowest = jnp.log(_floor(hyperparams, w))

        def rates(centre, u, log_amplitude):
            mean, bend = _averages(loss, centre, u, log_amplitude)
            curvature = jnp.sum(u * bend)
            growth = jnp.log(jnp.maximum(rate * curvature - 1, SLOWEST))
            return -rate * mean, rate * (bend - curvature * u), growth, bend

        force, turn, growth, _ = rates(w, u, log_amplitude)
        ahead = w + h * force, _unit(u + h * turn), jnp.maximum(log_amplitude + h * growth, lowest)
        force_ahead, turn_ahead, growth_ahead, bend = rates(*ahead)
        u = _unit(u + 0.5 * h * (turn + turn_ahead))
        log_amplitude = jnp.maximum(log_amplitude + 0.5 * h * (growth + growth_ahead), lowest)
        zero = jnp.zeros((), jnp.int32)
        inner = _described(rate, u, log_amplitude, bend)
        return Substep(w + centre_step(force, force_ahead, h, self.corrected), inner, zero, zero + 2)


def _unit(v):
    return v / jnp.linalg.norm(v)


def _floor(hyperparams, w):
    """The least amplitude: by default what rounding gives a coordinate."""
    info = jnp.finfo(w.dtype)
    rounding = info.eps * jnp.linalg.norm(w) / jnp.sqrt(jnp.asarray(w.size, w.dtype))
    return jnp.maximum(hyperparams.get("floor", rounding), info.tiny)


def _averages(loss, centre, u, log_amplitude):
    """The mean of the gradient at both ends, and half its difference over r, which is H u to lowest order.

    Where r is so small that rounding spoils the difference, the product itself; at the cube root of eps both err alike.
    """
    length = jnp.exp(log_amplitude)
    gradient = jax.grad(loss)
    ahead, behind = gradient(centre + length * u), gradient(centre - length * u)
    product = hvp(loss, centre, u)
    measurable = length > jnp.finfo(centre.dtype).eps ** (1 / 3) * jnp.linalg.norm(centre)
    return 0.5 * (ahead + behind), jnp.where(measurable, 0.5 * (ahead - behind) / length, product)


def _described(rate, u, log_amplitude, bend):
    variance = jnp.exp(2 * log_amplitude)[None]
    value = rate * jnp.sum(u * bend)
    return Alternation(
        direction=u,
        log_amplitude=log_amplitude,
        values=value[None],
        covariance=variance[None] / rate,
        variances=variance,
        gradient_variance=variance[0] * jnp.sum(bend**2),
        active=(value > 2).astype(u.dtype),
    )


def edge(
    learning_rate: ScalarLike,
    weight_decay: ScalarLike = 0.0,
    *,
    floor: ScalarLike | None = None,
    substeps: int = 4,
    corrected: bool = True,
) -> SteppedFlow:
    """GD as a centre c and an alternation r u that has to grow before it pushes back, w_t = c + (−1)^t r u with ‖u‖ = 1.

    dc/dt = −(η/2) [∇L(c + r u) + ∇L(c − r u)],  du/dt = η (I − u uᵀ) H u,  d(log r)/dt = log(η S − 1),  S = uᵀ H u,

    where H u stands for [∇L(c + r u) − ∇L(c − r u)] / (2 r), which also knows that a large oscillation meets another curvature.
    u turns to the top eigenvector by the flow of the Rayleigh quotient; r decays below S = 2/η and grows above.

    Derivation. Write w_t = c_t + (−1)^t a_t. GD holds exactly if c_{t+1} = c_t − (η/2) [∇L(c + a) + ∇L(c − a)] and
    a_{t+1} = (η/2) [∇L(c + a) − ∇L(c − a)] − a_t = (η H − I) a_t + …. The first map becomes a flow; with a = r u the second
    multiplies r by η S − 1 in a step, which is where its logarithm comes from, and turns u by η (I − u uᵀ) H u near the edge.
    Any a_0 would do: it starts with (w_0 − 2 w_1 + w_2) / 4, which holds nothing of a slow mode and all of a mode at the edge.

    A central flow takes the oscillation to be in balance as soon as η S reaches 2. Here it has first to grow from what
    decayed on the way to the edge, so the sharpness passes 2/η for a while, as that of GD does. Several unstable directions
    are followed as one u that mixes them, since all of them flip sign at every step.

    Args:
        learning_rate: η.
        weight_decay: λ̂ ≥ 0, as GD on L + ½ λ̂ ‖w‖².
        floor: least r, in units of the parameters; by default eps ‖c‖ / √D, which is what rounding leaves in GD itself. A
            large one keeps the oscillation ready.
        substeps: of Heun's method per step; the correction needs 4 to stay stable up to η S = 3.5.
        corrected: whether the centre moves by v − ½ dv/dt, the first backward-error correction, v its velocity above.

    Returns:
        A `SteppedFlow`; the probe `oscillation` reads it. Its start is not w_0 but c_0. Cost: 4 gradients and 2 products a
        substep.

    Raises:
        ValueError: for substeps out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> bowl = js.problems.from_loss(lambda w, _: jnp.sum(1.25 * w**2 - 0.25 * w**4), lambda key: jnp.full(1, 0.1))
        >>> ds = js.simulate(bowl, js.flows.edge(1.0), steps=100, probes=["oscillation"], every=100)
        >>> round(float(ds.oscillation[-1, 0]), 3)  # r² = S/Q − 2/(ηQ), with S = 2.5 and Q = 1
        0.5

    Source: derived.
    """
    check_counts(substeps=substeps)
    hyperparams = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    if floor is not None:
        hyperparams["floor"] = floor
    return SteppedFlow(hyperparams, _Edge(corrected), substeps)
