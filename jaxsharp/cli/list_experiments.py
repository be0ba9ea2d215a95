"""`jaxsharp list`: which experiments there are, and their settings."""

from jaxsharp.cli.settings import describe_settings, experiment_named
from jaxsharp.experiments import EXPERIMENTS

SUMMARY = "list the experiments, or the settings of one"
EPILOG = """\
examples:
  jaxsharp list
  jaxsharp list bn-regression
"""


def add_arguments(parser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="show its settings")


def execute(options) -> int:
    """Prints names with one line each, or one experiment's settings."""
    if options.experiment is not None:
        experiment = experiment_named(options.experiment)
        print(f"{experiment.name}: {experiment.summary} ({experiment.precision})\n")
        print(describe_settings(experiment))
        return 0
    width = max(map(len, EXPERIMENTS))
    for name, experiment in EXPERIMENTS.items():
        print(f"{name.ljust(width)}  {experiment.summary}")
    return 0
