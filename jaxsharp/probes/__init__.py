"""Probes: what is measured along a trajectory, and how often."""

from collections.abc import Sequence

from jaxsharp.probes.flatness import MaskProbe, ProtectionProbe, mask, protection
from jaxsharp.probes.oscillation import oscillation
from jaxsharp.probes.probe import FunctionProbe, Probe, Variable, function
from jaxsharp.probes.scalars import effective_learning_rate, grad_norm, loss, metrics, parameter_norm, parameters
from jaxsharp.probes.sharpness import SharpnessProbe, sharpness, spherical_sharpness
from jaxsharp.probes.spectrum import spectral_density, trace

BY_NAME = {
    "loss": loss,
    "grad_norm": grad_norm,
    "sharpness": sharpness,
    "spherical_sharpness": spherical_sharpness,
    "effective_learning_rate": effective_learning_rate,
    "metrics": metrics,
    "parameters": parameters,
    "parameter_norm": parameter_norm,
    "trace": trace,
    "spectral_density": spectral_density,
    "mask": mask,
    "protection": protection,
    "oscillation": oscillation,
}


def resolve(probes: Sequence[str | Probe]) -> tuple[Probe, ...]:
    """Turns names into probes with their default settings and checks the list.

    Args:
        probes: names out of `BY_NAME`, or probes.

    Returns:
        The probes, in order.

    Raises:
        ValueError: for an unknown name, something that is no probe, a bad cadence, or two probes of one name.

    Example:
        >>> [probe.name for probe in resolve(["loss", sharpness(k=2)])]
        ['loss', 'sharpness']
    """
    if isinstance(probes, (str, Probe)):
        probes = [probes]
    resolved = []
    for probe in probes:
        if isinstance(probe, str):
            if probe not in BY_NAME:
                raise ValueError(f"probe {probe!r} is unknown; use one of {', '.join(BY_NAME)}, or js.probes.function.")
            probe = BY_NAME[probe]()
        if not isinstance(probe, Probe):
            raise ValueError(f"expected a probe or its name, got {type(probe).__name__}.")
        if probe.every is not None and (not isinstance(probe.every, int) or probe.every < 1):
            raise ValueError(
                f"every of the probe {probe.name!r} must be a whole number of steps, at least 1, got {probe.every!r}."
            )
        resolved.append(probe)
    names = [probe.name for probe in resolved]
    if len(set(names)) < len(names):
        raise ValueError(f"two probes have the same name: {', '.join(sorted(names))}.")
    return tuple(resolved)


__all__ = [
    "BY_NAME",
    "FunctionProbe",
    "MaskProbe",
    "Probe",
    "ProtectionProbe",
    "SharpnessProbe",
    "Variable",
    "effective_learning_rate",
    "function",
    "grad_norm",
    "loss",
    "mask",
    "metrics",
    "oscillation",
    "parameter_norm",
    "parameters",
    "protection",
    "resolve",
    "sharpness",
    "spectral_density",
    "spherical_sharpness",
    "trace",
]
