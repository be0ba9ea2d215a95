"""The layers hold, and importing changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.smoke

# diffrax loads pallas, which declares an option of its own; options that exist before keep their values
IMPORT = """
import json, os, sys
import jax
options, environment = dict(jax.config.values), dict(os.environ)
import jaxsharp
unchanged = options.items() <= jax.config.values.items() and environment == dict(os.environ)
print(json.dumps({"unchanged": unchanged, "loaded": [name for name in ("sklearn", "matplotlib") if name in sys.modules]}))
"""


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_imports_point_downward_only():
    # its own process, since import-linter changes the import path and the logging
    result = python("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(cache_dir=None))")
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_changes_nothing_and_stays_light():
    result = python("-c", IMPORT)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"unchanged": True, "loaded": []}
