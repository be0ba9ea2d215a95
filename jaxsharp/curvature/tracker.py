"""The eigen-tracker: the extreme eigenpairs of an operator that changes little from one measurement to the next."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsharp._types import Count, MatVec, PyTree
from jaxsharp.curvature.eigenpairs import Eigenpairs, top_eigenpairs


class Tracked(NamedTuple):
    """What a tracker carries from one measurement to the next.

    Attributes:
        vectors: pytree like the parameters with a leading axis k + guards; zero before the first measurement.
        count: measurements taken, from which the noise of the next is drawn.
    """

    vectors: PyTree
    count: Count


@dataclass(frozen=True)
class EigenTracker:
    """Follows k extreme eigenpairs along a path of operators, H(t) vᵢ = λᵢ vᵢ, each measurement started from the last.

    The vectors of the last measurement and `guards` further ones, each one free step of the power method on, start the next; a
    guard gets fresh noise each time, so that an eigenvalue that rises from a direction orthogonal to all that are followed grows
    into the guard and is caught before or some ten measurements after it overtakes; more guards catch it earlier. Compares by
    value: the same settings reuse a compiled program.

    Attributes:
        k: how many pairs.
        tol: bound on their residuals, relative to the largest |λ| seen.
        max_matvecs: bound on products per measurement.
        which: `largest` or `smallest`.
        guards: how many further pairs are followed; 0 for none.
        guard_tol: bound on the residuals of the guards.
        noise: norm of the noise added to each guard.
        chunk: pairs found at a time; all by default.
        block: directions multiplied side by side; by default one on a CPU, all on an accelerator.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> tracker = js.curvature.EigenTracker(k=1)
        >>> memory = tracker.init(jnp.zeros(3))
        >>> for top in (3.0, 3.1):
        ...     memory, pairs = tracker.measure(lambda v: jnp.array([top, 1.0, -5.0]) * v, memory)
        >>> round(float(pairs.values[0]), 3)
        3.1
    """

    k: int = 1
    tol: float = 1e-2
    max_matvecs: int = 200
    which: str = "largest"
    guards: int = 1
    guard_tol: float = 0.3
    noise: float = 0.1
    chunk: int | None = None
    block: int | None = None

    def init(self, like: PyTree) -> Tracked:
        """Returns the memory before the first measurement, which starts cold.

        Args:
            like: a pytree with the shapes and dtypes of the parameters.

        Returns:
            `Tracked`, all zero.
        """
        rows = self._rows(like)
        blank = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), like)
        return Tracked(blank, jnp.zeros((), jnp.int32))

    def measure(self, matvec: MatVec, memory: Tracked) -> tuple[Tracked, Eigenpairs]:
        """Finds the eigenpairs of the next operator from those of the last.

        Args:
            matvec: v -> H v; a constant of differentiation.
            memory: from `init` or the last measurement.

        Returns:
            The next memory and the `Eigenpairs`. Cost: 2 to 4 products per pair and measurement where H changes slowly.
        """
        like = jax.tree.map(lambda rows: rows[0], memory.vectors)
        pairs = top_eigenpairs(
            matvec,
            like,
            self.k,
            memory.vectors,
            tol=self.tol,
            max_matvecs=self.max_matvecs,
            key=jax.random.fold_in(jax.random.key(0), memory.count),
            which=self.which,
            guards=self._rows(like) - self.k,
            guard_tol=self.guard_tol,
            noise=self.noise,
            chunk=self.chunk,
            block=self.block,
        )
        return Tracked(pairs.onward, memory.count + 1), pairs

    def _rows(self, like):
        size = sum(leaf.size for leaf in jax.tree.leaves(like))
        return min(self.k + self.guards, size, self.max_matvecs)
