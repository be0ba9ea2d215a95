"""ire-llama and ire-images: their rules step by step in NumPy, speed-ups and choices on made-up curves, tiny runs."""

import json
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import jaxsharp as js
from jaxsharp import models
from jaxsharp.experiments import EXPERIMENTS
from jaxsharp.experiments.ire_images import METHODS, NETWORKS, _problems, chosen
from jaxsharp.experiments.ire_images import _Rule as ImageRule
from jaxsharp.experiments.ire_llama import SIZES, reached, speedup_within, tuned
from jaxsharp.experiments.ire_llama import _Rule as TextRule
from jaxsharp.experiments.schedule import rise_and_fall
from jaxsharp.experiments.tuning import cross_fitted
from jaxsharp.optimizers import Optimizer

LLAMA, IMAGES = EXPERIMENTS["ire-llama"], EXPERIMENTS["ire-images"]


@cache
def text():
    """A tiny run of a single block, in batches of one size, so that both sweeps share a program; not to be changed."""
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:  # optax's Adam needs it
        patch.setitem(SIZES, "15K", (4, 1, 1))
        patch.setattr(sys.modules[LLAMA.run.__module__], "sweep", partial(js.sweep, batch_size=4))
        return LLAMA.run(LLAMA.configure(**TINY_TEXT))


TINY_TEXT = {
    "learning_rates": (0.01, 0.05),
    "kappas": (6.0,),
    "estimator": "squared_gradient",
    "ire_every": 2,
    "start": 0.5,
    "seeds": 2,
    "steps": 8,
    "stretches": (2.0,),
    "length": 6,
    "minibatch": 3,
    "windows": 12,
    "test_windows": 5,
    "measurements": 4,
}


@cache
def pictures():
    """A tiny run, of a perceptron in the ViT's place, which compiles much faster; not to be changed.

    Of as many seeds as there are choices to tune, so that tuning and the final runs share a program.
    """
    tiny = {"data_seed": 1, "seeds": 4, "steps": 6, "ire_every": 2, "minibatch": 5, "images": 20, "held_out": 15, "width": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "vit", lambda width, patch: models.MLP(widths=(width,), norm="batch"))
        return IMAGES.run(IMAGES.configure(**tiny, networks=("vit",), learning_rates=(0.1,)))


def curvature():
    return np.array([4.0, 1.0, 0.5]), np.array([[2.0, 0.1], [0.2, 3.0]])


def gradient(w):
    return [h * (x + 0.1 * x**3) for h, x in zip(curvature(), w, strict=True)]


def loss(w):
    return sum(jnp.sum(jnp.asarray(h) * (x**2 / 2 + 0.1 * x**4 / 4)) for h, x in zip(curvature(), w, strict=True))


def follow(rule, numbers, steps):
    """The parameters after each step of a rule, with the loss itself for the loss of sampled labels."""

    @jax.jit
    def step(w, state):
        extra = {"loss_fn": loss, "sampled_loss_fn": lambda w, key: loss(w)}
        updates, state = Optimizer(rule, numbers).update(jax.grad(loss)(w), state, w, **extra)
        return [x + u for x, u in zip(w, updates, strict=True)], state

    w = [jnp.asarray(x) for x in start()]
    state, found = Optimizer(rule, numbers).init(w), []
    for _ in range(steps):
        w, state = step(w, state)
        found.append([np.asarray(x) for x in w])
    return found


def start():
    return np.array([1.0, -0.6, 0.3]), np.array([[0.2, -0.9], [0.7, 0.4]])


def factor(step, horizon, rise):
    part = step / horizon
    return min(1, (step + 1) / (rise * horizon)) if part < rise else (1 + np.cos(np.pi * (part - rise) / (1 - rise))) / 2


def flat(diagonal, gamma):
    """Which entries are among the fraction of smallest ones, over both arrays."""
    values = np.concatenate([x.ravel() for x in diagonal])
    bound = np.sort(values)[round(gamma * values.size) - 1]
    return [x <= bound for x in diagonal]


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_the_rule_for_text_is_clipped_adamw_enlarged_where_it_is_flat(kappa):
    rule = TextRule(0.6, 2, 0.5, "squared_gradient", 0.25, 0.3, 0.1, 0.8)
    numbers = {"learning_rate": jnp.asarray(0.05), "kappa": jnp.asarray(kappa), "horizon": jnp.asarray(10.0)}
    w, means, squares, diagonal, mask = list(start()), [0, 0], [0, 0], [0, 0], [False, False]
    with jax.numpy_dtype_promotion("standard"):
        trajectory = follow(rule, numbers, 10)
    for step, found in enumerate(trajectory):
        g = gradient(w)
        size = np.sqrt(sum(np.sum(x**2) for x in g))
        g = [x * min(1, 0.8 / size) for x in g]
        means = [0.9 * m + 0.1 * x for m, x in zip(means, g, strict=True)]
        squares = [0.95 * s + 0.05 * x**2 for s, x in zip(squares, g, strict=True)]
        if step >= 3 and (step - 3) % 2 == 0:
            diagonal = [0.5 * d + 0.5 * x**2 for d, x in zip(diagonal, g, strict=True)]
            mask = flat(diagonal, 0.6)
        rate = 0.05 * factor(step, 10, 0.25)
        for index in range(2):
            m, s = means[index] / (1 - 0.9 ** (step + 1)), squares[index] / (1 - 0.95 ** (step + 1))
            direction = m / (np.sqrt(s) + 1e-8) + (0.1 * w[index] if index else 0)  # the vector does not decay
            w[index] = w[index] - rate * direction * np.where(mask[index], 1 + kappa, 1)
            np.testing.assert_allclose(found[index], w[index], rtol=1e-6)


@pytest.mark.parametrize(("rho", "kappa"), [(0.0, 0.0), (0.2, 0.0), (0.0, 2.0), (0.2, 2.0)])
def test_the_rule_for_images_is_momentum_inside_sam_inside_ire(rho, kappa):
    rule = ImageRule(0.6, 2, 0.5, 0.9, 0.01, 0.25, 0.3)
    numbers = {"learning_rate": 0.02, "rho": rho, "kappa": kappa, "horizon": 10.0}
    numbers = {name: jnp.asarray(value) for name, value in numbers.items()}
    w, trace, diagonal, mask = list(start()), [0, 0], [0, 0], [False, False]
    for step, found in enumerate(follow(rule, numbers, 10)):
        g = gradient(w)
        if step >= 3 and (step - 3) % 2 == 0:
            diagonal = [0.5 * d + 0.5 * x**2 for d, x in zip(diagonal, g, strict=True)]
            mask = flat(diagonal, 0.6)
        size = np.sqrt(sum(np.sum(x**2) for x in g))
        up = gradient([x + rho * y / size for x, y in zip(w, g, strict=True)])
        trace = [0.9 * t + x + 0.01 * y for t, x, y in zip(trace, up, w, strict=True)]
        rate = 0.02 * factor(step, 10, 0.25)
        w = [x - rate * t * np.where(m, 1 + kappa, 1) for x, t, m in zip(w, trace, mask, strict=True)]
        for seen, wanted in zip(found, w, strict=True):
            np.testing.assert_allclose(seen, wanted, rtol=1e-6)


def test_the_schedule_rises_falls_and_ends_at_nothing():
    values = np.array([float(rise_and_fall(step, jnp.asarray(40.0), 0.25)) for step in range(42)])
    np.testing.assert_allclose(values, [factor(min(step, 40), 40, 0.25) for step in range(42)], atol=1e-12)
    assert values.max() == 1
    assert values[-1] == 0


def test_no_run_takes_part_in_its_own_choice():
    losses = np.array([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0], [np.nan, 0.0, 0.0]])
    np.testing.assert_array_equal(cross_fitted(losses), [np.nan, 2.0, 2.0])
    np.testing.assert_array_equal(cross_fitted(losses[:2]), [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(cross_fitted(losses[:2, :1]), [1.0])


def made_up():
    """Straight lines: AdamW ends at 2, κ = 1 at 1.5, κ = 2 at 2.5; AdamW's other runs end at 3 and 1."""
    steps = np.arange(0, 201, 20)
    curves = 4 - np.array([1.0, 1.25, 0.75])[:, None, None, None] * steps / 100
    curves = np.broadcast_to(curves, (3, 1, 2, steps.size))
    return xr.Dataset(
        {
            "held_out_loss": (("kappa", "learning_rate", "seed", "step"), curves),
            "adamw_loss": (("stretch", "learning_rate", "seed"), np.broadcast_to([[[3.0]], [[2.0]], [[1.0]]], (3, 1, 2))),
        },
        {"kappa": [0.0, 1.0, 2.0], "learning_rate": [0.1], "seed": [0, 1], "step": steps, "stretch": [0.5, 1.0, 2.0]},
    )


def test_speed_ups_are_those_of_straight_lines():
    ds = made_up()
    np.testing.assert_allclose(speedup_within(ds, 1.0, 0.1), 1.25)  # meets 2 after 160 of 200 steps
    np.testing.assert_allclose(speedup_within(ds, 2.0, 0.1), 0.75)  # ends at 2.5, which AdamW meets after 150
    np.testing.assert_allclose(tuned(ds)["speedup"], np.sqrt(2))  # 1.5 is half way between 2 and 1, in log steps
    slower = ds.sel(kappa=[0.0, 2.0])
    np.testing.assert_allclose(tuned(slower)["speedup"], np.sqrt(0.5))
    far = slower.assign(held_out_loss=slower["held_out_loss"] - 2.0)  # 0.5, half an octave beyond the longest run
    np.testing.assert_allclose(tuned(far)["speedup"], 2 * np.sqrt(2))
    assert np.isnan(reached(np.array([0, 1]), np.array([2.0, 1.0]), 0.5))
    assert reached(np.array([5, 6]), np.array([2.0, 1.0]), 3.0) == 5


def test_a_tiny_model_of_text_is_the_same_until_ire_sets_in():
    ds = text()
    assert ds["held_out_loss"].dims == ("kappa", "learning_rate", "seed", "step")
    assert ds["step"].values.tolist() == [0, 2, 4, 6, 8]
    assert (ds["status"] == 0).all()
    assert (ds["adamw_status"] == 0).all()
    gap = np.abs(ds["held_out_loss"].sel(kappa=6.0) - ds["held_out_loss"].sel(kappa=0.0))
    np.testing.assert_allclose(gap.sel(step=slice(0, 4)), 0, atol=1e-12)
    assert (gap.sel(step=8) > 1e-4).all()
    np.testing.assert_array_equal(ds["adamw_loss"].sel(stretch=1.0), ds["held_out_loss"].sel(kappa=0.0, step=8))
    assert (ds["adamw_loss"].sel(stretch=2.0) != ds["adamw_loss"].sel(stretch=1.0)).all()
    for name in ("held_out_loss", "training_loss"):
        assert (ds[name].isel(step=-1) < ds[name].isel(step=0)).all()
        assert float(ds[name].isel(step=0).mean()) < 2 * np.log(256)  # near ignorance, and not a sum over tokens
    assert (ds["held_out_loss"].isel(seed=0) != ds["held_out_loss"].isel(seed=1)).all()
    assert json.loads(ds.attrs["settings"])["estimator"] == "squared_gradient"


def test_table_and_figure_of_text_hold_the_dataset():
    ds = text()
    rows = [line.split() for line in LLAMA.table(ds).splitlines()]
    row = next(cells for cells in rows if cells[:2] == ["6", "0.05"])
    end = ds.sel(kappa=6.0, learning_rate=0.05, step=8)
    assert row[2] == f"{float(end['training_loss'].mean()):.4f}"
    assert row[5] == f"{float(end['held_out_loss'].mean()):.4f}"
    assert (
        row[8] == f"{float((end['held_out_loss'] - ds['held_out_loss'].sel(kappa=0.0, learning_rate=0.05, step=8)).mean()):.4f}"
    )
    assert row[11] == f"{speedup_within(ds, 6.0, 0.05).mean():.3f}"
    length = next(cells for cells in rows if cells[:1] == ["16"])
    assert length[1] == f"{tuned(ds)['adamw'][1].mean():.4f}"
    figure = LLAMA.figure(ds)
    figure.canvas.draw()
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    np.testing.assert_allclose(np.array(figure.axes[2].lines[0].get_ydata(), float), tuned(ds)["adamw"].mean(axis=1))


def test_the_choice_is_the_best_of_a_method_and_ties_go_to_the_loss():
    axes = {"learning_rate": [0.1, 0.2], "rho": [0.0, 0.5], "kappa": [0.0, 1.0], "seed": [0, 1]}
    accuracy = xr.DataArray(np.zeros((2, 2, 2, 2)), axes, list(axes))
    accuracy.loc[{"rho": 0.0, "kappa": 0.0}] = 0.5
    accuracy.loc[{"rho": 0.5, "kappa": 0.0, "learning_rate": 0.2}] = [0.2, 0.4]
    accuracy.loc[{"rho": 0.0, "kappa": 1.0, "learning_rate": 0.1}] = [0.9, np.nan]
    losses = xr.zeros_like(accuracy)
    losses.loc[{"learning_rate": 0.1}] = 1.0
    tuning = xr.Dataset({"test_accuracy": accuracy, "test_loss": losses})
    assert chosen(tuning, "SGD") == {"learning_rate": 0.2, "rho": 0.0, "kappa": 0.0}
    assert chosen(tuning, "SAM") == {"learning_rate": 0.2, "rho": 0.5, "kappa": 0.0}
    assert chosen(tuning, "SGD-IRE")["learning_rate"] == 0.2
    assert chosen(tuning, "SAM-IRE") == {"learning_rate": 0.2, "rho": 0.5, "kappa": 1.0}


@pytest.mark.parametrize("name", NETWORKS)
def test_training_validation_and_test_images_do_not_overlap(name):
    both = _problems(name, "", 30, 20, 2, 0, True)
    assert jax.eval_shape(both[0].metrics, jax.eval_shape(both[0].init, jax.random.key(0))).keys() >= {"test_accuracy"}
    validation, test = (problem.data for problem in both)
    np.testing.assert_array_equal(validation.train.inputs, test.train.inputs)
    parts = [np.asarray(part.inputs).reshape(-1, 64) for part in (validation.train, validation.test, test.test)]
    assert [len(part) for part in parts] == [30, 20, 20]
    assert len({row.tobytes() for part in parts for row in part}) == 70


def test_a_tiny_study_of_images_is_labelled_and_its_table_and_figure_made_of_it():
    ds = pictures()
    assert ds["test_accuracy"].dims == ("network", "optimizer", "seed")
    assert ds["optimizer"].values.tolist() == list(METHODS)
    assert (ds["status"] == 0).all()
    assert ds["validation_accuracy"].dims == ("network", "learning_rates", "rhos", "kappas", "tuning_seed")
    assert ds["tuning_seed"].values.tolist() == [1000]
    for name, (with_sam, with_ire) in METHODS.items():
        assert (float(ds["rho"].sel(network="vit", optimizer=name)) > 0) == with_sam
        assert (float(ds["kappa"].sel(network="vit", optimizer=name)) > 0) == with_ire
    assert len(set(ds["loss"].isel(network=0, seed=0).values.tolist())) == 4
    rows = [line.split() for line in IMAGES.table(ds).splitlines()]
    row = next(cells for cells in rows if cells[:2] == ["ViT", "SAM"])
    here = ds.isel(network=0).sel(optimizer="SAM")
    assert row[2:5] == ["0.1", "0.1", "0"]
    assert row[5] == f"{100 * float(here['test_accuracy'].mean()):.2f}"
    gain = here["test_accuracy"] - ds["test_accuracy"].isel(network=0).sel(optimizer="SGD")
    assert row[8] == f"{100 * float(gain.mean()):.2f}"
    figure = IMAGES.figure(ds)
    figure.canvas.draw()
    assert len(figure.axes) == 3
    assert all(axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (LLAMA, {"size": "7B"}, "size must be one of"),
        (LLAMA, {"kappas": (0.0,)}, "kappas must be numbers above 0"),
        (LLAMA, {"estimator": "eigenspace"}, "estimator must be"),
        (LLAMA, {"rise": 1.0}, "rise must lie"),
        (LLAMA, {"clip": 0.0}, "clip above 0"),
        (LLAMA, {"stretches": (1.0,)}, "stretches must not hold 1"),
        (LLAMA, {"stretches": (0.01,)}, "as many steps as measurements"),
        (IMAGES, {"networks": ("mlp",)}, "networks must be distinct"),
        (IMAGES, {"rhos": ()}, "rhos must be numbers above 0"),
        (IMAGES, {"seeds": 1}, "seeds must be at least 2"),
        (IMAGES, {"minibatch": 301}, "larger than images"),
        (IMAGES, {"momentum": 0.0}, "momentum must lie"),
        (IMAGES, {"gamma": 1.5}, "gamma in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(experiment, changes, words):
    with pytest.raises(ValueError, match=words):
        experiment.configure(**changes)


def test_local_files_of_cifar10_are_split_without_overlap(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 250), ("test", 60)):
        np.save(tmp_path / f"x_{part}.npy", rng.integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8))
        np.save(tmp_path / f"y_{part}.npy", (np.arange(count) % 10).astype(np.uint8))
    tuning, final = _problems("vit", str(tmp_path), 200, 50, 4, 0, True)
    assert jax.eval_shape(final.init, jax.random.key(0)) == jax.eval_shape(tuning.init, jax.random.key(0))
    parts = [{leaf.tobytes() for leaf in np.asarray(x)} for x in jax.tree.leaves(tuning.data) if np.ndim(x) == 4]
    assert [len(part) for part in parts] == [200, 50]
    assert not parts[0] & parts[1]
