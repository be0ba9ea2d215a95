"""A scale-invariant network that interpolates a few digits, with starts on its minimizer manifold and over it."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsharp import data, minimizers, models, problems
from jaxsharp.problems import Problem

MOST_RETRACTION_STEPS = 50
"""Gauss–Newton steps from random parameters to a minimizer; about 10 are usual."""


class Interpolating(NamedTuple):
    """A problem and where its runs start.

    Attributes:
        problem: squared loss of a tanh network with batch normalization, scale-invariant.
        on_manifold: `(key)`, a random minimizer φ.
        at_the_edge: `(key, learning_rate, weight_decay)`, GD's equilibrium at the edge of stability over φ.
        off_balance: `(key, learning_rate, weight_decay, amplitude)`, the same with η̃ λ1 / 2 = 1 + amplitude √(η̂ λ̂).
    """

    problem: Problem
    on_manifold: Callable
    at_the_edge: Callable
    off_balance: Callable


@lru_cache(maxsize=4)
def interpolating(images: int, width: int, data_seed: int, double: bool) -> Interpolating:
    """Makes the network; cached, since equal functions let a later run reuse compiled programs.

    Args:
        images: training images, whose targets are the digits themselves.
        width: hidden units.
        data_seed: of the choice of images.
        double: the precision, which the cache has to tell apart.

    Returns:
        `Interpolating`.
    """
    del double
    train, _ = data.digits(images, seed=data_seed, targets="value")
    problem = problems.supervised(models.MLP(widths=(width,), norm="batch", scale_invariant=True), train)

    def on_manifold(key):
        return minimizers.retract(problem, problem.init(key), max_steps=MOST_RETRACTION_STEPS)

    def at_the_edge(key, learning_rate, weight_decay):
        return minimizers.edge_of_stability_start(problem, on_manifold(key), learning_rate, weight_decay)

    def off_balance(key, learning_rate, weight_decay, amplitude):
        start = at_the_edge(key, learning_rate, weight_decay)
        shorter = 1 / jnp.sqrt(1 + amplitude * jnp.sqrt(learning_rate * weight_decay))  # η̃ ∝ 1/‖w‖²
        return jax.tree.map(lambda leaf: shorter.astype(leaf.dtype) * leaf, start)

    return Interpolating(problem, on_manifold, at_the_edge, off_balance)
