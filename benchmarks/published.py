"""The published forward pass, plain: what `benchmarks.speed` measures everything else against.

    python -m benchmarks.published [--threads N]

The same function of the same weights as the `paper` preset, computed as the published code computes
it (docs/published-code.md), with the attention's mask put right: VGG19 runs to its end though
nothing past relu3_4 is read, features are blown up to the image's size before they are averaged,
keys and values are projected after windows overlap, batch norms stand apart, the decoder's
convolutions are transposed, and image and class are computed though the score needs neither.
Modules are named as those of `HaloAE`, so that one state dict fits both. Run on its own, it prints
where its time and its multiply-adds go.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TAPS = {1: "relu1_1", 6: "relu2_1", 11: "relu3_1", 17: "relu3_4"}
"""torchvision's number of a VGG19 layer → the tap after it."""
CHANNELS = 704
HEAD = 234
ENCODER = ((234, 234, 3, 4), (234, 117, 3, 8), (117, 58, 5, 8), (58, 29, 5, 8))
"""Channels in and out, kernel and heads of each block."""
DECODER = ((29, 29, 3, 4), (29, 59, 3, 8), (59, 118, 3, 8), (118, 237, 5, 8), (237, 704, 1, 8))
DECODER_INNER = (29, 58, 118, 236, 703)
IMAGE_DECODER = (704, 380, 190, 95, 47, 23, 3, 3)
BLOCK, HALO, HEAD_DIM = 12, 2, 16
WINDOW = BLOCK + 2 * HALO
STRIDE = 4


class Extractor(nn.Module):
    """VGG19 to relu5_4, reflect-padded; its taps at the image's size, then the mean of 4×4."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        self.layers = make_layers(cfgs["E"])[:-1]
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                layer.padding = (0, 0)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), normalised → (B, 704, H/4, W/4)."""
        on_grid = []
        x = image
        for number, layer in enumerate(self.layers):
            # The padding of a convolution belongs to the layer before, and so to the tap there.
            if isinstance(layer, nn.Conv2d):
                x = F.pad(x, (1, 1, 1, 1), mode="reflect")
            if number - 1 in TAPS:
                on_grid.append(F.avg_pool2d(F.interpolate(x, size=image.shape[-2:]), STRIDE))
            x = layer(x)
        return torch.cat(on_grid, dim=1)


class Attention(nn.Module):
    """Halo attention on a grid of whole blocks: windows are cut out, then projected."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * HEAD_DIM, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * HEAD_DIM, bias=False)
        self.to_out = nn.Linear(heads * HEAD_DIM, dim)
        self.rel_height = nn.Parameter(torch.empty(2 * WINDOW - 1, HEAD_DIM))
        self.rel_width = nn.Parameter(torch.empty(2 * WINDOW - 1, HEAD_DIM))

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) → the same shape, H and W divisible by BLOCK."""
        height, width = x.shape[-2:]
        q = self._per_head(self.to_q(_cut(x, BLOCK, 0))) * HEAD_DIM**-0.5
        k, v = (self._per_head(t) for t in self.to_kv(_cut(x, WINDOW, HALO)).chunk(2, dim=-1))
        logits = q @ k.transpose(-1, -2)
        logits += self._positions(q)
        is_inside = _cut(x.new_ones(1, 1, height, width), WINDOW, HALO)[..., 0].bool()
        logits.masked_fill_(~is_inside[:, :, None, None], -torch.finfo(x.dtype).max)
        mixed = (logits.softmax(-1) @ v).transpose(2, 3).flatten(-2)
        blocks = self.to_out(mixed).permute(0, 3, 2, 1).flatten(1, 2)
        return F.fold(blocks, (height, width), BLOCK, stride=BLOCK)

    def _per_head(self, cells: Tensor) -> Tensor:
        """(B, blocks, cells, heads·d) → (B, blocks, heads, cells, d)."""
        result: Tensor = cells.unflatten(-1, (self.heads, HEAD_DIM)).transpose(2, 3)
        return result

    def _positions(self, q: Tensor) -> Tensor:
        """(B, blocks, heads, BLOCK², d) → logits of the positions, (…, BLOCK², WINDOW²)."""
        grid = q.unflatten(-2, (BLOCK, BLOCK))
        rows = _slide(grid.transpose(-2, -3) @ self.rel_height.T).transpose(-2, -3)
        columns = _slide(grid @ self.rel_width.T)
        return (rows[..., :, None] + columns[..., None, :]).flatten(-2).flatten(-3, -2)


def _cut(x: Tensor, side: int, padding: int) -> Tensor:
    """(B, C, H, W) → (B, blocks, side², C): a square for each block."""
    squares = F.unfold(x, side, stride=BLOCK, padding=padding)
    blocks_of: Tensor = squares.unflatten(1, (x.shape[1], side**2)).permute(0, 3, 2, 1)
    return blocks_of


def _slide(offsets: Tensor) -> Tensor:
    """(…, BLOCK, 2·WINDOW - 1) → (…, BLOCK, WINDOW): entry (i, j) is offset j - i's, in row i."""
    flat = F.pad(offsets.flatten(-2)[..., WINDOW - 1 :], (0, WINDOW - 1 - BLOCK))
    slid: Tensor = flat.unflatten(-1, (BLOCK, 2 * WINDOW - 2))[..., :WINDOW]
    return slid


class Block(nn.Module):
    """Convolution, attention, convolution, with a batch norm each, and a skip."""

    def __init__(
        self,
        wide: int,
        narrow: int,
        kernel: int,
        heads: int,
        *,
        inner: int,
        convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d],
    ) -> None:
        super().__init__()
        self.conv1 = convolution(wide, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.attention = Attention(inner, heads)
        self.conv2 = convolution(inner, narrow, kernel, padding=kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm2d(narrow)
        self.skip: nn.Module = nn.Identity()
        if wide != narrow:
            self.skip = nn.Sequential(
                convolution(wide, narrow, 1, bias=False), nn.BatchNorm2d(narrow)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, wide, H, W) → (B, narrow, H, W)."""
        inner = F.relu(self.norm1(self.conv1(x)))
        inner = F.relu(self.attention(inner))
        return F.relu(self.norm2(self.conv2(inner)) + self.skip(x))


class Encoder(nn.Module):
    """Features → code, on a grid four cells narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(CHANNELS, HEAD, 5, bias=False), nn.BatchNorm2d(HEAD), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(Block(*row, inner=row[1], convolution=nn.Conv2d) for row in ENCODER)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, 704, H, W) → (B, 29, H - 4, W - 4)."""
        code: Tensor = self.blocks(self.head(features))
        return code


class Decoder(nn.Module):
    """Code → features, resized to the grid they were on."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                Block(*row, inner=inner, convolution=nn.ConvTranspose2d)
                for row, inner in zip(DECODER, DECODER_INNER, strict=True)
            )
        )

    def forward(self, code: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 29, …) → (B, 704, *size)."""
        return F.interpolate(self.blocks(code), size=size)


class ImageDecoder(nn.Module):
    """Rebuilt features → image."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(wide, narrow, 3, padding=1, padding_mode="reflect")
            for wide, narrow in pairwise(IMAGE_DECODER)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 704, H/4, W/4) → (B, 3, H, W)."""
        for number, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x))
            if number >= len(self.convolutions) - 2:
                x = F.interpolate(x, scale_factor=2)
        return x


class Classifier(nn.Module):
    """The flattened rebuilt image → normal or CutPaste."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * image_size**2, 2)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 2)."""
        mapped: Tensor = self.linear(image.flatten(1))
        return mapped


class Published(nn.Module):
    """From images in [0, 1] to scores and maps.

    Args:
        state: of a `HaloAE` of the `paper` preset.
        usual: (h, w), mean squared error of good images in each cell.
    """

    usual: Tensor

    def __init__(self, state: Mapping[str, Tensor], usual: Tensor) -> None:
        super().__init__()
        image_size = usual.shape[-1] * STRIDE
        self.extractor = Extractor()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.image_decoder = ImageDecoder()
        self.classifier = Classifier(image_size)
        missing, unexpected = self.load_state_dict(state, strict=False)
        # The end of VGG19, which no output depends on, stays as it was drawn.
        missing = [name for name in missing if int(name.split(".")[2]) <= max(TAPS)]
        if missing or unexpected:
            raise ValueError(f"not a paper network: {[*missing, *unexpected]}")
        self.register_buffer("usual", usual)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) RGB in [0, 1] → scores (B,) and maps (B, H/4, W/4)."""
        mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (MEAN, STD))
        features = self.extractor((images - mean) / std)
        rebuilt = self.decoder(self.encoder(features), features.shape[-2:])
        self.classifier(self.image_decoder(rebuilt))
        residual = (features - rebuilt).square().mean(1)
        anomaly = smooth((residual - self.usual).abs())
        return anomaly.mean((1, 2)), anomaly


def smooth(anomaly: Tensor) -> Tensor:
    """A fixed 3×3 kernel on maps (B, h, w); the border is reflected without its cells."""
    kernel = anomaly.new_tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    padded = F.pad(anomaly[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, kernel[None, None]).squeeze(1)


def multiply_adds(run: Callable[..., object], *inputs: object) -> int:
    """Multiply-adds of the convolutions and matrix products of one call."""
    # Only this kernel of attention is made of products that the counter sees.
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.inference_mode(), math, FlopCounterMode(display=False) as counter:
        run(*inputs)
    return int(counter.get_total_flops() // 2)


def main() -> None:
    """Print milliseconds and multiply-adds of each part, on an untrained network."""
    from haloae.network.haloae import HaloAE
    from haloae.presets import PAPER

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    size = PAPER.image_size
    state = HaloAE(PAPER.network, image_size=size, weights="bundled").state_dict()
    network = Published(state, torch.zeros(size // STRIDE, size // STRIDE))
    parts: dict[str, nn.Module] = {
        "VGG19": network.extractor, "head": network.encoder.head,
        **{f"encoder {n}": block for n, block in enumerate(network.encoder.blocks, 1)},
        **{f"decoder {n}": block for n, block in enumerate(network.decoder.blocks, 1)},
        "attention": nn.ModuleList(
            block.attention for block in (*network.encoder.blocks, *network.decoder.blocks)
        ),
        "image decoder": network.image_decoder, "classifier": network.classifier, "all": network,
    }  # fmt: skip
    seconds = _timed(parts, network, size)
    for name, spent in seconds.items():
        print(f"{name:14} {1000 * spent:8.1f} ms")
    operations = multiply_adds(network, torch.rand(1, 3, size, size))
    print(f"{operations / 1e9:.1f} billion multiply-adds")


def _timed(parts: Mapping[str, nn.Module], network: nn.Module, size: int) -> dict[str, float]:
    """Seconds in each part, over one call of the whole."""
    seconds = dict.fromkeys(parts, 0.0)
    started: dict[nn.Module, float] = {}

    def listen(name: str, module: nn.Module) -> None:
        def before(module: nn.Module, _: object) -> None:
            started[module] = time.perf_counter()

        def after(module: nn.Module, _: object, __: object) -> None:
            seconds[name] += time.perf_counter() - started[module]

        for each in module if isinstance(module, nn.ModuleList) else (module,):
            each.register_forward_pre_hook(before)
            each.register_forward_hook(after)

    for name, module in parts.items():
        listen(name, module)
    images = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        for _ in range(2):
            seconds.update(dict.fromkeys(parts, 0.0))
            network(images)
    return seconds


if __name__ == "__main__":
    main()
