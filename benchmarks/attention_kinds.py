"""What a cell is rebuilt from: kinds of attention over the memory, at the same window and budget.

    python -m benchmarks.attention_kinds ROOT --out runs/attention [--sets A,B] [--seeds 0,1]
        [--device cuda]

Each kind is a detector head beside `halo`, which differs from it in the attention alone; it leaves
what `haloae benchmark` does. To import this module is to register them.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tables import Table
from benchmarks.ways import counted_as, options, set_threads, split
from haloae.detection.heads import Seen, register_head
from haloae.detection.heads.halo import HaloHead, Pair
from haloae.detection.heads.nearest_halo import BLOCK, FAR, GROUPS, NearestHaloHead
from haloae.experiments.benchmark import run_benchmark, variants
from haloae.experiments.grid import MEAN, spreads

SEEN = {"kind": "squash"}
"""The view, the same for all sets."""
BLOCKS = 9
"""Of a window."""


class PlaceMean(NearestHaloHead):
    """Every key of a place alike, whatever the query."""

    def without(self, seen: Seen, index: int) -> "PlaceMean":
        """The same: a mean without an image would give away what it was."""
        return self

    def attend(self, features: Tensor, *, nearest: int) -> Tensor:
        """See `NearestHaloHead.attend`; the same for every image."""
        of_places = self.memory.float().unflatten(1, (-1, BLOCK**2)).mean(1)
        return self._grid(of_places).expand(len(features), -1, -1, -1)


class WindowMean(PlaceMean):
    """Every key of a window alike, whatever the query."""

    def attend(self, features: Tensor, *, nearest: int) -> Tensor:
        """See `NearestHaloHead.attend`; the same for every image."""
        of_blocks = F.avg_pool2d(super().attend(features, nearest=nearest), BLOCK)
        of_windows = F.avg_pool2d(of_blocks, 3, stride=1, padding=1, count_include_pad=False)
        return F.interpolate(of_windows, scale_factor=BLOCK)


class Anywhere(NearestHaloHead):
    """The nearest of as many keys as a window has, of as many places of each image, at random."""

    keys_drawn: Tensor
    lengths_drawn: Tensor
    source: Tensor

    def __init__(
        self,
        whitening: Tensor,
        memory_NKC: Tensor,
        images: int,
        *,
        blocks: tuple[int, int] | None = None,
        kept: list[int] | None = None,
    ) -> None:
        super().__init__(whitening, memory_NKC, images, blocks=blocks, kept=kept)
        cells_MPC = memory_NKC.float().unflatten(1, (-1, BLOCK**2)).transpose(0, 1).flatten(1, 2)
        count, places, channels = cells_MPC.shape
        order = torch.rand(count, places, generator=torch.Generator().manual_seed(0)).argsort(1)
        drawn = order[:, : BLOCKS * BLOCK**2, None].expand(-1, -1, channels).to(cells_MPC.device)
        keys = cells_MPC.gather(1, drawn)
        # As many groups of keys as there, of as many images each, of which one is a candidate.
        missing = -count % GROUPS
        source = torch.arange(count + missing, device=keys.device)[:, None]
        source = source.expand(-1, keys.shape[1])
        lengths = F.pad(keys.square().sum(2), (0, 0, 0, missing), value=FAR)
        keys = F.pad(keys, (0, 0, 0, 0, 0, missing))
        self.register_buffer("keys_drawn", _grouped(keys), persistent=False)
        self.register_buffer("lengths_drawn", _grouped(lengths), persistent=False)
        self.register_buffer("source", _grouped(source), persistent=False)

    def without(self, seen: Seen, index: int) -> NearestHaloHead:
        """See `NearestHaloHead.without`."""
        others = super().without(seen, index)
        if self.kept is not None and index in self.kept:
            own = self.source == self.kept.index(index)
            others.lengths_drawn = self.lengths_drawn.masked_fill(own, FAR)
        return others

    def attend(self, features: Tensor, *, nearest: int) -> Tensor:
        """See `NearestHaloHead.attend`."""
        queries = F.conv2d(features, self.whitening[:, :, None, None]).movedim(1, -1)
        keys = self.keys_drawn.flatten(0, 1)
        squared = self.lengths_drawn - 2 * (queries @ keys.T).unflatten(-1, self.source.shape)
        least, place = squared.min(-1)
        first = self.source.shape[1] * torch.arange(len(self.source), device=keys.device)
        chosen = least.topk(nearest, dim=-1, largest=False).indices
        return keys[(place + first).gather(-1, chosen)].mean(-2).movedim(-1, 1)


def _grouped(x: Tensor) -> Tensor:
    """(images, keys of each, …) → (groups, keys of each, …), of some images and places each."""
    parts = x.unflatten(1, (BLOCKS, -1)).unflatten(0, (GROUPS, -1))
    grouped: Tensor = parts.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return grouped


class OneKey(NearestHaloHead):
    """The nearest key of the window alone."""

    def attend(self, features: Tensor, *, nearest: int) -> Tensor:
        """See `NearestHaloHead.attend`."""
        return super().attend(features, nearest=1)


@register_head("place_mean")
class FromPlaceMean(HaloHead):
    """A Gaussian a place, in other words: what a cell is rebuilt from is a constant."""

    attention = PlaceMean


@register_head("window_mean")
class FromWindowMean(HaloHead):
    """The same again: so is any attention that does not look at the query."""

    attention = WindowMean


@register_head("anywhere")
class FromAnywhere(HaloHead):
    """From the nearest keys, wherever they lie."""

    attention = Anywhere


@register_head("halo_one_key")
class FromOneKey(HaloHead):
    """From the nearest key of the window."""

    attention = OneKey


@register_head("halo_no_map")
class AsAttended(HaloHead):
    """The attended cell itself, no longer whitened, in the place of a linear map of it."""

    @classmethod
    def learned(cls, memory: NearestHaloHead, pairs: Iterable[Pair]) -> Tensor:
        """See `HaloHead.learned`."""
        whitened_back: Tensor = torch.linalg.inv(memory.whitening)
        return whitened_back


KINDS = {
    "place_mean": "mean of the place",
    "window_mean": "mean of the window",
    "halo": "**nearest 3, halo**",
    "anywhere": "nearest 3, anywhere",
    "halo_one_key": "nearest 1, halo",
    "halo_no_map": "nearest 3, halo, no linear map",
}
"""By the name of the head."""


def table(
    runs: Sequence[Mapping[str, Any]], kinds: Mapping[str, str] = MappingProxyType(KINDS)
) -> Table:
    """A row for each kind: image AUROC of each set, its mean, and mean AUPRO, over sets and seeds.

    Papers count as one set; AUPRO is over the sets that have masks.
    """
    sets = list(dict.fromkeys(counted_as(run["category"]) for run in runs))
    rows = []
    for preset in dict.fromkeys(run["variant"].split(", ")[0] for run in runs):
        for head, kind in kinds.items():
            names = {f"{preset}, {head}", preset if head == "halo" else ""}
            mine = [run for run in runs if run["variant"] in names]
            if mine:
                quality = [_of(mine, "image_auroc", name) for name in sets]
                outlines = [_of(mine, "pixel_aupro", name) for name in sets]
                known = [value for value in outlines if value is not None]
                rows.append([
                    preset, kind, *quality, fmean(value for value in quality if value is not None),
                    fmean(known) if known else None,
                ])  # fmt: skip
    return Table(["preset", "a cell is rebuilt from", *sets, MEAN, "AUPRO"], rows, {})


def _of(runs: Sequence[Mapping[str, Any]], metric: str, name: str) -> float | None:
    mine = [run for run in runs if counted_as(run["category"]) == name]
    values = [(run["category"], run["seed"], run["metrics"][metric]) for run in mine]
    found = spreads(values, list(dict.fromkeys(run["category"] for run in mine)))[MEAN]
    return found["mean"] if found else None


def main() -> None:
    """Measure what is missing."""
    parser = options(__doc__)
    parser.add_argument("--presets", metavar="A,B", default="default")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    run_benchmark(
        arguments.root,
        arguments.out,
        variants(arguments.presets.split(","), heads=list(KINDS), settings={"view": SEEN}),
        categories=split(arguments.sets),
        seeds=[int(seed) for seed in arguments.seeds.split(",")],
        device=arguments.device,
        progress=sys.stderr.isatty(),
        report=lambda run: print(run["folder"], run.get("error", ""), flush=True),
    )


if __name__ == "__main__":
    main()
