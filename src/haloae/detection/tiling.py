"""What a detector sees of an image in tiles: as much, and the same, as of the whole at once."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haloae.config import Config
from haloae.data.regions import FILL, Mask, cells_inside
from haloae.data.views import WHITE, Size, View, pieces
from haloae.detection.heads import Seen, head_of
from haloae.detection.maps import smoothing_reach
from haloae.detection.scorer import see
from haloae.errors import ConfigError
from haloae.network.haloae import HaloAE
from haloae.network.reach import autoencoder_reach, features_reach, image_decoder_reach


def margin_of(config: Config) -> int:
    """Pixels from a cut within which a tile's map may differ from the whole image's, at most.

    Raises:
        ConfigError: a part of the detector sees all of an image, or as much as nobody knows.
    """
    network, head = config.network, head_of(config)
    if head.reach is None:
        raise ConfigError(
            f"view.kind tiles needs a detector head that reaches a known number of cells, and "
            f"{config.detection.head!r} does not say how far: choose another."
        )
    cells = head.reach + smoothing_reach(config.detection)
    if head.needs_autoencoder:
        cells += autoencoder_reach(network)
    if config.detection.image_weight:
        cells += image_decoder_reach(network)
    return features_reach(network) + cells * network.stride


def see_in_tiles(
    network: HaloAE, pixels: NDArray[np.float32], view: View, inside: Mask | None = None
) -> Seen:
    """What `see` gives of a whole image, a batch of one, put together from its tiles.

    Args:
        network: any, on whose device it is computed.
        pixels: (3, H, W), of `View.show`.
        view: in tiles.
        inside: (H, W) bool, True where a pixel counts; None: all do.
    """
    if inside is not None:
        pixels = np.where(inside, pixels, np.float32(FILL / WHITE))
    shown: Size = (pixels.shape[1], pixels.shape[2])
    device = next(network.parameters()).device
    rows, columns = view.cells_of(view.whole(shown))
    found: dict[str, Tensor] = {}
    for tile, part in pieces(pixels, view):
        each = see(network, torch.from_numpy(np.ascontiguousarray(part))[None].to(device))
        inner = tile.inner(view.cell)
        for name, tensor, cell in _parts(each, view.cell):
            if name not in found:
                shape = (*tensor.shape[:2], rows * cell, columns * cell)
                found[name] = tensor.new_empty(shape)
            target, source = (
                [slice(cells.start * cell, cells.stop * cell) for cells in both]
                for both in ((tile.rows, tile.columns), inner)
            )
            found[name][:, :, target[0], target[1]] = tensor[:, :, source[0], source[1]]
    real = view.cells_of(shown)
    cropped = {
        name: tensor[..., : real[0] * cell, : real[1] * cell]
        for (name, _, cell), tensor in zip(_parts(each, view.cell), found.values(), strict=True)
    }
    output = each.output._replace(
        features=cropped["features"],
        rebuilt=cropped.get("rebuilt", cropped["features"]),
        image=cropped.get("rebuilt image"),
    )
    cells = None if inside is None else torch.from_numpy(cells_inside(inside, view.cell)[None])
    return Seen(output, cropped["image"], None if cells is None else cells.to(device))


def _parts(seen: Seen, cell: int) -> Iterator[tuple[str, Tensor, int]]:
    """Name, tensor and pixels a cell of all that there is of an image."""
    output, image = seen.output, seen.image
    yield "features", output.features, 1
    if output.rebuilt is not output.features:
        yield "rebuilt", output.rebuilt, 1
    if output.image is not None:
        yield "rebuilt image", output.image, cell
    yield "image", image, cell
