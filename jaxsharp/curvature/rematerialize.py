"""Rematerialization of any function: reverse mode recomputes stretches of it instead of keeping every intermediate value."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Literal, jaxpr_as_fun

_LABEL = DebugInfo("rematerialized", "segment", None, None)


def rematerialized(function: Callable, segments: int) -> Callable:
    """Cuts a function into consecutive segments that reverse mode evaluates again instead of keeping what is inside them.

    A gradient, or a product with the Hessian, then holds what passes from one segment to the next and the inside of one segment.
    The cuts are found in the traced function: near equal memory per segment, where the fewest bytes are alive. For a deep
    network of equal layers take about the square root of their number. A network written as one `scan` is a single operation to
    this function and is not cut; rematerialize its body. Third derivatives are right, but gain nothing.

    Unlike under `jax.checkpoint`, whose barriers XLA drops on a CPU before it orders the operations, the second evaluation waits
    for the cotangent that calls for it, so the memory is saved on every backend. The price: forward mode alone through the
    function (without a gradient inside it) is refused by JAX.

    Args:
        function: of pytrees of arrays; pure.
        segments: how many, at least 1; 1 returns the function itself.

    Returns:
        The same function of the same derivatives to rounding. Cost: one more evaluation per gradient.

    Raises:
        ValueError: for fewer than 1 segment.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> loss = js.curvature.rematerialized(lambda w: jnp.sum(jnp.tanh(jnp.tanh(w)) ** 2), 2)
        >>> float(jax.grad(loss)(jnp.zeros(2))[0])
        0.0

    Source: Chen et al. 2016 (sublinear memory); the cuts and the waiting are our own.
    """
    if not isinstance(segments, int) or segments < 1:
        raise ValueError(f"segments must be a whole number, at least 1, got {segments!r}.")
    if segments == 1:
        return function

    def wrapped(*arguments):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        outputs = _run(closed, jax.tree.leaves(arguments), segments)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return wrapped


def _run(closed, arguments, segments):
    jaxpr, constants = closed.jaxpr, closed.consts
    if len(jaxpr.eqns) == 1 and "jaxpr" in jaxpr.eqns[0].params and jaxpr.eqns[0].primitive.name in ("jit", "pjit"):
        (call,) = jaxpr.eqns  # the whole function is one compiled call: look inside
        if list(call.invars) == list(jaxpr.invars) and list(call.outvars) == list(jaxpr.outvars):
            return _run(call.params["jaxpr"], arguments, segments)
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    given = set(values)
    stretches = _cut(jaxpr, segments)
    for index, (start, stop) in enumerate(stretches):
        equations = jaxpr.eqns[start:stop]
        defined = {variable for equation in equations for variable in equation.outvars}
        needed = {atom: None for e in equations for atom in e.invars if not isinstance(atom, Literal) and atom not in defined}
        later = {atom for e in jaxpr.eqns[stop:] for atom in e.invars if not isinstance(atom, Literal)}
        later |= {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
        produced = [variable for equation in equations for variable in equation.outvars if variable in later]
        effects = frozenset().union(*(equation.effects for equation in equations))
        stretch = jaxpr_as_fun(ClosedJaxpr(Jaxpr((), list(needed), produced, equations, effects, _LABEL), ()))
        if index < len(stretches) - 1:  # the last one's values are needed at once
            stretch = _evaluated_again(stretch, tuple(variable not in given for variable in needed))
        values.update(zip(produced, stretch(*(values[variable] for variable in needed)), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluated_again(function, waits):
    """The function with a gradient that evaluates it again, from the arguments that wait, once the cotangent is there."""

    @jax.custom_vjp
    def call(*arguments):
        return function(*arguments)

    def forward(*arguments):
        return function(*arguments), arguments

    def backward(arguments, cotangents):
        first = next(leaf for leaf in cotangents if jnp.issubdtype(leaf.dtype, jnp.inexact))
        nothing = 0 * first.ravel()[0]  # not simplified away, since 0 · NaN is NaN
        arguments = [
            leaf + nothing.astype(leaf.dtype) if wait and jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf
            for leaf, wait in zip(arguments, waits, strict=True)
        ]
        return jax.vjp(function, *arguments)[1](cotangents)

    call.defvjp(forward, backward)
    return call


def _cut(jaxpr, segments):
    """Ranges of equations of near equal memory, cut where the fewest bytes are alive."""
    sizes = [sum(_bytes(variable) for variable in equation.outvars) for equation in jaxpr.eqns]
    last_use = {}
    for index, equation in enumerate(jaxpr.eqns):
        last_use.update({atom: index for atom in equation.invars if not isinstance(atom, Literal)})
    last_use.update({atom: len(sizes) for atom in jaxpr.outvars if not isinstance(atom, Literal)})
    born = {variable: index for index, equation in enumerate(jaxpr.eqns) for variable in equation.outvars}
    changes = [0] * (len(sizes) + 2)
    for variable, index in born.items():
        changes[index + 1] += _bytes(variable)
        changes[max(last_use.get(variable, index), index) + 1] -= _bytes(variable)
    alive, passed, total = [], [], 0
    for index in range(len(sizes) + 1):
        alive.append((alive[-1] if alive else 0) + changes[index])  # before equation `index`
        passed.append(total)
        total += sizes[index] if index < len(sizes) else 0
    cuts = []
    for number in range(1, segments):
        low, high = ((number + shift) * total / segments for shift in (-0.25, 0.25))
        window = [i for i in range(1, len(sizes)) if low <= passed[i] <= high]
        if window:
            cuts.append(min(window, key=lambda i: alive[i]))
    edges = [0, *sorted(set(cuts)), len(sizes)]
    return [(start, stop) for start, stop in itertools.pairwise(edges) if start < stop]


def _bytes(variable):
    aval = variable.aval
    return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 1)
