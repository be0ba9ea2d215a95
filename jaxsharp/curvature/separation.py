"""How well separated the top eigenvalues are from the next, on which their derivatives rest."""

import jax
import jax.numpy as jnp

from jaxsharp._precision import dot


def separation(product, vectors, images, k):
    """How far the k-th value is above the next, and the sine of the angle by which the space of the first k may be off."""
    image = product(vectors[k]) if vectors.shape[0] > k else jnp.zeros_like(images[0])
    largest = jnp.maximum(jnp.max(jnp.abs(images)), jnp.max(jnp.abs(image)))
    unit = jnp.where(largest > 0, largest, 1)  # so that squares neither vanish nor overflow
    images, image, top = images / unit, image / unit, vectors[:k]
    values = jnp.sum(top * images, axis=1)
    residual = jnp.linalg.norm(images - dot(dot(top, images.T).T, top))
    if vectors.shape[0] == k:
        return jnp.asarray(jnp.inf, values.dtype), jnp.where(jnp.isfinite(residual), 0, jnp.nan).astype(values.dtype)
    following = dot(vectors[k], image)
    gap = jnp.min(values) - following
    # the next eigenvalue may be as high as its estimate and the residual of that
    certain = gap - jnp.linalg.norm(image - following * vectors[k])
    angle = jnp.where(certain > 0, residual / jnp.where(certain > 0, certain, 1), jnp.inf)
    return gap * unit, jnp.where(jnp.isnan(certain), jnp.nan, angle)


@jax.custom_jvp
def derivative_unless(value, reliable):
    """The value, with a derivative of NaN where it is not reliable."""
    del reliable
    return value


@derivative_unless.defjvp
def _derivative_unless_jvp(primals, tangents):
    value, reliable = primals
    return value, jnp.where(reliable, 1, jnp.nan).astype(value.dtype) * tangents[0]
