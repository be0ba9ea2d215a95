"""Self-stabilization: how an oscillation at the edge of stability grows, lowers the sharpness, and dies down, in cycles."""

from jaxsharp._types import ScalarLike
from jaxsharp.flows.constrained import Stabilization
from jaxsharp.flows.stepped import SteppedFlow


def self_stabilization(
    learning_rate: ScalarLike, weight_decay: ScalarLike = 0.0, *, eigen_tolerance: float | None = None
) -> SteppedFlow:
    """The predicted dynamics of GD around the constrained trajectory θ† of `constrained`, w_t ≈ θ†_t + x u + v, v ⊥ u.

    x_{t+1} = (1 − η (S + y)) x + forcing,   v_{t+1} = (I − η H) v + η ∇S⊥ (δ² − x²) / 2,   y = ∇S⊥ · v, δ² = 2 α / β.

    At the edge S = 2/η the first is −(1 + η y) x. So where the sharpness S + y exceeds the edge, the oscillation x grows, until
    x² passes δ² and drives y down again. If H vanished along ∇S, y would move by η β (δ² − x²) / 2.

    Derivation: expand ∇L(θ† + x u + v) to second order in x and first in v, ∇L + S x u + H v + ½ x² ∇S + x ∇³L(u, v), of which
    the last is kept along u, x y u, and ½ x² ∇S across u; subtract the step of θ†. The forcing −(η − 1/S) u · ∇L is what θ†
    leaves out along u. Exact on losses with no other terms, such as ½ (s + w₂) w₁² − ε w₂.

    Past the edge x grows from whatever is there, and an error of the eigenpairs is there too. On the network of the experiment
    flow-zoo GD's oscillation is large at step 300 (x² above 1e-3); the predicted one at step 260 with eigenpairs to 1e-3, and
    at 290 with 1e-5, where 1e-7 changes nothing more. So ask for 1e-5 where the first rise has to come at its time.

    x and v are kept as one displacement x u + v, which needs no sign of u and survives an exchange of the top eigenvectors;
    only what lies along the top one has its effect on the sharpness.

    Args:
        learning_rate: η.
        weight_decay: λ̂ ≥ 0, as GD on L + ½ λ̂ ‖w‖².
        eigen_tolerance: relative residual of the eigenpairs; by default 1e-4 in float64, 1e-3 in float32.

    Returns:
        A `SteppedFlow` whose parameters are the centre θ† + v; the probe `oscillation` records x², and the state's `inner` has
        θ† as `point` and x u + v as `displacement`. A member stops with FLOW_EIGENPAIR_UNCONVERGED where the top two
        eigenpairs are not found. Cost: that of `constrained` and 1 product.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> start = jnp.array([1e-3, 0.0])
        >>> groove = js.problems.from_loss(lambda w, _: 0.5 * (1.9 + w[1]) * w[0] ** 2 - 0.01 * w[1], lambda key: start)
        >>> ds = js.simulate(groove, js.flows.self_stabilization(1.0), steps=60, probes=["parameters"])
        >>> x, v = 1e-3, [0.0]
        >>> for _ in range(60):  # of GD
        ...     x, v = x - (1.9 + v[-1]) * x, [*v, v[-1] - 0.5 * x**2 + 0.01]
        >>> bool(abs(ds.parameters[:, 1] - v).max() < 1e-5), round(max(v), 2)
        (True, 0.44)

    Source: Damian, Nichani, Lee 2023; derived anew.
    """
    return SteppedFlow({"learning_rate": learning_rate, "weight_decay": weight_decay}, Stabilization(True, eigen_tolerance), 1)
