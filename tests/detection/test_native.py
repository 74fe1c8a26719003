"""The backend that computes with torch goes to a device whole."""

import torch

from haloae.config import Config
from haloae.detection.heads import Seen, head_named
from haloae.detection.native import Native
from haloae.network.haloae import HaloAE


def test_all_that_scores_is_on_the_network_s_device(tiny: Config) -> None:
    network = HaloAE(tiny.network, image_size=tiny.image_size, weights="random").eval()
    images = torch.rand(2, 1, 3, tiny.image_size, tiny.image_size)
    with torch.no_grad():
        seen = [Seen(network(image), image) for image in images]
    native = Native(tiny, network, head_named(tiny.detection.head).fit(tiny, lambda: seen))
    assert devices(native) == {"cpu"}
    native.to(torch.device("meta"))
    assert devices(native) == {"meta"}


def devices(native: Native) -> set[str]:
    scorer = native.scorer_for(torch.float32, [0.1, 0.2])
    return {tensor.device.type for tensor in scorer.state_dict().values()}
