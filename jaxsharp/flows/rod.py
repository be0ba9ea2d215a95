"""The rod flow: gradient descent as a centre and the extent of its oscillation."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._factorizations import eigh
from jaxsharp._types import Array, Block, Loss, Scalar, ScalarLike, Vector
from jaxsharp.flows.stepped import SteppedFlow, Substep, centre_step, check_counts


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
        zero = jnp.zeros((), jnp.int32)
        return Substep(centre, _described(rate, rods, averages(loss, centre, rods)[1]), zero, zero)

    def substep(self, loss: Loss, hyperparams: dict, w: Vector, inner: Rods, h: Scalar) -> Substep:
        rate = hyperparams["learning_rate"]
        k = inner.rods.shape[0]
        forces, kicks, ends = [], [], (w, inner.rods)
        # Σ decays by e^{−2h}, and what drives it counts ∫₀ʰ e^{−2(h−s)} ds, half of it from each stage
        fade, whole = jnp.exp(-h), 0.5 * -jnp.expm1(-2 * h)
        for weights in ((whole,), (0.5 * whole, 0.5 * whole)):
            mean, bends = averages(loss, *ends)
            forces.append(-rate * mean)
            kicks.append(rate / np.sqrt(2) * jnp.concatenate([mean[None], bends]))
            grown = [jnp.sqrt(weight) * kick for weight, kick in zip(weights, kicks, strict=True)]
            ends = w + h * forces[0], principal(jnp.concatenate([fade * inner.rods, *grown]), k)
        rods, zero = ends[1], jnp.zeros((), jnp.int32)
        return Substep(w + centre_step(*forces, h, self.corrected), _described(rate, rods, bends), zero, zero)


def averages(loss: Loss, centre: Vector, rods: Block) -> tuple[Vector, Block]:
    """Averages the gradient over the ends of rods, E ∇L(w + ξ) and E sᵢ ∇L(w + ξ), ξ = Σ sᵢ δᵢ with signs sᵢ.

    Args:
        loss: of flat parameters.
        centre: w, (D,).
        rods: δᵢ, (k, D).

    Returns:
        The mean, (D,), and the mean with each rod's sign, (k, D), which is H δᵢ to lowest order. The signs come in balanced,
        pairwise orthogonal combinations, 2, 4, 8, 8, … of them for 1, 2, 3, 4, … rods: the moments of ξ up to the third are those
        of independent signs. Cost: a gradient for each combination.

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

    Rows shorter than √eps times the longest are lost in rounding.

    Example:
        >>> import jax.numpy as jnp
        >>> jnp.abs(principal(jnp.array([[3.0, 0.0], [4.0, 0.0]]), 1)).round(4).tolist()
        [[5.0, 0.0]]
    """
    # by the Gram matrix: singular value decompositions of rows this long took most of the time
    _, weights = eigh(rows @ rows.T)
    return weights[:, ::-1][:, :k].T @ rows


def _described(rate, rods, bends):
    variances = jnp.sum(rods**2, axis=1)
    return Rods(
        rods=rods,
        values=rate * jnp.sum(rods * bends, axis=1) / jnp.where(variances > 0, variances, 1),
        covariance=jnp.diag(variances / rate),
        variances=variances,
        gradient_variance=jnp.sum(bends**2),
        active=jnp.sum((rate * jnp.sum(rods * bends, axis=1) > variances).astype(rods.dtype)),
    )


def rod(
    learning_rate: ScalarLike, weight_decay: ScalarLike = 0.0, k: int = 3, *, substeps: int = 4, corrected: bool = True
) -> SteppedFlow:
    """GD as the segment between two consecutive iterates, a centre m and an extent Σ, both without their phase.

    dm/dt = −η E ∇L(m + ξ),   dΣ/dt = (η²/2) [E∇L E∇Lᵀ + Σᵢ hᵢ hᵢᵀ] − 2 Σ,   hᵢ = E sᵢ ∇L(m + ξ),

    with ξ = Σᵢ sᵢ δᵢ over independent signs sᵢ = ±1, and Σ = Σᵢ δᵢ δᵢᵀ. For one rod δ these are dm/dt = −(η/2) [∇L₊ + ∇L₋] and
    dΣ/dt = (η²/4) [∇L₊ ∇L₊ᵀ + ∇L₋ ∇L₋ᵀ] − 2 Σ, the gradients taken at the ends m ± δ. Σ is kept at rank k.

    Derivation: with m_t = (w_t + w_{t+1}) / 2 and δ_t = (w_{t+1} − w_t) / 2, GD is m_{t+1} = m_t − (η/2) [∇L₊ + ∇L₋] exactly,
    and δ_t = −(η/2) ∇L₋, δ_{t+1} = −(η/2) ∇L₊. So Σ_{t+1} + Σ_t = (η²/4) [∇L₊ ∇L₊ᵀ + ∇L₋ ∇L₋ᵀ]: what stands above as a rate is
    an identity of GD for one step, Σ_{t+1} − Σ_t. As a rate it is exact where Σ stands still, hence the stable extent
    S/Q − 2/(ηQ) of (S/2) w² − (Q/4) w⁴; near the edge it has the right growth, 2 (η S − 2) to first order in η S − 2; far below,
    where a step would multiply Σ by −1, it relaxes at rate 2 to the square of half a step, (η²/4) ∇L∇Lᵀ.

    So Σ holds the drift of a step besides the oscillation, and while the oscillation is shorter than the drift and its recent
    past, which fill one or two rods, it may be cut off: on networks for digits it was with two and not with three. And drift
    along an unstable direction feeds its oscillation, which in GD it does not, so with three it starts too early. `edge`
    keeps them apart.

    Args:
        learning_rate: η.
        weight_decay: λ̂ ≥ 0, as GD on L + ½ λ̂ ‖w‖².
        k: how many rods.
        substeps: of a second-order method per step, Heun's for m and its exponential form for Σ; the correction needs 4
            to stay stable up to η S = 3.5.
        corrected: whether the centre moves by v − ½ dv/dt, the first backward-error correction, v its velocity above. Then m
            meets gradient descent below the edge to second order in η, and else gradient flow.

    Returns:
        A `SteppedFlow`; the probe `oscillation` reads it. It starts with the centre of the first iterates,
        (3 w_0 + 2 w_1 − w_2) / 4, and the mean extent of the first k moves. Cost: 4, 8, 16, 16, … gradients a substep for
        1, 2, 3, 4, … rods, and two eigendecompositions of up to 3 k + 2 dimensions.

    Raises:
        ValueError: for k or substeps out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> bowl = js.problems.from_loss(lambda w, _: jnp.sum(1.25 * w**2 - 0.25 * w**4), lambda key: jnp.full(1, 0.1))
        >>> ds = js.simulate(bowl, js.flows.rod(1.0, k=1), steps=100, probes=["oscillation"], every=100)
        >>> round(float(ds.oscillation[-1, 0]), 3)  # S/Q − 2/(ηQ), with S = 2.5 and Q = 1
        0.5

    Source: derived.
    """
    check_counts(k=k, substeps=substeps)
    return SteppedFlow({"learning_rate": learning_rate, "weight_decay": weight_decay}, _Rod(k, corrected), substeps)
