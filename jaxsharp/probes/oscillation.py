"""A probe of what a flow predicts of the optimizer's oscillation."""

import jax
import jax.numpy as jnp

from jaxsharp import sphere
from jaxsharp.probes.probe import FunctionProbe, Variable


def _oscillation(problem, params, state):
    inner = state.inner
    if not hasattr(inner, "covariance"):
        raise ValueError(
            "the probe oscillation reads the state of a central flow, of rod, edge or self_stabilization; measure an optimizer "
            "by its parameters."
        )
    loss, gradient = jax.value_and_grad(problem.loss)(params)
    decay = state.hyperparams.get("weight_decay")
    if decay is not None:
        loss = loss + 0.5 * jnp.asarray(decay, loss.dtype) * sphere.norm(params) ** 2
        gradient = jax.tree.map(lambda g, w: g + jnp.asarray(decay, g.dtype) * w, gradient, params)
    bent = jnp.sum(inner.values * jnp.diag(inner.covariance))  # ⟨H, Σ⟩, as Σ = D X Dᵀ and DᵀHD = diag(values)
    return {
        "averaged_loss": loss + 0.5 * bent,
        "averaged_grad_norm": jnp.sqrt(sphere.norm(gradient) ** 2 + inner.gradient_variance),
        "oscillation": inner.variances,
        "oscillating_directions": inner.active,
        "edge_ratio": inner.values / 2,
    }


def oscillation(*, every: int | None = None) -> FunctionProbe:
    """Records what a flow with an oscillation predicts of the optimizer at the same step.

    Variables: `averaged_loss`, L + ½ ⟨H, Σ⟩, the loss averaged over the oscillation (with the penalty of weight decay);
    `averaged_grad_norm`, √(‖∇L‖² + tr HΣH); `oscillation`, the eigenvalues of the covariance Σ, largest first, with the dimension
    `direction`; `oscillating_directions`, how many are near the edge; `edge_ratio`, the preconditioned sharpness over 2, 1 at
    the edge. The eigenpairs and Σ are those of the last substep.

    Args:
        every: cadence in steps; by default that of the run.

    Returns:
        A `Probe`. Cost: 1 gradient.

    Raises:
        ValueError: while tracing, for a Dynamics without a predicted oscillation.

    Example:
        >>> import jaxsharp as js
        >>> flow = js.flows.central(js.optimizers.gd(0.5), k=1)
        >>> ds = js.simulate(js.problems.valley(), flow, steps=4, probes=["oscillation"], every=2)
        >>> dict(ds.oscillation.sizes), bool((ds.averaged_loss > 0).all())
        ({'step': 3, 'direction': 1}, True)

    Source: Cohen, Damian, Talwalkar, Kolter, Lee 2024; theory §5.
    """
    labels = (
        ("averaged_loss", Variable((), "predicted loss, averaged")),
        ("averaged_grad_norm", Variable((), "predicted gradient norm, averaged")),
        ("oscillation", Variable(("direction",), "predicted variance of the oscillation")),
        ("oscillating_directions", Variable((), "directions near the edge")),
        ("edge_ratio", Variable(("direction",), "preconditioned sharpness / 2")),
    )
    return FunctionProbe("oscillation", _oscillation, labels, every)
