"""What the benchmarks share: timing with the first call apart, and the machine in the report."""

import json
import statistics
import subprocess
import time
from pathlib import Path

import jax

import jaxsharp as js


def timed(call, repeats: int) -> tuple[object, float, float]:
    """The result of a call, the seconds of its first run, which compiles, and the median seconds of the others."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return result, seconds[0], statistics.median(seconds[1:])


def by_turns(ways: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each way, all once before, which compiles, and then by turns, so that noise disturbs all alike."""
    seconds = {name: [] for name in ways}
    for run in ways.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict:
    """Device, versions, precision and commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
        "jaxsharp": js.__version__,
        "x64": bool(jax.config.jax_enable_x64),
        "compiled before": bool(jax.config.jax_compilation_cache_dir),  # then first calls may be shorter than they would be
        "commit": commit,
    }


def write(report: dict, out: Path | None) -> None:
    """Prints a report as a table and writes it as JSON where asked."""
    rows = list(_rows(report))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")


def _rows(entry, path=()):
    """The leaves of nested dictionaries, each with its path."""
    if isinstance(entry, dict):
        for name, inner in entry.items():
            yield from _rows(inner, (*path, name))
    else:
        yield " | ".join(path), entry
