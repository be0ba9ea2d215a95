"""The eigen-tracker: the extreme eigenpairs of an operator that changes little from one measurement to the next."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsharp._precision import dot
from jaxsharp._types import Array, Block, Count, MatVec, PyTree
from jaxsharp.curvature.eigenpairs import Eigenpairs, check_count, check_settings, top_eigenpairs
from jaxsharp.curvature.guards import Guards
from jaxsharp.curvature.search import overlaps

ALERT_NOISE = 3.0
"""Norm of the noise added to each guard on alert, so that most of it has never been looked at."""

ALERT_TOL = 3
"""Bound on the residuals of the guards on alert, in those of the wanted pairs; the usual one is met by almost any direction."""


class Tracked(NamedTuple):
    """What a tracker carries from one measurement to the next.

    Attributes:
        vectors: pytree like the parameters with a leading axis k + guards; zero before the first measurement.
        motion: pytree with a leading axis k, by how much the wanted vectors have left the space of those before; zero where
            nothing is known.
        trust: (k,) the part of its motion by which each is moved on before the next measurement.
        guards: what the guards remember.
        alert: further measurements at which the guards are looked at because something new has entered the wanted space.
        count: measurements taken, from which the noise of the next is drawn.
    """

    vectors: PyTree
    motion: PyTree
    trust: Array
    guards: Guards
    alert: Count
    count: Count


@dataclass(frozen=True)
class EigenTracker:
    """Follows k extreme eigenpairs along a path of operators, H(t) vᵢ = λᵢ vᵢ, each measurement started from the last.

    The vectors of the last measurement start the next, one free step of the power method on. So do `guards` further ones, so that
    an eigenvalue that rises from a direction orthogonal to all that are followed is caught before or some ten measurements after
    it overtakes. A guard gets fresh noise at every `guard_every`-th measurement, the only ones at which it costs a product, and
    its free step has momentum (`curvature/guards.py`), which lets what is about to overtake grow much faster than a plain one;
    more guards, or looks at every measurement, catch it earlier. Where k > 1 and a vector mostly from outside has entered the
    wanted space, others may be on their way with it. So there is an alert for the next `alert` measurements: the guards start
    from mostly random directions and are searched for to three times `tol`. Several that rise together then enter within about
    ten measurements instead of up to fifty; until then the lower ranks are wrong, with residuals that converge
    (`benchmarks/accuracy.py`). Where H changes so fast that a measurement takes two products for each that is followed, there
    is no alert: the search looks around anyway, and guards that start from themselves serve it better.

    Between measurements the wanted vectors are moved on by βᵢ times their last motion, the part of their change that leaves the
    space they spanned, so that a rotation among them does not count. βᵢ, between −1 and 1, is what would have been best the
    last time: near 1 on a smooth path, −1 where the path swings with a period of two measurements, near 0 where it is erratic.

    Compares by value: the same settings reuse a compiled program.

    Attributes:
        k: how many pairs.
        tol: bound on their residuals, relative to the largest |λ| seen.
        max_matvecs: bound on products per measurement.
        which: `largest` or `smallest`.
        guards: how many further pairs are followed; 0 for none.
        guard_tol: bound on the residuals of the guards.
        guard_every: measurements after which the guards are looked at again; in between only where the wanted pairs change so
            fast that they need more than one product each.
        noise: norm of the noise added to each guard.
        chunk: pairs found at a time; all by default.
        block: directions multiplied side by side; by default one on a CPU, all on an accelerator.
        alert: for how many measurements the guards are searched for in earnest after something new has entered; 0 for none.

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
    guard_every: int = 2
    noise: float = 0.03
    chunk: int | None = None
    block: int | None = None
    alert: int = 6

    def __post_init__(self):
        """Refuses what makes no sense."""
        named = (self.k, self.tol, self.max_matvecs, self.which, self.guards, self.guard_tol, self.noise, self.chunk, self.block)
        check_settings(*named)
        if self.guard_every < 1:
            raise ValueError(f"guard_every must be at least 1 measurement, got {self.guard_every}.")
        if self.alert < 0:
            raise ValueError(f"alert must be at least 0 measurements, got {self.alert}.")

    def init(self, like: PyTree) -> Tracked:
        """Returns the memory before the first measurement, which starts cold.

        Args:
            like: a pytree with the shapes and dtypes of the parameters.

        Returns:
            `Tracked`, all zero.

        Raises:
            ValueError: for more pairs than parameters.
        """
        check_count(self.k, sum(jnp.size(leaf) for leaf in jax.tree.leaves(like)))

        def blank(rows):
            return jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), like)

        dtype = jnp.result_type(*jax.tree.leaves(like))
        rows = self._rows(like)
        guards = Guards(blank(rows - self.k), jnp.zeros((rows - self.k,), dtype), jnp.zeros((), jnp.int32))
        none = jnp.zeros((), jnp.int32)
        return Tracked(blank(rows), blank(self.k), jnp.zeros((self.k,), dtype), guards, none, none)

    def measure(self, matvec: MatVec, memory: Tracked) -> tuple[Tracked, Eigenpairs]:
        """Finds the eigenpairs of the next operator from those of the last.

        Args:
            matvec: v -> H v; a constant of differentiation.
            memory: from `init` or the last measurement.

        Returns:
            The next memory and the `Eigenpairs`. Cost: one product per pair, and per guard when it is looked at, where H changes
            slowly and smoothly, up to ten per pair where it changes fast.
        """
        like = jax.tree.map(lambda rows: rows[0], memory.vectors)
        alert = memory.alert > 0
        pairs = top_eigenpairs(
            matvec,
            like,
            self.k,
            _moved_on(memory),
            tol=self.tol,
            max_matvecs=self.max_matvecs,
            key=jax.random.fold_in(jax.random.key(0), memory.count),
            which=self.which,
            guards=self._rows(like) - self.k,
            guard_tol=jnp.where(alert, jnp.minimum(ALERT_TOL * self.tol, self.guard_tol), self.guard_tol),
            noise=jnp.where(alert, ALERT_NOISE, self.noise),
            chunk=self.chunk,
            block=self.block,
            watched=memory.guards,
            watch=alert | (memory.count % self.guard_every == 0),
        )
        motion, left, trust = _motion(pairs.onward, memory)
        smooth = alert | (pairs.matvecs < 2 * self._rows(like))
        entered = (left > 0.5).any() & smooth & (self.k > 1)
        further = jnp.where(entered, self.alert, jnp.maximum(memory.alert - 1, 0))
        return Tracked(pairs.onward, motion, trust, pairs.guards, further, memory.count + 1), pairs

    def _rows(self, like):
        size = sum(leaf.size for leaf in jax.tree.leaves(like))
        return min(self.k + self.guards, size, self.max_matvecs)


def _flat(rows: PyTree) -> Block:
    return jax.vmap(lambda row: ravel_pytree(row)[0])(rows)


def _moved_on(memory):
    """Where the next measurement starts: the wanted vectors moved on, the guards as they are."""

    def moved(vectors, motion):
        trust = jnp.expand_dims(memory.trust, range(1, motion.ndim)).astype(motion.dtype)
        return vectors.at[: motion.shape[0]].add(trust * motion)

    return jax.tree.map(moved, memory.vectors, memory.motion)


def _motion(onward, memory):
    """By how much the wanted vectors left their old space, its share in each, and which part of the last motion leads there."""
    k = memory.trust.size
    unravel = ravel_pytree(jax.tree.map(lambda rows: rows[0], onward))[1]
    new, old, before = _flat(onward)[:k], _flat(memory.vectors)[:k], _flat(memory.motion)
    among = overlaps(new, old)
    motion = new - dot(among, old)
    forecast = dot(among, before)  # in the mixture that the vectors are now
    length = jnp.sum(forecast**2, axis=1)
    along = jnp.sum(motion * forecast, axis=1)
    trust = jnp.clip(along / jnp.where(length > 0, length, jnp.inf), -1, 1)
    known = jnp.isfinite(along).all() & (memory.count > 0)  # one entry that is not finite makes its sum so
    left = 1 - jnp.sum(among**2, axis=1)
    return jax.vmap(unravel)(jnp.where(known, motion, 0)), jnp.where(known, left, 0), jnp.where(known, trust, 0)
