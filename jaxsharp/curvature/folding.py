"""Folds the fixed elementwise factors of a linear program, so that each application reads and writes fewer arrays."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxsharp._types import Array

MOST_TERMS = 3
"""Terms that a sum may have before it is computed; sums of few wait, since what they are added to may share their bases."""


@dataclass(frozen=True)
class _Slot:
    """Where an application keeps an array that it has computed."""

    place: int


@dataclass(frozen=True)
class _Factor:
    """Where an array is kept that was there before the first application."""

    place: int


@dataclass(frozen=True, eq=False)
class _Fixed:
    """A constant of the program."""

    value: Array


@dataclass(frozen=True, eq=False)
class _Sum:
    """Σ factor · slot, to be computed when it is needed; a factor None is 1."""

    terms: tuple[tuple[_Slot, Array | None], ...]


def folded(program: ClosedJaxpr) -> tuple[tuple[Array, ...], Callable]:
    """Rewrites a linear program so that chains of its elementwise factors are multiplied out once, before it is applied.

    The linearized gradient of a network multiplies the same array by one fixed array after another and adds the results up:
    of y = c (x + b x) and z = a y + d y this leaves y = [c (1 + b)] x and z = [(a + d) c (1 + b)] x. Everything else, products
    of matrices above all, stays as it is, and so does what the program computes from its constants alone: one that computes
    things again to save memory goes on doing so. A program whose factors would take more memory than its constants, as with
    batch normalization, is left alone.

    Args:
        program: linear in its arguments; one that is not comes out equal as well.

    Returns:
        The factors, and `(factors, *arguments) -> results` with a list of results, those of the program up to rounding.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(lambda x: 3.0 * x + jnp.arange(2.0) * (-x))(jnp.ones(2))
        >>> factors, apply = folded(program)
        >>> apply(factors, jnp.ones(2))[0].tolist()
        [3.0, 2.0]
    """
    fold = _Fold()
    arguments = [fold.slot() for _ in program.jaxpr.invars]
    values = [_Sum(((slot, None),)) for slot in arguments]
    results = [fold.place(value) for value in fold.walk(program.jaxpr, [*map(_Fixed, program.consts), *values])]
    steps = tuple(fold.steps)
    if _entries(fold.factors) > _entries(program.consts):
        return tuple(program.consts), lambda factors, *vectors: jaxpr_as_fun(program.replace(consts=factors))(*vectors)

    def apply(factors, *vectors):
        held = dict(zip(arguments, vectors, strict=True))

        def look(place):
            return factors[place.place] if isinstance(place, _Factor) else held[place]

        for compute, operands, slots in steps:
            held.update(zip(slots, compute(*map(look, operands)), strict=True))
        return [look(place) for place in results]

    return tuple(fold.factors), apply


def _entries(arrays):
    return sum(jnp.size(array) for array in arrays)


class _Fold:
    """The walk through a program: `steps` are what is left of it, (function, places of its operands, slots of its results)."""

    def __init__(self):
        self.steps, self.factors = [], []
        self._slots = 0
        self._placed = {}  # what has a place already, by identity

    def slot(self):
        self._slots += 1
        return _Slot(self._slots - 1)

    def walk(self, jaxpr, inputs):
        """The values of a program's results, given those of its constants and arguments."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

        def read(atom):
            return _Fixed(jnp.asarray(atom.val, atom.aval.dtype)) if isinstance(atom, Literal) else self._latest(known[atom])

        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "jit":
                inner = eqn.params["jaxpr"]
                results = self.walk(inner.jaxpr, [*map(_Fixed, inner.consts), *map(read, eqn.invars)])
            elif (sum_of := _rule(eqn)) and (terms := sum_of(eqn, *map(read, eqn.invars))) is not None:
                whole = len(terms) > MOST_TERMS or (len(terms) > 1 and all(factor is None for _, factor in terms))
                results = [self._computed(_Sum(terms)) if whole else _Sum(terms)]
            else:
                results = self._as_it_is(jaxpr, eqn, known)
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def place(self, value):
        """Where a value is kept; computes it if that has not been done."""
        if id(value) not in self._placed:
            if isinstance(value, _Fixed):
                place = self._factor(value.value)
            elif len(value.terms) == 1 and value.terms[0][1] is None:
                place = value.terms[0][0]
            else:
                place = self.slot()
                scaled = [factor is not None for _, factor in value.terms]
                factors = [self._factor(factor) for _, factor in value.terms if factor is not None]
                self.steps.append((_summation(scaled), [*(slot for slot, _ in value.terms), *factors], [place]))
            self._placed[id(value)] = value, place  # the value too, so that its id is not given to another
        return self._placed[id(value)][1]

    def _factor(self, value):
        self.factors.append(value)
        return _Factor(len(self.factors) - 1)

    def _computed(self, value):
        return _Sum(((self.place(value), None),))

    def _latest(self, value):
        """A sum of several that has been computed is from then on a base of its own."""
        several = isinstance(value, _Sum) and len(value.terms) > 1
        return self._computed(value) if several and id(value) in self._placed else value

    def _as_it_is(self, jaxpr, eqn, known):
        operands = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
        alone = jaxpr.replace(constvars=[], invars=operands, outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
        slots = [self.slot() for _ in eqn.outvars]
        self.steps.append((jaxpr_as_fun(ClosedJaxpr(alone, [])), [self.place(known[atom]) for atom in operands], slots))
        return [_Sum(((slot, None),)) for slot in slots]


def _summation(scaled):
    def compute(*operands):
        slots, factors = operands[: len(scaled)], iter(operands[len(scaled) :])
        terms = [next(factors) * slot if has else slot for slot, has in zip(slots, scaled, strict=True)]
        return [sum(terms[1:], terms[0])]

    return compute


def _product(eqn, left, right):
    """Terms of fixed · sum, where that does not make the sum's arrays larger."""
    base, fixed, atom = (left, right, eqn.invars[0]) if isinstance(left, _Sum) else (right, left, eqn.invars[1])
    if not isinstance(base, _Sum) or not isinstance(fixed, _Fixed) or atom.aval.shape != eqn.outvars[0].aval.shape:
        return None
    return tuple((slot, fixed.value if factor is None else factor * fixed.value) for slot, factor in base.terms)


def _quotient(eqn, over, under):
    if not isinstance(over, _Sum) or not isinstance(under, _Fixed) or eqn.invars[0].aval.shape != eqn.outvars[0].aval.shape:
        return None
    one = jnp.ones((), eqn.outvars[0].aval.dtype)
    return tuple((slot, (one if factor is None else factor) / under.value) for slot, factor in over.terms)


def _negative(eqn, value):
    if not isinstance(value, _Sum):
        return None
    minus = jnp.asarray(-1, eqn.outvars[0].aval.dtype)
    return tuple((slot, minus if factor is None else -factor) for slot, factor in value.terms)


def _sum(eqn, left, right):
    whole, shapes = eqn.outvars[0].aval, {atom.aval.shape for atom in eqn.invars}
    if not (isinstance(left, _Sum) and isinstance(right, _Sum) and shapes == {whole.shape}):
        return None
    one = jnp.ones((), whole.dtype)
    terms = dict(left.terms)
    for slot, factor in right.terms:
        if slot in terms:
            terms[slot] = (one if terms[slot] is None else terms[slot]) + (one if factor is None else factor)
        else:
            terms[slot] = factor
    return tuple(terms.items())


def _difference(eqn, left, right):
    return _sum(eqn, left, _Sum(_negative(eqn, right))) if isinstance(right, _Sum) else None


def _rule(eqn):
    """How the terms of a result follow from those of its operands; None for whole numbers, whose quotients are not linear."""
    real = all(jnp.issubdtype(atom.aval.dtype, jnp.inexact) for atom in (*eqn.invars, *eqn.outvars))
    return _RULES.get(eqn.primitive.name) if real else None


_RULES = {"mul": _product, "div": _quotient, "neg": _negative, "add": _sum, "add_any": _sum, "sub": _difference}
