"""How far a cell of the map can see: what tiles must overlap by to give the whole image's map.

Nothing here is declared: the trunk is run once, and each operation widens what its output sees.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from haloae.config import NetworkConfig
from haloae.errors import ConfigError
from haloae.network.attention import attention_named
from haloae.network.trunks import Tap, Trunk, trunk_named

RGB = 3
PROBE = 4
"""Cells a side of the coarsest tap in the image that a trunk is run on."""


class Reach(NamedTuple):
    """Pixels that an activation's cell sees beyond its own, in either direction."""

    before: int = 0
    """Above, and to the left."""
    after: int = 0
    """Below, and to the right."""


def step_of(config: NetworkConfig) -> int:
    """Pixels by which an image can be moved so that its features move along, whatever is in it."""
    taps = trunk_named(config.trunk).taps
    steps = [config.stride, *(tap.stride for tap in taps)]
    if config.autoencoder:
        attention = attention_named(config.attention.mode)
        steps.append(config.stride * attention.period(config.attention))
    return math.lcm(*steps)


def features_reach(config: NetworkConfig) -> int:
    """Pixels beyond its own that a cell of the features sees in any direction, at most.

    Raises:
        ConfigError: they see the whole image, or nobody knows how much of it.
    """
    if config.published_taps:
        raise ConfigError(
            "view.kind tiles needs features that are the same wherever a tile is cut, and "
            "network.published_taps are resampled over the whole image: set it to false."
        )
    trunk = trunk_named(config.trunk)
    reaches = trunk_reach(trunk)
    return max(
        max(reach) + _enlarged(tap, config.stride)
        for tap, reach in zip(trunk.taps, reaches, strict=True)
    )


def _enlarged(tap: Tap, stride: int) -> int:
    """Pixels that are seen in addition, where a tap is brought to the grid."""
    if tap.stride <= stride:
        return 0
    # Between two cells of the tap, of which a cell of the grid is a part of one.
    return tap.stride + tap.stride - stride


def autoencoder_reach(config: NetworkConfig) -> int:
    """Cells beyond its own that a rebuilt cell sees in any direction, at most.

    Raises:
        ConfigError: it sees the whole image, or nobody knows how much of it.
    """
    if not config.head_padding:
        raise ConfigError(
            "view.kind tiles needs an auto-encoder that keeps the grid, and "
            "network.head_padding = false shrinks it: set it to true."
        )
    attention = attention_named(config.attention.mode).reach(config.attention)
    if attention is None:
        raise ConfigError(
            f"view.kind tiles needs attention that reaches a known number of cells, and that of "
            f"network.attention.mode {config.attention.mode!r} does not end: choose halo."
        )
    stages = (*config.encoder, *config.decoder)
    return config.head_kernel // 2 + sum(attention + stage.kernel // 2 for stage in stages)


def image_decoder_reach(config: NetworkConfig) -> int:
    """Cells beyond its own that a cell of the reconstructed image sees of what was rebuilt."""
    return 0 if config.image_decoder is None else len(config.image_decoder) + 2


@torch.no_grad()
def trunk_reach(trunk: Trunk) -> list[Reach]:
    """Of each tap of a trunk.

    Raises:
        ConfigError: an operation in it looks farther than a convolution or pooling does.
    """
    side = PROBE * max(tap.stride for tap in trunk.taps)
    layers = trunk.build().eval()
    with _Widening(side) as widening:
        return [widening.seen(tap).reach for tap in layers(torch.zeros(1, RGB, side, side))]


class _Seen(NamedTuple):
    """What is known of a tensor while a trunk is run."""

    tensor: Tensor
    """Itself: kept, its id is no other's."""
    reach: Reach = Reach()
    padding: Reach = Reach()
    """Cells in it that were padded to it."""


class _Widening(TorchDispatchMode):
    """Follows how far each activation sees while operations make them of one another.

    Args:
        side: of the image, in pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.side = side
        self._known: dict[int, _Seen] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # What torch would else import to compile nothing here takes seconds.
        return False

    def seen(self, tensor: Tensor) -> _Seen:
        """What is known of an activation."""
        return self._known.get(id(tensor), _Seen(tensor))

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch gives it no type
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        result = func(*args, **(kwargs or {}))
        made = result[0] if isinstance(result, tuple) else result
        given = [self._known[id(x)] for x in _flat(args) if id(x) in self._known]
        if isinstance(made, Tensor) and made.ndim == IMAGES:
            if not given:  # the image, or weights, which no activation comes of alone
                given = [_Seen(made)]
            reach, padding = self._widened(func.overloadpacket.__name__, args, given, made)
            self._known[id(made)] = _Seen(made, reach, padding)
        return result

    def _widened(
        self, name: str, args: tuple[Any, ...], given: list[_Seen], made: Tensor
    ) -> tuple[Reach, Reach]:
        reach = Reach(*(max(sides) for sides in zip(*(x.reach for x in given), strict=True)))
        padding = Reach(*(max(sides) for sides in zip(*(x.padding for x in given), strict=True)))
        if name in PADS:
            left, right, top, bottom = args[1]
            added = Reach(max(left, top), max(right, bottom))
            return reach, Reach(*(a + b for a, b in zip(padding, added, strict=True)))
        if name in SLIDES:
            kernel, stride, own, dilation = SLIDES[name](args)
            cell = self.side // (args[0].shape[-1] - sum(padding))
            before = padding.before + own
            after = max(0, dilation * (kernel - 1) + 1 - stride - before)
            return Reach(reach.before + before * cell, reach.after + after * cell), Reach()
        if any(x.tensor.shape[2:] != made.shape[2:] for x in given):
            raise ConfigError(
                f"view.kind tiles needs a trunk of convolutions and pooling, and {name} in this "
                f"one may see all of the image: choose another network.trunk."
            )
        return reach, padding


IMAGES = 4
"""Dimensions of a batch of activations."""
PADS = ("constant_pad_nd", "reflection_pad2d", "replication_pad2d")
Slide = tuple[int, int, int, int]
"""Kernel, stride, padding and dilation."""


def _convolution(args: tuple[Any, ...]) -> Slide:
    _, weight, _, stride, padding, dilation = args[:6]
    return max(weight.shape[2:]), min(stride), max(padding), max(dilation)


def _pooling(args: tuple[Any, ...]) -> Slide:
    kernel, *rest = args[1:]
    stride = rest[0] if rest and rest[0] else kernel
    padding = rest[1] if len(rest) > 1 else [0]
    return max(kernel), min(stride), max(padding), 1


SLIDES: Mapping[str, Callable[[tuple[Any, ...]], Slide]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _pooling,
    "avg_pool2d": _pooling,
}
"""Operations that look at neighbours."""


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
