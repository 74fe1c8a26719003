"""From good images to a trained network: survey, split, train.

With a run folder it leaves a checkpoint and a CSV log there, and a run that was stopped goes on.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from haloae.config import Config
from haloae.data.images import image_from
from haloae.data.regions import cells_inside
from haloae.data.source import ImageKinds, ImageLike, unmasked
from haloae.data.views import View
from haloae.errors import ConfigError, ImageError
from haloae.network.haloae import HaloAE
from haloae.network.reducer import FeatureReducer
from haloae.training.batches import GoodImages, StepBatches, seed_of, split, survey
from haloae.training.loop import Training, train
from haloae.training.run_folder import (
    Checkpoint,
    check_same_run,
    forget,
    load_checkpoint,
    save_checkpoint,
)

REDUCER_IMAGES = 64
"""Good images the features' components are found on, at least; fewer than twice as many."""
TRIES = 100
"""Tiles of an image that are looked at for one in which something counts."""
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


class Trained(NamedTuple):
    """A trained network, and how it came about."""

    network: HaloAE
    images: GoodImages
    """All that could be read."""
    fitted_on: list[int]
    """Which of them it was trained on."""
    held_out: list[int]
    """Those that say what good images look like to it."""
    kinds: ImageKinds
    skipped: list[ImageError]
    """One for each image that could not be read."""
    steps: int
    backbone: tuple[str, str]
    """Name and hash of the backbone's weights."""


def fit(
    images: Sequence[ImageLike],
    config: Config,
    *,
    device: torch.device,
    run: Path | None = None,
    max_steps: int | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    strict: bool = False,
    progress: bool = False,
    workers: int = 0,
) -> Trained:
    """Train a network on good images, less those that are held out.

    Without an auto-encoder there is nothing to train and nothing to hold out: all good images are
    in both lists, and each is left out in turn by who measures them.

    Args:
        images: the good images: paths, PIL images or arrays.
        config: of everything.
        device: where to compute.
        run: folder for checkpoint and loss log; None keeps neither.
        max_steps: stop there; the schedule stays the config's.
        max_minutes: stop after that time; `resume` goes on later.
        resume: go on from the run's checkpoint, if it has one.
        strict: True: an image that cannot be read is an error; False: it is skipped.
        progress: True: show bars on stderr.
        workers: processes that make batches ahead, on CUDA; spawned, so the caller's main module
            must be importable.

    Raises:
        DataError: too few images that can be read.
        ImageError: with `strict`, an image cannot be read.
        ConfigError: a name in the config is in no table.
        WeightsError: the backbone's weights cannot be had.
        TrainingError: a loss is not finite, or the checkpoint is of another run.
        OutputError: the run's folder cannot be written to.
        KeyboardInterrupt: after the checkpoint was saved.
    """
    deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes

    def bar(items: Iterable[Any], title: str) -> Iterable[Any]:
        shown: Iterable[Any] = tqdm(items, title, disable=not progress, leave=False)
        return shown

    good, kinds, skipped = survey(
        images, View.of(config), strict=strict, progress=lambda items: bar(items, "reading")
    )
    saved = load_checkpoint(run) if resume and run else None
    if run and saved:
        check_same_run(saved, config, _fingerprint(good.items), run)
    if not config.network.autoencoder:
        everything = list(range(len(good)))
        network, backbone = _network(good, everything, config, device, bar)
        if run:
            forget(run)
        return Trained(network, good, everything, everything, kinds, skipped, 0, backbone)
    _require_one_shape(good, config)
    fitted_on, held_out = split(len(good), config.seed)
    state = _state(good, fitted_on, config, device, run, saved=saved, bar=bar)
    batches = StepBatches(
        good,
        fitted_on,
        batch_size=config.training.batch_size,
        seed=config.seed,
        pasted=config.network.classifier or config.loss.clean_targets,
    )
    stop = config.training.steps if max_steps is None else min(config.training.steps, max_steps)
    loader = batches.loader(state.step, stop, workers=0 if device.type == "cpu" else workers)
    train(state, loader, deadline=deadline, run=run, progress=progress)
    return Trained(
        network=state.network,
        images=good,
        fitted_on=fitted_on,
        held_out=held_out,
        kinds=kinds,
        skipped=skipped,
        steps=state.step,
        backbone=state.backbone,
    )


def _require_one_shape(images: GoodImages, config: Config) -> None:
    if config.view.kind == "fit" and len(images.shapes) > 1:
        raise ConfigError(
            f"network.autoencoder = true trains on images of one shape, and fitted these are of "
            f"{len(images.shapes)}: set view.kind to squash or tiles, or crop them to one aspect "
            f"ratio."
        )


def _state(
    images: GoodImages,
    fitted_on: Sequence[int],
    config: Config,
    device: torch.device,
    run: Path | None,
    *,
    saved: Checkpoint | None,
    bar: Progress,
) -> Training:
    """Where training starts, or goes on."""
    if run and saved:
        return Training.restore(saved, config, device, run)
    network, backbone = _network(images, fitted_on, config, device, bar)
    fingerprint = _fingerprint(images.items)
    state = Training.start(network, config, images=fingerprint, backbone=backbone)
    if run:
        forget(run)
        save_checkpoint(run, state.checkpoint())
    return state


def _network(
    images: GoodImages,
    fitted_on: Sequence[int],
    config: Config,
    where: torch.device,
    bar: Progress,
) -> tuple[HaloAE, tuple[str, str]]:
    """A network before training, and name and hash of its backbone's weights."""
    generator = torch.Generator().manual_seed(config.seed)
    network = HaloAE(
        config.network,
        image_size=config.canvas,
        weights=config.backbone,
        generator=generator,
    ).to(where)
    if isinstance(network.reducer, FeatureReducer):
        chosen = fitted_on[:: max(1, len(fitted_on) // REDUCER_IMAGES)]
        network.reducer.fit(
            _features(network, images, i, seed_of(config.seed, 3, i))
            for i in bar(chosen, "reducing")
        )
    source = network.extractor.source
    return network, (source.name, source.sha256) if source else ("", "")


def _features(network: HaloAE, images: GoodImages, index: int, seed: int) -> Tensor:
    """(1, C, h, w) of an image or a tile of it, or (1, C, 1, n) of the cells that count."""
    where = next(network.parameters()).device
    for _ in range(TRIES):
        inside = images.part_inside(index, seed)
        if inside is None or inside.any():
            break
        seed += 1
    image = torch.from_numpy(images.part(index, seed))[None].to(where)
    features: Tensor = network.extractor(network.normalise(image))
    if inside is None or not inside.any():
        return features
    counts = torch.from_numpy(cells_inside(inside, inside.shape[0] // features.shape[2]))
    return features[:, :, counts.to(where)][:, :, None]


def _fingerprint(items: Sequence[ImageLike]) -> str:
    """Changes when images are added, removed, renamed or change their size, or their pixels."""
    sha = hashlib.sha256()
    for given in items:
        item, masks = unmasked(given)
        if isinstance(item, str | os.PathLike):
            path = Path(item)
            sha.update(f"{path.name!a} {path.stat().st_size}\n".encode())
        else:
            sha.update(image_from(item).pixels.tobytes())
        for each in masks:
            sha.update(each.fingerprint())
    return sha.hexdigest()
