"""Matrix completion with batch normalization: its loss, what leaves it unchanged, its Hessian at minimizers, its experiment."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import dense_hessian, flat

import jaxsharp as js
from jaxsharp.experiments import EXPERIMENTS
from jaxsharp.experiments.tables import interval

EXPERIMENT = EXPERIMENTS["matrix-completion"]


@cache
def completion():
    """A 5 × 6 matrix of rank 1 with 12 entries observed and one unknown, and factors."""
    matrix, observed = js.data.low_rank(5, 6, rank=1, observed=0.4)
    matrix[np.nonzero(~observed)[0][0], np.nonzero(~observed)[1][0]] = np.nan
    rng = np.random.default_rng(1)
    w = {"left": jnp.asarray(rng.normal(size=(5, 5))), "right": jnp.asarray(rng.normal(size=(6, 5)))}
    return matrix, observed, js.problems.matrix_completion(matrix, observed), w


@cache
def minimizer():
    return jax.jit(lambda w: js.minimizers.retraction(completion()[2], w, max_steps=50))(completion()[3])


def test_loss_and_metrics_are_the_formula():
    matrix, observed, problem, w = completion()
    product = np.asarray(w["left"]) @ np.asarray(w["right"]).T
    seen, values = product[observed], matrix[observed]
    predict = lambda z: values.std() * (z - seen.mean()) / seen.std() + values.mean()  # noqa: E731
    np.testing.assert_allclose(problem.residuals(w), predict(seen) - values, atol=1e-12)
    np.testing.assert_allclose(problem.loss(w), np.mean((predict(seen) - values) ** 2), rtol=1e-12)
    hidden = ~observed & np.isfinite(matrix)
    assert hidden.sum() == 30 - 12 - 1
    metrics = jax.jit(problem.metrics)(w)
    np.testing.assert_allclose(metrics["test_loss"], np.mean((predict(product[hidden]) - matrix[hidden]) ** 2), rtol=1e-12)
    np.testing.assert_allclose(metrics["nuclear_norm"], np.linalg.norm(product, "nuc") * values.std() / seen.std(), rtol=1e-12)
    start = problem.init(jax.random.key(0))
    assert (start["left"].shape, start["right"].shape) == ((5, 5), (6, 5))
    np.testing.assert_allclose(js.sphere.norm(start), 1, rtol=1e-12)


def test_each_factor_is_scale_invariant_and_bases_do_not_matter():
    _, _, problem, w = completion()
    report = js.sphere.check_scale_invariance(problem, w)
    assert report.invariant
    assert max(max(error) for error in report.leaves.values()) < 1e-14
    base = np.random.default_rng(2).normal(size=(5, 5))
    other = {"left": w["left"] @ base, "right": w["right"] @ np.linalg.inv(base).T}
    np.testing.assert_allclose(problem.loss(other), problem.loss(w), rtol=1e-9)


def test_the_hessian_on_the_minimizers_is_the_formula():
    matrix, observed, problem, _ = completion()
    found = minimizer()
    assert found.converged
    left, right = (np.asarray(found.params[name]) for name in ("left", "right"))
    rows, columns = np.nonzero(observed)
    count, values = rows.size, matrix[observed]
    product = (left @ right.T)[observed]
    slope, offset = np.polyfit(values, product, 1)
    assert slope > 0
    np.testing.assert_allclose(product, slope * values + offset, atol=1e-10)
    change = np.zeros((count, 11, 5))  # of the product with U and V, the rows of both stacked
    change[np.arange(count), rows] = right[columns]
    change[np.arange(count), 5 + columns] = left[rows]
    change = change.reshape(count, -1)
    standard = (values - values.mean()) / values.std()
    jacobian = change - change.mean(0) - np.outer(standard, standard @ change) / count
    jacobian *= values.std() / product.std()
    hessian = dense_hessian(problem.loss, found.params)
    np.testing.assert_allclose(hessian, 2 / count * jacobian.T @ jacobian, atol=1e-9 * np.abs(hessian).max())
    assert np.linalg.matrix_rank(jacobian, tol=1e-8) == count - 2
    np.testing.assert_allclose(flat(problem.residuals(found.params)), 0, atol=1e-12)


MISUSE = [
    ((np.ones((3, 3)), np.ones((3, 2))), {}, "one shape"),
    ((np.eye(3), 2 * np.eye(3)), {}, "true or false"),
    ((np.eye(3), np.eye(3)), {}, "all equal"),
    ((np.eye(3), np.eye(3) * [1, 0, 0]), {}, "1 entries"),
    ((np.diag([1.0, 2.0, np.nan]), np.eye(3)), {}, "NaN"),
    ((np.diag([1.0, 2.0, 3.0]), np.eye(3)), {"rank": 0}, "rank=0"),
]


@pytest.mark.parametrize(("arguments", "options", "words"), MISUSE)
def test_misuse_names_the_argument(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        js.problems.matrix_completion(*arguments, **options)


@cache
def dataset():
    """A tiny run; not to be changed."""
    tiny = {"learning_rates": (0.4,), "weight_decays": (2e-3,), "seeds": 2, "steps": 600, "every": 300}
    return EXPERIMENT.run(EXPERIMENT.configure(size=6, rank=1, **tiny))


def test_weight_decay_lowers_sharpness_and_the_control_stays():
    ds = dataset()
    assert ds["test_loss"].dims == ("learning_rate", "weight_decay", "seed", "step")
    assert (ds["status"] == 0).all()
    np.testing.assert_allclose(ds["time"].isel(learning_rate=0, weight_decay=1), 0.4 * 2e-3 * ds["step"])
    start, end = ds["spherical_sharpness"].isel(learning_rate=0, step=0), ds["spherical_sharpness"].isel(learning_rate=0, step=-1)
    ratio = (end / start).values
    assert (ratio[0] > 0.9).all()
    assert (ratio[1] < 0.8).all()
    np.testing.assert_allclose(ds["stability_ratio"].isel(weight_decay=1, step=-1), 1, atol=0.03)


def test_table_and_figure_are_made_of_the_dataset():
    ds = dataset()
    rows = EXPERIMENT.table(ds).splitlines()
    control, row = (next(line.split() for line in rows if line.split()[:2] == ["0.4", decay]) for decay in ("0", "0.002"))
    end = ds["test_loss"].isel(learning_rate=0, step=-1)
    assert row[9:12] == [f"{float(end[1].mean()):.3g}", "±", f"{interval(end[1])[1]:.3g}"]
    assert row[12] == f"{float((end[1] - end[0]).mean()):.3g}"
    assert control[-3:] == ["0", "of", "2"]
    figure = EXPERIMENT.figure(ds)
    figure.canvas.draw()
    assert [axes.get_ylabel() for axes in figure.axes][1] == "squared error of hidden entries"
    line = figure.axes[1].lines[1]
    np.testing.assert_allclose(line.get_ydata(), ds["test_loss"].isel(learning_rate=0, weight_decay=1).median("seed"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_decays": (0.0,)}, "weight_decays must be numbers above 0"),
        ({"learning_rates": (1000.0,)}, "reaches 1 or more"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"rank": 40}, "rank=40"),
        ({"observed": 1.5}, "observed=1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EXPERIMENT.configure(**changes)


def test_intervals_are_those_of_student():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    mean, half, count = interval(values)
    assert (mean, count) == (3.5, 4)
    assert half == pytest.approx(3.182446 * values.std(ddof=1) / 2, rel=1e-6)  # t of 3 degrees of freedom, from a table
    assert np.isnan(interval([1.0])[1])
