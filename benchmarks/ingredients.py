"""The paper's ingredients in the design of `default`: each out of it, or put into it.

    python -m benchmarks.ingredients ROOT --out runs/ingredients [--sets A,B] [--seeds 0,1]

Features of several scales and attention are taken out; what has no part in `default`, the image
branch and CutPaste with a classifier, is put in, in the closed form that the rest has. It leaves
what `haloae benchmark` does. To import this module is to register heads and trunks.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import attention_kinds
from benchmarks.tables import Table
from benchmarks.ways import options, set_threads, split
from haloae.config import Config
from haloae.detection.heads import Seen, register_head
from haloae.detection.heads.gaussian import GaussianHead
from haloae.detection.heads.halo import RIDGE, HaloHead
from haloae.detection.heads.moments import by_place, inverse_root, mapped, softened
from haloae.detection.heads.nearest_halo import NearestHaloHead
from haloae.experiments.benchmark import run_benchmark
from haloae.network.haloae import HaloAEOutput
from haloae.network.trunks import Trunk, register_trunk, trunk_named
from haloae.presets import DEFAULT

TRUNK = "efficientnet_lite0"
SIDES = (2, 8)
"""Of a pasted patch of features, in cells."""
PASTES = 4
"""For each good image."""
REACH, HOLE = 4, 1
"""Cells of the image itself that are attended to: so far away, and farther than that."""
BEYOND = 1e4
"""What cells past the edge hold: no cell is near them."""
ROWS = {
    "halo": "as shipped",
    "finest": "features of one scale: stride 4, 24 channels",
    "middle": "features of one scale: stride 8, 40 channels",
    "coarsest": "features of one scale: stride 16, 112 channels",
    "place_mean": "without attention: rebuilt from the mean of the place",
    "halo_image": "with the image: its colours and their spread are rebuilt too",
    "halo_hole": "hole-halo attention to the image itself, in the place of that to good images",
    "halo_and_hole": "both, the mean of their maps",
    "halo_pasted": "with CutPaste and a classifier, of features",
}
"""By what stands behind the preset's name: what it is."""


class WithImage(HaloHead):
    """The image branch: colours of each cell, mean and spread, are rebuilt as features are."""

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """See `HaloHead.fit`."""
        return super().fit(config, lambda: map(_with_colours, seen()))

    def without(self, seen: Seen, index: int) -> HaloHead:
        """See `HaloHead.without`."""
        return super().without(_with_colours(seen), index)

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `HaloHead.forward`."""
        return super().forward(*_with_colours(Seen(output, image)))


def _with_colours(seen: Seen) -> Seen:
    features = seen.output.features
    cell = seen.image.shape[-1] // features.shape[-1]
    mean = F.avg_pool2d(seen.image.float(), cell)
    spread = F.avg_pool2d(seen.image.float().square(), cell) - mean.square()
    colours = [mean, spread.clamp_min(0).sqrt()]
    return Seen(seen.output._replace(features=torch.cat([features, *colours], 1)), seen.image)


class WithPasted(HaloHead):
    """CutPaste with a classifier: how much more a residual is like those of pasted cells.

    Patches of features are pasted elsewhere in the same image; their whitened residuals have a mean
    and a covariance, and the squared distance to these is taken from that to good cells.
    """

    pasted_mean: Tensor
    pasted_root: Tensor

    def __init__(self, memory: NearestHaloHead, rebuilding: Tensor, gaussian: GaussianHead) -> None:
        super().__init__(memory, rebuilding, gaussian)
        self.register_buffer("pasted_mean", rebuilding.new_zeros(len(rebuilding)))
        self.register_buffer("pasted_root", torch.zeros_like(rebuilding))

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """See `HaloHead.fit`."""
        head = super().fit(config, seen)
        generator = torch.Generator().manual_seed(config.seed)
        cells = []
        for index, each in enumerate(seen()):
            without = head.without(each, index)
            for _ in range(PASTES):
                features, where = _pasted(each.output.features.float(), generator)
                residual = softened(features - without.rebuilt(features))
                cells.append(head.whitened(residual)[where.flatten(), 0])
        rows = torch.cat(cells)
        covariance = torch.cov(rows.T)
        covariance.diagonal().add_(RIDGE)
        head.pasted_mean, head.pasted_root = rows.mean(0), inverse_root(covariance)
        return head

    def whitened(self, residual: Tensor) -> Tensor:
        """(B, C, h, w) → (h·w, B, C): in standard deviations of each place's residuals."""
        deviations = by_place(residual) - self.gaussian.mean[:, None]
        return torch.bmm(deviations, self.gaussian.roots.transpose(1, 2))

    def without(self, seen: Seen, index: int) -> HaloHead:
        """See `HaloHead.without`; in what is known of pasted cells the image stays."""
        others = super().without(seen, index)
        others.pasted_mean, others.pasted_root = self.pasted_mean, self.pasted_root
        return others

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `HaloHead.forward`."""
        features = output.features.float()
        residual = softened(features - self.rebuilt(features))
        to_good = self.gaussian.distance(residual).square()
        like = (self.whitened(residual) - self.pasted_mean) @ self.pasted_root.T
        to_pasted = like.square().sum(2).T.unflatten(1, to_good.shape[1:])
        return F.softplus(to_good - to_pasted).sqrt()


class OwnSurroundings(NearestHaloHead):
    """Attention to the image itself: the nearest cells around a hole, whitened."""

    def without(self, seen: Seen, index: int) -> "OwnSurroundings":
        """The same: nothing of other images is attended to."""
        return self

    def attend(self, features: Tensor, *, nearest: int) -> Tensor:
        """See `NearestHaloHead.attend`; keys are `REACH` cells around, but for the hole."""
        whitened = mapped(features, self.whitening)
        height, width = whitened.shape[2:]
        padded = F.pad(whitened, (REACH,) * 4, value=BEYOND)
        keys = [
            padded[..., row : row + height, column : column + width]
            for row, column in product(range(2 * REACH + 1), repeat=2)
            if max(abs(row - REACH), abs(column - REACH)) > HOLE
        ]
        around = torch.stack(keys, 1)
        squared = (around - whitened[:, None]).square().sum(2)
        chosen = squared.topk(nearest, dim=1, largest=False).indices
        wanted = chosen[:, :, None].expand(-1, -1, whitened.shape[1], -1, -1)
        return around.gather(1, wanted).mean(1)


class FromOwnSurroundings(HaloHead):
    """Hole-halo attention alone."""

    attention = OwnSurroundings


class WithOwnSurroundings(HaloHead):
    """Both: the mean of the two maps."""

    own: FromOwnSurroundings

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """See `HaloHead.fit`."""
        head = super().fit(config, seen)
        head.own = FromOwnSurroundings.fit(config, seen)
        return head

    def without(self, seen: Seen, index: int) -> HaloHead:
        """See `HaloHead.without`."""
        others = super().without(seen, index)
        others.own = self.own.without(seen, index)
        return others

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `HaloHead.forward`."""
        own: Tensor = self.own(output, image)
        return (super().forward(output, image) + own) / 2


def _pasted(features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(1, C, h, w) with a patch of itself elsewhere, and (h, w), true there."""

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    height, width = features.shape[2:]
    h, w = (drawn(SIDES[0], SIDES[1] + 1) for _ in range(2))
    (row, column), (of_row, of_column) = (
        (drawn(0, height - h + 1), drawn(0, width - w + 1)) for _ in range(2)
    )
    changed, where = features.clone(), torch.zeros(height, width, dtype=torch.bool)
    taken = features[..., of_row : of_row + h, of_column : of_column + w]
    changed[..., row : row + h, column : column + w] = taken
    where[row : row + h, column : column + w] = True
    return changed, where


def _one_tap(trunk: Trunk, place: int) -> Trunk:
    """The same trunk with one of its taps."""

    def build() -> nn.Module:
        layers: Any = trunk.build()
        layers.tapped = (layers.tapped[place],)
        built: nn.Module = layers
        return built

    return dataclasses.replace(trunk, build=build, taps=(trunk.taps[place],))


SCALES = {"finest": 0, "middle": 1, "coarsest": 2}
for _name, _place in SCALES.items():
    register_trunk(f"{TRUNK}_{_name}", _one_tap(trunk_named(TRUNK), _place))
register_head("halo_image")(WithImage)
register_head("halo_pasted")(WithPasted)
register_head("halo_hole")(FromOwnSurroundings)
register_head("halo_and_hole")(WithOwnSurroundings)


def configs() -> dict[str, Config]:
    """Every row's, by variant."""
    base = DEFAULT.replace(view=attention_kinds.SEEN)
    found = {"default": base}
    for name in ROWS:
        if name in SCALES:
            trunk = trunk_named(f"{TRUNK}_{name}")
            channels = min(trunk.channels, base.network.reduced_channels or trunk.channels)
            network = {"trunk": f"{TRUNK}_{name}", "reduced_channels": channels}
            found[f"default, {name}"] = base.replace(network=network)
        elif name != "halo":
            found[f"default, {name}"] = base.replace(detection={"head": name})
    return found


def table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each: image AUROC of each set, its mean, and mean AUPRO."""
    found = attention_kinds.table(runs, ROWS)
    return Table(["preset", "the network", *found.columns[2:]], found.rows, found.digits)


def main() -> None:
    """Measure what is missing."""
    arguments = options(__doc__).parse_args()
    set_threads(arguments.threads)
    run_benchmark(
        arguments.root,
        arguments.out,
        configs(),
        categories=split(arguments.sets),
        seeds=[int(seed) for seed in arguments.seeds.split(",")],
        device="cpu",
        progress=sys.stderr.isatty(),
        report=lambda run: print(run["folder"], run.get("error", ""), flush=True),
    )


if __name__ == "__main__":
    main()
