"""Detectors that were not trained, which take as long as those that were, and images for them."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from haloae.detector import Detector
    from haloae.network.haloae import HaloAE

Images = NDArray[np.float32]
SEEN = 4
"""Images that batch norm sees."""


def textures(count: int, size: int) -> Images:
    """Seeded slanted stripes under noise, unlike each other: (count, 3, size, size) in [0, 1]."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    images = []
    for _ in range(count):
        frequency, slant = rng.uniform(20, 60, (3, 1, 1)), rng.uniform(-1, 1)
        stripes = 0.5 + 0.3 * np.sin(frequency * (rows + slant * columns))
        noise = rng.uniform(0, 0.5) * rng.normal(size=(3, size, size))
        images.append(stripes + noise)
    return np.stack(images).clip(0, 1).astype(np.float32)


def _network(config: Config, images: Images) -> "HaloAE":
    """Without training: components are of these images, batch norm has seen the first of them."""
    import torch

    from haloae.network.haloae import HaloAE
    from haloae.network.reducer import FeatureReducer

    network = HaloAE(
        config.network,
        image_size=config.image_size,
        weights=config.backbone,
        generator=torch.Generator().manual_seed(0),
    )
    batch = network.normalise(torch.from_numpy(images))
    with torch.no_grad():
        if isinstance(network.reducer, FeatureReducer):
            network.reducer.fit(network.extractor(image[None]) for image in batch)
        calm(network)
        settle(network, batch[:SEEN])
    return network


def untrained(config: Config, count: int) -> "Detector":
    """A detector with all that training gives but its weights, calibrated on `count` images."""
    from haloae.data.source import ImageKinds
    from haloae.detection.calibration import Calibration
    from haloae.detection.good import measure_good
    from haloae.detection.model_file import Provenance
    from haloae.detection.native import Native
    from haloae.detector import Detector

    # The textures are square, so this is what training would have settled.
    config = config.replace(view={"kind": "squash"})
    size = config.image_size
    images = textures(count, size)
    network = _network(config, images)
    head, scores, peaks, _ = measure_good(network, lambda: iter(images), config)
    source = network.extractor.source
    assert source is not None  # noqa: S101 - it was just loaded
    return Detector(
        config,
        backend=Native(config, network, head),
        calibration=Calibration(
            scores=scores, peaks=peaks, false_alarm_rate=config.detection.false_alarm_rate
        ).fitted(),
        provenance=Provenance(
            data="textures",
            fitted_on=count,
            held_out=count if config.network.autoencoder else 0,
            skipped=0,
            steps=0,
            backbone=source.name,
            backbone_sha256=source.sha256,
            images=ImageKinds(
                grey=(False,), depths=(8,), heights=(size, size), widths=(size, size)
            ),
        ),
    )


def calm(network: Any) -> None:  # noqa: ANN401 - torch is imported late
    """Let blocks add little to their skips.

    Else rounding grows from block to block, as it does not after training, and an export that is
    sound differs from its detector by more than it may.
    """
    if network.encoder is None:
        return
    for block in (*network.encoder.blocks, *network.decoder.blocks):
        block.norm2.weight *= 0.1
        if hasattr(block.attention, "to_q"):
            block.attention.to_q.weight *= 0.1


def settle(network: Any, batch: "Tensor") -> None:  # noqa: ANN401 - torch is imported late
    """Let batch norms see images, so that activations keep their size, as after training."""
    from torch import nn

    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(batch)
    network.eval()
