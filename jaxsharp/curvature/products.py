"""Hessian-vector products, the only place in the library that nests derivatives for the Hessian."""

from collections.abc import Callable
from functools import partial

import jax
from jax.tree_util import Partial

from jaxsharp._precision import in_full_precision
from jaxsharp._types import Loss, Params, PyTree, Scalar
from jaxsharp.curvature._batches import check_chunk, count_samples, mean_over_chunks
from jaxsharp.curvature.operator import Operator
from jaxsharp.curvature.rematerialize import rematerialized


@in_full_precision
def hvp(loss: Loss, params: Params, v: PyTree) -> PyTree:
    """Multiplies the Hessian of a loss by a vector, H(w) v = d/dε ∇L(w + ε v) at ε = 0.

    Forward over reverse mode, so nothing of size D² is formed.

    Args:
        loss: `(params) -> scalar`, twice differentiable.
        params: the point w, any pytree of floating arrays.
        v: a pytree like params.

    Returns:
        H(w) v, a pytree like params. Cost: 1 product, about 2 gradients.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> js.curvature.hvp(lambda w: jnp.sum(w**4), jnp.ones(2), jnp.array([1.0, 0.0])).tolist()
        [12.0, 0.0]

    Source: Pearlmutter 1994.
    """
    return jax.jvp(jax.grad(loss), (params,), (v,))[1]


@in_full_precision
def hessian_operator(
    loss: Callable, params: Params, data: PyTree | None = None, *, chunk: int | None = None, segments: int = 1
) -> Operator:
    """Makes the Hessian v -> H(w) v of a loss at one point, for many products.

    The gradient is linearized once, and its intermediate values are held in memory between products. With `chunk` each product
    walks through the data instead, H v = Σ (n_c / n) H_c v, and holds the intermediate values of one chunk at a time; with
    `segments` it evaluates stretches of the loss again and holds those of one stretch. The two can be combined.

    Args:
        loss: `(params) -> scalar`, twice differentiable; with data `(params, data) -> scalar`, a mean over samples.
        params: the point w.
        data: arrays of any structure, all with the samples on their leading axis.
        chunk: how many samples at a time; all of them by default. Where samples depend on each other (batch normalization) the
            sum over chunks is not the Hessian.
        segments: into how many stretches to cut the loss, see `rematerialized`; 1 keeps everything.

    Returns:
        An `Operator` on pytrees like params. Cost: the linearization about 1 gradient, then 1 product per call; with chunks or
        segments no linearization, but in each product what it saved.

    Raises:
        ValueError: for chunks without data, data without samples, or a bad number of chunks or segments.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> product = js.curvature.hessian_operator(lambda w: jnp.sum(w**4), jnp.ones(2))
        >>> product(jnp.array([0.0, 2.0])).tolist()
        [0.0, 24.0]
    """
    check_chunk(chunk)
    if data is None:
        if chunk is not None:
            raise ValueError("chunk= needs data= to cut, and a loss of (params, data).")
        if segments == 1:
            return Operator(jax.linearize(jax.grad(loss), params)[1], params)
        return Operator(Partial(partial(hvp, rematerialized(loss, segments)), params), params)
    count_samples(data)
    loss = rematerialized(loss, segments)
    if chunk is None and segments == 1:
        return Operator(jax.linearize(jax.grad(lambda w: loss(w, data)), params)[1], params)
    return Operator(Partial(partial(_chunked_product, loss, chunk), params, data), params)


@in_full_precision
def slope_and_hessian(loss: Loss, params: Params) -> tuple[Scalar, Params, Operator]:
    """Makes the Hessian v -> H(w) v at one point together with L(w) and ∇L(w), which its linearization finds on the way.

    Args:
        loss: `(params) -> scalar`, twice differentiable.
        params: the point w.

    Returns:
        The loss, its gradient and an `Operator`. Cost: about 1 gradient, then 1 product per call.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> value, gradient, product = js.curvature.slope_and_hessian(lambda w: jnp.sum(w**4), jnp.ones(2))
        >>> float(value), gradient.tolist(), product(jnp.array([0.0, 2.0])).tolist()
        (2.0, [4.0, 4.0], [0.0, 24.0])
    """

    def slope(w):
        value, gradient = jax.value_and_grad(loss)(w)
        return gradient, value

    gradient, product, value = jax.linearize(slope, params, has_aux=True)
    return value, gradient, Operator(product, params)


def _chunked_product(loss, chunk, params, data, v):
    return mean_over_chunks(lambda part: hvp(lambda w: loss(w, part), params, v), data, chunk)
