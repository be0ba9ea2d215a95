"""The README: its example runs, its commands exist, and its map is true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.smoke
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "steps=500" in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=500", "steps=20"), "README.md", "exec"), {})
    assert (tmp_path / "digits.nc").exists()
    assert "learning_rate" in capsys.readouterr().out


def test_there_are_two_commands():
    commands = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert [command.strip() for command in commands] == [
        "pip install . && jaxsharp run bn-regression",
        'pip install -e ".[test]" && python -m pytest -n 2 --dist loadfile',
    ]


def test_the_map_names_every_room_and_no_other():
    table = README.split("## The map of the house")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z_]+(?:/|\.py))`", table))
    package = ROOT / "jaxsharp"
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in package.glob("*.py") if path.name not in ("__init__.py", "__main__.py")}
    assert named == rooms | {"tests/", "benchmarks/", "notebooks/"}


def test_every_picture_and_path_exists():
    for path in re.findall(r"(?:benchmarks|notebooks|tests)/[\w/.-]+\.\w+", README):
        assert (ROOT / path).exists(), path


def test_every_result_is_told_with_its_table_and_every_picture_exists():
    results = ROOT / "benchmarks" / "results"
    told = (results / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([\w/.-]+)\)|`([\w-]+/table\.txt)`", told):
        assert (results / (path[0] or path[1])).exists(), path
    for folder in (path for path in results.iterdir() if path.is_dir()):
        assert (folder / "table.txt").exists(), folder
        assert folder.name.split("-")[0] in told, folder
