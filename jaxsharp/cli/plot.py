"""`jaxsharp plot`: a saved result as a figure."""

from pathlib import Path

from jaxsharp import plots
from jaxsharp.cli.misuse import did_you_mean
from jaxsharp.cli.output import FIGURE, RESULTS, write_figure
from jaxsharp.experiments import EXPERIMENTS
from jaxsharp.results import load

SUMMARY = "draw a saved result: an experiment's own figure, or one variable"
EPILOG = """\
examples:
  jaxsharp plot results/bn-regression
  jaxsharp plot results/bn-regression --variable stability_ratio --x time --select dynamics=gd --out ratio.pdf
  jaxsharp plot sweep.nc --variable sharpness --log

Without --variable a result of `jaxsharp run` gives its figure again, and any other gives its first variable. Lines are medians
over seeds, bands reach from the least to the largest.
"""


def add_arguments(parser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("results", metavar="RESULTS", help="a netCDF file, or a folder that `jaxsharp run` wrote")
    parser.add_argument("--variable", metavar="NAME", help="what to draw against steps")
    parser.add_argument("--x", choices=("step", "time"), default="step", help="the horizontal axis (default: step)")
    parser.add_argument(
        "--select", metavar="DIM=VALUE", nargs="+", action="extend", default=[], help="keep one value of a dimension"
    )
    parser.add_argument("--log", action="store_true", help="logarithmic vertical axis")
    parser.add_argument("--out", metavar="FILE", help="image to write: .png, .pdf or .svg (default: beside the results)")


def execute(options) -> int:
    """Draws and writes one figure."""
    path = Path(options.results)
    path = path / RESULTS if path.is_dir() else path
    dataset = load(path)
    experiment = EXPERIMENTS.get(dataset.attrs.get("experiment"))
    if experiment and options.variable is None and not options.select:
        figure, default = experiment.figure(dataset), FIGURE
    else:
        figure, default = _variable(_selected(dataset, options.select), options)
    out = Path(options.out) if options.out else path.with_name(default)
    write_figure(figure, out)
    print(f"figure: {out}")
    return 0


def _variable(dataset, options):
    known = plots.variables(dataset)
    if not known:
        raise ValueError(f"{options.results!r} holds no trajectory to draw: no variable has a step dimension.")
    name = options.variable or known[0]
    return plots.trajectories(dataset, name, options.x, log=options.log), f"{name}.png"


def _selected(dataset, pairs):
    for pair in pairs:
        name, mark, text = pair.partition("=")
        if not mark:
            raise ValueError(f"--select needs dimension=value, got {pair!r}.")
        if name not in dataset.dims:
            raise ValueError(f"--select has the unknown dimension {name!r}; {did_you_mean(name, dataset.dims)}.")
        values = dataset[name].values.tolist()
        match = [value for value in values if _equal(value, text)]
        if not match:
            raise ValueError(f"--select {name} has no value {text!r}; it has {', '.join(map(str, values))}.")
        dataset = dataset.sel({name: match[0]})
    return dataset


def _equal(value, text):
    try:
        return abs(float(text) - value) <= 1e-9 * abs(value)
    except (TypeError, ValueError):
        return str(value) == text
