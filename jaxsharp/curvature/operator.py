"""The Operator: a symmetric linear map on pytrees that is known by its products."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from jaxsharp._precision import in_full_precision
from jaxsharp._types import MatVec, Params, PyTree


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric linear map v -> A v, callable, with the shape of the vectors it takes.

    What needs a product takes an Operator, or any function together with `like`; it counts the products it spends in its result,
    where one product is one call, whatever the call costs. A pytree: an Operator made under `jax.jit` may be returned from it and
    handed to another compiled function, and `jax.vmap` batches it.

    Attributes:
        product: v -> A v on pytrees like `like`; arrays inside a `jax.tree_util.Partial` are leaves of the Operator.
        like: the point at which it was made, or any pytree with the shapes and dtypes of one vector.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> operator = js.curvature.Operator(lambda v: jnp.array([3.0, 1.0]) * v, jnp.zeros(2))
        >>> operator.shape, operator(jnp.ones(2)).tolist()
        ((2, 2), [3.0, 1.0])
    """

    product: Callable
    like: PyTree

    @in_full_precision
    def __call__(self, v: PyTree) -> PyTree:
        """Multiplies a vector."""
        return self.product(v)

    @property
    def size(self) -> int:
        """The number of parameters D."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.like))

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of its matrix, (D, D)."""
        return self.size, self.size

    def tree_flatten(self):
        """Splits into leaves and static parts."""
        if isinstance(self.product, Partial):
            return (self.product, self.like), None
        return (self.like,), self.product

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """Joins leaves and static parts."""
        return cls(*leaves) if static is None else cls(static, *leaves)


def as_operator(matvec: MatVec, like: PyTree | None = None) -> Operator:
    """Makes an Operator of a function and the shape of its vectors; an Operator is returned as it is.

    Args:
        matvec: v -> A v on pytrees like `like`, symmetric; or an Operator.
        like: any pytree with the shapes and dtypes of one vector; not needed for an Operator.

    Returns:
        An `Operator`.

    Raises:
        ValueError: for a plain function without `like`.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> js.curvature.as_operator(lambda v: 2 * v, jnp.zeros(3)).size
        3
    """
    if like is not None:
        return Operator(matvec, like)
    if isinstance(matvec, Operator):
        return matvec
    raise ValueError("a plain function does not say what it multiplies; pass like=, a pytree with the shapes of one vector.")


def frozen(operator: Operator) -> Operator:
    """Returns the same operator as a constant of differentiation, whatever its products close over.

    Args:
        operator: any Operator.

    Returns:
        An `Operator` through whose products no derivative flows.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsharp as js
        >>> def top(w):
        ...     operator = js.curvature.hessian_operator(lambda w: jnp.sum(w**4), w)
        ...     return js.curvature.frozen(operator)(jnp.ones(1))[0]
        >>> jax.grad(lambda w: top(jnp.array([w])))(1.0).item()
        0.0
    """
    like = jax.lax.stop_gradient(operator.like)
    product, constants = jax.closure_convert(lambda v: operator(v), like)
    return Operator(Partial(lambda constants, v: product(v, *constants), jax.lax.stop_gradient(constants)), like)


def preconditioned(operator: Operator, diagonal: Params) -> Operator:
    """Makes the operator P^(−1/2) A P^(−1/2) of a positive diagonal P, whose eigenvalues are those of P⁻¹ A.

    With P = √ν + ε this is what GD preconditioned as in Adam or RMSProp sees: it is stable while the largest eigenvalue is below
    2/η. An eigenvector u of it belongs to the eigenvector P^(−1/2) u of P⁻¹ A.

    Args:
        operator: A, for instance from `hessian_operator`.
        diagonal: P, a pytree like params; an entry that is not positive gives products that are not finite.

    Returns:
        An `Operator`. Cost: 1 product of A per product.

    Raises:
        ValueError: where P has another shape than a vector.

    Example:
        >>> import jax.numpy as jnp, jaxsharp as js
        >>> operator = js.curvature.Operator(lambda v: jnp.array([8.0, 2.0]) * v, jnp.zeros(2))
        >>> js.curvature.preconditioned(operator, jnp.array([4.0, 1.0]))(jnp.ones(2)).tolist()
        [2.0, 2.0]
    """
    if jax.tree.map(jnp.shape, diagonal) != jax.tree.map(jnp.shape, operator.like):
        raise ValueError(
            f"diagonal must have the shapes of the parameters, {jax.tree.map(jnp.shape, operator.like)}, got "
            f"{jax.tree.map(jnp.shape, diagonal)}."
        )
    scale = jax.tree.map(lambda entry, leaf: jax.lax.rsqrt(jnp.asarray(entry, leaf.dtype)), diagonal, operator.like)
    return Operator(Partial(_scaled_product, operator, scale), operator.like)


def _scaled_product(operator, scale, v):
    return jax.tree.map(jnp.multiply, scale, operator(jax.tree.map(jnp.multiply, scale, v)))


def flat_product(operator: Operator):
    """Returns the product on flat vectors, a vector of the right shape, and the way back to a pytree.

    Raises:
        ValueError: for vectors without entries or of other than real floating-point numbers, and, when the product is traced, for
            one that does not return what it is given.
    """
    kinds = _kinds(operator.like)
    if not any(math.prod(shape) for shape, _ in kinds.values()):
        raise ValueError("like has no entries; an operator needs at least one parameter.")
    if wrong := {str(dtype) for _, dtype in kinds.values() if not jnp.issubdtype(dtype, jnp.floating)}:
        raise ValueError(
            f"like must hold real floating-point numbers, got {', '.join(sorted(wrong))}; leave out, or convert, what is not a "
            "parameter."
        )
    template, unravel = ravel_pytree(operator.like)

    def product(row):
        image = operator(unravel(row))
        if (found := _kinds(image)) != kinds:
            raise ValueError(
                f"the operator must return a pytree like the one it is given, with the shapes and dtypes "
                f"{_listed(kinds)}, but returns {_listed(found)}."
            )
        return ravel_pytree(image)[0]

    return product, template, unravel


def _kinds(tree):
    """Shape and dtype of each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (jnp.shape(leaf), jnp.result_type(leaf)) for path, leaf in leaves}


def _listed(kinds):
    return ", ".join(f"{path or 'array'} {shape} {dtype}" for path, (shape, dtype) in kinds.items()) or "nothing"
