"""The constrained trajectory of self-stabilization: gradient descent that may not become sharper than the edge of stability."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsharp._types import Array, Block, Loss, Scalar, ScalarLike, Vector
from jaxsharp.curvature import Eigenpairs, frozen_eigenpairs, hvp, rayleigh_quotient
from jaxsharp.flows.stepped import SteppedFlow, Substep
from jaxsharp.status import Status

MAX_MATVECS = 200
"""Bound on products for the eigenpairs of a step."""


class Stabilized(NamedTuple):
    """What both carry besides the parameters; the fields that the probe `oscillation` reads have a central flow's meaning.

    Attributes:
        point: θ†, the constrained trajectory, (D,).
        displacement: d = x u + v from there to the predicted iterate of GD, (D,); zero where only θ† is asked for.
        vectors: the two top eigenvectors at θ†, rows; the first is u.
        values: (1,), η S at θ†.
        covariance: of the oscillation over η, (1, 1).
        variances: (1,), x², or δ² = 2 α / β in balance where only θ† is asked for.
        gradient_variance: tr HΣH = S² times the variance.
        active: 1 where the constraint acts, 0 elsewhere.
    """

    point: Vector
    displacement: Vector
    vectors: Block
    values: Array
    covariance: Array
    variances: Array
    gradient_variance: Scalar
    active: Scalar


@dataclass(frozen=True)
class Stabilization:
    """The law of `constrained`, and with `displaced` of `self_stabilization`."""

    displaced: bool
    eigen_tolerance: float | None

    def start(self, loss: Loss, hyperparams: dict, w: Vector) -> Substep:
        """Finds the eigenpairs and, where GD overshoots along u, puts the start on the valley's floor."""
        rate = hyperparams["learning_rate"]
        pairs = self._pairs(loss, w, jnp.zeros((min(2, w.size), w.size), w.dtype))
        u, sharpness = pairs.vectors[0], pairs.values[0]
        flips = rate * sharpness > 1
        height = jnp.where(flips, u @ jax.grad(loss)(w) / jnp.where(flips, sharpness, 1), 0)
        zero = jnp.zeros((), w.dtype)
        return self._end(loss, rate, w - height * u, height * u, pairs.vectors, zero, zero, pairs.matvecs)

    def substep(self, loss: Loss, hyperparams: dict, w: Vector, inner: Stabilized, h: Scalar) -> Substep:
        """Takes one step of θ† and of the displacement."""
        del w, h
        rate = hyperparams["learning_rate"]
        point, u = inner.point, inner.vectors[0]
        sharpness = inner.values[0] / rate
        gradient = jax.grad(loss)(point)
        slope = jax.grad(lambda w: rayleigh_quotient(loss, w, u))(point)
        tangent = slope - (u @ slope) * u  # ∇S⊥
        square = tangent @ tangent  # β
        along = u @ gradient
        # along u as far as the valley's floor and no farther
        surplus = jnp.where(rate * sharpness > 1, (rate - 1 / jnp.where(sharpness > 0, sharpness, 1)) * along, 0)
        free = -rate * gradient + surplus * u
        excess = sharpness + slope @ free - 2 / rate
        push = jnp.where(square > 0, jnp.maximum(excess, 0) / jnp.where(square > 0, square, 1), 0)
        spent, moved = jnp.asarray(3, jnp.int32), inner.displacement
        if self.displaced:
            x = u @ moved
            y = tangent @ moved
            bend = rate * (hvp(loss, point, moved) + 0.5 * x**2 * tangent + x * y * u)
            moved, spent = moved - bend + push * tangent - surplus * u, spent + 1
        balance = 2 * push / rate
        return self._end(loss, rate, point + free - push * tangent, moved, inner.vectors, balance, jnp.sign(push), spent)

    def _pairs(self, loss, w, guess) -> Eigenpairs:
        tolerance = self.eigen_tolerance or (1e-4 if w.dtype == jnp.float64 else 1e-3)
        return frozen_eigenpairs(loss, w, guess.shape[0], guess, tol=tolerance, max_matvecs=MAX_MATVECS)

    def _end(self, loss, rate, point, moved, guess, balance, active, spent):
        pairs = self._pairs(loss, point, guess)
        u, sharpness = pairs.vectors[0], pairs.values[0]
        x = u @ moved
        variance = (x**2 if self.displaced else balance)[None]
        inner = Stabilized(
            point=point,
            displacement=moved if self.displaced else jnp.zeros_like(moved),
            vectors=pairs.vectors,
            values=rate * sharpness[None],
            covariance=variance[None] / rate,
            variances=variance,
            gradient_variance=sharpness**2 * variance[0],
            active=active,
        )
        centre = point + moved - x * u if self.displaced else point
        bits = jnp.where(pairs.converged, 0, int(Status.FLOW_EIGENPAIR_UNCONVERGED))
        return Substep(centre, inner, bits.astype(jnp.int32), spent.astype(jnp.int32) + pairs.matvecs)


def constrained(
    learning_rate: ScalarLike, weight_decay: ScalarLike = 0.0, *, eigen_tolerance: float | None = None
) -> SteppedFlow:
    """GD held where it is stable: the constrained trajectory θ† of self-stabilization, on S ≤ 2/η and ∇L · u = 0.

    θ†_{t+1} = θ† − η ∇L⊥ − (u · ∇L / S) u − μ ∇S⊥,   μ = max(0, S + ∇S · (θ†_{t+1} − θ†)|_{μ=0} − 2/η) / ‖∇S⊥‖²,

    with u, S the top eigenpair of H, ∇S = ∇³L(u, u), and ⊥ without the part along u. A step of GD, then the shortest way back
    to both constraints by their linearization; the part along u is GD's own while η S < 1. Before the edge θ† is GD itself,
    but for its overshoot along u. In balance the oscillation that holds it there has the square δ² = 2 μ / η = 2 α / β,
    α = −∇L · ∇S, β = ‖∇S⊥‖², which the probe `oscillation` records.

    It is, but for ∇S⊥ in place of ∇S, the corrected central flow with one direction and one substep.

    Args:
        learning_rate: η.
        weight_decay: λ̂ ≥ 0, as GD on L + ½ λ̂ ‖w‖².
        eigen_tolerance: relative residual of the eigenpairs; by default 1e-4 in float64, 1e-3 in float32.

    Returns:
        A `SteppedFlow` that moves one optimizer step at a time. Only the top direction is held; a second one may pass 2/η.
        A member stops with FLOW_EIGENPAIR_UNCONVERGED where the top two eigenpairs are not found. Cost a step: 1 gradient, 1
        third derivative (about 3 products), and the products of the eigenpairs from warm.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> groove = js.problems.from_loss(lambda w, _: 0.5 * (1.9 + w[1]) * w[0] ** 2 - 0.01 * w[1], lambda key: jnp.zeros(2))
        >>> ds = js.simulate(groove, js.flows.constrained(1.0), steps=50, probes=["oscillation"], every=50)
        >>> round(float(ds.edge_ratio[-1, 0]), 4), round(float(ds.oscillation[-1, 0]), 4)  # η S / 2 and 2 α/β
        (1.0, 0.02)

    Source: Damian, Nichani, Lee 2023; derived anew.
    """
    return SteppedFlow({"learning_rate": learning_rate, "weight_decay": weight_decay}, Stabilization(False, eigen_tolerance), 1)
