"""The Experiment: a named reproduction with typed settings, a result, a table and a figure."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

import xarray as xr


def setting(default: Any, about: str) -> Any:
    """Makes a field of a settings class, with the sentence that the command line shows for it.

    Args:
        default: its value in the small setting.
        about: what it is, with units, in a few words.

    Returns:
        A field for a frozen dataclass.

    Example:
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     steps: int = setting(100, "optimizer steps")
        >>> Settings().steps
        100
    """
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Experiment:
    """A named reproduction: settings → result → table and figure, each step a plain function.

    Attributes:
        name: as typed on the command line.
        summary: one line.
        settings: a frozen dataclass type, one `setting` a field; the defaults run in minutes on two CPU cores. It refuses
            values that make no sense with a ValueError that names the setting.
        run: `(settings, *, progress=False, checkpoint=None) -> Dataset`; goes on from the folder `checkpoint` where it can.
        table: `(dataset) -> str`, plain text, every number out of the dataset.
        figure: `(dataset) -> matplotlib.figure.Figure`.
        full: the fields of the large setting that differ from the defaults.
        precision: `float64` or `float32`; whoever runs it sets JAX accordingly.

    Example:
        >>> from jaxsharp.experiments import EXPERIMENTS
        >>> EXPERIMENTS["bn-regression"].configure(seeds=2).seeds
        2
    """

    name: str
    summary: str
    settings: type
    run: Callable[..., xr.Dataset]
    table: Callable[[xr.Dataset], str]
    figure: Callable[[xr.Dataset], Any]
    full: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    precision: str = "float64"

    def configure(self, full: bool = False, **changes: Any) -> Any:
        """Makes the settings of a run.

        Args:
            full: whether to start from the large setting.
            **changes: fields by name.

        Returns:
            An instance of `settings`.

        Raises:
            ValueError: for an unknown field, or a value that makes no sense.
        """
        known = [entry.name for entry in fields(self.settings)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise ValueError(f"{self.name} has no setting {unknown[0]!r}; it has {', '.join(known)}.")
        return self.settings(**{**(self.full if full else {}), **changes})

    def label(self, dataset: xr.Dataset, settings: Any) -> xr.Dataset:
        """Writes the experiment's name and settings into a result's attributes, so that a saved file explains itself.

        Args:
            dataset: from `run`.
            settings: that it was run with.

        Returns:
            A Dataset with two more attributes.
        """
        return dataset.assign_attrs(experiment=self.name, settings=json.dumps(asdict(settings)))
