"""sam-rates: a tiny network drifts as the theory says, exponents are slopes of logarithms, tables are made of the dataset."""

from functools import cache

import numpy as np
import pytest

from jaxsharp.experiments import EXPERIMENTS
from jaxsharp.experiments.sam_rates import FORMS, exponents, predicted, usable
from jaxsharp.experiments.tables import interval

RATES = EXPERIMENTS["sam-rates"]


@cache
def drift():
    """A tiny run; not to be changed."""
    tiny = {"images": 2, "width": 2, "seeds": 2, "steps": 8, "directions": 400}
    tiny |= {"learning_rates": (0.01, 0.02), "rhos": (1e-3, 3e-3)}
    return RATES.run(RATES.configure(**tiny, forms=("SAM", "average SAM")))


def test_a_network_drifts_at_the_rate_of_theory():
    ds = drift()
    assert ds["rate"].dims == ("form", "learning_rate", "rho", "seed")
    assert (ds["status"] == 0).all()
    assert ds["on_manifold"].all()
    ratio = ds["rate"] / ds["theory"]
    np.testing.assert_allclose(ratio.sel(form="SAM"), 1, atol=0.01)
    np.testing.assert_allclose(ratio.sel(form="average SAM"), 1, atol=0.15)  # of 3200 random directions
    assert float(np.abs(ratio.sel(form="average SAM", seed=0) - ratio.sel(form="average SAM", seed=1)).min()) > 1e-3
    np.testing.assert_allclose(exponents(ds, "average SAM"), [[1, 2]] * 2, atol=0.01)


def test_theory_has_the_exponents_of_the_paper():
    for form, (eta, rho) in {"SAM": (1, 2), "SAM-IRE": (1, 1), "average SAM": (1, 2), "average SAM-IRE": (1, 1)}.items():
        one, more_eta, more_rho = (predicted(form, *point, 5.0, 10) for point in ((1e-6, 1e-6), (2e-6, 1e-6), (1e-6, 2e-6)))
        np.testing.assert_allclose(np.log2([more_eta / one, more_rho / one]), [eta, rho], atol=1e-4)
    assert predicted("masked SAM-IRE", 0.1, 0.1, 0.0, 10, kappa=2.0) == pytest.approx(3 * 0.1 * 0.01 / 2)
    assert predicted("average SAM", 0.1, 0.1, 0.0, 10) == pytest.approx(0.1 * 0.01 / 20)


def made_up():
    """All forms: rates 3 η^1.3 ρ^1.7; one goes uphill and one far away."""
    ds = drift().isel(form=[0] * 5).assign_coords(form=list(FORMS)).copy(deep=True)
    shape = ds["rate"].dims
    ds["rate"] = (3 * ds["learning_rate"] ** 1.3 * ds["rho"] ** 1.7 + 0 * ds["rate"]).transpose(*shape)
    ds["rate"].loc[{"form": "SAM-IRE", "seed": 0, "learning_rate": 0.02, "rho": 3e-3}] = -1.0
    ds["loss"].loc[{"form": "masked SAM-IRE", "seed": 1}] *= 1e3
    return ds


def test_exponents_are_slopes_of_logarithms_of_usable_runs():
    ds = made_up()
    assert int((~usable(ds)).sum()) == 5
    for form in ("SAM", "average SAM-IRE"):
        np.testing.assert_allclose(exponents(ds, form), [[1.3, 1.7]] * 2)
    assert np.isnan(exponents(ds, "SAM-IRE")[0]).all()  # three runs determine three numbers exactly
    np.testing.assert_allclose(exponents(ds, "SAM-IRE")[1], [1.3, 1.7])
    assert np.isnan(exponents(ds, "masked SAM-IRE")[1]).all()


def test_table_and_figure_are_made_of_the_dataset():
    for ds in (drift(), made_up()):
        RATES.figure(ds).canvas.draw()
        row = next(line for line in RATES.table(ds).splitlines() if line.strip().startswith("average SAM ")).split()
        mean, half, _ = interval(exponents(ds, "average SAM")[:, 0])
        assert row[2] == f"{mean:.3f}"
        assert row[4] == f"{half:.3f}" or not np.isfinite(half)
    row = next(line for line in RATES.table(made_up()).splitlines() if line.strip().startswith("masked SAM-IRE"))
    assert row.endswith("4 of 8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rates": (0.1,)}, "learning_rates must be at least two"),
        ({"rhos": (0.1, 0.1)}, "rhos must be at least two different"),
        ({"rhos": (0.1, -0.1)}, "rhos must be numbers above 0"),
        ({"steps": 7}, "steps must be even"),
        ({"gamma": 1.0}, "gamma must lie"),
        ({"kappa": -1.0}, "kappa be at least 0"),
        ({"forms": ("SGD",)}, "forms must be distinct"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        RATES.configure(**changes)
