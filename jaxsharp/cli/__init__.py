"""The command line: parse, build, run, save, plot; one command a file."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

import jax

import jaxsharp
from jaxsharp import selfcheck
from jaxsharp.cli import doctor, list_experiments, plot, run, sweep
from jaxsharp.cli.misuse import did_you_mean, one_line
from jaxsharp.cli.output import Interrupted

COMMANDS = {
    "list": list_experiments,
    "run": run,
    "sweep": sweep,
    "plot": plot,
    "doctor": doctor,
}

EPILOG = """\
examples:
  jaxsharp list
  jaxsharp run bn-regression --set seeds=4 --out results/quick
  jaxsharp plot results/quick --variable stability_ratio
  jaxsharp doctor

exit codes: 0 done, 1 the self-check failed, 2 bad input (one sentence on stderr), 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message):
        """Raises instead of printing the usage."""
        raise ValueError(f"{message}; see {self.prog} --help.")


def _parser():
    parser = _Parser(
        prog="jaxsharp",
        description=jaxsharp.__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxsharp {jaxsharp.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(execute=module.execute)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of `jaxsharp`.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        The exit code: 0 done, 1 the self-check failed, 2 bad input, 130 interrupted. Bad input ends with one sentence on stderr.

    Example:
        >>> main(["list", "bn-regresion"])
        2
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters shows ? instead of a traceback
    try:
        if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
            raise ValueError(f"there is no command {argv[0]!r}; {did_you_mean(argv[0], COMMANDS)}.")
        options = _parser().parse_args(argv)
        selfcheck.apply_flag_to_environment()
        _use_every_core()
        return options.execute(options)
    except SystemExit as exit:  # argparse, after --help and --version
        return int(exit.code or 0)
    except Interrupted as interrupted:
        return _fail(interrupted, 130)
    except KeyboardInterrupt:
        return _fail("interrupted.", 130)
    except BrokenPipeError:  # whoever read the output has seen enough
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except jax.errors.JaxRuntimeError as error:
        return _fail(f"JAX stopped with an error of the device: {error}; try fewer seeds or a smaller problem.", 2)
    except (ValueError, OSError, selfcheck.NumericalSelfCheckError) as error:
        return _fail(error, 2)


def _use_every_core():
    """Makes each CPU core a device, for grids to be spread over, unless JAX_NUM_CPU_DEVICES or XLA_FLAGS give a number."""
    if jax.config.jax_num_cpu_devices > 0 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # JAX has computed before, in a program that called `main`
        jax.config.update("jax_num_cpu_devices", cores)


def _fail(message, code):
    print(f"jaxsharp: {one_line(message)}", file=sys.stderr)
    return code


__all__ = ["COMMANDS", "main"]
