"""Section C: the auto-encoder of convolutions and halo attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.config import AttentionConfig, NetworkConfig, Stage
from haloae.network.attention import attention_named
from haloae.network.lean import folded, frozen, lean_each, with_parts

Convolution = type[nn.Conv2d] | type[nn.ConvTranspose2d]


class HaloBlock(nn.Module):
    """1×1 conv → BN → ReLU → attention → ReLU → k×k conv → BN, + skip → ReLU.

    The skip is the identity where the channels stay, else 1×1 conv → BN. There is no residual
    around the attention itself.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stage: kernel, heads and inner width.
        attention: the attention's sizes and mode.
        convolution: `nn.Conv2d`, or `nn.ConvTranspose2d` as in the decoder.
        relu: False: no ReLU at the end, for outputs that may be negative.

    Raises:
        ConfigError: no such mode of attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stage: Stage,
        attention: AttentionConfig,
        convolution: Convolution,
        relu: bool = True,
    ) -> None:
        super().__init__()
        inner = stage.inner or out_channels
        self.conv1 = convolution(in_channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        sizes = attention.model_dump(exclude={"mode"})
        self.attention = attention_named(attention.mode)(inner, heads=stage.heads, **sizes)
        self.conv2 = convolution(
            inner, out_channels, stage.kernel, padding=stage.kernel // 2, bias=False
        )
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Sequential(
                convolution(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        inner = F.relu(self.norm1(self.conv1(x)))
        inner = F.relu(self.attention(inner))
        out: Tensor = self.norm2(self.conv2(inner)) + self.skip(x)
        return F.relu(out) if self.relu else out

    def lean(self) -> "HaloBlock":
        """The block in the form it is used in, without batch norm."""
        skip = folded(*self.skip) if isinstance(self.skip, nn.Sequential) else nn.Identity()
        return with_parts(
            self,
            conv1=folded(self.conv1, self.norm1),
            norm1=nn.Identity(),
            attention=self.attention.lean(),
            conv2=folded(self.conv2, self.norm2),
            norm2=nn.Identity(),
            skip=skip,
        )


class HaloEncoder(nn.Module):
    """Head (k×k conv → BN → ReLU), then blocks that narrow the channels: features → code."""

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(
                channels,
                config.head_channels,
                config.head_kernel,
                padding=config.head_kernel // 2 if config.head_padding else 0,
                bias=False,
            ),
            nn.BatchNorm2d(config.head_channels),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential()
        width = config.head_channels
        for stage in config.encoder:
            assert stage.channels is not None  # noqa: S101 - NetworkConfig checks it
            self.blocks.append(
                HaloBlock(
                    width,
                    stage.channels,
                    stage=stage,
                    attention=config.attention,
                    convolution=nn.Conv2d,
                )
            )
            width = stage.channels
        self.out_channels = width

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) → code (B, out_channels, H', W'); H' = H where the head pads."""
        code: Tensor = self.blocks(self.head(features))
        return code

    def lean(self) -> "HaloEncoder":
        """The encoder in the form it is used in, without batch norm."""
        conv, norm, relu = self.head
        head = nn.Sequential(folded(conv, norm), nn.Identity(), relu)
        blocks = lean_each(self.blocks)
        return frozen(with_parts(self, head=head, blocks=blocks))


class HaloDecoder(nn.Module):
    """Blocks of transposed convolutions that widen the code back to the features' channels."""

    def __init__(self, config: NetworkConfig, code_channels: int, channels: int) -> None:
        super().__init__()
        self.noise = config.bottleneck_noise
        self.blocks = nn.Sequential()
        width = code_channels
        for index, stage in enumerate(config.decoder):
            is_last = index == len(config.decoder) - 1
            out = stage.channels or channels
            self.blocks.append(
                HaloBlock(
                    width,
                    out,
                    stage=stage,
                    attention=config.attention,
                    convolution=nn.ConvTranspose2d,
                    relu=config.rebuilt_relu or not is_last,
                )
            )
            width = out

    def forward(
        self,
        code: Tensor,
        *,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Rebuild the features.

        Args:
            code: (B, code_channels, H', W').
            grid: (H, W) of the features; where the code's differs, the output is resized
                (nearest), as published.
            generator: draws the bottleneck's noise in training.

        Returns:
            (B, channels, H, W).
        """
        if self.training and self.noise:
            noise = torch.randn(code.shape, generator=generator).to(code)
            code = code + self.noise * code.detach().std() * noise
        rebuilt: Tensor = self.blocks(code)
        if rebuilt.shape[-2:] == grid:
            return rebuilt
        # By index and not by `interpolate`: exported, that picks other cells where it rounds.
        rows, columns = (
            torch.arange(new, device=code.device) * old // new
            for new, old in zip(grid, rebuilt.shape[-2:], strict=True)
        )
        return rebuilt[:, :, rows][..., columns]

    def lean(self) -> "HaloDecoder":
        """The decoder in the form it is used in, of ordinary convolutions without batch norm."""
        blocks = lean_each(self.blocks)
        return frozen(with_parts(self, blocks=blocks))
