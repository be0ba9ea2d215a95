"""The self-check passes here, finds planted errors, names the remedy, and changes the environment only when asked."""

import os
import re

import jax
import pytest

from jaxsharp import selfcheck
from jaxsharp.curvature import hvp
from jaxsharp.selfcheck import check

pytestmark = pytest.mark.smoke


def small():
    return check(normalizations=("none",), rows=50)


@jax.custom_batching.custom_vmap
def doubled_in_batches(leaf):
    return leaf


@doubled_in_batches.def_vmap
def _(size, batched, leaf):
    return 2 * leaf, batched[0]


def scaled(loss, params, v):
    return jax.tree.map(lambda leaf: 1.1 * leaf, hvp(loss, params, v))


def wrong_in_batches(loss, params, v):
    return jax.tree.map(doubled_in_batches, hvp(loss, params, v))


def nan(loss, params, v):
    return jax.tree.map(lambda leaf: float("nan") * leaf, hvp(loss, params, v))


def test_it_passes_here(precision):
    report = selfcheck.check()
    assert report.passed, report.faults
    assert (report.jax, report.backend, report.dtype) == (jax.__version__, jax.default_backend(), precision)
    assert [row.normalization for row in report.rows] == ["none", "layer", "batch"]
    assert all(set(row.batched) == {1, 2} for row in report.rows)


@pytest.mark.parametrize(("wrong", "fault"), [(scaled, "finite differences"), (wrong_in_batches, "batch of 2"), (nan, "nan")])
def test_it_finds_a_planted_error(monkeypatch, wrong, fault):
    monkeypatch.setattr(selfcheck, "hvp", wrong)
    report = small()
    assert not report.passed
    assert any(fault in words for words in report.faults)


def test_a_batch_is_checked_member_by_member(monkeypatch):
    monkeypatch.setattr(selfcheck, "hvp", wrong_in_batches)
    (row,) = small().rows
    assert row.batched == pytest.approx({1: 1.0, 2: 1.0})
    assert row.finite_difference < 1e-3


def test_ensure_raises_one_sentence_with_the_remedy_and_checks_once(monkeypatch):
    calls = []

    def failing():
        calls.append(None)
        return small()

    monkeypatch.setattr(selfcheck, "hvp", scaled)
    monkeypatch.setattr(selfcheck, "check", failing)
    monkeypatch.setattr(selfcheck, "_verdict", None)
    monkeypatch.setenv("XLA_FLAGS", "")
    for _ in range(2):
        with pytest.raises(selfcheck.NumericalSelfCheckError) as caught:
            selfcheck.ensure()
    assert len(calls) == 1
    message = str(caught.value)
    assert "\n" not in message
    assert not re.search(r"\. [A-Z]", message)
    assert jax.__version__ in message
    assert "relative error 1.0e-01" in message
    assert f"install jax {selfcheck.RIGHT_WITHOUT_FLAG}" in message
    if selfcheck.xla_flag_remedy(jax.__version__) and jax.default_backend() == "cpu":
        assert f"XLA_FLAGS={selfcheck.FLAG} before JAX starts" in message
        monkeypatch.setenv("XLA_FLAGS", selfcheck.FLAG)
        with pytest.raises(selfcheck.NumericalSelfCheckError) as caught:
            selfcheck.ensure()
        assert "before JAX starts" not in str(caught.value)


def test_ensure_is_silent_where_all_is_right(monkeypatch):
    monkeypatch.setattr(selfcheck, "_verdict", small())
    selfcheck.ensure()


def test_the_flag_is_named_for_known_versions_only():
    assert selfcheck.xla_flag_remedy("0.12.0.1") == "--xla_cpu_experimental_ynn_fusion_type="
    assert selfcheck.xla_flag_remedy("0.12.0.2") is None


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.11.2", None, selfcheck.FLAG),
        ("0.11.2", "--xla_dump_to=x", f"--xla_dump_to=x {selfcheck.FLAG}"),
        ("0.11.2", f"{selfcheck.FLAG}dot --a=b", f"{selfcheck.FLAG}dot --a=b"),
        ("99.0", "--a=b", "--a=b"),
        ("99.0", None, None),
    ],
)
def test_the_environment_is_appended_to_not_overwritten(monkeypatch, version, before, after):
    monkeypatch.setattr(jax, "__version__", version)
    monkeypatch.setenv("XLA_FLAGS", "restored afterwards")
    if before is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = before
    selfcheck.apply_flag_to_environment()
    selfcheck.apply_flag_to_environment()
    assert os.environ.get("XLA_FLAGS") == after
