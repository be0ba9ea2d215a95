"""Results: labelled datasets with provenance, saved as netCDF; the place that turns arrays into xarray."""

import datetime
import functools
import json
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from jaxsharp.grid import Outcome
from jaxsharp.probes import Probe, Variable
from jaxsharp.status import FATAL, MEANINGS
from jaxsharp.trajectory import Schedule


def to_dataset(
    outcome: Outcome,
    axes: dict[str, Sequence],
    probes: Sequence[Probe],
    plan: Schedule,
    *,
    every: int,
    time_per_step: np.ndarray | None = None,
    configuration: dict | None = None,
) -> xr.Dataset:
    """Labels what a grid recorded.

    Args:
        outcome: arrays with a leading member axis, in the order of the product of the axes.
        axes: name -> coordinate values; empty for one trajectory.
        probes: for labels.
        plan: for the step numbers.
        every: the cadence that gets the dimension `step`; another cadence n gets `step_n`.
        time_per_step: (members,) flow time of a step; adds the coordinate `time`.
        configuration: what was asked for; becomes one JSON attribute.

    Returns:
        A Dataset. Dimensions: the axes, then `step` (and `step_n`), then those of each variable. Data variables: what the
        probes recorded, `status` (bits, with their meanings as attributes), `diverged_at` (the step that failed, NaN where
        none did), `steps_completed`, and `hvps` (Hessian-vector products spent).
    """
    shape = tuple(len(values) for values in axes.values())
    labels: dict[str, Variable] = {}
    for probe in probes:
        labels.update(probe.variables)
    variables, coordinates = {}, {name: np.asarray(values) for name, values in axes.items()}
    for index, cadence in enumerate(plan.cadences):
        dimension = "step" if cadence == every else f"step_{cadence}"
        steps = plan.steps_of(index)
        coordinates[dimension] = (dimension, steps, {"long_name": "optimizer steps", "units": "steps"})
        if time_per_step is not None:
            times = np.asarray(time_per_step, float).reshape(*shape, 1) * steps
            name = "time" if dimension == "step" else f"time_{cadence}"
            coordinates[name] = ((*axes, dimension), times, {"long_name": "flow time", "units": "flow time"})
        for name, values in outcome.records.get(str(cadence), {}).items():
            label = labels.get(name, Variable(long_name=name))
            extra = values.shape[2:]
            dims = label.dims if len(label.dims) == len(extra) else tuple(f"{name}_dim_{i}" for i in range(len(extra)))
            attributes = {"long_name": label.long_name or name, "units": label.units}
            variables[name] = ((*axes, dimension, *dims), values.reshape(*shape, *values.shape[1:]), attributes)
            if "eigenvalue" in dims:
                coordinates["eigenvalue"] = np.arange(1, extra[dims.index("eigenvalue")] + 1)
    status = outcome.status.reshape(shape)
    failed = (status & int(FATAL)) != 0
    per_member = {
        "status": (status, {"long_name": "status", **_flags()}),
        "diverged_at": (
            np.where(failed, outcome.count.reshape(shape) + 1.0, np.nan),
            {"long_name": "step that failed", "units": "steps"},
        ),
        "steps_completed": (outcome.count.reshape(shape), {"long_name": "completed steps", "units": "steps"}),
        "hvps": (outcome.hvps.reshape(shape), {"long_name": "Hessian-vector products", "units": "1"}),
    }
    variables.update({name: (tuple(axes), values, attributes) for name, (values, attributes) in per_member.items()})
    dataset = xr.Dataset(variables, coordinates)
    dataset.attrs.update(provenance(outcome, configuration or {}))
    return dataset


def _flags() -> dict:
    """The meaning of the status bits, in the form of the CF conventions."""
    return {
        "flag_masks": np.asarray([int(bit) for bit in MEANINGS], np.int32),
        "flag_meanings": " ".join(bit.name.lower() for bit in MEANINGS),
        "flag_descriptions": "; ".join(f"{bit.name.lower()}: {meaning}" for bit, meaning in MEANINGS.items()),
    }


def provenance(outcome: Outcome, configuration: dict) -> dict:
    """Collects what made a result: versions, device, precision, cost, configuration.

    Args:
        outcome: for cost.
        configuration: what was asked for.

    Returns:
        Attributes of text and numbers, which netCDF can hold.
    """
    device = jax.devices()[0]
    dtypes = sorted({v.dtype.name for g in outcome.records.values() for v in g.values() if np.issubdtype(v.dtype, np.floating)})
    packages = ("jaxsharp", "jax", "jaxlib", "numpy", "optax", "flax", "diffrax")
    return {
        "title": "jaxsharp simulation",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": json.dumps({name: _version(name) for name in packages}),
        "device": f"{device.platform}: {device.device_kind}",
        "precision": ", ".join(dtypes),
        "hvp_count": int(outcome.hvps.sum()),
        "wall_time_seconds": round(outcome.seconds, 3),
        "configuration": json.dumps(configuration, default=str),
    }


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def save(dataset: xr.Dataset, path: str | os.PathLike) -> Path:
    """Writes a Dataset as netCDF, whole or not at all.

    Args:
        dataset: from `simulate` or `sweep`, or made of such.
        path: where; an existing file is replaced.

    Returns:
        The path.

    Raises:
        ValueError: for a path that cannot be written; the dataset stays in memory.

    Example:
        >>> import tempfile, jaxsharp as js
        >>> ds = js.simulate(js.problems.valley(), js.optimizers.gd(0.1), steps=2, probes=["loss"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bool(js.load(js.save(ds, folder + "/results.nc")).identical(ds))
        True
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        dataset.to_netcdf(temporary, engine="h5netcdf")
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"the result cannot be written to {str(path)!r}: {error.strerror or error}; choose another path."
        ) from None
    return path


def load(path: str | os.PathLike) -> xr.Dataset:
    """Reads a Dataset that `save` wrote, whole into memory; nothing in the file is executed.

    Args:
        path: of a netCDF file.

    Returns:
        The Dataset.

    Raises:
        ValueError: for a missing, truncated or foreign file.

    Example:
        See `save`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no result file at {str(path)!r}.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            return dataset.load()
    except Exception as error:
        raise ValueError(f"the file {str(path)!r} is truncated or not a result of jaxsharp ({error}); run it again.") from None
