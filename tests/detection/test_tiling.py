"""A map put together from tiles is that of the whole image computed at once."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiny_trunk  # noqa: F401 - registers it
from conftest import PLAIN
from haloae.config import Config
from haloae.data.views import View, join, pieces
from haloae.detection.heads import Seen, head_of
from haloae.detection.scorer import Scorer, see
from haloae.detection.tiling import margin_of, see_in_tiles
from haloae.errors import ConfigError
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.network.reach import step_of

BASE = PLAIN.replace(
    backbone="random",
    view={"place": "anywhere"},
    network={
        "trunk": "tiny",
        "reduced_channels": 6,
        "head_channels": 8,
        "encoder": [{"channels": 8}],
        "decoder": [{}],
        "classifier": False,
        "attention": {"block": 3, "halo": 1, "head_dim": 4},
    },
)
PLAIN_FEATURES = {"stride": 8, "autoencoder": False}
CONFIGS = {
    "halo attention": BASE,
    "its image": BASE.replace(
        network={"image_decoder": [4]}, detection={"image_weight": 0.5, "normalisation": "channel"}
    ),
    "window mean, published smoothing": BASE.replace(
        network={"attention": {"mode": "window_mean"}},
        detection={"smoothing": "published", "sigma": 0.0},
    ),
    **{
        head: BASE.replace(network=PLAIN_FEATURES, detection={"head": head, "sigma": 1.2})
        for head in ("gaussian", "nearest", "nearest_halo", "halo")
    },
    "a real trunk": BASE.replace(
        network=PLAIN_FEATURES | {"trunk": "resnet18"}, detection={"head": "gaussian"}
    ),
}


def fitted(config: Config, dtype: torch.dtype) -> Scorer:
    """Random weights, and a head that knows a few random images."""
    generator = torch.Generator().manual_seed(0)
    network = HaloAE(config.network, image_size=64, weights="random", generator=generator).eval()
    rng = np.random.default_rng(1)

    def seen() -> Iterator[Seen]:
        for _ in range(4):
            pixels = torch.from_numpy(rng.random((1, 3, 96, 96), dtype=np.float32))
            with torch.inference_mode():
                yield see(network, pixels)

    head = head_of(config).fit(config, seen)
    used = lean(network, image=config.detection.image_weight > 0, dtype=dtype)
    return Scorer(used, head, config.detection).eval()


def maps(scorer: Scorer, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, 3, H, W) → (B, h, w), in the precision of the network."""
    dtype = next(scorer.network.parameters()).dtype
    with torch.inference_mode():
        found: NDArray[np.float32] = scorer(torch.from_numpy(images).to(dtype)).anomaly_map.numpy()
    return found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in CONFIGS if name != "a real trunk"),
        *((name, torch.float32) for name in ("halo attention", "halo")),
        pytest.param("a real trunk", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_tiled_is_whole(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    scorer = fitted(config, dtype)
    step, margin = step_of(config.network), margin_of(config)
    overlap = -(-2 * margin // step) * step
    rng = np.random.default_rng(len(name))
    for _ in range(1 if name == "a real trunk" else 2):
        canvas = [overlap + step * int(n) for n in rng.integers(1, 4, 2)]
        shown = [int(n) for n in rng.integers(canvas[0] // 2, canvas[0] + 2 * step, 2)]
        view = View(
            "tiles",
            (canvas[0], canvas[1]),
            step=step,
            overlap=overlap,
            margin=margin,
            cell=config.network.stride,
        )
        pixels = rng.random((3, *shown), dtype=np.float32)
        pixels[:, : shown[0] // 3] *= 0.2
        tiles = [*pieces(pixels, view)]
        found = join([maps(scorer, part[None])[0] for _, part in tiles], view, (shown[0], shown[1]))
        # The same mirrored pixels, as one tile of all.
        all_ = View("tiles", view.whole((shown[0], shown[1])), step=step, cell=view.cell)
        ((_, everything),) = pieces(pixels, all_)
        rows, columns = found.shape
        wanted = maps(scorer, everything[None])[0, :rows, :columns]
        allowed = 1e-5 if dtype == torch.float64 else 1e-4
        assert np.abs(found - wanted).max() <= allowed * wanted.max()


def test_less_than_the_margin_is_not_enough() -> None:
    """Else the test above would prove nothing."""
    config = CONFIGS["gaussian"]
    scorer, step, margin = fitted(config, torch.float64), step_of(config.network), margin_of(config)
    pixels = np.random.default_rng(0).random((3, 40 * step, 20 * step), dtype=np.float32)
    wanted = maps(scorer, pixels[None])[0]
    differences = []
    for overlap in (step, -(-2 * margin // step) * step):
        view = View("tiles", (overlap + step,) * 2, step=step, overlap=overlap, cell=8)
        parts = [maps(scorer, part[None])[0] for _, part in pieces(pixels, view)]
        found = join(parts, view, (pixels.shape[1], pixels.shape[2]))
        differences.append(np.abs(found - wanted).max() / wanted.max())
    assert differences[0] > 1e-3 > 1e-5 > differences[1]


@pytest.mark.parametrize("name", ["halo attention", "its image", "gaussian"])
def test_what_is_seen_in_tiles_is_what_is_seen_at_once(name: str) -> None:
    config = CONFIGS[name]
    scorer, step, margin = fitted(config, torch.float32), step_of(config.network), margin_of(config)
    overlap = -(-2 * margin // step) * step
    side = overlap + 2 * step
    view = View("tiles", (side,) * 2, step=step, overlap=overlap, cell=config.network.stride)
    pixels = np.random.default_rng(0).random((3, side + 3 * step, side + step), dtype=np.float32)
    with torch.inference_mode():
        found = see_in_tiles(scorer.network, pixels, view)
        wanted = see(scorer.network, torch.from_numpy(pixels[None]))
    for one, other in zip(
        (*found.output, found.image), (*wanted.output, wanted.image), strict=True
    ):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))


def test_parts_without_an_end_have_no_tiles() -> None:
    attention = {"mode": "global"}
    with pytest.raises(ConfigError, match="choose halo"):
        margin_of(BASE.replace(network={"attention": attention}))
    # It is not looked at where the head needs no reconstructions.
    nearest = BASE.replace(network={"attention": attention}, detection={"head": "nearest"})
    assert margin_of(nearest) < margin_of(BASE)
