"""`jaxsharp run`: an experiment from settings to table and figure."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import jax

from jaxsharp.cli.output import FIGURE, TABLE, Output, add_output_arguments, write_figure
from jaxsharp.cli.settings import as_text, experiment_named, parse_changes
from jaxsharp.results import load, save

SUMMARY = "run an experiment; write its results, table and figure"
EPILOG = """\
examples:
  jaxsharp run bn-regression
  jaxsharp run bn-regression --set learning_rates=0.1,0.2 seeds=4 --out results/quick
  jaxsharp run bn-regression --full --out results/full
  jaxsharp run bn-regression --out results/full --resume     # after an interruption; remembers its settings

`jaxsharp list EXPERIMENT` shows the settings. Most of the time of a small run is compilation; set JAX_COMPILATION_CACHE_DIR
to a folder to keep compiled programs for the next. The output
folder gets results.nc, table.txt and figure.png. A folder that already holds results, or an interrupted run, is not touched
without --resume or --force.
"""


def add_arguments(parser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a name from `jaxsharp list`")
    parser.add_argument(
        "--set",
        dest="changes",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="change settings; lists with commas",
    )
    parser.add_argument("--full", action="store_true", help="start from the large setting")
    add_output_arguments(parser, "results/EXPERIMENT")


def execute(options) -> int:
    """Runs an experiment, saves it, prints the table and where files went."""
    experiment = experiment_named(options.experiment)
    changes = parse_changes(experiment, options.changes)
    settings = experiment.configure(full=options.full, **changes)
    folder = Path(options.out or f"results/{experiment.name}")
    output = Output(folder, shlex.join(["jaxsharp", "run", experiment.name, "--out", str(folder), "--resume"]))
    chosen = bool(changes or options.full)
    if output.open(resume=options.resume, force=options.force):
        return _already_done(experiment, output, settings if chosen else None)
    settings = _resumed(experiment, output, settings, chosen)
    output.remember({"experiment": experiment.name, **asdict(settings)})
    with output.interruptible(), jax.enable_x64(experiment.precision == "float64"):
        dataset = experiment.run(settings, progress=not options.no_progress, checkpoint=output.checkpoint)
    dataset = dataset.assign_attrs(command=_command(experiment, settings))
    save(dataset, output.results)
    output.clear()
    table = f"{experiment.table(dataset)}\n{_made_by(dataset)}\n"
    (folder / TABLE).write_text(table, encoding="utf-8")
    write_figure(experiment.figure(dataset), folder / FIGURE)
    print(table)
    print(f"results: {output.results}\ntable:   {folder / TABLE}\nfigure:  {folder / FIGURE}")
    return 0


def _command(experiment, settings):
    """The shortest command that makes these settings, for the provenance."""
    default, chosen = asdict(experiment.configure()), asdict(settings)
    changed = [f"{name}={as_text(value)}" for name, value in chosen.items() if value != default[name]]
    return shlex.join(["jaxsharp", "run", experiment.name, *(["--set", *changed] if changed else [])])


def _made_by(dataset):
    """What made the numbers, as the last lines of the table."""
    attributes = dataset.attrs
    versions = ", ".join(f"{name} {version}" for name, version in json.loads(attributes["versions"]).items())
    cost = f"{attributes['wall_time_seconds']:.0f} s, {attributes['hvp_count']} Hessian-vector products"
    return f"{attributes['command']}\n{attributes['device']}, {attributes['precision']}, {cost}\n{versions}"


def _plain(settings):
    """Settings as JSON has them, lists for tuples."""
    return json.loads(json.dumps(settings))


def _resumed(experiment, output, settings, chosen):
    """The settings of the interrupted run where there is one, refused where others were asked for."""
    found = output.remembered()
    if found is None:
        return settings
    name = found.pop("experiment", None)
    if name != experiment.name:
        raise ValueError(
            f"--out {str(output.folder)!r} holds an interrupted run of {name}; choose another --out, or pass --force."
        )
    _refuse_others(output, found, settings if chosen else None)
    return experiment.configure(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})


def _refuse_others(output, found, settings):
    wanted = None if settings is None else _plain(asdict(settings))
    different = [] if wanted is None else [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise ValueError(
            f"--resume found other settings in {str(output.folder)!r} (different: {', '.join(different)}); leave out --set and "
            "--full to go on with those, choose another --out, or pass --force instead."
        )


def _already_done(experiment, output, settings):
    dataset = load(output.results)
    if dataset.attrs.get("experiment") != experiment.name:
        raise ValueError(f"--out {str(output.folder)!r} holds results of another run; choose another --out, or pass --force.")
    _refuse_others(output, json.loads(dataset.attrs.get("settings", "{}")), settings)
    print(experiment.table(dataset))
    print(f"already finished: {output.results}")
    return 0
