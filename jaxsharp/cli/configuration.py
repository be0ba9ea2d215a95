"""A sweep's TOML file: tables of names and numbers, turned into the arguments of `jaxsharp.sweep`."""

import inspect
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxsharp import data, flows, models, optimizers, probes, problems
from jaxsharp.cli.misuse import did_you_mean
from jaxsharp.problems import Problem

PROBLEMS = ("supervised", "bn_linear_regression", "valley")

RUN_KEYS = {
    "seeds": (int, list),
    "steps": (int,),
    "every": (int,),
    "probes": (list,),
    "batch_size": (int, str),
    "precision": (str,),
}
"""Keys of the table [run], and what they may hold."""


def read(path: Path) -> dict[str, Any]:
    """Reads a TOML file and checks the names of its tables.

    Args:
        path: of the file.

    Returns:
        Its tables.

    Raises:
        ValueError: for a missing file, text that is not TOML, unknown or missing tables.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the configuration {str(path)!r} cannot be read: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the configuration {str(path)!r} is not TOML: {error}.") from None
    known = {"problem", "optimizer", "flow", "over", "run"}
    _only(tables, known, "the configuration has the unknown table")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{name} must be a table; write [{name}] above its keys.")
    missing = [name for name in ("problem", "run") if name not in tables]
    if missing:
        raise ValueError(f"the configuration has no table [{missing[0]}].")
    if ("optimizer" in tables) == ("flow" in tables):
        raise ValueError("the configuration needs exactly one of the tables [optimizer] and [flow].")
    return tables


def problem_from(table: Mapping[str, Any]) -> Problem:
    """Builds the problem of the table [problem], with [problem.data] and [problem.model] inside it.

    Args:
        table: kind, and what that kind needs.

    Returns:
        A `Problem`.

    Raises:
        ValueError: for an unknown kind, name or argument.
    """
    rest = dict(table)
    kind = rest.pop("kind", None)
    if kind not in PROBLEMS:
        raise ValueError(f"problem.kind is {kind!r}; {did_you_mean(kind, PROBLEMS)}.")
    if kind == "valley":
        _only(rest, set(), "the problem valley takes no key")
        return problems.valley()
    train, test = _call(data, _part(rest, "data"), "problem.data")
    if kind == "bn_linear_regression":
        _only(rest, set(), "the problem bn_linear_regression takes, besides data, no key")
        return problems.bn_linear_regression(*train)
    model = _call(models, _part(rest, "model"), "problem.model")
    _only(rest, {"loss"}, "the problem supervised takes, besides data and model, no key")
    return problems.supervised(model, train, test, **rest)


def factory_from(tables: Mapping[str, Any], over: Mapping[str, Any]) -> Callable:
    """Builds what makes the optimizer or the flow at each grid point; with an empty grid, the optimizer or flow itself.

    Args:
        tables: with [optimizer] or [flow]: its name, and arguments that are the same everywhere; what an optimizer wraps is a
            table [optimizer.base] of the same kind.
        over: name -> values.

    Returns:
        A callable of the keys of `over`, or a rule.

    Raises:
        ValueError: for an unknown name or argument.
    """
    kind, module = ("optimizer", optimizers) if "optimizer" in tables else ("flow", flows)
    factory, arguments = _find(module, tables[kind], kind)
    if isinstance(arguments.get("base"), dict):  # what sam and ire wrap
        arguments["base"] = factory_from({kind: arguments["base"]}, {})
    twice = [name for name in arguments if name in over]
    if twice:
        raise ValueError(f"{twice[0]} is in [{kind}] and in [over]; keep one of them.")
    _check(factory, {**arguments, **over}, kind, all_given=True)
    made = partial(factory, **arguments)
    return made if over else made()


def run_from(table: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the table [run] and builds its probes.

    Args:
        table: see `RUN_KEYS`; steps is required.

    Returns:
        Arguments of `jaxsharp.sweep`, and `precision`: float64 or float32.

    Raises:
        ValueError: for an unknown key, a value of the wrong type, or an unknown probe.
    """
    _only(table, RUN_KEYS, "[run] has the unknown key")
    for name, value in table.items():
        if not isinstance(value, RUN_KEYS[name]) or isinstance(value, bool):
            wanted = " or ".join({int: "a whole number", list: "a list", str: "text"}[kind] for kind in RUN_KEYS[name])
            raise ValueError(f"run.{name} must be {wanted}, got {value!r}.")
    if "steps" not in table:
        raise ValueError("[run] has no key steps.")
    options = {"precision": "float32", **table}
    if options["precision"] not in ("float32", "float64"):
        raise ValueError(f"run.precision must be 'float32' or 'float64', got {options['precision']!r}.")
    options["probes"] = [_probe(entry) for entry in options.get("probes", ["loss"])]
    return options


def _probe(entry):
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"run.probes holds {entry!r}; write a name, or a table such as {{name = 'sharpness', k = 2}}.")
    name = entry.get("name")
    if name not in probes.BY_NAME:
        raise ValueError(f"run.probes has the unknown probe {name!r}; {did_you_mean(name, probes.BY_NAME)}.")
    arguments = {key: value for key, value in entry.items() if key != "name"}
    _check(probes.BY_NAME[name], arguments, f"the probe {name}")
    return probes.BY_NAME[name](**arguments)


def _part(table, name):
    if not isinstance(table.get(name), dict):
        raise ValueError(f"the problem needs a table [problem.{name}] with a name.")
    return table.pop(name)


def _call(module, table, place):
    function, arguments = _find(module, table, place)
    _check(function, arguments, place)
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    try:
        return function(**arguments)
    except TypeError as error:
        raise ValueError(f"[{place}] has a value of the wrong type: {error}.") from None


def _find(module: ModuleType, table, place):
    """The function or class that a table names, and its other keys."""
    arguments = dict(table)
    name = arguments.pop("name", None)
    known = [entry for entry in module.__all__ if _is_choice(getattr(module, entry))]
    if name not in known:
        raise ValueError(f"{place}.name is {name!r}; {did_you_mean(name, known)}.")
    return getattr(module, name), arguments


_NOT_CHOICES = (
    models.Normalize,
    data.Dataset,
    optimizers.Eigenspace,
    optimizers.Estimate,
    optimizers.Fisher,
    optimizers.Hutchinson,
    optimizers.Objective,
    optimizers.Optimizer,
    optimizers.SquaredGradient,
    optimizers.chain,
    optimizers.from_factory,
    optimizers.smallest,
    optimizers.smallest_fraction,
    flows.Flow,
)


def _is_choice(entry):
    return callable(entry) and entry not in _NOT_CHOICES


def _check(function, arguments, place, all_given=False):
    """Refuses unknown arguments, and missing ones where all must be given."""
    parameters = inspect.signature(function).parameters
    takes = [name for name in parameters if name not in ("parent", "name")]
    _only(arguments, takes, f"{place} has the unknown key")
    missing = [name for name in takes if parameters[name].default is inspect.Parameter.empty and name not in arguments]
    if missing and all_given:
        raise ValueError(f"{place} needs {missing[0]}; put it in [{place}], or a list of values in [over].")


def _only(table, known, sentence):
    unknown = [name for name in table if name not in known]
    if unknown:
        remedy = did_you_mean(unknown[0], known) if known else "remove it"
        raise ValueError(f"{sentence} {unknown[0]!r}; {remedy}.")
