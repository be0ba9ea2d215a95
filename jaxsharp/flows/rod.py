"""The rod flow: gradient descent as a centre and the extent of its oscillation."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._types import Array, Block, Loss, Scalar, ScalarLike, Vector
from jaxsharp.flows.stepped import SteppedFlow, Substep, check_counts


class Rods(NamedTuple):
    """What a rod flow carries besides the centre; the fields that the probe `oscillation` reads have a central flow's meaning.

    Attributes:
        rods: (k, D), orthogonal rows δᵢ, longest first; Σ = Σᵢ δᵢ δᵢᵀ.
        values: (k,), η times the mean curvature along each rod; an oscillation grows above 2.
        covariance: Σ / η in the directions of the rods, (k, k), diagonal.
        variances: (k,), the eigenvalues of Σ, largest first.
        gradient_variance: tr HΣH.
        active: how many rods lie in directions that flip sign at each step, values above 1.
    """

    rods: Block
    values: Array
    covariance: Array
    variances: Array
    gradient_variance: Scalar
    active: Scalar


@dataclass(frozen=True)
class _Rod:
    k: int
    corrected: bool

    def start(self, loss: Loss, hyperparams: dict, w: Vector) -> Substep:
        rate = hyperparams["learning_rate"]
        k = min(self.k, w.size)
        gradient = jax.grad(loss)

        def move(point, _):
            return point - rate * gradient(point), point

        last, points = jax.lax.scan(move, w, None, length=max(k, 2))
        points = jnp.concatenate([points, last[None]])
        rods = principal((points[1 : k + 1] - points[:k]) / (2 * np.sqrt(k)), k)
        centre = 0.25 * (3 * points[0] + 2 * points[1] - points[2])
        inner = _seen(loss, rate, centre, rods)
        return Substep(centre, inner, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def substep(self, loss: Loss, hyperparams: dict, w: Vector, inner: Rods, h: Scalar) -> Substep:
        rate = hyperparams["learning_rate"]
        k = inner.rods.shape[0]
        forces, kicks, ends = [], [], (w, inner.rods)
        # ∫₀ʰ e^{−2(h−s)} of a line through both stages' values
        fade, whole = jnp.exp(-h), 0.5 * -jnp.expm1(-2 * h)
        later = (2 * h - 2 * whole) / (4 * h)
        for weights in ((whole,), (whole - later, later)):
            mean, bends = averages(loss, *ends)
            forces.append(-rate * mean)
            kicks.append(rate / np.sqrt(2) * jnp.concatenate([mean[None], bends]))
            grown = [jnp.sqrt(weight) * kick for weight, kick in zip(weights, kicks, strict=True)]
            ends = w + h * forces[0], principal(jnp.concatenate([fade * inner.rods, *grown]), k)
        velocity = 0.5 * (forces[0] + forces[1])
        if self.corrected:
            velocity = velocity - (forces[1] - forces[0]) / (2 * h)
        zero = jnp.zeros((), jnp.int32)
        rods = ends[1]
        return Substep(w + h * velocity, _described(rate, rods, bends), zero, zero)


def averages(loss: Loss, centre: Vector, rods: Block) -> tuple[Vector, Block]:
    """Averages the gradient over the ends of rods, E ∇L(w + ξ) and E sᵢ ∇L(w + ξ), ξ = Σ sᵢ δᵢ with signs sᵢ.

    Args:
        loss: of flat parameters.
        centre: w, (D,).
        rods: δᵢ, (k, D).

    Returns:
        The mean, (D,), and the mean with each rod's sign, (k, D), which is H δᵢ to lowest order. The signs are pairwise
        orthogonal and balanced, in 2, 4, 8, 8, … combinations for 1, 2, 3, 4, … rods: the moments of ξ up to the third are those of independent
        signs. Cost: a gradient for each combination.

    Example:
        >>> import jax.numpy as jnp
        >>> mean, bends = averages(lambda w: jnp.sum(w**3), jnp.ones(1), jnp.array([[0.5]]))
        >>> float(mean[0]), float(bends[0, 0])
        (3.75, 3.0)
    """
    k = rods.shape[0]
    signs = np.ones((1, 1))
    while len(signs) < k:
        signs = np.kron(signs, [[1, 1], [1, -1]])
    signs = jnp.asarray(signs[:, :k], centre.dtype)
    reach = signs @ rods
    gradients = jax.vmap(jax.grad(loss))
    ahead, behind = gradients(centre[None] + reach), gradients(centre[None] - reach)
    return 0.5 * jnp.mean(ahead + behind, axis=0), signs.T @ (0.5 * (ahead - behind)) / len(signs)


def principal(rows: Block, k: int) -> Block:
    """Returns the k orthogonal rows δᵢ, longest first, for which Σ δᵢ δᵢᵀ is nearest to Σ rᵢ rᵢᵀ.

    Example:
        >>> import jax.numpy as jnp
        >>> jnp.abs(principal(jnp.array([[3.0, 0.0], [4.0, 0.0]]), 1)).round(4).tolist()
        [[5.0, 0.0]]
    """
    _, lengths, directions = jnp.linalg.svd(rows, full_matrices=False)
    return lengths[:k, None] * directions[:k]


def _seen(loss, rate, centre, rods):
    return _described(rate, rods, averages(loss, centre, rods)[1])


def _described(rate, rods, bends):
    variances = jnp.sum(rods**2, axis=1)
    values = rate * jnp.sum(rods * bends, axis=1) / jnp.where(variances > 0, variances, 1)
    return Rods(
        rods=rods,
        values=values,
        covariance=jnp.diag(variances / rate),
        variances=variances,
        gradient_variance=jnp.sum(bends**2),
        active=jnp.sum((values > 1).astype(rods.dtype)),
    )


def rod(
    learning_rate: ScalarLike, weight_decay: ScalarLike = 0.0, k: int = 2, *, substeps: int = 4, corrected: bool = True
) -> SteppedFlow:
    """x"""
    check_counts(k=k, substeps=substeps)
    return SteppedFlow({"learning_rate": learning_rate, "weight_decay": weight_decay}, _Rod(k, corrected), substeps)
