"""One tiny run of bn-regression through the command line, shared by the tests of experiments and commands."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import jaxsharp as js
from jaxsharp.cli import main

SETTINGS = ["learning_rates=0.1,0.2", "weight_decays=5e-4", "seeds=2", "steps=400", "every=100", "images=10"]

RUN = ["run", "bn-regression", "--set", *SETTINGS, "--no-progress"]


@cache
def finished() -> Path:
    """The folder of a finished run; not to be changed."""
    folder = Path(tempfile.mkdtemp(prefix="jaxsharp-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert main([*RUN, "--out", str(folder / "run")]) == 0
    return folder / "run"


@cache
def dataset():
    """Its dataset; not to be changed."""
    return js.load(finished() / "results.nc")
