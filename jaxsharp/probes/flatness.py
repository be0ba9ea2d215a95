"""Probes of what an optimizer takes for flat: how its mask moves, and how much of the sharp subspace it spares."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsharp._precision import dot
from jaxsharp._types import Array, Params, PyTree
from jaxsharp.curvature import frozen_eigenpairs
from jaxsharp.dynamics import State
from jaxsharp.probes.probe import Variable
from jaxsharp.problems import Problem


class LastMask(NamedTuple):
    """What the mask probe carries.

    Attributes:
        mask: of the last measurement.
        known: whether there was one.
    """

    mask: PyTree
    known: Array


@dataclass(frozen=True)
class MaskProbe:
    """Size and turnover of a mask of flat coordinates; carries the mask."""

    every: int | None
    name: str = "mask"
    midpoint: bool = False

    @property
    def variables(self) -> dict[str, Variable]:
        """Labels of both fractions."""
        return {
            "mask_fraction": Variable((), "fraction of parameters in the mask"),
            "mask_turnover": Variable((), "fraction of parameters that entered or left the mask"),
        }

    def init(self, problem: Problem, params: Params) -> LastMask:
        """Carries no mask yet."""
        del problem
        return LastMask(_nowhere(params), jnp.zeros((), bool))

    def measure(self, problem: Problem, state: State, carry: LastMask) -> tuple[LastMask, dict]:
        """Compares the mask with that of the last measurement."""
        del problem
        mask = _flat_mask(state)
        if mask is None:
            raise ValueError("the probe mask needs an optimizer with a mask, js.optimizers.ire with a diagonal estimator.")
        dtype = jax.tree.leaves(state.params)[0].dtype
        turnover = _mean(jax.tree.map(jnp.not_equal, mask, carry.mask), dtype)
        values = {"mask_fraction": _mean(mask, dtype), "mask_turnover": jnp.where(carry.known, turnover, jnp.nan)}
        return LastMask(mask, jnp.ones((), bool)), values


@dataclass(frozen=True)
class ProtectionProbe:
    """How much of the top Hessian eigenvectors an optimizer leaves out of what it takes for flat; carries the eigenvectors."""

    k: int
    tol: float
    max_matvecs: int
    every: int | None
    name: str = "protection"
    midpoint: bool = False

    @property
    def variables(self) -> dict[str, Variable]:
        """Labels of the protected shares and of the eigenpairs behind them."""
        return {
            "protection": Variable((), "protected share of the top eigenspace"),
            "protection_of": Variable(("eigenvalue",), "protected share of an eigenvector"),
            "protection_eigenvalue": Variable(("eigenvalue",), "eigenvalue of a protected eigenvector"),
            "protection_residual": Variable(("eigenvalue",), "relative residual of the eigenvectors"),
            "protection_converged": Variable((), "whether the eigenvectors converged", role="converged"),
            "protection_products": Variable((), "products spent on the eigenvectors", role="products"),
        }

    def init(self, problem: Problem, params: Params) -> PyTree:
        """Carries no eigenvector yet."""
        del problem
        return jax.tree.map(lambda leaf: jnp.zeros((self.k, *leaf.shape), leaf.dtype), params)

    def measure(self, problem: Problem, state: State, carry: PyTree) -> tuple[PyTree, dict]:
        """Finds the eigenvectors from the last ones and projects them."""
        pairs = frozen_eigenpairs(problem.loss, state.params, self.k, carry, tol=self.tol, max_matvecs=self.max_matvecs)
        mask, sharp = _flat_mask(state), optax.tree_utils.tree_get(state.inner, "sharp_vectors")
        if mask is not None:
            parts = jax.tree.map(lambda flat, rows: jnp.where(flat, 0, rows) ** 2, mask, pairs.vectors)
            shares = sum(jnp.sum(part.reshape(self.k, -1), axis=1) for part in jax.tree.leaves(parts))
        elif sharp is not None:
            inner = jax.tree.map(lambda a, b: dot(a.reshape(a.shape[0], -1), b.reshape(self.k, -1).T), sharp, pairs.vectors)
            shares = jnp.sum(sum(jax.tree.leaves(inner)) ** 2, axis=0)
        else:
            raise ValueError("the probe protection needs an optimizer that knows flat directions, js.optimizers.ire.")
        values = {
            "protection": jnp.mean(shares),
            "protection_of": shares,
            "protection_eigenvalue": pairs.values,
            "protection_residual": pairs.residuals,
            "protection_converged": pairs.converged,
            "protection_products": pairs.matvecs,
        }
        return pairs.vectors, values


def mask(*, every: int | None = None) -> MaskProbe:
    """Records the size of the mask of `js.optimizers.ire` and how many parameters entered or left it.

    Variables: `mask_fraction`, the fraction of all parameters that are taken for flat (0 before the first estimate);
    `mask_turnover`, the fraction whose place differs from the last measurement (NaN at the first).

    Args:
        every: cadence in steps; by default that of the run.

    Returns:
        A `Probe`. Cost: two sums over the parameters.

    Raises:
        ValueError: while tracing, for an optimizer without a mask.

    Example:
        >>> import jaxsharp as js
        >>> rule = js.optimizers.ire(js.optimizers.gd(0.1), 1.0, 0.5)
        >>> js.simulate(js.problems.valley(), rule, steps=2, probes=[js.probes.mask()]).mask_fraction.values.tolist()
        [0.0, 0.5, 0.5]
    """
    return MaskProbe(every)


def protection(k: int = 5, *, tol: float = 1e-2, max_matvecs: int = 200, every: int | None = None) -> ProtectionProbe:
    """Records how much of the top-k Hessian eigenspace `js.optimizers.ire` leaves out of the flat directions that it enlarges.

    For a mask n the share of the eigenvector vᵢ is ‖(1 − n) ⊙ vᵢ‖², for an eigenspace estimator ‖V Vᵀ vᵢ‖²; 1 is full
    protection, and a random mask of the fraction γ protects 1 − γ. Before the first estimate a mask is empty and protects all,
    an eigenspace is empty and protects nothing.

    Variables: `protection`, the mean over the k eigenvectors; `protection_of`, each one's, with the dimension `eigenvalue`;
    `protection_eigenvalue`, the eigenvalues; `protection_residual`, `protection_converged`, `protection_products` as those of
    `sharpness`.

    Args:
        k: how many eigenvectors.
        tol: relative residual of the eigenvectors.
        max_matvecs: bound on products per measurement; where it is reached the bit EIGENPAIR_UNCONVERGED is set.
        every: cadence in steps; by default that of the run.

    Returns:
        A `Probe`. Cost: that of `sharpness(k)`.

    Raises:
        ValueError: for k < 1 or max_matvecs < 2 k, and while tracing for another optimizer.

    Example:
        >>> import jaxsharp as js
        >>> rule = js.optimizers.ire(js.optimizers.gd(0.1), 1.0, 0.5)
        >>> ds = js.simulate(js.problems.valley(), rule, steps=2, probes=[js.probes.protection(k=1)])
        >>> bool(ds.protection[-1] > 0.99)
        True
    """
    if k < 1 or max_matvecs < 2 * k:
        raise ValueError(f"protection needs k >= 1 and max_matvecs >= 2 k, got k={k}, max_matvecs={max_matvecs}.")
    return ProtectionProbe(k, tol, max_matvecs, every)


def _nowhere(params):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)


def _flat_mask(state):
    """The optimizer's mask, False where `optax.masked` hides parameters from it; None where it has none."""
    found = optax.tree_utils.tree_get(state.inner, "flat_mask")
    if found is None:
        return None
    hidden = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda seen, none: none if hidden(seen) else seen, found, _nowhere(state.params), is_leaf=hidden)


def _mean(mask, dtype):
    leaves = jax.tree.leaves(mask)
    return sum(jnp.sum(leaf, dtype=dtype) for leaf in leaves) / sum(leaf.size for leaf in leaves)
