"""Factorizations of a batch: right, and one matrix a call on a CPU: batched LAPACK calls can wait for each other endlessly."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import jaxsharp as js
from jaxsharp import _factorizations as factorizations

REBUILT = {
    "eigh": lambda a: (lambda values, vectors: (vectors @ jnp.diag(values)) @ vectors.T)(*factorizations.eigh(a)),
    "qr": lambda a: jnp.matmul(*factorizations.qr(a)),
    "svd": lambda a: (lambda left, values, right: left @ jnp.diag(values) @ right)(*factorizations.svd(a)),
    "cholesky": lambda a: (lambda root: root @ root.T)(factorizations.cholesky(a)),
    "solve_lower": lambda a: jnp.tril(a) @ factorizations.solve_lower(a, a),
    "solve_lower_transposed": lambda a: jnp.tril(a).T @ jnp.outer(factorizations.solve_lower_transposed(a, a[:, 0]), a[0]),
}


def _matrices():
    noise = np.random.default_rng(0).normal(size=(2, 3, 5, 5))
    return noise @ noise.swapaxes(-1, -2) + 5 * np.eye(5)


@pytest.mark.parametrize("name", REBUILT)
def test_a_batch_of_batches_is_factorized_right_one_matrix_a_call(name, precision):
    """Products of the factors are the matrices, and no LAPACK call of the program takes more than one."""
    matrices = _matrices().astype(precision)
    program = jax.jit(jax.vmap(jax.vmap(REBUILT[name])))
    truth = matrices if name != "solve_lower_transposed" else matrices[..., :, :1] * matrices[..., :1, :]
    np.testing.assert_allclose(program(matrices), truth, rtol=0, atol=2e-5 if precision == "float32" else 1e-12)
    if jax.default_backend() == "cpu":
        calls = re.findall(r"custom_call @lapack_\w+\(.*: \((.*)\) -> ", program.lower(matrices).as_text())
        shapes = [shape for call in calls for shape in re.findall(r"tensor<((?:\d+x)*)f\d+>", call)]
        assert shapes
        assert max(shape.count("x") for shape in shapes) == 2


@pytest.mark.parametrize(("size", "given"), [(5, 2), (32, 2), (33, 1)])
def test_a_gpu_takes_a_small_eigenproblem_twice(size, given, monkeypatch):
    """For the solver of batches; the larger one as it is, and both right."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    noise = np.random.default_rng(0).normal(size=(size, size))
    matrix = jnp.asarray(noise + noise.T)
    values, vectors = factorizations.eigh(matrix)
    np.testing.assert_allclose(vectors @ jnp.diag(values) @ vectors.T, matrix, atol=1e-12)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=1e-12)
    shapes = [
        out.aval.shape for equation in _equations(jax.make_jaxpr(factorizations.eigh)(matrix).jaxpr) for out in equation.outvars
    ]
    assert ((given, size, size) in shapes) == (given > 1)


def _equations(jaxpr):
    """All of a program that factorizes, whatever it is wrapped in."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


def test_eigenvalues_alone_and_forward_derivatives():
    matrices = _matrices()[0]
    np.testing.assert_allclose(jax.vmap(factorizations.eigvalsh)(matrices), np.linalg.eigvalsh(matrices), rtol=1e-12)
    values, slopes = jax.vmap(lambda a: jax.jvp(factorizations.eigvalsh, (a,), (a,)))(matrices)
    np.testing.assert_allclose(slopes, values, rtol=1e-10)  # homogeneous of degree one


def test_what_the_batch_shares_may_stay_unbatched():
    triangle = np.linalg.cholesky(_matrices()[0, 0])
    rights = np.random.default_rng(1).normal(size=(3, 5))
    solved = jax.vmap(factorizations.solve_lower, (None, 0))(jnp.asarray(triangle), rights)
    np.testing.assert_allclose(solved, np.linalg.solve(triangle, rights.T).T, rtol=1e-10)


def test_no_other_room_factorizes():
    calls = re.compile(r"(?:jnp|jax\.numpy|lax)\.linalg\.(?!norm|vector_norm)\w+|jax\.scipy\.linalg|jax\.scipy import linalg")
    root = Path(js.__file__).parent
    found = {
        str(path.relative_to(root)): calls.findall(path.read_text())
        for path in root.rglob("*.py")
        if path.name != "_factorizations.py"
    }
    assert {name: hits for name, hits in found.items() if hits} == {}
