"""The floor that training must beat: every layer's filters are principal components of its input.

    python -m pretrain.floor resnet18 --photos FOLDER --out runs/pretrain/floor

Minutes, no gradient: layer by layer, patches of what the layer sees are decorrelated, and each
component is a filter twice, with either sign. Past the number of components, random mixtures.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from haloae.network.trunks import TRUNKS, normalise
from haloae.network.weights import BUNDLED
from pretrain.pictures import crop, load_pictures
from pretrain.train import geometry

PATCHES = 20000


@torch.no_grad()
def fit_filters(layers: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    """Fit every convolution, in the order in which they run."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    for conv in [module for module in layers.modules() if isinstance(module, nn.Conv2d)]:
        handle = conv.register_forward_pre_hook(hook)
        list(layers(images))
        handle.remove()
        kernel, stride, padding = geometry(conv)
        patches = F.unfold(seen.pop(), kernel, padding=padding, stride=stride)
        rows = patches.movedim(1, 2).flatten(0, 1)
        rows = rows[torch.randint(len(rows), (PATCHES,), generator=generator)]
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        components = vectors.flip(1).T[: conv.out_channels // 2]
        scales = values.flip(0)[: len(components)].clamp_min(1e-6).rsqrt()
        filters = torch.cat([components, -components]) * scales.repeat(2)[:, None]
        extra = conv.out_channels - len(filters)
        mixing = torch.randn(extra, len(filters), generator=generator) / len(filters) ** 0.5
        filters = torch.cat([filters, mixing @ filters])
        conv.weight.copy_(filters.view_as(conv.weight))
        assert conv.bias is not None  # noqa: S101
        conv.bias.copy_(-filters @ mean)


def main() -> None:
    """Fit and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trunk", choices=sorted(path.stem for path in BUNDLED.iterdir()))
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = load_pictures(arguments.photos, 4, 300, 0, arguments.out.parent)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(pictures), (64,), generator=generator)
    images = normalise(crop(pictures[chosen].float() / 255, 96, generator))
    layers = TRUNKS[arguments.trunk].build()
    layers.to_empty(device="cpu")
    for parameter in layers.parameters():
        nn.init.zeros_(parameter)
    fit_filters(layers, images, generator)
    save_file(dict(layers.state_dict()), arguments.out / f"floor-{arguments.trunk}.safetensors")


if __name__ == "__main__":
    main()
