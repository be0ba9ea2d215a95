"""What several tests share: tolerances from the dtype, dense truths, small problems, and a counter of compilations."""

from contextlib import contextmanager
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring
from jax.flatten_util import ravel_pytree

import jaxsharp as js


def tolerance(dtype, factor=10.0, power=0.5):
    """A bound derived from the dtype: factor · eps^power."""
    return factor * float(jnp.finfo(dtype).eps) ** power


def dense_hessian(loss, params):
    """The Hessian as a matrix, by nested forward mode over reverse mode on the flat vector."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda w: loss(unravel(w))))(flat))


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@cache
def regression(samples=12, features=20, seed=0):
    """A small batch-normalized regression; shared, since problems do not change."""
    rng = np.random.default_rng(seed)
    return js.problems.bn_linear_regression(rng.normal(size=(samples, features)), rng.normal(size=samples))


@cache
def tanh_network():
    """A scale-invariant tanh network with 24 parameters on 4 samples, and a point on its minimizer manifold."""
    rng = np.random.default_rng(0)
    model = js.models.MLP(widths=(6,), norm="batch", scale_invariant=True)
    problem = js.problems.supervised(model, (rng.normal(size=(4, 3)), rng.normal(size=4)))
    back = jax.jit(lambda problem, w: js.minimizers.retraction(problem, w, max_steps=50))(
        problem, problem.init(jax.random.key(0))
    )
    assert back.converged
    return problem, back.params


def digits_network(norm="none", widths=(16,), count=60, loss="mse", scale_invariant=False):
    train, test = js.data.digits(count=count)
    model = js.models.MLP(widths=widths, norm=norm, scale_invariant=scale_invariant)
    return js.problems.supervised(model, train, test, loss=loss)


_LOWERINGS = []


def _listen(event, duration, **_):
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
        _LOWERINGS.append(duration)


monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def count_compilations():
    """Counts programs lowered inside the block; a persistent compilation cache does not hide one."""
    found = []
    before = len(_LOWERINGS)
    yield found
    found.extend(_LOWERINGS[before:])
