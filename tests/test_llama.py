"""The Llama model: a NumPy reading of the whole network, causality, rotations that know distances alone, its size."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tolerance

import jaxsharp as js
from jaxsharp.models.llama import gated_width, rotate

MODEL = js.models.Llama(vocabulary=11, width=8, depth=2, heads=2, hidden=12, outputs=11)


@cache
def network(double):
    """Random parameters, also where they start as ones, and the compiled model."""
    del double
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), tokens())["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    return params, jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens))


def tokens(change=()):
    rows = np.arange(12).reshape(2, 6) ** 2 % 11
    for place, value in change:
        rows[:, place] = value
    return jnp.asarray(rows, jnp.int32)


def read_by_hand(params, rows):
    """The network sample by sample and position by position, in NumPy."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)

    def norm(x, name, parts):
        return x / np.sqrt(np.mean(x**2) + 1e-5) * parts[name]["rms"]["scale"]

    def turned(x, position):
        """Pairs as complex numbers, times a phase."""
        pairs = (x[:2] + 1j * x[2:]) * np.exp(1j * position * 10_000.0 ** (-np.arange(2) / 2))
        return np.concatenate([pairs.real, pairs.imag])

    outputs = []
    for row in rows:
        x = [p["embedding"]["embedding"][token] for token in row]
        for index in range(2):
            block = p[f"block_{index}"]
            h = [norm(each, "norm_attention", block) for each in x]
            q, k, v = ([each @ block[name]["kernel"] for each in h] for name in ("query", "key", "value"))
            new = []
            for here in range(len(x)):
                mixed = np.zeros(8)
                for head in (slice(0, 4), slice(4, 8)):
                    asked = turned(q[here][head], here)
                    weights = np.array([np.exp(asked @ turned(k[there][head], there) / 2) for there in range(here + 1)])
                    mixed[head] = sum(w * v[there][head] for there, w in enumerate(weights / weights.sum()))
                new.append(x[here] + mixed @ block["attention_out"]["kernel"])
            x = []
            for each in new:
                h = norm(each, "norm_perceptron", block)
                gate = h @ block["gate"]["kernel"]
                y = gate / (1 + np.exp(-gate)) * (h @ block["hidden"]["kernel"])
                x.append(each + y @ block["perceptron_out"]["kernel"])
        outputs.append([norm(each, "norm_last", p) @ p["read_out"]["kernel"] for each in x])
    return np.array(outputs)


def test_the_network_is_what_its_equations_say(precision):
    params, apply = network(precision)
    dtype = jax.tree.leaves(params)[0].dtype
    outputs = apply(params, tokens())
    assert outputs.dtype == dtype == precision
    np.testing.assert_allclose(outputs, read_by_hand(params, np.asarray(tokens())), atol=tolerance(dtype, 1e3, 1.0))


def test_a_position_sees_only_what_comes_before():
    params, apply = network("float64")
    plain, changed = apply(params, tokens()), apply(params, tokens([(3, 7)]))
    np.testing.assert_array_equal(plain[:, :3], changed[:, :3])
    assert (np.abs(plain - changed)[:, 3:].max(axis=2) > 1e-3).all()


def test_a_rotated_product_depends_on_the_distance_of_positions_alone():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 6))
    q, k = (np.asarray(rotate(jnp.tile(jnp.asarray(x), (1, 9, 1, 1))))[0, :, 0] for x in (query, key))
    products = q @ k.T
    for distance in range(-8, 9):
        np.testing.assert_allclose(np.ptp(np.diagonal(products, distance)), 0, atol=1e-12)
    assert np.ptp(products[0]) > 0.1
    assert products[0, 0] == pytest.approx(query @ key)
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), np.linalg.norm(query))


@pytest.mark.parametrize(("width", "depth", "heads", "hidden"), [(8, 2, 2, 12), (24, 3, 4, None), (128, 5, 4, None)])
def test_the_size_is_the_formula_s(width, depth, heads, hidden):
    model = js.models.Llama(vocabulary=13, width=width, depth=depth, heads=heads, hidden=hidden, outputs=13)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == js.models.Llama.parameters(13, width, depth, hidden)


@pytest.mark.parametrize("width", range(1, 40))
def test_a_gated_perceptron_is_8_3_as_wide_and_at_most_7_more(width):
    wide = gated_width(width)
    assert wide % 8 == 0
    assert 8 * width / 3 <= wide < 8 * width / 3 + 8


@pytest.mark.parametrize(
    ("fields", "argument", "words"),
    [
        ({"vocabulary": None}, tokens(), "vocabulary and outputs are not set"),
        ({"heads": 4}, tokens(), "multiple of 2 heads=8"),
        ({"heads": 0}, tokens(), "multiple of 2 heads"),
        ({}, jnp.zeros((2, 3)), "tokens must be integers"),
        ({}, jnp.zeros(3, jnp.int32), "tokens must be integers"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, argument, words):
    model = MODEL.clone(**{"width": 12, **fields})
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), argument)
