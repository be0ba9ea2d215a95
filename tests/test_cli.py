"""The command line: what it writes, and one sentence with exit code 2 for whatever is wrong."""

import importlib
import os
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import tiny
import xarray as xr

import jaxsharp as js
from jaxsharp import selfcheck
from jaxsharp.cli import configuration, main, sweep
from jaxsharp.cli.misuse import did_you_mean
from jaxsharp.cli.settings import parse_value

SWEEP = """
[problem]
kind = "bn_linear_regression"
data = { name = "digits", count = 8, targets = "value" }

[optimizer]
name = "gd"
weight_decay = 5e-4

[over]
learning_rate = [0.1, 0.2]

[run]
seeds = [3, 5]
steps = 20
every = 10
probes = ["loss", { name = "grad_norm", every = 5 }]
precision = "float64"
"""


@pytest.fixture
def folder(tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(tiny.finished(), tmp_path / "finished")


def refused(arguments, capsys):
    """Asserts exit code 2 and one sentence on stderr; returns it."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxsharp: ")
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip().endswith((".", "?"))
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def test_run_writes_results_table_and_figure():
    folder = tiny.finished()
    assert sorted(path.name for path in folder.iterdir()) == ["figure.png", "results.nc", "table.txt"]
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "GD+WD" in (folder / "table.txt").read_text(encoding="utf-8")
    command = js.load(folder / "results.nc").attrs["command"]
    assert command.startswith("jaxsharp run bn-regression --set ")
    assert "seeds=2" in command
    assert str(folder) not in command


def test_resume_keeps_a_finished_run(folder, capsys):
    before = (folder / "results.nc").read_bytes()
    assert main(["run", "bn-regression", "--out", str(folder), "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out
    assert (folder / "results.nc").read_bytes() == before


def test_a_finished_run_is_not_overwritten(folder, capsys):
    assert "already holds results; pass --force" in refused([*tiny.RUN, "--out", folder], capsys)


def test_resume_refuses_other_settings_than_those_of_the_finished_run(folder, capsys):
    other = [entry.replace("seeds=2", "seeds=3") for entry in tiny.RUN]
    assert "different: seeds" in refused([*other, "--out", folder, "--resume"], capsys)


def test_an_interrupted_run_goes_on_and_ends_like_one_that_was_not(tmp_path, capsys, monkeypatch):
    module = importlib.import_module("jaxsharp.experiments.bn_regression")
    sweep, calls = module.sweep, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sweep(*arguments, **options)

    monkeypatch.setattr(module, "sweep", interrupted)
    assert main([*tiny.RUN, "--out", str(tmp_path)]) == 130
    message = capsys.readouterr().err
    assert f"jaxsharp run bn-regression --out {tmp_path} --resume" in message
    assert "already holds an interrupted run; pass --resume" in refused([*tiny.RUN, "--out", tmp_path], capsys)
    assert "different: " in refused(["run", "bn-regression", "--set", "seeds=3", "--out", tmp_path, "--resume"], capsys)

    finished = []
    monkeypatch.setattr(module, "sweep", lambda *a, **k: finished.append(k["checkpoint"]) or sweep(*a, **k))
    assert main(["run", "bn-regression", "--out", str(tmp_path), "--resume", "--no-progress"]) == 0
    assert len(finished) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "results.nc", "table.txt"]
    resumed, whole = js.load(tmp_path / "results.nc"), tiny.dataset()
    xr.testing.assert_equal(resumed, whole)


def test_a_run_interrupted_before_anything_was_finished_leaves_nothing(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("jaxsharp.experiments.bn_regression"), "sweep", interrupted)
    assert main([*tiny.RUN, "--out", str(tmp_path / "out")]) == 130
    assert "run it again" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_said(tmp_path, capsys):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "batch-0000.npz").write_bytes(b"PK")
    (tmp_path / "checkpoint" / "settings.json").write_text("{")
    assert "cannot be read; pass --force" in refused([*tiny.RUN, "--out", tmp_path, "--resume"], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["rum"], "did you mean 'run'?"),
        (["run"], "required: EXPERIMENT"),
        (["run", "bn-regresion"], "did you mean 'bn-regression'?"),
        (["list", "bn-regresion"], "did you mean 'bn-regression'?"),
        (["run", "bn-regression", "--set", "seeds"], "--set needs key=value"),
        (["run", "bn-regression", "--set", "seed=3"], "did you mean 'seeds'?"),
        (["run", "bn-regression", "--set", "seeds=three"], "seeds needs a whole number, got 'three'"),
        (["run", "bn-regression", "--set", "seeds=1.5"], "seeds needs a whole number, got '1.5'"),
        (["run", "bn-regression", "--set", "learning_rates=0.1,x"], "learning_rates needs a number, got 'x'"),
        (["run", "bn-regression", "--set", "learning_rates="], "learning_rates must be numbers above 0"),
        (["run", "bn-regression", "--set", "seeds=3", "--set", "seeds=4"], "'seeds' twice"),
        (["run", "bn-regression", "--set", "seeds=0"], "seeds must be at least 1"),
        (["run", "bn-regression", "--fulll"], "unrecognized arguments: --fulll"),
        (["plot"], "required: RESULTS"),
        (["plot", "x.nc", "--x", "minutes"], "invalid choice: 'minutes'"),
        (["sweep", "missing.toml"], "'missing.toml' cannot be read"),
    ],
)
def test_wrong_arguments(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    experiments = importlib.import_module("jaxsharp.experiments.bn_regression")
    monkeypatch.setattr(experiments, "sweep", None)
    assert "cannot be written" in refused([*tiny.RUN, "--out", tmp_path / "file" / "run"], capsys)
    assert "cannot be written" in refused([*tiny.RUN, "--out", tmp_path / "file"], capsys)


def test_images_that_no_interpolant_fits_leave_no_checkpoint(tmp_path, capsys):
    out = tmp_path / "out"
    assert "images=60" in refused(["run", "bn-regression", "--set", "images=60", "--out", out, "--no-progress"], capsys)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "images=60" in refused(["run", "bn-regression", "--set", "images=60", "--out", out, "--no-progress"], capsys)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_help_and_version_exit_with_0(capsys):
    for arguments in (
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["sweep", "--help"],
        ["doctor", "--help"],
        ["plot", "--help"],
    ):
        assert main(arguments) == 0
    assert "[problem]" in capsys.readouterr().out


def test_list_names_the_experiments_and_shows_settings(capsys):
    assert main(["list"]) == 0
    assert "bn-regression" in capsys.readouterr().out
    assert main(["list", "bn-regression"]) == 0
    shown = capsys.readouterr().out
    assert "learning_rates" in shown
    assert "40000" in shown


def test_plot_gives_the_experiments_figure_again(folder, capsys):
    (folder / "figure.png").unlink()
    assert main(["plot", str(folder)]) == 0
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", str(folder / "results.nc"), "--out", str(folder / "again.pdf")]) == 0
    assert (folder / "again.pdf").read_bytes().startswith(b"%PDF")


def test_plot_draws_a_variable(folder):
    select = ["--select", "dynamics=gd", "learning_rate=0.2"]
    assert main(["plot", str(folder), "--variable", "stability_ratio", "--x", "time", *select]) == 0
    assert (folder / "stability_ratio.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variable", "anggle"], "did you mean 'angle'?"),
        (["--variable", "status"], "not a recorded trajectory"),
        (["--select", "dynamic=gd"], "did you mean 'dynamics'?"),
        (["--select", "dynamics=sgd"], "it has gd, flow"),
        (["--select", "dynamics"], "dimension=value"),
        (["--out", "figure.docx"], "no known image format"),
        (["--out", "nowhere/figure.png"], "cannot be written"),
    ],
)
def test_plot_says_what_it_cannot_draw(folder, arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert words in refused(["plot", folder, *arguments], capsys)


def test_plot_says_what_is_no_result(folder, tmp_path, capsys):
    assert "there is no result file" in refused(["plot", tmp_path / "missing.nc"], capsys)
    whole = (folder / "results.nc").read_bytes()
    (folder / "results.nc").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(["plot", folder], capsys)
    assert "truncated" in refused(["run", "bn-regression", "--out", folder, "--resume"], capsys)


def test_sweep_runs_a_toml_file(tmp_path, capsys):
    (tmp_path / "grid.toml").write_text(SWEEP)
    assert main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out"), "--no-progress"]) == 0
    assert "4 ok" in capsys.readouterr().out
    ds = js.load(tmp_path / "out" / "results.nc")
    assert dict(ds.sizes) == {"learning_rate": 2, "seed": 2, "step": 3, "step_5": 5}
    assert ds["seed"].values.tolist() == [3, 5]
    assert ds["loss"].dtype == np.float64
    train, _ = js.data.digits(8, targets="value")
    one = js.simulate(js.problems.bn_linear_regression(*train), js.optimizers.gd(0.2, 5e-4), 20, seed=5, every=10)
    np.testing.assert_allclose(ds["loss"].sel(learning_rate=0.2, seed=5), one["loss"], rtol=1e-9)
    assert main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert main(["plot", str(tmp_path / "out"), "--variable", "grad_norm", "--log"]) == 0
    assert "already holds results" in refused(["sweep", tmp_path / "grid.toml", "--out", tmp_path / "out"], capsys)


def test_sweep_takes_a_model_a_flow_and_an_empty_grid(tmp_path):
    text = """
    [problem]
    kind = "supervised"
    data = { name = "digits", count = 20, classes = [0, 1, 2] }
    model = { name = "MLP", widths = [4], norm = "batch" }

    [flow]
    name = "gradient"
    learning_rate = 0.01

    [run]
    steps = 2
    """
    (tmp_path / "flow.toml").write_text(textwrap.dedent(text))
    assert main(["sweep", str(tmp_path / "flow.toml"), "--out", str(tmp_path / "out"), "--no-progress"]) == 0
    ds = js.load(tmp_path / "out" / "results.nc")
    assert dict(ds.sizes) == {"seed": 1, "step": 3}
    assert ds["loss"].dtype == np.float32


def test_the_example_in_the_help_of_sweep_is_valid(tmp_path):
    lines = sweep.EPILOG.partition("(digits.toml):")[2].partition("jaxsharp sweep")[0]
    (tmp_path / "digits.toml").write_text(textwrap.dedent(lines))
    tables = configuration.read(tmp_path / "digits.toml")
    assert configuration.factory_from(tables, tables["over"])(learning_rate=0.1).hyperparams["weight_decay"] == 5e-4
    assert configuration.problem_from(tables["problem"]).scale_invariant
    assert [probe.name for probe in configuration.run_from(tables["run"])["probes"]] == ["loss", "metrics", "sharpness"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[problem]", "[problem", "is not TOML"),
        ("[over]", "[ovr]", "did you mean 'over'?"),
        ("[run]", "[flow]", "no table [run]"),
        ("[optimizer]", "[flow]", "flow.name is 'gd'"),
        ('"bn_linear_regression"', '"bn_regression"', "did you mean 'bn_linear_regression'?"),
        ('name = "digits"', 'name = "digit"', "did you mean 'digits'?"),
        ("count = 8", "cuont = 8", "did you mean 'count'?"),
        ("count = 8", 'count = "8"', "count='8' is not an integer"),
        ("count = 8", "count = 0", "count=0 is out of range"),
        ('name = "gd"', 'name = "sgd"', "did you mean 'gd'?"),
        ("weight_decay =", "weigth_decay =", "did you mean 'weight_decay'?"),
        ("weight_decay = 5e-4", "weight_decay = -1", "weight_decay must be finite and at least 0"),
        ("weight_decay = 5e-4", "learning_rate = 0.1", "is in [optimizer] and in [over]"),
        ("learning_rate = [0.1, 0.2]", "", "optimizer needs learning_rate"),
        ("[0.1, 0.2]", "[]", "at least one number"),
        ("[0.1, 0.2]", "0.1", "must be a list"),
        ("[0.1, 0.2]", '["a"]', "must hold finite numbers"),
        ("steps = 20", "step = 20", "did you mean 'steps'?"),
        ("steps = 20", "", "no key steps"),
        ("steps = 20", "steps = 2.5", "run.steps must be a whole number"),
        ("steps = 20", "steps = -1", "steps must be a whole number, at least 0"),
        ("[3, 5]", "[3, 3]", "distinct"),
        ('["loss",', '["los",', "did you mean 'loss'?"),
        ("every = 5 }", "evry = 5 }", "did you mean 'every'?"),
        ('"float64"', '"float16"', "run.precision must be"),
    ],
)
def test_sweep_says_what_is_wrong_with_the_file(old, new, words, tmp_path, capsys):
    assert old in SWEEP
    (tmp_path / "grid.toml").write_text(SWEEP.replace(old, new))
    assert words in refused(["sweep", tmp_path / "grid.toml", "--out", tmp_path / "out", "--no-progress"], capsys)
    assert not (tmp_path / "out" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("1e4", int, 10_000),
        ("0.5", float, 0.5),
        ("yes", bool, True),
        ("False", bool, False),
        ("1,2", tuple[int, ...], (1, 2)),
    ],
)
def test_values_are_read_by_type(text, kind, value):
    assert parse_value("x", text, kind) == value


@pytest.mark.parametrize(("text", "kind"), [("inf", int), ("nan", int), ("maybe", bool), ("1;2", tuple[float, ...])])
def test_values_of_the_wrong_type_are_refused(text, kind):
    with pytest.raises(ValueError, match="--set x needs"):
        parse_value("x", text, kind)


def test_suggestions():
    assert did_you_mean("spehre", ["sphere", "curvature"]) == "did you mean 'sphere'?"
    assert did_you_mean("q", ["sphere", "curvature"]) == "use one of sphere, curvature"


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "jaxsharp", "lits"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "jaxsharp: there is no command 'lits'; did you mean 'list'?\n"


@pytest.mark.parametrize(("wrong", "code", "words"), [(0.0, 0, "passed"), (0.7, 1, "FAILED")])
def test_doctor_reports_the_self_check(wrong, code, words, capsys, monkeypatch):
    def check():
        row = selfcheck.Row("layer", {1: wrong, 2: 0.0}, 0.0)
        return selfcheck.Report(jax.__version__, "cpu", jax.numpy.result_type(float).name, (row,), 1e-6, 1e-6)

    monkeypatch.setattr(selfcheck, "check", check)
    assert main(["doctor"]) == code
    shown = capsys.readouterr().out
    assert words in shown
    assert jax.__version__ in shown
    assert "float32" in shown
    assert "float64" in shown
    if wrong:
        assert "batch of 1" in shown
        assert "remedy" in shown


def test_a_failed_self_check_is_one_sentence(tmp_path, capsys, monkeypatch):
    def ensure():
        raise selfcheck.NumericalSelfCheckError("products are wrong; set the flag")

    monkeypatch.setattr(selfcheck, "ensure", ensure)
    assert "products are wrong" in refused([*tiny.RUN, "--out", tmp_path / "out"], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", [None, 3])
def test_every_core_is_a_device_unless_told_otherwise(chosen):
    program = (
        "from jaxsharp.cli import main; main(['list']); import jax; print(jax.device_count(), file=__import__('sys').stderr)"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    environment |= {"JAX_PLATFORMS": "cpu"} | ({"JAX_NUM_CPU_DEVICES": str(chosen)} if chosen else {})
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stderr.split()[-1]) == (chosen or len(os.sched_getaffinity(0)))
