"""The extreme eigenpairs of a symmetric operator that is known only by its products."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsharp._precision import in_full_precision
from jaxsharp._types import Array, Count, MatVec, PyTree
from jaxsharp.curvature.guards import Guards, stepped
from jaxsharp.curvature.operator import as_operator, flat_product
from jaxsharp.curvature.search import Plan, Task, search

WHICH = {"largest": 1, "smallest": -1}
"""Which end of the spectrum, by the sign that makes it the top."""


COLD = 1e-2
"""From random directions the search goes to this part of the tolerance, but not below what rounding allows.

A small residual says that some eigenvalue is near, which may be one of a lower rank: in 4,600 random dense spectra (those of
`tests/test_tracker.py`, 40 and 150 dimensions) the top value was off by more than a tolerance of 1e-2 in 8.5 of 1,000 at a third
of it, in 2.4 at a tenth, in 0.7 at 3e-2 and in 0.2 at 1e-2, for 10 to 13 products at a third and 13 to 18 at 1e-2. A run starts
cold once."""

ROOM = 4
"""Directions that the basis holds beyond the best that it is cut back to and those it grows by.

Twice as many save 3 to 5 % of the products of cold searches on the random spectra of `benchmarks/accuracy.py` and none on the
network of `tracker.py` for 1 and 5 pairs (4 % for 20), where all of them are written anew at each measurement."""


class Eigenpairs(NamedTuple):
    """Eigenvalue estimates, the most extreme first, with what is needed to trust them.

    Attributes:
        values: (k,) Ritz values; for the largest, each at most the true eigenvalue of the same rank. NaN where the bound on
            products left none.
        vectors: pytree like the parameters with a leading axis k; orthonormal.
        residuals: (k,) ‖H vᵢ − λᵢ vᵢ‖ relative to the largest |λ| seen; some eigenvalue lies within this of λᵢ.
        matvecs: number of products used.
        converged: whether every residual is at most the tolerance.
        onward: where to start next time, leading axis k + guards: all vectors that were followed, each one step of the power
            method further, which costs no product since theirs are known.
        guards: what the guards remember for the next time.
    """

    values: Array
    vectors: PyTree
    residuals: Array
    matvecs: Count
    converged: Array
    onward: PyTree = None
    guards: Guards | None = None


@in_full_precision
def top_eigenpairs(
    matvec: MatVec,
    like: PyTree | None = None,
    k: int = 1,
    guess: PyTree | None = None,
    tol: float = 1e-2,
    max_matvecs: int = 200,
    *,
    key: Array | None = None,
    which: str = "largest",
    guards: int = 1,
    guard_tol: float = 0.3,
    noise: float = 0.1,
    chunk: int | None = None,
    block: int | None = None,
    watched: Guards | None = None,
    watch: Array | bool = True,
) -> Eigenpairs:
    """Finds the k largest (or smallest) eigenvalues of a symmetric operator, H vᵢ = λᵢ vᵢ.

    Block Davidson iteration without preconditioner: the basis grows by the residuals of the pairs that are furthest from their
    tolerance, each multiplied by the operator once; the products of everything kept are carried along, also through restarts.
    Started from a guess (the eigenvectors of a nearby point) it often ends after one or two rounds. A residual says that some
    eigenvalue is near, not that none was missed; so `guards` further pairs are followed to a loose tolerance, from directions
    that always contain fresh noise, and a search without a guess goes to a hundredth of the tolerance.

    Args:
        matvec: an `Operator`, or v -> H v on pytrees like `like`; symmetric.
        like: any pytree with the shapes and dtypes of one vector; not needed for an Operator.
        k: how many pairs, at most the number of parameters.
        guess: pytree with a leading axis of k rows, or up to k + guards; rows that are zero or not finite, and missing ones, are
            replaced by random ones.
        tol: bound on the residuals, relative to the largest |λ| seen.
        max_matvecs: bound on the number of products.
        key: PRNG key of the random directions; a fixed one by default.
        which: `largest` or `smallest`, both by algebraic value.
        guards: how many further pairs are followed; 0 for none.
        guard_tol: bound on the residuals of the guards that the search waits for; they do not count for `converged`.
        noise: norm of the random part added to the guards of a guess, which has unit norm.
        chunk: pairs found at a time, those found before being kept out of the way; all at once by default. Smaller ones save
            memory and cost products.
        block: directions multiplied side by side; by default one on a CPU, all on an accelerator.
        watched: what the guards remember, `guards` of the last result, for as many of them; None for nothing.
        watch: whether the guards are multiplied in any case, or only where the wanted pairs need more directions.

    Returns:
        `Eigenpairs`. The scale of the operator does not matter as long as its products are normal numbers; XLA takes smaller
        ones for 0. Where the bound on products is reached first, or a product is not finite, `converged` is False and the
        residuals say by how much. Cost: `matvecs` products; memory for about 4 (k + guards) + 10 vectors and their guards', with
        `chunk` in the place of k.

    Raises:
        ValueError: when k is below 1 or above the number of parameters, for a plain function without `like`, for parameters that
            are not float32 or float64, an operator that does not return what it is given, or where another argument makes no
            sense.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> pairs = js.curvature.top_eigenpairs(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3), k=2)
        >>> [round(float(value), 3) for value in pairs.values], bool(pairs.converged)
        ([3.0, 1.0], True)

    Source: Davidson 1975; restarts after Wu and Simon 2000. The guards and the batching are our own.
    """
    check_settings(k, tol, max_matvecs, which, guards, guard_tol, noise, chunk, block)
    apply, template, unravel = flat_product(as_operator(matvec, like))
    size = template.size
    check_count(k, size)
    if template.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"eigenpairs need float32 or float64, got {template.dtype}; convert the parameters, and the operator.")
    sign = WHICH[which]
    guards = min(guards, size - k, max_matvecs - k)
    watch = jnp.asarray(watch)
    first, cold = _first_directions(guess, k, guards, template, jax.random.key(0) if key is None else key, noise, watch)
    watch = watch | cold
    tolerance = jnp.asarray(tol, template.dtype)
    rounding = jnp.minimum(tolerance, 30 * jnp.finfo(template.dtype).eps)
    reach = jnp.where(cold, jnp.maximum(COLD * tolerance, rounding), tolerance)
    loose = jnp.where(watch, jnp.maximum(jnp.asarray(guard_tol, template.dtype), tol), jnp.inf)

    def product(vector):
        return sign * apply(vector)

    pieces = [(at, min(at + (chunk or k), k)) for at in range(0, k, chunk or k)]
    locked, values, errors, onward = jnp.zeros((0, size), template.dtype), [], [], []
    memory = _remembered(watched, guards, template)
    spent, scale = jnp.zeros((), jnp.int32), jnp.zeros((), template.dtype)
    for at, end in pieces:
        wanted = end - at
        watching = guards if end == k else 0
        plan = _plan(wanted, watching, block, size - at, hopeful=k == 1 and guess is not None)
        task = Task(
            start=first[at : end + watching],
            needed=wanted + jnp.where(watch, watching, 0),
            locked=locked,
            tolerances=jnp.where(jnp.arange(wanted + watching) < wanted, reach, loose),
            budget=jnp.asarray(max_matvecs - 2 * (k - end), jnp.int32) - spent,  # each pair gets to two
            scale=scale,
        )
        found = search(product, task, plan)
        rows = found.vectors[:wanted]
        values.append(found.values[:wanted] * found.unit)
        errors.append(found.errors[:wanted])
        locked = jnp.concatenate([locked, rows])
        onward.append(_stepped(found, rows))
        if watching:
            moved, memory = stepped(found, wanted, first[k:], memory)
            onward.append(moved)
        spent, scale = spent + found.matvecs, found.scale
    values, errors, onward = jnp.concatenate(values), jnp.concatenate(errors), jnp.concatenate(onward)
    if len(pieces) > 1:
        order = jnp.argsort(-values)
        values, errors, locked = values[order], errors[order], locked[order]
        onward = onward[jnp.concatenate([order, jnp.arange(k, k + guards)])]
    return Eigenpairs(
        values=jnp.where(jnp.isneginf(values), jnp.nan, sign * values),
        vectors=jax.vmap(unravel)(locked),
        residuals=errors,
        matvecs=spent,
        converged=(errors <= tol).all() & jnp.isfinite(values).all(),
        onward=jax.vmap(unravel)(onward),
        guards=memory._replace(vectors=jax.vmap(unravel)(memory.vectors)),
    )


def check_settings(k, tol, max_matvecs, which, guards, guard_tol, noise, chunk, block) -> None:
    """Raises for settings of a search that make no sense, whatever the operator."""
    if k < 1:
        raise ValueError(f"k={k} eigenpairs were asked for; choose k >= 1.")
    if max_matvecs < 2 * k:
        raise ValueError(f"max_matvecs={max_matvecs} allows no iteration for k={k}; give at least {2 * k}.")
    if which not in WHICH:
        raise ValueError(f"which={which!r} is unknown; use one of {', '.join(WHICH)}.")
    if guards < 0 or (chunk is not None and chunk < 1) or (block is not None and block < 1):
        raise ValueError(f"guards must be at least 0, chunk and block at least 1, got {guards}, {chunk} and {block}.")
    for name, value in (("tol", tol), ("guard_tol", guard_tol), ("noise", noise)):
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value}.")


def check_count(k: int, size: int) -> None:
    """Raises for more eigenpairs than parameters."""
    if k > size:
        raise ValueError(f"k={k} eigenpairs were asked for, but there are {size} parameters; choose 1 <= k <= {size}.")


def _plan(wanted, guards, block, size, hopeful):
    targets = wanted + guards
    if block is None:
        block = 1 if jax.default_backend() == "cpu" else targets
    block = min(block, targets)
    return Plan(wanted, guards, block, rows=2 * targets + ROOM + block, hopeful=hopeful and block == 1)


def _stepped(found, rows):
    """The wanted vectors after one step of the power method on H − σ; it improves a pair that met a loose tolerance at once."""
    moved = found.products[: rows.shape[0]] - found.bottom * rows
    lengths = jnp.linalg.norm(moved, axis=1, keepdims=True)
    return jnp.where(lengths > 0, moved / jnp.where(lengths > 0, lengths, 1), rows)


def _remembered(watched, guards, template):
    """What the guards remember, with flat vectors."""
    if watched is None:
        weights = jnp.zeros((guards,), template.dtype)
        return Guards(jnp.zeros((guards, template.size), template.dtype), weights, jnp.zeros((), jnp.int32))
    vectors = jax.vmap(lambda row: ravel_pytree(row)[0])(watched.vectors)
    if vectors.shape != (guards, template.size):
        raise ValueError(f"watched must hold {guards} guards of {template.size} parameters, got shape {vectors.shape}.")
    return watched._replace(vectors=vectors)


def _first_directions(guess, k, guards, template, key, noise, watch):
    """The guess (k + guards, D) with random rows for what is missing and noise on its guards, and whether any of k is missing."""
    count, size, dtype = k + guards, template.size, template.dtype
    if guess is None:
        return _fresh(key, (count, size), dtype), jnp.asarray(True)
    rows = jax.vmap(lambda row: ravel_pytree(row)[0])(guess)
    if rows.ndim != 2 or rows.shape[1] != size or rows.shape[0] < k:
        raise ValueError(f"guess must hold at least {k} vectors of {size} parameters, got shape {rows.shape}.")
    rows = rows[:count]
    rows = jnp.pad(rows, ((0, count - rows.shape[0]), (0, 0)))
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    usable = jnp.isfinite(lengths) & (lengths > 0)
    rows = jnp.where(usable, rows, 0) / jnp.where(usable, lengths, 1)
    cold = ~usable[:k].all()
    # Noise at rounding makes dependent rows of a guess independent; on the guards it lets in what they have never seen.
    share = jnp.where(jnp.arange(count) < k, 100 * float(jnp.finfo(dtype).eps), jnp.where(watch, noise, 0)).astype(dtype)

    def noisy(rows):
        fresh = _fresh(key, rows.shape, dtype)
        return jnp.where(usable, rows + share[:, None] * fresh, fresh)

    def noisy_and_unit(rows):
        rows = noisy(rows)
        return rows.at[0].divide(jnp.linalg.norm(rows[0]))  # what a hopeful search starts from

    if k > 1:
        return noisy(rows), cold
    return jax.lax.cond((watch & (guards > 0)) | cold, noisy_and_unit, lambda rows: rows, rows), cold


def _fresh(key, shape, dtype):
    """Random directions of about unit norm: normal, or signs made 32 at a time where so many normal numbers cost a product.

    Few signs would often depend on each other.
    """
    if shape[1] <= 4096:
        return jax.random.normal(key, shape, dtype) / jnp.sqrt(jnp.asarray(shape[1], dtype))
    words = jax.random.bits(key, (shape[0], -(-shape[1] // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None, None]) & jnp.uint32(1)
    bits = bits.reshape(shape[0], -1)[:, : shape[1]].astype(dtype)
    return (2 * bits - 1) / jnp.sqrt(jnp.asarray(shape[1], dtype))
