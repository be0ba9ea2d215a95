"""Estimators of curvature for IRE: of the diagonal, coordinate by coordinate, or of the top eigenspace."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsharp._types import Array, Count, Params, PyTree
from jaxsharp.curvature import frozen_eigenpairs, hvp
from jaxsharp.optimizers.objective import Objective, random_like


class Estimate(NamedTuple):
    """What an estimator found.

    Attributes:
        diagonal: pytree like the parameters, an estimate of the curvature of each coordinate up to a common factor.
        hvps: Hessian-vector products spent.
    """

    diagonal: PyTree
    hvps: Count | int


@dataclass(frozen=True)
class SquaredGradient:
    """The square of the gradient that `update` gets, gᵢ².

    Free, and needs no extra argument. At the edge of stability the full-batch gradient points along sharp directions; near a
    minimum without oscillation it says little of curvature.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = Objective("ire", jnp.zeros(2), {})
        >>> SquaredGradient().estimate(objective, jnp.array([1.0, -2.0]), jax.random.key(0)).diagonal.tolist()
        [1.0, 4.0]
    """

    def estimate(self, objective: Objective, gradient: PyTree, key: Array) -> Estimate:
        """Returns g²."""
        del objective, key
        return Estimate(jax.tree.map(jnp.square, gradient), 0)


@dataclass(frozen=True)
class Fisher:
    """The squared gradient of the loss with labels drawn from the model, (∇L̂)ᵢ², a mean over draws of labels.

    With n independent samples in the mean loss, n times its expectation is the diagonal of the Fisher matrix, which for squared
    and cross-entropy loss is that of the Gauss–Newton matrix. Needs the extra argument `sampled_loss_fn`.

    Attributes:
        draws: of all labels. Cost: 1 gradient each.

    Source: the Gauss–Newton–Bartlett estimator, Liu et al. 2024 (Sophia); theory §7.
    """

    draws: int = 1

    def estimate(self, objective: Objective, gradient: PyTree, key: Array) -> Estimate:
        """Returns the mean squared gradient over draws."""
        del gradient

        def square(key):
            return jax.tree.map(jnp.square, jax.grad(objective.sampled_loss)(objective.here(), key))

        return Estimate(_mean(square, key, self.draws, objective.here()), 0)


@dataclass(frozen=True)
class Hutchinson:
    """Hutchinson's estimate of the Hessian diagonal, zᵢ (H z)ᵢ with random signs z, a mean over probes.

    Unbiased, and signed: a coordinate of negative curvature counts as flatter than one of none. Needs the extra argument
    `loss_fn`.

    Attributes:
        probes: vectors z. Cost: 1 Hessian-vector product each.

    Source: Bekas, Kokiopoulou, Saad 2007.
    """

    probes: int = 1

    def estimate(self, objective: Objective, gradient: PyTree, key: Array) -> Estimate:
        """Returns the mean of z ⊙ H z over probes."""
        del gradient
        params = objective.here()

        def product(key):
            signs = random_like(key, params, jax.random.rademacher)
            return jax.tree.map(jnp.multiply, signs, hvp(objective.loss, params, signs))

        return Estimate(_mean(product, key, self.probes, params), self.probes)


@dataclass(frozen=True)
class Eigenspace:
    """The exact top eigenspace: flat is what is orthogonal to the eigenvectors of the k largest Hessian eigenvalues.

    Instead of a mask of coordinates, so it takes no fraction γ. Each search starts from the eigenvectors of the last one. Needs
    the extra argument `loss_fn`.

    Attributes:
        k: how many eigenvectors. Memory: k vectors of state, 2 (3 k + 8) while it searches.
        tol: relative residual of the eigenpairs.
        max_matvecs: bound on products of a search.
    """

    k: int = 1
    tol: float = 1e-2
    max_matvecs: int = 200

    def eigenpairs(self, objective: Objective, guess: PyTree):
        """Finds the eigenpairs, warm from a guess with a leading axis k."""
        options = {"tol": self.tol, "max_matvecs": self.max_matvecs}
        return frozen_eigenpairs(objective.loss, objective.here(), self.k, guess, **options)


ESTIMATORS = {
    "squared_gradient": SquaredGradient,
    "fisher": Fisher,
    "hutchinson": Hutchinson,
    "eigenspace": Eigenspace,
}


def resolve(estimator):
    """Turns a name into an estimator with its default settings.

    Args:
        estimator: a name out of `ESTIMATORS`, or anything with `estimate(objective, gradient, key) -> Estimate`.

    Returns:
        An estimator.

    Raises:
        ValueError: for anything else.

    Example:
        >>> resolve("hutchinson")
        Hutchinson(probes=1)
    """
    if isinstance(estimator, str) and estimator in ESTIMATORS:
        return ESTIMATORS[estimator]()
    if isinstance(estimator, type) or not (hasattr(estimator, "estimate") or isinstance(estimator, Eigenspace)):
        raise ValueError(
            f"estimator must be one of {', '.join(ESTIMATORS)}, or an object such as js.optimizers.Hutchinson(probes=4), "
            f"got {estimator!r}."
        )
    return estimator


def _mean(draw, key, count, like: Params):
    """The mean of independent draws, one at a time."""

    def add(index, total):
        return jax.tree.map(jnp.add, total, draw(jax.random.fold_in(key, index)))

    total = jax.lax.fori_loop(0, count, add, optax.tree.zeros_like(like))
    return jax.tree.map(lambda leaf: leaf / count, total)
