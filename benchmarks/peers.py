"""Detectors of anomalib, for `benchmarks.speed` to measure where anomalib is installed.

Untrained, as a network takes as long with any weights; statistics and banks are drawn. What is
measured is the forward pass of the torch model in eval mode, from images to score and map.
Nothing is imported before one is built: each is measured in a process of its own.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from torch import nn

PEER_SIZE = 256
"""Side of their images."""
BANK = 20_480
"""Patches in PatchCore's bank: a coreset of 10 % of 200 images with 32² patches each."""


def padim(backbone: str) -> "nn.Module":
    """PaDiM with the first three layers of a backbone."""
    import torch
    from anomalib.models.image.padim.torch_model import PadimModel

    model = PadimModel(backbone=backbone, layers=["layer1", "layer2", "layer3"], pre_trained=False)
    cells, channels = (PEER_SIZE // 4) ** 2, model.n_features
    model.gaussian.mean = torch.randn(channels, cells)
    model.gaussian.inv_covariance = torch.eye(channels).repeat(cells, 1, 1)
    return model


def stfpm(backbone: str) -> "nn.Module":
    """STFPM: student and teacher, three layers each."""
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    return STFPMModel(backbone=backbone, layers=["layer1", "layer2", "layer3"])


def patchcore(backbone: str) -> "nn.Module":
    """PatchCore with layers 2 and 3 of a backbone and a bank of `BANK` patches."""
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(backbone=backbone, layers=["layer2", "layer3"], pre_trained=False)
    model.memory_bank = torch.randn(BANK, sum(model.feature_extractor.out_dims))
    return model


def efficient_ad() -> "nn.Module":
    """EfficientAD, its small form."""
    from anomalib.models.image.efficient_ad.torch_model import (
        EfficientAdModel,
        EfficientAdModelSize,
    )
    from torch import nn

    model = EfficientAdModel(model_size=EfficientAdModelSize.S)
    nn.init.ones_(model.mean_std["std"])
    for name in ("qb_st", "qb_ae"):
        nn.init.ones_(model.quantiles[name])
    return model


def reverse_distillation(backbone: str) -> "nn.Module":
    """Reverse distillation, three layers."""
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    return ReverseDistillationModel(
        backbone=backbone,
        input_size=(PEER_SIZE, PEER_SIZE),
        layers=["layer1", "layer2", "layer3"],
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    )


PEERS: Mapping[str, tuple[str, Callable[[], "nn.Module"]]] = {
    "padim": ("PaDiM, ResNet-18", lambda: padim("resnet18")),
    "stfpm": ("STFPM, ResNet-18", lambda: stfpm("resnet18")),
    "efficient-ad": ("EfficientAD, small", efficient_ad),
    "patchcore-resnet18": ("PatchCore, ResNet-18", lambda: patchcore("resnet18")),
    "patchcore-wide": ("PatchCore, Wide ResNet-50", lambda: patchcore("wide_resnet50_2")),
    "reverse-distillation": (
        "Reverse distillation, Wide ResNet-50",
        lambda: reverse_distillation("wide_resnet50_2"),
    ),
}
"""Title and builder, by name."""


def build_peer(name: str) -> "nn.Module":
    """A detector, untrained, in eval mode."""
    import timm

    create: Callable[..., object] = timm.create_model

    def untrained(*args: object, **options: object) -> object:
        return create(*args, **{**options, "pretrained": False})

    # Some ask for ImageNet weights whatever they are told, and would download them.
    with patch.object(timm, "create_model", untrained):
        model = PEERS[name][1]()
    return model.requires_grad_(False).eval()
