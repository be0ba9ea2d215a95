"""`jaxsharp doctor`: what is installed, what it runs on, and whether it computes right."""

import os
import platform
from importlib import metadata

import jax

from jaxsharp import selfcheck

SUMMARY = "show versions and devices, and check the numerics of the installed JAX"
EPILOG = """\
example:
  jaxsharp doctor

Exit code 1 when the self-check fails. It compares batched gradients and Hessian-vector products with single ones and these with
finite differences, for each normalization, in float32 and float64.
"""

PACKAGES = (
    "jaxsharp",
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "optax",
    "flax",
    "diffrax",
    "xarray",
    "h5netcdf",
    "h5py",
    "matplotlib",
    "scikit-learn",
)


def add_arguments(parser) -> None:
    """Declares the command's arguments: none."""
    del parser


def execute(options) -> int:
    """Prints the report; 0 where every check passes."""
    del options
    print(f"python        {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in PACKAGES:
        print(f"{name:<12}  {_version(name)}")
    print(f"devices       {', '.join(f'{device.platform} {device.device_kind}' for device in jax.devices())}")
    print(f"precision     {'float64' if jax.config.jax_enable_x64 else 'float32'} unless chosen otherwise")
    print(f"XLA_FLAGS     {os.environ.get('XLA_FLAGS', '(none)')}")
    reports = []
    for double in (False, True):
        with jax.enable_x64(double):
            reports.append(selfcheck.check())
    print("\nself-check: relative errors of gradients and Hessian-vector products\n")
    for line in _table(reports):
        print(line)
    faults = [fault for report in reports for fault in report.faults]
    if not faults:
        print("\npassed")
        return 0
    print("\nFAILED")
    for fault in faults:
        print(f"  {fault}")
    print(f"remedy: {selfcheck.remedy(next(report for report in reports if report.faults))}")
    return 1


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _table(reports):
    sizes = list(reports[0].rows[0].batched)
    rows = [("dtype", "normalization", *(f"batch of {size} / single" for size in sizes), "single / finite differences", "")]
    for report in reports:
        for row in report.rows:
            errors = [*row.batched.values()]
            good = (
                all(error <= report.batched_tolerance for error in errors)
                and row.finite_difference <= report.finite_difference_tolerance
            )
            cells = [f"{error:.0e}" for error in (*errors, row.finite_difference)]
            rows.append((report.dtype, row.normalization, *cells, "pass" if good else "FAIL"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
