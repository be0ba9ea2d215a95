"""The study of weight decay on deep networks: VGG-11 and ResNet-20 on a subset of CIFAR-10, or on generated images."""

import os
from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np
import xarray as xr

from jaxsharp import data, models, problems
from jaxsharp.data import Dataset
from jaxsharp.experiments import decay_study, shared
from jaxsharp.experiments.experiment import Experiment, setting

SIDE = 32
CLASSES = 10
NOISE = 1.0
"""Standard deviation of the noise on a generated image, whose pattern has 1."""

MODELS = {"cifar10-vgg11": models.VGG, "cifar10-resnet20": models.ResNet}
NAMES = {"cifar10-vgg11": "VGG-11", "cifar10-resnet20": "ResNet-20"}


@dataclass(frozen=True)
class Settings(decay_study.Settings):
    """Settings of cifar10-vgg11 and cifar10-resnet20; each field says what it is."""

    path: str = setting("", "folder of CIFAR-10, see js.data.cifar10; where empty, images are generated")
    learning_rates: tuple[float, ...] = setting((0.2,), "learning rates η̂")
    weight_decays: tuple[float, ...] = setting((1e-2,), "weight decays λ̂ above 0; 0 always runs as a control")
    seeds: int = setting(1, "initial parameters drawn")
    steps: int = setting(300, "optimizer steps")
    every: int = setting(15, "optimizer steps between measurements")
    images: int = setting(20, "training images")
    test_images: int = setting(100, "test images")
    width: int = setting(4, "channels of the first convolution; 64 in VGG-11, 16 in ResNet-20")

    def __post_init__(self):
        """Refuses what makes no sense."""
        decay_study.Settings.__post_init__(self)
        shared.check_counts(self, "width")


def generated(count: int, test_count: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Draws images of ten classes in the shape of CIFAR-10: for each a smooth random pattern, shifted at random, with noise.

    Args:
        count: training images.
        test_count: test images, of the same patterns.
        seed: of everything.

    Returns:
        (train, test): inputs (n, 32, 32, 3) of about mean 0 and variance 1, labels (n,) int32.

    Example:
        >>> train, test = generated(4, 2)
        >>> train.inputs.shape, test.targets.shape
        ((4, 32, 32, 3), (2,))
    """
    rng = np.random.default_rng(seed)
    waves = np.exp(2j * np.pi * np.arange(SIDE)[:, None] * np.arange(-3, 4) / SIDE)
    coefficients = rng.normal(size=(CLASSES, 7, 7, 3)) + 1j * rng.normal(size=(CLASSES, 7, 7, 3))
    patterns = np.einsum("xk,yl,cklm->cxym", waves, waves, coefficients).real
    patterns = (patterns - patterns.mean(axis=(1, 2), keepdims=True)) / patterns.std(axis=(1, 2), keepdims=True)
    parts = []
    for number in (count, test_count):
        labels = rng.permutation(np.arange(number) % CLASSES).astype(np.int32)
        shifts = rng.integers(-4, 5, size=(number, 2))
        images = np.stack([np.roll(patterns[label], shift, (0, 1)) for label, shift in zip(labels, shifts, strict=True)])
        images = images + NOISE * rng.normal(size=images.shape)
        parts.append(Dataset(images / np.sqrt(1 + NOISE**2), labels))
    return tuple(parts)


@lru_cache(maxsize=4)
def _problem(name, norm, path, images, test_images, data_seed, width, double):
    """The problem of a normalization; cached, since equal functions let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    if path:
        train, test = data.cifar10(path, images, test_images, seed=data_seed)
    else:
        train, test = generated(images, test_images, data_seed)
    model = MODELS[name](width=width, norm=norm, scale_invariant=norm != "none")
    return problems.supervised(model, train, test, loss="mse")


def _run(experiment, settings, progress, checkpoint):
    source = "CIFAR-10" if settings.path else "generated images in the shape of CIFAR-10"
    sizes = (settings.images, settings.test_images, settings.data_seed, settings.width)

    def problem_of(norm):
        return _problem(experiment.name, norm, settings.path, *sizes, bool(jax.config.jax_enable_x64))

    words = f"{NAMES[experiment.name]} of width {settings.width}: full-batch GD with and without weight decay"
    title = f"{words} on {settings.images} {source if not settings.path else f'images of {source}'}"
    ds = decay_study.run(experiment, settings, problem_of, title, progress=progress, checkpoint=checkpoint)
    return ds.assign_attrs(images=source)


def run_vgg(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs full-batch GD on VGG-11, in its scale-invariant form where normalized, with and without weight decay.

    Args:
        settings: what to run; without a path the images are generated, which title and the attribute `images` say.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset; see `decay_study.run`.

    Raises:
        ValueError: for files that are missing or of another kind, or a checkpoint of other settings.
    """
    return _run(cifar10_vgg11, settings, progress, checkpoint)


def run_resnet(settings: Settings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs the same for ResNet-20; see `run_vgg`."""
    return _run(cifar10_resnet20, settings, progress, checkpoint)


_FULL = {"seeds": 4, "steps": 10_000, "every": 100, "images": 1000, "test_images": 2000, "weight_decays": (5e-4, 1e-3)}

cifar10_vgg11 = Experiment(
    name="cifar10-vgg11",
    summary="VGG-11 on a subset of CIFAR-10, or on generated images: λ1 of GD with and without weight decay",
    settings=Settings,
    run=run_vgg,
    table=decay_study.table,
    figure=decay_study.figure,
    full={**_FULL, "width": 64},
    precision="float32",
)

cifar10_resnet20 = Experiment(
    name="cifar10-resnet20",
    summary="ResNet-20 on a subset of CIFAR-10, or on generated images: λ1 of GD with and without weight decay",
    settings=Settings,
    run=run_resnet,
    table=decay_study.table,
    figure=decay_study.figure,
    full={**_FULL, "width": 16},
    precision="float32",
)
