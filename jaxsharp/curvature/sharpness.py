"""Sharpness as a differentiable function of the parameters."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from jaxsharp._precision import dot, in_full_precision, vdot
from jaxsharp._types import Array, Loss, Params, PyTree, Scalar
from jaxsharp.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from jaxsharp.curvature.operator import flat_product
from jaxsharp.curvature.products import hessian_operator, hvp
from jaxsharp.curvature.separation import derivative_unless, separation

MAX_ANGLE = 0.1
"""Up to which error of its eigenvector, as a sine, a derivative is trusted; as in `top_eigenvalue_sum`."""


@in_full_precision
def frozen_eigenpairs(
    loss: Loss, params: Params, k: int = 1, guess: PyTree | None = None, *, guards: int = 0, **options
) -> Eigenpairs:
    """Finds the top eigenpairs of the Hessian of a loss, as constants of differentiation.

    Without guards unless asked: derivatives need far smaller residuals than measurements, and what needs the gap to the next
    eigenvalue asks for k + 1.

    Args:
        loss: `(params) -> scalar`, twice differentiable.
        params: the point w.
        k: how many pairs.
        guess: eigenvectors of a nearby point, leading axis k.
        guards: as in `top_eigenpairs`.
        **options: of `top_eigenpairs`.

    Returns:
        `Eigenpairs` through which no derivative flows, whatever the loss closes over. Cost: `matvecs` products.

    Raises:
        ValueError: for no parameters, or such that are not floating.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> pairs = js.curvature.frozen_eigenpairs(lambda w: jnp.sum(w**4), jnp.array([1.0, 2.0]))
        >>> round(float(pairs.values[0]), 3)
        48.0
    """
    params = _floating(params)
    fixed, constants = jax.closure_convert(lambda w: loss(w), params)
    constants = jax.lax.stop_gradient(constants)
    params = jax.lax.stop_gradient(params)
    matvec = hessian_operator(lambda w: fixed(w, *constants), params)
    return top_eigenpairs(matvec, params, k, jax.lax.stop_gradient(guess), guards=guards, **options)


def rayleigh_quotient(loss: Loss, params: Params, v: PyTree) -> Scalar:
    """Evaluates vᵀ H(w) v for a fixed vector; its gradient in w is the third derivative ∇(vᵀ H v).

    Args:
        loss: `(params) -> scalar`, three times differentiable where the gradient is taken.
        params: the point w.
        v: a pytree like params, of unit norm for an eigenvalue.

    Returns:
        A scalar. Cost: 1 product; its gradient about 3 more.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> v = jnp.array([1.0, 0.0])
        >>> jax.grad(lambda w: js.curvature.rayleigh_quotient(lambda w: jnp.sum(w**4), w, v))(jnp.ones(2)).tolist()
        [24.0, 0.0]
    """
    product = hvp(loss, params, v)
    return sum(vdot(a, b) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(product), strict=True))


def sharpness(
    loss: Loss,
    params: Params,
    *,
    guess: PyTree | None = None,
    tol: float | None = None,
    max_matvecs: int = 200,
    strict: bool = False,
    key: Array | None = None,
) -> Scalar:
    """Evaluates the sharpness λ1(H(w)), the largest eigenvalue of the Hessian, differentiably.

    By the envelope rule ∇λ1 = ∇_w (v1ᵀ H(w) v1) at fixed v1, exact where λ1 is simple and v1 has converged; the error of the
    gradient is of first order in the error of v1. Derivatives of the gradient follow v1, dv1 = (λ1 − H)⁺ dH v1; they are NaN
    where this linear system is not solved, or the gap that its solution feels is below ten times the residual of v1, just above
    which they can be a tenth off.

    Without `strict` nothing tells where the value and its gradient are not those of λ1: where the bound on products is reached
    first the value is a lower estimate, and where λ1 = λ2, which has no gradient, the one along one of the eigenvectors is
    returned. `top_eigenvalue_sum` with k=1 returns flags.

    Args:
        loss: `(params) -> scalar`, three times differentiable.
        params: the point w, a pytree of floating arrays or numbers.
        guess: eigenvector of a nearby point, a pytree with a leading axis 1; with `strict` of 2 for those of λ1 and λ2.
        tol: relative residual of the eigenpair; by default 1e-6 in float64 and 1e-3 in float32. Also of the linear system, there
            not above these.
        max_matvecs: bound on the products of the eigenpair, and on those of the linear system.
        strict: whether the value is NaN where the residual is above `tol`, and its derivatives where in addition v1 may be off by
            an angle of sine 0.1, as `reliable` of `top_eigenvalue_sum` has it: where the gap λ1 − λ2 closes.
        key: PRNG key of the random start.

    Returns:
        A scalar. Cost: about 10 to 50 products cold, 2 to 8 from a guess; its gradient about 3 more. `strict` follows a second
        eigenpair, about twice the products. A derivative of the gradient along one direction costs a linear system by conjugate
        gradients, each iteration 1 product.

    Raises:
        ValueError: for no parameters or such that are not floating, or a bound on products below 2, with `strict` 4.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> loss = lambda w: jnp.sum(w**4)
        >>> w = jnp.array([1.0, 2.0])
        >>> value, gradient = jax.value_and_grad(lambda w: js.curvature.sharpness(loss, w))(w)
        >>> round(float(value), 2), [round(float(g), 1) for g in gradient]
        (48.0, [0.0, 48.0])

    Source: the gradient by the envelope rule, the motion of v1 by first-order perturbation; derived, see theory §2.
    """
    params = _floating(params)
    tol = default_tolerance(params) if tol is None else tol
    fixed, point = _opened(loss, params)
    count = min(2 if strict else 1, sum(leaf.size for leaf in jax.tree.leaves(params)))
    if strict and guess is not None:  # a row of zeros stands for one that is not known
        guess = jax.tree.map(lambda rows: jnp.concatenate([rows, jnp.zeros_like(rows[:1])])[:count], guess)
    pairs = frozen_eigenpairs(loss, params, count, guess, tol=tol, max_matvecs=max_matvecs, key=key)
    rows = jax.vmap(lambda row: ravel_pytree(row)[0])(pairs.vectors)
    found = _Found(rows[0], jnp.minimum(jnp.asarray(tol, rows.dtype), default_tolerance(params)))
    value = _quotient(fixed, max_matvecs, point, found)
    if not strict:
        return value
    product = _flat_hessian(fixed, jax.lax.stop_gradient(point))
    _, angle = separation(product, rows, product(rows[0])[None], 1)
    # a factor, and not a choice, so that the derivatives are NaN with the value
    return derivative_unless(value, angle <= MAX_ANGLE) * jnp.where(pairs.residuals[0] <= tol, 1, jnp.nan).astype(value.dtype)


def log_sharpness(loss: Loss, params: Params, **options) -> Scalar:
    """Evaluates log λ1(H(w)), differentiably: ∇ log λ1 = ∇λ1 / λ1, the direction in which the flows on minimizers move.

    Args:
        loss: `(params) -> scalar`, three times differentiable.
        params: the point w, a pytree of floating arrays or numbers.
        **options: of `sharpness`.

    Returns:
        A scalar, NaN where λ1 is negative. Cost: that of `sharpness`.

    Raises:
        ValueError: as `sharpness`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> gradient = jax.grad(lambda w: js.curvature.log_sharpness(lambda w: jnp.sum(w**4), w))(jnp.array([1.0, 2.0]))
        >>> [round(float(g), 3) for g in gradient]
        [0.0, 1.0]

    Source: theory §2.
    """
    return jnp.log(sharpness(loss, params, **options))


def default_tolerance(params: Params) -> float:
    """Returns the relative residual that eigenvectors need for derivatives: 1e-6 in float64, 1e-3 in float32 and below."""
    return 1e-6 if all(jnp.result_type(leaf) == jnp.float64 for leaf in jax.tree.leaves(params)) else 1e-3


def _floating(params):
    """The parameters as arrays; numbers become arrays too."""
    params = jax.tree.map(jnp.asarray, params)
    if not any(leaf.size for leaf in jax.tree.leaves(params)):
        raise ValueError("params has no entries; give at least one parameter.")
    for leaf in jax.tree.leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"params must be floating to be differentiated in, got {leaf.dtype}; convert them, 2 to 2.0 say.")
    return params


class _Found(NamedTuple):
    """A top eigenvector at one point, and the relative residual to which its motion is to be found."""

    vector: Array
    tol: Array


@in_full_precision
def _opened(loss, params):
    """The loss as a function of (params, what it closes over), and that pair: a rule must hold nothing that is differentiated."""
    closed = jax.make_jaxpr(lambda w: loss(w))(params)

    def fixed(point):
        (value,) = jaxpr_as_fun(closed.replace(consts=point[1]))(*jax.tree.leaves(point[0]))
        return value

    return fixed, (params, tuple(closed.consts))


def _at(loss, point):
    return lambda w: loss((w, point[1]))


def _flat_hessian(loss, point):
    return flat_product(hessian_operator(_at(loss, point), point[0]))[0]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _quotient(loss, budget, point, found):
    """Evaluates vᵀ H v, with the derivative at fixed v; the derivative of that follows v."""
    del budget
    return rayleigh_quotient(_at(loss, point), point[0], ravel_pytree(point[0])[1](found.vector))


@partial(_quotient.defjvp, symbolic_zeros=True)
def _quotient_jvp(loss, budget, primals, tangents):
    point, found = primals
    v = ravel_pytree(point[0])[1](_eigenvector(loss, budget, point, found))
    return _derivative(lambda point: rayleigh_quotient(_at(loss, point), point[0], v), point, tangents[0])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _eigenvector(loss, budget, point, found):
    """Returns the eigenvector that was found, as a function of the point."""
    del loss, budget, point
    return found.vector


@partial(_eigenvector.defjvp, symbolic_zeros=True)
def _eigenvector_jvp(loss, budget, primals, tangents):
    point, found = primals
    v = _eigenvector(loss, budget, point, found)

    def image(point):
        return ravel_pytree(hvp(_at(loss, point), point[0], ravel_pytree(point[0])[1](v)))[0]

    product = _flat_hessian(loss, point)
    pushed = product(v)
    value = dot(v, pushed)
    # any positive eigenvalue along v makes the system definite there; its solution is projected off v
    along = jax.lax.stop_gradient(jnp.where(value == 0, 1, jnp.abs(value)))
    error = jax.lax.stop_gradient(jnp.linalg.norm(pushed - value * v)) + 10 * float(jnp.finfo(v.dtype).eps) * along

    def across(x):
        return x - dot(v, x) * v

    def system(x):
        inside = across(x)
        return across(value * inside - product(inside)) + along * dot(v, x) * v

    def solve(system, image):
        x = cg(system, image, tol=found.tol, maxiter=budget)[0]
        inside, wanted = across(x), across(image)
        left = system(inside)
        solved = jnp.linalg.norm(wanted - left) <= 3 * found.tol * jnp.linalg.norm(wanted)
        # the gap that x has felt, against what v leaves open
        certain = error * dot(inside, inside) <= MAX_ANGLE * dot(inside, left)
        return jnp.where(solved & certain, x, jnp.nan)

    change = _derivative(image, point, tangents[0])[1]
    return v, across(jax.lax.custom_linear_solve(system, change, solve, solve, symmetric=True))


def _derivative(function, point, direction):
    """The value and the derivative along a direction, in those leaves that move in it."""
    leaves, tree = jax.tree.flatten(point)
    rates = tree.flatten_up_to(direction)
    moving = [index for index, rate in enumerate(rates) if not isinstance(rate, SymbolicZero)]

    def restricted(*moved):
        changed = dict(zip(moving, moved, strict=True))
        return function(tree.unflatten([changed.get(index, leaf) for index, leaf in enumerate(leaves)]))

    return jax.jvp(restricted, [leaves[index] for index in moving], [rates[index] for index in moving])
