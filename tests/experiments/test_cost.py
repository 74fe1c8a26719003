"""The cost counter, against torch's own counter, the paper's table and sums done by hand."""

import resource
from functools import cache

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from haloae.config import Config
from haloae.detection.heads import head_named
from haloae.detection.heads.nearest import NearestHead
from haloae.errors import ConfigError
from haloae.experiments.cost import BlockCost, count_cost, total_cost
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.presets import AUTOENCODER, DEFAULT, FAST, PAPER, PRESETS

ATTENTIVE = AUTOENCODER.replace(network={"attention": {"mode": "halo"}, "classifier": True})
PAPER_NAMES = [
    *("trunk relu1_1", "trunk relu2_1", "trunk relu3_1", "trunk relu3_4", "features"),
    *("head", "encoder 1", "encoder 2", "encoder 3", "encoder 4"),
    *("decoder 1", "decoder 2", "decoder 3", "decoder 4", "decoder 5", "resize"),
    *("image decoder", "classifier", "detector head"),
]
AUTOENCODER_NAMES = [
    *("trunk layer1", "trunk layer2", "trunk layer3", "features", "head"),
    *("encoder 1", "encoder 2", "decoder 1", "decoder 2", "decoder 3", "detector head"),
]
DEFAULT_NAMES = ["trunk stage2", "trunk stage3", "trunk stage5", "features", "detector head"]
ENCODER = [(234, 234, 234, 3, 4), (234, 117, 117, 3, 8), (117, 58, 58, 5, 8), (58, 29, 29, 5, 8)]
DECODER = [(29, 29, 29, 3, 4), (29, 58, 59, 3, 8), (59, 118, 118, 3, 8), (118, 236, 237, 5, 8)]
DECODER += [(237, 703, 704, 1, 8)]
"""Rows of the paper's table: channels in, inside and out, kernel, heads."""
FLOAT = 4


def build(config: Config, size: int, device: str = "meta") -> HaloAE:
    with torch.device(device):
        return HaloAE(config.network, image_size=size, weights=None).eval()


@cache
def by_name(
    config: Config, size: int | None = None, *, in_use: bool = False
) -> dict[str, BlockCost]:
    blocks = count_cost(config, image_size=size, in_use=in_use)
    return {block.name: block for block in blocks}


def total(config: Config, size: int | None = None, *, in_use: bool = False) -> BlockCost:
    return total_cost(by_name(config, size, in_use=in_use).values())


def total_of_network(config: Config, *, in_use: bool = False) -> BlockCost:
    blocks = by_name(config, in_use=in_use)
    return total_cost(block for name, block in blocks.items() if name != "detector head")


def floating_buffers(network: HaloAE) -> int:
    """Numbers that are read but are no parameters: running statistics, the reducer's matrix."""
    return sum(b.numel() for b in network.buffers() if b.is_floating_point())


@pytest.mark.parametrize("in_use", [False, True])
@pytest.mark.parametrize(
    ("config", "size"),
    [
        pytest.param(PAPER, 64, id="paper"),
        pytest.param(AUTOENCODER, 64, id="autoencoder"),
        pytest.param(DEFAULT, 64, id="default"),
        pytest.param(FAST, 48, id="fast"),
        pytest.param(PRESETS["nearest"], 48, id="nearest"),
        pytest.param(ATTENTIVE, 52, id="halo, padded to whole blocks"),
        *(
            pytest.param(ATTENTIVE.replace(network={"attention": {"mode": mode}}), 52, id=mode)
            for mode in ("published", "window_mean", "global")
        ),
    ],
)
def test_multiply_adds_are_those_of_torchs_counter(config: Config, size: int, in_use: bool) -> None:
    """On real tensors; its two operations are one multiply-add.

    It sees convolutions and matrix products alone, as we do, but not the fused attention of a CPU:
    so attention is taken apart into matrix products, of as many multiply-adds.
    """
    network = build(config, size, "cpu")
    network = lean(network, image=False) if in_use else network
    head = head_named(config.detection.head).sized(config.replace(image_size=size))
    assert head is not None
    image, counter = torch.zeros(1, 3, size, size), FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        head(network(image), image)
    assert 2 * total(config, size, in_use=in_use).multiply_adds == counter.get_total_flops()


@pytest.mark.parametrize("config", [PAPER, AUTOENCODER, DEFAULT, FAST, ATTENTIVE])
def test_every_weight_is_counted_once(config: Config) -> None:
    network = build(config, config.image_size)
    counted = total_of_network(config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert counted.parameters == parameters
    assert counted.weight_bytes == FLOAT * (parameters + floating_buffers(network))


@pytest.mark.parametrize("config", [PAPER, AUTOENCODER, DEFAULT])
def test_every_weight_in_use_is_counted_once(config: Config) -> None:
    with torch.device("meta"):
        network = lean(build(config, config.image_size), image=False)
    counted = total_of_network(config, in_use=True)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert counted.parameters == parameters
    assert counted.weight_bytes == FLOAT * (parameters + floating_buffers(network))


def test_parameters_stand_where_they_belong() -> None:
    network, blocks = build(PAPER, 256), by_name(PAPER)
    modules = {
        "head": network.encoder.head,
        "image decoder": network.image_decoder,
        "classifier": network.classifier,
        **{f"encoder {n}": block for n, block in enumerate(network.encoder.blocks, 1)},
        **{f"decoder {n}": block for n, block in enumerate(network.decoder.blocks, 1)},
    }
    for name, module in modules.items():
        assert blocks[name].parameters == sum(p.numel() for p in module.parameters()), name
    trunk = [blocks[name].parameters for name in PAPER_NAMES[:4]]
    assert trunk == [9 * 3 * 64 + 64, 110_784, 442_752, 3 * (9 * 256 * 256 + 256)]


def test_paper_is_as_large_as_published() -> None:
    """Trained: the published 17.6 M less the 5.8 M of layers that it never runs."""
    trunk = total_cost(by_name(PAPER)[name] for name in PAPER_NAMES[:4])
    trained = total(PAPER).parameters - trunk.parameters
    assert trained == pytest.approx(17.6e6 - 5.8e6, abs=0.1e6)
    assert trunk.multiply_adds == pytest.approx(14.61e9, abs=0.005e9)


def block_multiply_adds(wide: int, inner: int, narrow: int, kernel: int, heads: int) -> int:
    """Of one block of the paper on its 60×60 cells, 5×5 blocks of 12×12 in windows of 16×16."""
    cells, window, head_dim = 60**2, 16, 16
    convolutions = wide * inner + inner * narrow * kernel**2
    convolutions += wide * narrow if wide != narrow else 0
    projections = 4 * inner * heads * head_dim
    positions = 2 * heads * head_dim * window
    # Positions are channels of queries and keys, and values are as wide (docs/adr/0003).
    pairs = heads * window**2 * 2 * (head_dim + 2 * window)
    return cells * (convolutions + projections + positions + pairs)


def test_paper_blocks_against_its_table() -> None:
    blocks = by_name(PAPER)
    assert blocks["head"].multiply_adds == 60**2 * 704 * 234 * 5 * 5
    for part, rows in (("encoder", ENCODER), ("decoder", DECODER)):
        for number, row in enumerate(rows, 1):
            counted = blocks[f"{part} {number}"].multiply_adds
            assert counted == block_multiply_adds(*row), (part, number)
    assert blocks["resize"].multiply_adds == 0
    assert blocks["classifier"].multiply_adds == 2 * 3 * 256**2


def test_paper_beside_the_published_figures() -> None:
    """60.7 GMAC without VGG19's unused layers, 46.1 for the feature map alone.

    With positions as channels, ours makes three multiply-adds of every one between a query and a
    key or a value. Less these, the map needs what is published. The published whole also projects
    keys and values after windows overlap.
    """
    blocks = by_name(PAPER)
    whole = total(PAPER).multiply_adds
    needed = whole - blocks["image decoder"].multiply_adds - blocks["classifier"].multiply_adds
    assert total(PAPER).multiply_adds == pytest.approx(63.21e9, abs=0.005e9)
    assert total(PAPER, in_use=True).multiply_adds == pytest.approx(47.92e9, abs=0.005e9)
    cells, pairs = 60**2, 60**2 * 16**2
    rows = [*ENCODER, *DECODER]
    as_channels = sum(heads for *_, heads in rows) * pairs * 2 * 2 * 16
    # In use, values are as wide as they are.
    assert total(PAPER, in_use=True).multiply_adds == needed - as_channels // 2
    assert needed - as_channels == pytest.approx(46.1e9, abs=0.1e9)
    twice = sum(2 * inner * heads * 16 for _, inner, _, _, heads in rows) * cells
    overlap = round(((16 / 12) ** 2 - 1) * twice)
    assert whole - as_channels + overlap == pytest.approx(60.7e9, abs=0.3e9)


def test_bytes_of_a_head_by_hand() -> None:
    """Convolution, norm and ReLU: each reads what the one before wrote."""
    head = by_name(PAPER)["head"]
    assert head.activation_bytes == FLOAT * (704 * 64**2 + 5 * 234 * 60**2)
    assert head.weight_bytes == FLOAT * (704 * 234 * 25 + 4 * 234)
    assert head.intensity == head.multiply_adds / (head.activation_bytes + head.weight_bytes)
    # In use the norm is folded into the convolution, which gets a bias.
    lean = by_name(PAPER, in_use=True)["head"]
    assert lean.activation_bytes == FLOAT * (704 * 64**2 + 3 * 234 * 60**2)
    assert lean.weight_bytes == FLOAT * (704 * 234 * 25 + 234)


def test_bytes_of_a_plain_block_by_hand() -> None:
    """Encoder 2 of the preset: 48 → 8 channels, no attention."""
    cells, weights = 64**2, 48 * 8 + 8 * 8 * 9 + 48 * 8
    wide, narrow = 48 * cells, 8 * cells
    norms = 3 * 2 * narrow
    relus = 3 * 2 * narrow
    convolutions = 2 * (wide + narrow) + 2 * narrow
    block = by_name(AUTOENCODER)["encoder 2"]
    assert block.activation_bytes == FLOAT * (convolutions + norms + relus + 3 * narrow)
    assert block.weight_bytes == FLOAT * (weights + 3 * 4 * 8)
    assert block.multiply_adds == cells * weights


def test_attention_writes_no_pairs() -> None:
    everywhere = ATTENTIVE.replace(network={"attention": {"mode": "global"}})
    pairs = (512 // 4) ** 4
    block = by_name(everywhere, 512)["encoder 1"]
    assert block.multiply_adds > 2 * 2 * 16 * pairs
    assert block.activation_bytes < 0.5 * FLOAT * pairs


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (PAPER, PAPER_NAMES),
        (AUTOENCODER, AUTOENCODER_NAMES),
        (DEFAULT, DEFAULT_NAMES),
        (FAST, DEFAULT_NAMES),
    ],
)
def test_blocks_are_named_in_the_order_of_the_figure(config: Config, names: list[str]) -> None:
    assert [block.name for block in count_cost(config)] == names


def test_what_the_map_does_not_need() -> None:
    def not_needed(config: Config) -> set[str]:
        return {block.name for block in count_cost(config) if not block.is_needed}

    assert not_needed(PAPER) == {"image decoder", "classifier"}
    assert not_needed(PAPER.replace(detection={"image_weight": 0.5})) == {"classifier"}
    assert not_needed(AUTOENCODER) == not_needed(DEFAULT) == set()
    image = by_name(PAPER)["image decoder"].multiply_adds
    assert image / total(PAPER).multiply_adds == pytest.approx(0.212, abs=0.001)


@pytest.mark.parametrize("config", [PAPER, AUTOENCODER])
def test_in_use_it_costs_less_for_the_same_blocks(config: Config) -> None:
    blocks, lean = by_name(config), by_name(config, in_use=True)
    assert list(lean) == [name for name, block in blocks.items() if block.is_needed]
    for name, block in lean.items():
        assert block.is_needed
        assert block.multiply_adds <= blocks[name].multiply_adds
        assert block.activation_bytes <= blocks[name].activation_bytes
    assert total(config, in_use=True).activation_bytes < total(config).activation_bytes


@pytest.mark.parametrize("config", [DEFAULT, FAST])
def test_features_in_use_trade_bytes_for_half_of_their_products(config: Config) -> None:
    """Of all that is not trained, nothing else differs."""
    blocks, lean = by_name(config), by_name(config, in_use=True)
    assert list(lean) == list(blocks)
    trained, used = blocks.pop("features"), lean.pop("features")
    assert lean == blocks
    assert used.multiply_adds < 0.53 * trained.multiply_adds
    assert used.activation_bytes < 1.2 * trained.activation_bytes


def test_taps_are_reduced_where_they_stand() -> None:
    """In use: 64 channels on the grid, 128 on a quarter of its cells, 256 on a sixteenth."""
    trained, lean = (by_name(AUTOENCODER, in_use=in_use)["features"] for in_use in (False, True))
    assert trained.multiply_adds == 64**2 * 96 * (64 + 128 + 256)
    assert lean.multiply_adds == 64**2 * 96 * 64 + 32**2 * 96 * 128 + 16**2 * 96 * 256
    assert trained.weight_bytes == lean.weight_bytes == FLOAT * (448 * 96 + 96)


def test_total_is_the_sum() -> None:
    blocks = [BlockCost("a", 1, 2, 3, 4, True), BlockCost("b", 10, 20, 30, 40, False)]
    assert total_cost(iter(blocks)) == BlockCost("total", 11, 22, 33, 44, True)
    assert total_cost(blocks[1:], "in use") == BlockCost("in use", 10, 20, 30, 40, False)
    assert total_cost([]).intensity == 0


@pytest.mark.parametrize("in_use", [False, True])
@pytest.mark.parametrize("config", [AUTOENCODER, ATTENTIVE.replace(network={"classifier": False})])
def test_cost_grows_with_the_pixels(config: Config, in_use: bool) -> None:
    small = total(config, 128, in_use=in_use)
    for size in (256, 512, 1024):
        large, times = total(config, size, in_use=in_use), (size // 128) ** 2
        assert large.multiply_adds == times * small.multiply_adds
        # Positions and one-hots do not grow, and the halo around the grid only with its side.
        assert large.activation_bytes == pytest.approx(times * small.activation_bytes, rel=0.02)
        assert large.parameters == small.parameters


def test_papers_cost_for_a_pixel_nears_a_limit() -> None:
    """Its head takes four cells of the grid, whatever the size."""
    a_pixel = [
        total(PAPER, size, in_use=True).multiply_adds / size**2 for size in (128, 256, 512, 1024)
    ]
    assert a_pixel == sorted(a_pixel)
    assert a_pixel[3] / a_pixel[2] < a_pixel[2] / a_pixel[1]
    assert a_pixel[3] / a_pixel[2] < 1.02


def test_counting_takes_no_memory_and_draws_nothing() -> None:
    """In memory this network would hold 100 MB of classifier and 1 GB for each first activation."""
    count_cost(PAPER, image_size=32)  # torch imports what it needs
    state, before = torch.get_rng_state(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count_cost(PAPER, image_size=2048)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, "kB"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [32, 36, 100, 4096])
@pytest.mark.parametrize("config", [PAPER, AUTOENCODER])
def test_every_allowed_size_can_be_counted(config: Config, size: int) -> None:
    assert total_cost(count_cost(config, image_size=size)).multiply_adds > 0


@pytest.mark.parametrize("size", [32, 48, 800])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_head_can_be_counted(preset: str, size: int) -> None:
    *_, head = count_cost(PRESETS[preset], image_size=size)
    assert head.name == "detector head"
    assert head.is_needed
    assert head.weight_bytes > 0


def test_a_head_counts_as_it_was_derived() -> None:
    """By hand: 32×32 places of 96 channels, blocks of 2×2 in windows of 6×6, 100 images."""
    places, channels, keys = 32**2, 96, 6 * 6 * 100
    # Queries of the border's blocks meet keys of blocks that are not there, far away.
    halo = places * channels * channels + places * keys * channels
    rebuilding = gaussian = places * channels * channels
    head = by_name(DEFAULT)["detector head"]
    averaging = places * channels * 9
    assert head.multiply_adds == halo + rebuilding + averaging + gaussian
    memory = places * 100 * (channels + 1)
    covariances = places * (channels + channels**2)
    assert head.weight_bytes == FLOAT * (memory + 2 * channels**2 + covariances)
    assert head.parameters == 0


def test_a_fitted_head_counts_as_large_as_it_is() -> None:
    config = DEFAULT.replace(detection={"head": "nearest"})
    head = NearestHead(torch.zeros(50, 96, dtype=torch.float16), images=1)
    *_, counted = count_cost(config, head=head)
    assert counted.multiply_adds == 32**2 * 50 * 96
    assert counted.weight_bytes == 2 * 50 * 96
    assert head.bank.device.type == "cpu", "it is left as it was"


def test_a_size_the_head_cannot_take() -> None:
    with pytest.raises(ConfigError, match="image_size 40 must be divisible by 16"):
        count_cost(DEFAULT, image_size=40)
    with pytest.raises(ConfigError, match="too much"):
        count_cost(DEFAULT, image_size=2048)


@pytest.mark.parametrize("size", [0, -4, 28, 130, 4100])
def test_a_size_the_network_cannot_take(size: int) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        count_cost(AUTOENCODER, image_size=size)
