"""`jaxsharp sweep`: a grid described by a TOML file."""

import json
import shlex
from pathlib import Path

import jax
import numpy as np

from jaxsharp.cli import configuration
from jaxsharp.cli.output import Output, add_output_arguments
from jaxsharp.results import load, save
from jaxsharp.simulation import sweep
from jaxsharp.status import describe

SUMMARY = "run a grid of trajectories described by a TOML file"
EPILOG = """\
example (digits.toml):
  [problem]
  kind = "supervised"                  # or bn_linear_regression (data only), or valley (nothing)
  loss = "mse"
  data = { name = "digits", count = 200 }
  model = { name = "MLP", widths = [32], norm = "batch", scale_invariant = true }

  [optimizer]                          # or [flow]
  name = "gd"
  weight_decay = 5e-4                  # the same for all

  [over]                               # the grid: the product of these lists
  learning_rate = [0.1, 0.2]

  [run]
  seeds = 4                            # or a list of seeds
  steps = 1000
  every = 50
  probes = ["loss", "metrics", { name = "sharpness", k = 2, every = 100 }]
  precision = "float32"                # or float64

  jaxsharp sweep digits.toml --out results/digits
  jaxsharp plot results/digits --variable sharpness

The folder gets results.nc. A folder that already holds results, or an interrupted run, is not touched without --resume or
--force.
"""


def add_arguments(parser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("config", metavar="CONFIG.toml", help="what to run; see the example below")
    add_output_arguments(parser, "results/CONFIG")


def execute(options) -> int:
    """Runs the grid and saves it."""
    path = Path(options.config)
    tables = configuration.read(path)
    over = tables.get("over", {})
    run = configuration.run_from(tables["run"])
    precision = run.pop("precision")
    folder = Path(options.out or f"results/{path.stem}")
    output = Output(folder, shlex.join(["jaxsharp", "sweep", str(path), "--out", str(folder), "--resume"]))
    with jax.enable_x64(precision == "float64"):
        factory = configuration.factory_from(tables, over)
        problem = configuration.problem_from(tables["problem"])
        if output.open(resume=options.resume, force=options.force):
            return _already_done(output, tables)
        found = output.remembered()
        if found is not None and found != tables:
            raise ValueError(f"--resume found another file in {str(folder)!r}; choose another --out, or pass --force instead.")
        output.remember(tables)
        with output.interruptible():
            dataset = sweep(
                problem, factory, over, checkpoint=output.checkpoint / "sweep", progress=not options.no_progress, **run
            )
    dataset = dataset.assign_attrs(sweep=json.dumps(tables))
    save(dataset, output.results)
    output.clear()
    print(_summary(dataset))
    print(f"results: {output.results}")
    return 0


def _already_done(output, tables):
    dataset = load(output.results)
    if json.loads(dataset.attrs.get("sweep", "null")) != tables:
        raise ValueError(f"--out {str(output.folder)!r} holds results of another run; choose another --out, or pass --force.")
    print(_summary(dataset))
    print(f"already finished: {output.results}")
    return 0


def _summary(dataset):
    """Sizes, and one line for each status that occurred."""
    sizes = ", ".join(f"{name} {size}" for name, size in dataset.sizes.items())
    codes, counts = np.unique(dataset["status"].values, return_counts=True)
    kinds = "; ".join(f"{count} {describe(code)}" for code, count in zip(codes, counts, strict=True))
    return f"sizes:   {sizes}\nstatus:  {kinds}"
