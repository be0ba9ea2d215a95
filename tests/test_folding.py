"""Folded linear programs: the same numbers, fewer arrays, and nothing computed earlier than the program computed it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import digits_network, flat

import jaxsharp as js
from jaxsharp.curvature.folding import folded


def _program(problem, params):
    """The linearized gradient as a program of the leaves."""
    product, structure = jax.linearize(jax.grad(problem.loss), params)[1], jax.tree.structure(params)
    leaves = jax.tree.leaves(params)
    return jax.make_jaxpr(lambda *leaves: jax.tree.leaves(product(jax.tree.unflatten(structure, leaves))))(*leaves)


def _images(model):
    return js.problems.supervised(model, js.data.digits(count=6, flatten=False)[0], loss="cross_entropy")


NETWORKS = {
    "tanh": lambda: digits_network(count=20),
    "layer normalization": lambda: digits_network("layer", count=20),
    "batch normalization": lambda: digits_network("batch", count=20, loss="cross_entropy"),
    "CNN": lambda: _images(js.models.CNN(widths=(2, 2), norm="group")),
    "ViT": lambda: _images(js.models.ViT(width=8, depth=1, patch=4)),
    "transformer": lambda: js.problems.supervised(
        js.models.Transformer(width=8, depth=1), js.data.sorting(6, 2, length=4, values=4)[0], loss="cross_entropy"
    ),
}


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float64") for name in NETWORKS), ("ViT", "float32")], indirect=["precision"]
)
def test_a_folded_product_is_forward_over_reverse_and_holds_no_more(name, precision):
    problem = NETWORKS[name]()
    params = jax.jit(lambda key: problem.init(key))(jax.random.key(0))
    vector = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape, leaf.dtype), params)

    @jax.jit
    def both(params, vector):
        program = _program(problem, params)
        factors, apply = folded(program)
        assert sum(map(np.size, factors)) <= sum(map(np.size, program.consts))
        mine = jax.tree.unflatten(jax.tree.structure(vector), apply(factors, *jax.tree.leaves(vector)))
        return mine, js.curvature.hvp(problem.loss, params, vector)

    mine, other = map(flat, both(params, vector))
    np.testing.assert_allclose(mine, other, rtol=0, atol={"float64": 1e-12, "float32": 1e-4}[precision] * np.abs(other).max())


def _elementwise(apply, factors, arguments, shape):
    """Elementwise multiplications of full arrays in one application."""
    eqns = jax.make_jaxpr(lambda *arguments: apply(factors, *arguments))(*arguments).jaxpr.eqns
    return sum(eqn.primitive.name in ("mul", "neg", "div") and eqn.outvars[0].aval.shape == shape for eqn in eqns)


def test_a_hidden_layer_takes_three_elementwise_products():
    """t' = s · (…) forward, r = s · (…) + k · (…) backward: what one would write by hand."""
    problem = digits_network(widths=(7,), count=20)
    params = problem.init(jax.random.key(0))
    program = _program(problem, params)
    factors, apply = folded(program)
    leaves = jax.tree.leaves(params)
    plainly = sum(eqn.primitive.name in ("mul", "neg") and eqn.outvars[0].aval.shape == (20, 7) for eqn in program.jaxpr.eqns)
    assert _elementwise(apply, factors, leaves, (20, 7)) == 3
    assert plainly > 3  # how many depends on how the installed JAX differentiates tanh


def test_a_sum_that_had_to_be_computed_is_not_computed_again():
    first, second, third, *more = (jnp.arange(3.0) + number for number in range(7))

    def program(x, y):
        mixed = first * x + second * y
        chain = more[0] * (more[1] * (more[2] * (more[3] * x)))  # whose one factor leaves memory for others
        return jnp.ones((3, 3)) @ mixed, third * mixed, jnp.sum(chain)

    arguments = jnp.ones(3), jnp.arange(3.0)
    factors, apply = folded(jax.make_jaxpr(program)(*arguments))
    assert _elementwise(apply, factors, arguments, (3,)) == 4
    for mine, other in zip(apply(factors, *arguments), program(*arguments), strict=True):
        np.testing.assert_allclose(mine, other)


def test_a_program_that_would_need_more_memory_is_left_alone():
    scale = [jnp.arange(3.0) + number for number in range(4)]

    def spread(x):  # four factors of two constants
        return [first * (second * x) for first in scale[:2] for second in scale[2:]]

    program = jax.make_jaxpr(spread)(jnp.ones(3))
    factors, apply = folded(program)
    assert len(factors) == len(program.consts) == 4
    np.testing.assert_allclose(apply(factors, jnp.ones(3)), spread(jnp.ones(3)))
    wide = jnp.arange(3.0) + 7

    def once(x):
        return 2 * (wide * (scale[0] * x)) - wide * x

    program = jax.make_jaxpr(once)(jnp.ones(3))
    factors, apply = folded(program)
    assert [np.shape(factor) for factor in factors] == [(3,)]
    np.testing.assert_allclose(apply(factors, jnp.ones(3))[0], once(jnp.ones(3)))


def test_what_is_computed_again_to_save_memory_still_is():
    params = jnp.linspace(0.1, 1, 5)

    def again(v):
        return jnp.tanh(params) * v + 3 * v

    factors, apply = folded(jax.make_jaxpr(again)(params))
    inside = jax.make_jaxpr(lambda v: apply(factors, v))(params).jaxpr.eqns
    assert [eqn.primitive.name for eqn in inside].count("tanh") == 1
    np.testing.assert_allclose(apply(factors, params)[0], again(params))


def test_calls_loops_and_what_is_not_linear_come_out_equal():
    scale = jnp.linspace(1, 2, 4)

    def program(x, y):
        inner = jax.jit(lambda a: -(scale * a) + scale * a / 3)(x)
        looped, _ = jax.lax.scan(lambda c, row: (c + row * y.sum(), c), jnp.zeros(4), jnp.stack([x, inner, scale * x]))
        return jnp.sin(inner) + x * y, looped - inner, scale, jnp.sum(x) * scale

    x, y = jnp.arange(4.0), jnp.arange(4.0) - 1
    factors, apply = folded(jax.make_jaxpr(program)(x, y))
    for mine, other in zip(jax.jit(apply)(factors, x, y), program(x, y), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


def test_whole_numbers_are_not_folded():
    """A quotient of whole numbers is none of real ones, and −1 is no unsigned number."""
    first, second = jnp.arange(6.0) + 1, jnp.arange(6.0) + 2

    def program(x):
        thirds = jax.lax.div(jnp.arange(6), 3)
        unsigned = jnp.arange(6, dtype=jnp.uint32)
        sums = jax.ops.segment_sum(x, thirds, 2)
        return first * (second * (thirds.astype(x.dtype) * x)), (3 * unsigned - unsigned).astype(x.dtype) * x, sums

    x = jnp.linspace(1, 2, 6)
    factors, apply = folded(jax.make_jaxpr(program)(x))
    assert _elementwise(apply, factors, (x,), (6,)) < _elementwise(lambda _, x: program(x), None, (x,), (6,))  # some was folded
    for mine, other in zip(apply(factors, x), program(x), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


def _chains():
    number = st.integers(-3, 3).filter(bool)
    leaf = st.sampled_from(["x", "y"])
    step = st.sampled_from(["scale", "number", "negate", "divide", "add", "subtract", "mix"])
    return st.lists(st.tuples(step, leaf, number, st.integers(0, 7)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(_chains())
def test_any_chain_of_elementwise_steps(chain):
    constants = [jnp.linspace(-1, 2, 3) + number for number in range(8)]
    matrix = jnp.arange(9.0).reshape(3, 3) / 4 - 1

    def program(x, y):
        values = {"x": x, "y": y}
        for step, name, number, index in chain:
            value, other = values[name], values["y" if name == "x" else "x"]
            values[name] = {
                "scale": lambda value=value, index=index: constants[index] * value,
                "number": lambda value=value, number=number: value * number,
                "negate": lambda value=value: -value,
                "divide": lambda value=value, index=index: value / (constants[index] + 10),
                "add": lambda value=value, other=other: value + other,
                "subtract": lambda value=value, other=other: other - value,
                "mix": lambda value=value: matrix @ value,
            }[step]()
        return values["x"], values["y"]

    x, y = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.7, -1.1])
    factors, apply = folded(jax.make_jaxpr(program)(x, y))
    for mine, other in zip(apply(factors, x, y), program(x, y), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9 * float(jnp.abs(other).max()) + 1e-12)
