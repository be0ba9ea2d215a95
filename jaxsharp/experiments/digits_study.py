"""Does weight decay with a normalization reduce sharpness and help on digits? A study of one or of every normalization."""

import os
from dataclasses import dataclass
from functools import lru_cache

import jax
import xarray as xr

from jaxsharp import data, models, problems
from jaxsharp.experiments import decay_study
from jaxsharp.experiments.experiment import Experiment, setting


@dataclass(frozen=True)
class ZooSettings(decay_study.Settings):
    """Settings of norm-zoo; each field says what it is."""

    norms: tuple[str, ...] = setting(("batch", "layer", "rms", "weight", "none"), "normalizations; `none` is a control")
    widths: tuple[int, ...] = setting((8,), "channels of the convolutions")

    def __post_init__(self):
        """Refuses what makes no sense."""
        decay_study.Settings.__post_init__(self)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be whole numbers above 0, at least one, got {self.widths}.")


@dataclass(frozen=True)
class BatchSettings(ZooSettings):
    """Settings of bn-digits; each field says what it is."""

    norms: tuple[str, ...] = setting(("batch", "none"), "normalizations; `none` is a control")
    learning_rates: tuple[float, ...] = setting((0.25, 0.5), "learning rates η̂")


@lru_cache(maxsize=16)
def _problem(norm, images, test_images, data_seed, widths, double):
    """The problem of a normalization; cached, since equal functions let a later run reuse compiled programs."""
    del double  # distinguishes the precisions
    train, test = data.digits(images, test_images, seed=data_seed, flatten=False)
    model = models.CNN(widths=tuple(widths), norm=norm, scale_invariant=norm != "none")
    return problems.supervised(model, train, test, loss="mse")


def _run(experiment, settings, progress, checkpoint):
    def problem_of(norm):
        sizes = (settings.images, settings.test_images, settings.data_seed, tuple(settings.widths))
        return _problem(norm, *sizes, bool(jax.config.jax_enable_x64))

    title = f"{experiment.name}: full-batch GD with and without weight decay on digits, {settings.images} images"
    return decay_study.run(experiment, settings, problem_of, title, progress=progress, checkpoint=checkpoint)


def run_zoo(settings: ZooSettings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs full-batch GD on a small convolutional network for each normalization, learning rate, weight decay (with 0) and seed.

    Networks with a normalization are in their fully scale-invariant form.

    Args:
        settings: what to run.
        progress: whether to say on stderr what runs, and to show bars.
        checkpoint: folder to keep finished and running batches in, and to go on from.

    Returns:
        A Dataset; see `decay_study.run`.

    Raises:
        ValueError: for counts that the digits do not cover, or a checkpoint of other settings.
    """
    return _run(norm_zoo, settings, progress, checkpoint)


def run_batch(settings: BatchSettings, *, progress: bool = False, checkpoint: str | os.PathLike | None = None) -> xr.Dataset:
    """Runs the same study for batch normalization over more learning rates and weight decays; see `run_zoo`."""
    return _run(bn_digits, settings, progress, checkpoint)


norm_zoo = Experiment(
    name="norm-zoo",
    summary="GD with and without weight decay on digits for each normalization: sharpness, edge of stability, test accuracy",
    settings=ZooSettings,
    run=run_zoo,
    table=decay_study.table,
    figure=decay_study.figure,
    full={"norms": (*models.NORMALIZATIONS[1:], "none"), "seeds": 8, "steps": 4_000},
    precision="float32",
)

bn_digits = Experiment(
    name="bn-digits",
    summary="GD with weight decay, batch-normalized, on digits; controls: no decay, no normalization, on demand gradient flow",
    settings=BatchSettings,
    run=run_batch,
    table=decay_study.table,
    figure=decay_study.figure,
    full={"weight_decays": (5e-4, 1e-3), "seeds": 8, "steps": 2_000, "flow": True},
    precision="float32",
)
