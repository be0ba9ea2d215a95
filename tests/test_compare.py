"""Comparison tools on trajectories made by hand."""

import numpy as np
import pytest
import xarray as xr

from jaxsharp import compare

STEPS = np.arange(41)
CENTRE = np.stack([0.5 * STEPS, 3 - 0.1 * STEPS, np.zeros(41)], axis=1)
FLIP = (-1.0) ** STEPS[:, None] * np.array([0.0, 0.3, -0.4])


def dataset(values, **more):
    return xr.Dataset({"parameters": (("step", "parameter"), values), **more}, {"step": STEPS[: len(values)]})


def test_oscillation_and_centre_are_told_apart():
    run = dataset(CENTRE + FLIP)
    np.testing.assert_allclose(compare.deoscillated(run), CENTRE[1:-1], atol=1e-14)
    np.testing.assert_allclose(compare.oscillating_part(run), FLIP[1:-1], atol=1e-14)
    curved = dataset(CENTRE**2)
    np.testing.assert_allclose(compare.deoscillated(curved)[:, 0], CENTRE[1:-1, 0] ** 2 + 0.125)  # + ¼ of the second difference


def test_distance_on_common_steps():
    run, flow = dataset(CENTRE + FLIP), dataset(CENTRE + 2.0)
    assert compare.distance(run, flow).step.values.tolist() == list(range(1, 40))
    np.testing.assert_allclose(compare.distance(run, flow), 2 * np.sqrt(3))
    np.testing.assert_allclose(compare.distance(run, flow, average=False)[0], np.linalg.norm([2, 1.7, 2.4]))
    sparse = flow.isel(step=slice(0, None, 10))
    assert compare.distance(run, sparse).step.values.tolist() == [10, 20, 30]
    relative = compare.distance(run, sparse, relative=True)
    np.testing.assert_allclose(relative, 2 * np.sqrt(3) / (np.sqrt(0.26) * relative.step.values))
    grid = xr.concat([flow, flow + 1], "rate")
    assert compare.distance(run, grid).dims == ("step", "rate") or compare.distance(run, grid).dims == ("rate", "step")
    with pytest.raises(ValueError, match="no step in common"):
        compare.distance(run.isel(step=slice(0, 5)), sparse.isel(step=slice(1, 2)))


def test_variances_of_the_oscillation():
    across = (-1.0) ** STEPS[:, None] * np.array([0.0, 0.4, 0.3]) * np.sqrt(2) * np.cos(np.pi / 2 * (STEPS // 2))[:, None]
    run = dataset(CENTRE + FLIP)
    found = compare.oscillation_variances(run, window=13, directions=2)
    assert found.step.values.tolist() == [7, 20, 33]
    np.testing.assert_allclose(found, [[0.25, 0]] * 3, atol=1e-14)
    assert across.shape == FLIP.shape
    with pytest.raises(ValueError, match="window"):
        compare.oscillation_variances(run, window=100)


def test_first_step_at_the_edge():
    sharpness = np.stack([0.2 * STEPS, 0.1 * STEPS], axis=1)
    run = dataset(CENTRE, sharpness=(("step", "eigenvalue"), sharpness))
    assert float(compare.first_step_at_edge(run, 0.5)) == 20
    assert np.isnan(compare.first_step_at_edge(run, 0.01))
    grid = run.assign_coords(learning_rate=[0.5, 1.0, 0.01])
    np.testing.assert_array_equal(compare.first_step_at_edge(grid), [20, 10, np.nan])
    with pytest.raises(ValueError, match="learning rate"):
        compare.first_step_at_edge(run)


def test_drift_rate_and_its_error():
    rng = np.random.default_rng(0)
    line = -0.3 * STEPS + 2
    exact = compare.drift_rate(dataset(CENTRE, angle=("step", line)), "angle")
    np.testing.assert_allclose(exact.rate, -0.3)
    assert float(exact.standard_error) < 1e-12
    errors = []
    for _ in range(200):
        noisy = compare.drift_rate(dataset(CENTRE, angle=("step", line + rng.normal(size=41))), "angle", first=5, last=35)
        errors.append(float((noisy.rate + 0.3) / noisy.standard_error))
    assert 0.85 < np.std(errors) < 1.2
    with pytest.raises(ValueError, match="needs 3"):
        compare.drift_rate(dataset(CENTRE, angle=("step", line)), "angle", first=39)


def test_missing_records_are_named():
    with pytest.raises(ValueError, match="every step"):
        compare.deoscillated(dataset(CENTRE).isel(step=slice(0, None, 2)))
    with pytest.raises(ValueError, match="'loss'"):
        compare.drift_rate(dataset(CENTRE), "loss")
