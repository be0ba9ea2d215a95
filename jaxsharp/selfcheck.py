"""Does the installed JAX differentiate right? Some releases do not, and do not say so."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp.curvature import hvp
from jaxsharp.models import MLP

FLAG = "--xla_cpu_experimental_ynn_fusion_type="
# XLA aborts the process over a flag that it does not know, so only versions on which it was tried are listed.
VERSIONS_WITH_FLAG = ("0.10.1", "0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1")
RIGHT_WITHOUT_FLAG = "0.10.1"

# The defects seen so far arise before code generation, so on CPU the cheapest code generation shows them as well.
_CPU_OPTIONS = {"xla_backend_optimization_level": "0"}

_verdict: "Report | None" = None


class NumericalSelfCheckError(RuntimeError):
    """The installed JAX differentiates wrong; the message says by how much and what to do."""


@dataclass(frozen=True)
class Row:
    """Relative errors of gradients and Hessian-vector products for one normalization; the larger of the two each time.

    Attributes:
        normalization: `none`, `layer` or `batch`.
        batched: for each number of members, the error of batched against single ones.
        finite_difference: the error of single ones against central differences of the loss and of the gradient.
    """

    normalization: str
    batched: dict[int, float]
    finite_difference: float


@dataclass(frozen=True)
class Report:
    """What the self-check saw.

    Attributes:
        jax: version of JAX.
        backend: `cpu`, `gpu` or `tpu`.
        dtype: of all numbers.
        rows: one `Row` per normalization.
        batched_tolerance: largest acceptable entry of `Row.batched`.
        finite_difference_tolerance: largest acceptable `Row.finite_difference`.
    """

    jax: str
    backend: str
    dtype: str
    rows: tuple[Row, ...]
    batched_tolerance: float
    finite_difference_tolerance: float

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong and by how much, in words; empty where nothing is."""
        found = []
        for row in self.rows:
            where = f"with normalization {row.normalization!r}"
            if not row.finite_difference <= self.finite_difference_tolerance:
                found.append(f"relative error {row.finite_difference:.1e} against finite differences {where}")
            for members, error in row.batched.items():
                if not error <= self.batched_tolerance:
                    found.append(f"relative error {error:.1e} of a batch of {members} against single ones {where}")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance; a NaN is not."""
        return not self.faults


def check(
    normalizations: Sequence[str] = ("none", "layer", "batch"), rows: int = 5000, members: Sequence[int] = (1, 2)
) -> Report:
    """Compares batched with single gradients and Hessian-vector products, and single ones with finite differences.

    It runs `jaxsharp.models.MLP` without hidden layers, scale-invariant where it is normalized, on the default backend in the
    default precision: the smallest programs in which the defects seen so far show, once rows times members reaches 4096.
    Nearly all of the time is compilation.

    Args:
        normalizations: which of `none`, `layer` and `batch` to check.
        rows: number of samples.
        members: sizes of the batches.

    Returns:
        A `Report`.

    Example:
        >>> from jaxsharp import selfcheck
        >>> selfcheck.check(normalizations=("none",), rows=50, members=(2,)).passed
        True
    """
    dtype = np.dtype(jnp.result_type(float))
    eps = float(np.finfo(dtype).eps)
    with jax.default_matmul_precision("highest"):
        return Report(
            jax=jax.__version__,
            backend=jax.default_backend(),
            dtype=dtype.name,
            rows=tuple(_check(normalization, rows, tuple(members), dtype) for normalization in normalizations),
            batched_tolerance=eps**0.5,
            finite_difference_tolerance=eps**0.25,
        )


def _check(normalization, rows, members, dtype):
    random = np.random.default_rng(0)
    model = MLP(widths=(), outputs=8, norm=normalization, scale_invariant=normalization != "none")
    data = [random.normal(size=(rows, width)).astype(dtype) for width in (4, 8)]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), data[0]))["params"]
    most = max(members)
    params, v = (jax.tree.map(lambda leaf: random.normal(size=(most, *leaf.shape)).astype(dtype), shapes) for _ in range(2))

    def loss(params, inputs, targets, read_out=lambda outputs: outputs):
        outputs, _ = model.apply({"params": params}, inputs, mutable=["batch_stats"])
        return 0.5 * jnp.mean(jnp.sum((read_out(outputs) - targets) ** 2, axis=-1))

    # The compiler knows these weights, and simplifies what it differentiates; some releases go wrong only there.
    fixed_loss = partial(loss, read_out=lambda outputs: jnp.tanh(outputs) @ jnp.ones((8, 8), dtype))

    def product(params, v, *data):
        return hvp(lambda w: loss(w, *data), params, v)

    step = float(np.finfo(dtype).eps) ** (1 / 3)
    w, direction = _member(params, 0), _member(v, 0)
    points = [jax.tree.map(lambda a, b, h=h: (a + h * b).astype(dtype), w, direction) for h in (step, -step)]

    def central_difference(function):
        ahead, behind = (_flat(function(point, *data)) for point in points)
        return (ahead - behind) / (2 * step)

    def slope_error(objective, here):
        return abs(here @ _flat(direction) - central_difference(_compiled(objective, w, *data)).item()) / np.linalg.norm(here)

    gradient, slope, gradient_errors = _compare(jax.grad(loss), (params,), data, members)
    _, bend, product_errors = _compare(product, (params, v), data, members)
    fixed_slope = _flat(_compiled(jax.grad(fixed_loss), w, *data)(w, *data))
    differences = (slope_error(loss, slope), slope_error(fixed_loss, fixed_slope), _error(bend, central_difference(gradient)))
    batched = {size: float(np.maximum(gradient_errors[size], product_errors[size])) for size in members}
    return Row(normalization, batched, float(np.max(differences)))


def _compare(function, arguments, data, members):
    """Returns the compiled function, its value for the first member, and the error of batched values for each batch size."""
    single = _compiled(function, *_member(arguments, 0), *data)
    truths = [_flat(single(*_member(arguments, i), *data)) for i in range(max(members))]
    axes = (0,) * len(arguments) + (None,) * len(data)
    errors = {}
    for size in members:
        some = jax.tree.map(lambda leaf, size=size: leaf[:size], arguments)
        values = _compiled(jax.vmap(function, axes), *some, *data)(*some, *data)
        errors[size] = np.max([_error(_flat(_member(values, i)), truths[i]) for i in range(size)])
    return single, truths[0], errors


def _compiled(function, *arguments):
    lowered = jax.jit(function).lower(*arguments)
    if jax.default_backend() == "cpu":
        # a JAX that has dropped this option raises, and then pays for the optimizations
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(compiler_options=_CPU_OPTIONS)
    return lowered.compile()


def _member(tree, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def _flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def _error(value, truth):
    return np.linalg.norm(value - truth) / np.linalg.norm(truth)


def ensure() -> None:
    """Runs `check` unless this process has done so, and refuses to go on where it fails.

    Raises:
        NumericalSelfCheckError: with one sentence: the version, what is wrong by how much, and the remedy.

    Example:
        >>> from jaxsharp import selfcheck
        >>> selfcheck.ensure()
    """
    global _verdict
    if _verdict is None:
        _verdict = check()
    if not _verdict.passed:
        raise NumericalSelfCheckError(
            f"jax {_verdict.jax} on {_verdict.backend} differentiates wrong ({_verdict.faults[0]}), so its curves would be "
            f"wrong; {remedy(_verdict)}."
        )


def remedy(report: Report) -> str:
    """Says what to do about a report that did not pass.

    Args:
        report: from `check`.

    Returns:
        A clause, naming the flag where it is known to help and not set yet.

    Example:
        >>> from jaxsharp import selfcheck
        >>> "install jax" in selfcheck.remedy(selfcheck.check(normalizations=("none",), rows=50, members=(1,)))
        True
    """
    install = f"install jax {RIGHT_WITHOUT_FLAG}, which was right wherever it was tried"
    flag = xla_flag_remedy(report.jax)
    if report.backend != "cpu" or flag is None or flag in os.environ.get("XLA_FLAGS", "").split():
        return install
    return f"set the environment variable XLA_FLAGS={flag} before JAX starts, or {install}"


def xla_flag_remedy(version: str) -> str | None:
    """Names the XLA flag that makes a version of JAX differentiate right on CPU, where it is known to accept it.

    Args:
        version: as in `jax.__version__`.

    Returns:
        The flag, or None for a version on which it was not tried.

    Example:
        >>> from jaxsharp import selfcheck
        >>> selfcheck.xla_flag_remedy("0.11.2"), selfcheck.xla_flag_remedy("99.0")
        ('--xla_cpu_experimental_ynn_fusion_type=', None)
    """
    return FLAG if version in VERSIONS_WITH_FLAG else None


def apply_flag_to_environment() -> None:
    """Appends the flag to XLA_FLAGS in `os.environ`, for programs to call before JAX first computes; later is too late.

    Does nothing for a version on which the flag was not tried, or where XLA_FLAGS says something about it already.

    Example:
        >>> from jaxsharp import selfcheck
        >>> selfcheck.apply_flag_to_environment()
    """
    flag = xla_flag_remedy(jax.__version__)
    present = os.environ.get("XLA_FLAGS", "")
    if flag is not None and flag not in present:
        os.environ["XLA_FLAGS"] = f"{present} {flag}".strip()
