"""The search behind every eigenpair: block Davidson on flat vectors, one new product per direction and round."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsharp._factorizations import eigh
from jaxsharp._members import one_after_another
from jaxsharp._precision import dot
from jaxsharp._types import Array, Block, Count, Scalar
from jaxsharp.curvature.folding import folded
from jaxsharp.curvature.turns import at_once

ROUNDS_AT_ONCE = 8
"""Rounds after which the members of a batch that are still searching are brought together again."""


@dataclass(frozen=True)
class Plan:
    """The static part of a search.

    Attributes:
        wanted: eigenpairs that have to converge.
        guards: further ones that are followed loosely, so that one that overtakes is noticed.
        block: directions multiplied in one round.
        rows: most directions kept at a time.
        hopeful: whether one product is likely to be enough, and only one pair wanted, with nothing locked.
    """

    wanted: int
    guards: int
    block: int
    rows: int
    hopeful: bool = False

    @property
    def targets(self) -> int:
        """Eigenpairs that are followed, guards included."""
        return self.wanted + self.guards

    @property
    def kept(self) -> int:
        """Directions that survive when the rows are full."""
        return min(self.targets + self.wanted + 1, self.rows - self.block)


class Task(NamedTuple):
    """What a search needs besides the operator; arrays, for one member.

    Attributes:
        start: (targets, D) first directions, the wanted ones first; of a hopeful search the first is a unit vector.
        needed: how many of them are multiplied in any case; the others where those do not suffice.
        locked: (l, D) orthonormal directions to stay out of.
        tolerances: (targets,) bounds on the errors; infinite where a pair is not needed.
        budget: most products.
        scale: the largest |eigenvalue| known before, to which errors are relative unless a larger one is found.
    """

    start: Block
    needed: Count
    locked: Block
    tolerances: Array
    budget: Count
    scale: Scalar


class Search(NamedTuple):
    """A search under way; arrays, for one member. Products and values are in units, whose squares neither vanish nor overflow.

    Attributes:
        unit: a power of two near the largest entry of the first product that is not zero; 0 before that.
        basis: (rows, D) orthonormal directions, zero where there is none.
        products: (rows, D) the operator applied to each.
        projected: (rows, rows) basis · productsᵀ.
        used: (rows,) whether a row holds a direction.
        filled: rows taken so far, some of them possibly without a direction.
        coordinates: (rows, rows) Ritz vectors in the basis, largest value first, one a row.
        values: (rows,) Ritz values, −inf past the last.
        residuals: (block, D) the directions by which the basis grows next.
        errors: (targets,) norms of the residuals relative to the largest |Ritz value|, or the scale of the task; the largest
            number where there is no value.
        rounds: completed rounds.
        matvecs: products spent.
        stalled: whether the last round of growth found no new direction.
    """

    unit: Scalar
    basis: Block
    products: Block
    projected: Array
    used: Array
    filled: Count
    coordinates: Array
    values: Array
    residuals: Block
    errors: Array
    rounds: Count
    matvecs: Count
    stalled: Array


class Found(NamedTuple):
    """What a search ends with; arrays, for one member. The wanted pairs come first, then the guards.

    Attributes:
        unit: what products, values and bottom are multiples of.
        vectors: (targets, D) orthonormal Ritz vectors, zero where there is none.
        products: (targets, D) the operator applied to each.
        values: (targets,) Ritz values, largest first, −inf where there is none.
        errors: (targets,) norms of the residuals relative to the scale; the largest number where there is no value.
        bottom: the smallest value found, or 0 if that is smaller.
        scale: the largest |Ritz value|, or that of the task; not in the unit.
        matvecs: products spent.
    """

    unit: Scalar
    vectors: Block
    products: Block
    values: Array
    errors: Array
    bottom: Scalar
    scale: Scalar
    matvecs: Count


def search(product: Callable, task: Task, plan: Plan) -> Found:
    """Follows the largest eigenpairs of a symmetric operator until they converge or the budget is spent.

    Where `plan.hopeful` the first direction is multiplied before there is a loop, and the loop entered only if it does not
    suffice. Under `vmap` members advance in chunks of a size that suits the backend, on a CPU one after the other, and those
    that are still searching are brought together again every few rounds: a member that needs many rounds holds up its own chunk
    only.

    Args:
        product: v -> H v on flat vectors (D,); no derivative flows through what it closes over.
        task: where to start and what to reach.
        plan: the static part.

    Returns:
        What was `Found`.
    """
    program = jax.make_jaxpr(product)(task.start[0])
    factors, apply = folded(program)

    @jax.custom_batching.custom_vmap
    def finish(constants, factors, task):
        del factors  # made where they are needed
        return _alone(program, constants, task, plan)

    @finish.def_vmap
    def _(size, batched, constants, factors, task):
        chunk = at_once(size)
        if chunk == 1:
            return one_after_another(finish, batched, constants, factors, task)
        _, shared, own = batched
        task = jax.tree.map(lambda leaf, has: leaf if has else jnp.broadcast_to(leaf, (size, *jnp.shape(leaf))), task, own)
        found = _in_chunks(apply, factors, shared, task, plan, chunk)
        return found, jax.tree.map(lambda _: True, found)

    return finish(*jax.lax.stop_gradient((tuple(program.consts), factors, task)))


_ALL = 2**30


def _multiply(program, constants):
    """The product with its factors folded; they are made where this is called."""
    factors, apply = folded(program.replace(consts=constants))
    return lambda vector: apply(factors, vector)[0]


def _alone(program, constants, task, plan):
    """One member, from the start to the end."""
    if not plan.hopeful:
        return _found(_advance(_multiply(program, constants), task, plan, _begin(task, plan), _ALL), task, plan)
    first = task.start[:1]
    product = _multiply(program, constants)(first[0])[None]
    unit = _unit_of(product)
    multiplied = product / unit
    value = jnp.sum(first * multiplied)
    length = jnp.linalg.norm(multiplied - value * first)
    error = jnp.where(length > 0, length / jnp.where(value != 0, jnp.abs(value), 1), length)

    def as_it_is():
        others = plan.targets - 1
        return Found(
            unit=unit,
            vectors=jnp.pad(first, ((0, others), (0, 0))),
            products=jnp.pad(multiplied, ((0, others), (0, 0))),
            values=jnp.pad(value[None], (0, others), constant_values=-jnp.inf),
            errors=jnp.pad(error[None], (0, others), constant_values=jnp.finfo(error.dtype).max),
            bottom=jnp.minimum(value, 0),
            scale=jnp.abs(value) * unit,
            matvecs=jnp.ones((), jnp.int32),
        )

    def further():
        begun = _grow(lambda _: product[0], task, plan, _begin(task, plan), first, jnp.asarray(False))
        return _found(_advance(_multiply(program, constants), task, plan, begun, _ALL), task, plan)

    return jax.lax.cond((task.needed <= 1) & (error <= task.tolerances[0]), as_it_is, further)


def _found(state, task, plan):
    mixing, values = state.coordinates[: plan.targets], state.values
    return Found(
        unit=_or_one(state.unit),
        vectors=dot(mixing, state.basis),
        products=dot(mixing, state.products),
        values=values[: plan.targets],
        errors=state.errors,
        bottom=jnp.minimum(jnp.min(jnp.where(jnp.isneginf(values), 0, values)), 0),
        scale=jnp.maximum(_largest(values) * state.unit, task.scale),
        matvecs=state.matvecs,
    )


def _in_chunks(apply, factors, batched, task, plan, chunk):
    """A batch, `chunk` unfinished members at a time, side by side; factors that they share stay one."""
    axes = (tuple(0 if has else None for has in batched), 0, 0, None)

    def advance(factors, task, state, rounds):
        return _advance(lambda vector: apply(factors, vector)[0], task, plan, state, rounds)

    def open_members(state):
        return jax.vmap(lambda task, state: _unfinished(task, plan, state))(task, state)

    def pick(tree, order):
        return jax.tree.map(lambda leaf: leaf[order], tree)

    def body(state):
        order = jnp.argsort(~open_members(state), stable=True)[:chunk]  # unfinished ones first
        own = tuple(leaf[order] if has else leaf for leaf, has in zip(factors, batched, strict=True))
        moved = jax.vmap(advance, axes)(own, pick(task, order), pick(state, order), ROUNDS_AT_ONCE)
        return jax.tree.map(lambda leaf, new: leaf.at[order].set(new), state, moved)

    state = jax.vmap(lambda task: _begin(task, plan))(task)
    if chunk == state.rounds.shape[0]:
        state = jax.vmap(advance, axes)(factors, task, state, _ALL)
    else:
        state = jax.lax.while_loop(lambda state: open_members(state).any(), body, state)
    return jax.vmap(lambda state, task: _found(state, task, plan))(state, task)


def _begin(task, plan):
    rows, size = plan.rows, task.start.shape[1]
    dtype = task.start.dtype
    zero = jnp.zeros((), jnp.int32)
    blank = jnp.zeros((rows, size), dtype)
    square = jnp.zeros((rows, rows), dtype)
    return Search(
        unit=jnp.zeros((), dtype),
        basis=blank,
        products=blank,
        projected=square,
        used=jnp.zeros((rows,), bool),
        filled=zero,
        coordinates=square,
        values=jnp.full((rows,), -jnp.inf, dtype),
        residuals=jnp.zeros((plan.block, size), dtype),
        errors=jnp.full((plan.targets,), jnp.finfo(dtype).max),
        rounds=zero,
        matvecs=zero,
        stalled=jnp.asarray(False),
    )


def _first_rounds(plan):
    """Rounds that take in the first directions."""
    return -(-plan.targets // plan.block)


def _unfinished(task, plan, state):
    starting = state.rounds * plan.block < task.needed
    wrong = jnp.isfinite(state.errors).all() & (state.errors > task.tolerances).any()
    return (starting | (wrong & ~state.stalled)) & (state.matvecs + plan.block <= task.budget)


def _advance(apply, task, plan, state, rounds):
    """Takes rounds until the search has finished or so many are done; the operator appears in the program once.

    Full rows are replaced in a loop of at most one pass, since a branch would copy all of them in every round.
    """
    last = state.rounds + rounds
    first = jnp.pad(task.start, ((0, _first_rounds(plan) * plan.block - plan.targets), (0, 0)))

    def going_on(state):
        return _unfinished(task, plan, state) & (state.rounds < last)

    def full(state):
        return state.filled + plan.block > plan.rows

    def round_of(state):
        state = jax.lax.while_loop(full, lambda state: _restart(state, plan), state)
        offset = jnp.minimum(state.rounds * plan.block, first.shape[0] - plan.block)
        given = jax.lax.dynamic_slice_in_dim(first, offset, plan.block)
        growing = state.rounds >= _first_rounds(plan)
        return _grow(apply, task, plan, state, jnp.where(growing, state.residuals, given), growing)

    return jax.lax.while_loop(going_on, round_of, state)


def _grow(apply, task, plan, state, directions, growing):
    """Multiplies new directions and solves the projected problem on all."""
    fresh, found = _orthonormalize(directions, state.basis, task.locked)
    multiplied = _apply_rows(apply, fresh)
    unit = jnp.where(state.unit > 0, state.unit, jnp.where((multiplied != 0).any(), _unit_of(multiplied), 0))
    multiplied = multiplied / _or_one(unit)
    place = (state.filled, jnp.zeros_like(state.filled))
    basis = jax.lax.dynamic_update_slice(state.basis, fresh, place)
    products = jax.lax.dynamic_update_slice(state.products, multiplied, place)
    across = overlaps(multiplied, basis)
    projected = jax.lax.dynamic_update_slice(state.projected, across, place)
    projected = jax.lax.dynamic_update_slice(projected, across.T, place[::-1])
    used = jax.lax.dynamic_update_slice(state.used, found, place[:1])
    values, coordinates = _ritz(projected, used)
    targets = plan.targets
    # Of two or more, since a product of one row would be fused with the updates, which then would not be in place.
    top, mixing = values[: max(targets, 2)], coordinates[: max(targets, 2)]
    has_value = ~jnp.isneginf(top)
    residuals = dot(mixing, products) - jnp.where(has_value, top, 0)[:, None] * dot(mixing, basis)
    residuals, has_value = residuals[:targets], has_value[:targets]
    scale = jnp.maximum(_largest(values), task.scale / _or_one(unit))
    norms = jnp.linalg.norm(residuals, axis=1)
    errors = jnp.where(norms > 0, norms / jnp.where(scale > 0, scale, 1), norms)
    errors = jnp.where(has_value, errors, jnp.finfo(errors.dtype).max)
    if plan.block < targets:
        urgency = errors / jnp.maximum(task.tolerances, jnp.finfo(errors.dtype).tiny)
        worst = jax.lax.top_k(jnp.where(has_value, urgency, 0), plan.block)[1]  # what has no value has no direction to grow by
        residuals = residuals[worst]
    return Search(
        unit,
        basis,
        products,
        projected,
        used,
        state.filled + plan.block,
        coordinates,
        values,
        residuals,
        errors,
        state.rounds + 1,
        state.matvecs + plan.block,
        growing & ~found.any(),
    )


def _apply_rows(apply, block):
    """Multiplies each row: one after the other on a CPU, where it is faster and smaller, else side by side."""
    if block.shape[0] == 1:
        return apply(block[0])[None]
    if jax.default_backend() == "cpu":
        return jax.lax.map(apply, block)
    return jax.vmap(apply)(block)


def _unit_of(product):
    """The power of two at or below the largest entry, by which dividing is exact; 1 where there is none."""
    largest = jnp.max(jnp.abs(product))
    exponent = jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 1))[1] - 1
    return jnp.where(largest > 0, jnp.ldexp(jnp.ones((), product.dtype), exponent), 1)


def _or_one(unit):
    return jnp.where(unit > 0, unit, 1)


def _largest(values):
    return jnp.max(jnp.where(jnp.isneginf(values), 0, jnp.abs(values)))


def _ritz(projected, used):
    """Eigenpairs of the projection on the rows in use, largest first; the other rows come last, with the value −inf.

    Each points to where its largest coordinates do, so that roundings do not decide on signs: noise is added to what is found.
    """
    projected = 0.5 * (projected + projected.T)
    below = -2 * jnp.linalg.norm(projected) - jnp.finfo(projected.dtype).tiny
    values, vectors = eigh(jnp.where(jnp.diag(~used), below, projected))
    vectors = jnp.where(jnp.sum(vectors**3, axis=0) < 0, -vectors, vectors)
    return jnp.where(jnp.arange(values.size) < used.sum(), values[::-1], -jnp.inf), vectors[:, ::-1].T


def _restart(state, plan):
    """Replaces full rows by their best directions; the products follow without a new one.

    What the small eigenproblem leaves at rounding adds up over restarts until a new direction is one of the old ones; by Jacobi's
    method, which GPUs use, soon, since its errors of length do not cancel. So its vectors are made orthonormal again, by a step
    of Newton and Schulz, and the projection on them is not taken for diagonal.
    """
    survives = (jnp.arange(plan.rows) < plan.kept) & ~jnp.isneginf(state.values)
    best = jnp.where(survives[:, None], state.coordinates, 0)
    best = 1.5 * best - 0.5 * dot(dot(best, best.T), best)
    return state._replace(
        basis=dot(best, state.basis),
        products=dot(best, state.products),
        projected=dot(dot(best, state.projected), best.T),
        used=survives,
        filled=jnp.asarray(plan.kept, state.filled.dtype),
    )


def _orthonormalize(block, basis, locked):
    """Makes the rows orthonormal to each other and to the rest; a row that depends on the others becomes zero.

    Twice is enough to be orthogonal to rounding, and once where a row keeps most of its length, as a residual does.
    """
    tolerance = 10 * jnp.finfo(block.dtype).eps

    def project(block):
        block = block - dot(overlaps(block, basis), basis)
        if locked.shape[0]:
            block = block - dot(overlaps(block, locked), locked)
        lengths = jnp.linalg.norm(block, axis=1, keepdims=True)
        block = block / jnp.where(lengths > tolerance, lengths, jnp.inf)
        if block.shape[0] > 1:
            weights, mixing = eigh(dot(block, block.T))
            weights = jnp.where(weights > block.shape[0] * tolerance, weights, jnp.inf)
            block = dot((mixing / jnp.sqrt(weights)[None, :]).T, block)
        return block, lengths

    lengths = jnp.linalg.norm(block, axis=1, keepdims=True)
    block, lengths = project(block / jnp.where(lengths > 0, lengths, jnp.inf))
    if block.shape[0] > 1 or jax.default_backend() != "cpu":  # a branch would wait for the host, longer than it saves
        block, _ = project(block)
    else:
        block = jax.lax.cond(lengths[0, 0] > 0.7, lambda block: block, lambda block: project(block)[0], block)
    return block, jnp.any(block != 0, axis=1)


def overlaps(block: Block, basis: Block) -> Array:
    """Inner products of each row with each of the basis, (b, rows).

    As one product of a matrix and a vector for each row: on a CPU about ten times faster than the same as a matrix product,
    whose long contraction XLA does not vectorize. Nor does it that of two vectors, which is also summed up in order, 4e-4 too
    small for a million float32 squares; where the basis has one row, sums do better.
    """
    if basis.shape[0] == 1:
        return jnp.sum(block * basis, axis=1, keepdims=True)
    return jnp.stack([dot(basis, row) for row in block]) if block.shape[0] <= 8 else dot(block, basis.T)
