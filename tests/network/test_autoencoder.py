"""The auto-encoder, its heads and the whole network, against the paper's table and figure."""

import copy
import re
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import PLAIN
from haloae.config import Config
from haloae.network.attention.halo import HaloAttention
from haloae.network.autoencoder import HaloBlock, HaloDecoder, HaloEncoder
from haloae.network.branches import Classifier, ImageDecoder
from haloae.network.haloae import HaloAE, HaloAEOutput
from haloae.presets import AUTOENCODER, DEFAULT, FAST, PAPER
from oracles import paper_network

ENCODER = [(234, 234, 3, 4), (234, 117, 3, 8), (117, 58, 5, 8), (58, 29, 5, 8)]
"""Rows of the paper's table: channels in and out, kernel, heads."""
DECODER = [(29, 29, 3, 4), (29, 59, 3, 8), (59, 118, 3, 8), (118, 237, 5, 8), (237, 704, 1, 8)]
DECODER_INNER = [29, 58, 118, 236, 703]
IMAGE_DECODER = [704, 380, 190, 95, 47, 23, 3, 3]
TINY = PLAIN.replace(
    image_size=64,
    network={
        "reduced_channels": 12,
        "head_channels": 24,
        "encoder": [{"channels": 24, "heads": 2}],
        "decoder": [{"channels": 24, "heads": 2}, {"heads": 2}],
        "attention": {"block": 8, "head_dim": 8},
        "image_decoder": [16, 16],
    },
)


class PaperRun(NamedTuple):
    network: HaloAE
    image: Tensor
    output: HaloAEOutput


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def smooth_images(count: int, size: int) -> Tensor:
    return F.interpolate(drawn(count, 3, 4, 4), size=(size, size), mode="bicubic")


def build(config: Config, seed: int = 0) -> HaloAE:
    generator = torch.Generator().manual_seed(seed)
    return HaloAE(
        config.network, image_size=config.image_size, weights="random", generator=generator
    )


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def paper() -> PaperRun:
    """The paper's network in eval mode; biases and norms drawn, as if after some training.

    Variances are drawn where activations keep their size from block to block: a softmax over
    logits of hundreds would turn the last bit of a float32 into per cents of the output.
    """
    network = build(PAPER).eval()
    generator = torch.Generator().manual_seed(6)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and name.endswith("bias") and "classifier" not in name:
            nn.init.normal_(parameter, 0, 0.5, generator=generator)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(1, 3, generator=generator)
    image = drawn(1, 3, 256, 256)
    with torch.no_grad():
        return PaperRun(network, image, network(image))


def block_parameters(wide: int, narrow: int, kernel: int, heads: int, inner: int) -> int:
    window, head_dim = 12 + 2 * 2, 16
    projections = 4 * inner * heads * head_dim + inner  # q, k, v, out and the bias of out
    positions = 2 * (2 * window - 1) * head_dim
    convolutions = wide * inner + inner * narrow * kernel**2
    norms = 2 * inner + 2 * narrow
    skip = wide * narrow + 2 * narrow if wide != narrow else 0
    return projections + positions + convolutions + norms + skip


def test_paper_has_the_tables_parameters(paper: PaperRun) -> None:
    network = paper.network
    head = 704 * 234 * 5 * 5 + 2 * 234
    encoder = [block_parameters(*row, inner=row[1]) for row in ENCODER]
    decoder = [
        block_parameters(*row, inner=inner)
        for row, inner in zip(DECODER, DECODER_INNER, strict=True)
    ]
    image = sum(9 * wide * narrow + narrow for wide, narrow in pairwise(IMAGE_DECODER))
    classifier = 256 * 256 * 3 * 2 + 2
    assert parameters_of(network.encoder.head) == head
    assert [parameters_of(block) for block in network.encoder.blocks] == encoder
    assert [parameters_of(block) for block in network.decoder.blocks] == decoder
    assert parameters_of(network.image_decoder) == image
    assert parameters_of(network.classifier) == classifier
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == head + sum(encoder) + sum(decoder) + image + classifier
    # The published 17.6 M less the 5.8 M of layers it never runs.
    assert trained == pytest.approx(17.6e6 - 5.8e6, abs=0.1e6)


def test_paper_shapes(paper: PaperRun) -> None:
    output = paper.output
    assert output.features.shape == (1, 704, 64, 64)
    assert output.rebuilt.shape == (1, 704, 64, 64)
    assert output.image.shape == (1, 3, 256, 256)
    assert output.logits.shape == (1, 2)
    assert output.rebuilt.min() >= 0
    assert output.image.min() >= 0


def reference_name(key: str) -> str:
    """The name `paper_network` knows one of `HaloAE`'s tensors by."""
    key = re.sub(r"^extractor\.layers\.", "trunk.", key)
    key = re.sub(r"^encoder\.head\.0\.", "head.conv.", key)
    key = re.sub(r"^encoder\.head\.1\.", "head.norm.", key)
    key = re.sub(r"^(encoder|decoder)\.blocks\.(\d)", lambda m: f"{m[1]}{int(m[2]) + 1}", key)
    key = key.replace(".skip.0.", ".skip.").replace(".skip.1.", ".skipnorm.")
    key = re.sub(r"^image_decoder\.convolutions\.(\d)", lambda m: f"image{int(m[1]) + 1}", key)
    return key.replace("classifier.linear.", "classifier.")


def reference_weights(network: HaloAE) -> dict[str, Tensor]:
    return {
        reference_name(key): tensor
        for key, tensor in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def largest_errors(got: HaloAEOutput, wanted: tuple[Tensor, ...]) -> dict[str, float]:
    """Largest difference of each output, as a share of its largest value."""
    errors = {}
    for name, mine, other in zip(HaloAEOutput._fields, got, wanted, strict=True):
        assert mine.shape == other.shape, name
        assert other.std() > 0.01, name
        errors[name] = float((mine - other).abs().max() / other.abs().max())
    return errors


def test_paper_is_the_papers_network(paper: PaperRun) -> None:
    """To 1e-5 of each output's largest value.

    The image passes seven more convolutions whose sums all but cancel, and is off by up to 1e-5
    of it in either implementation; so it and the logits get five times as much.
    """
    read: set[str] = set()

    class Recorded(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            read.add(name)
            return super().__getitem__(name)

    weights = reference_weights(paper.network)
    with torch.no_grad():
        errors = largest_errors(paper.output, paper_network(paper.image, Recorded(weights)))
    assert max(errors["features"], errors["rebuilt"]) < 1e-5, errors
    assert max(errors["image"], errors["logits"]) < 5e-5, errors
    # What `paper_network` hands on whole, a trunk and attentions, it reads by other names.
    parts = {name for name in weights if "attention" in name or name.startswith("trunk")}
    assert read == weights.keys() - parts


@pytest.mark.slow
def test_paper_is_the_papers_network_in_float64(paper: PaperRun) -> None:
    network, image = copy.deepcopy(paper.network).double(), paper.image.double()
    with torch.no_grad():
        errors = largest_errors(network(image), paper_network(image, reference_weights(network)))
    assert max(errors.values()) < 1e-9, errors


def encoder_of(network: HaloAE, *, attention: str) -> HaloEncoder:
    """The paper's encoder with another kind of attention and the same weights."""
    config = PAPER.replace(network={"attention": {"mode": attention}}).network
    encoder = HaloEncoder(config, 704).eval()
    encoder.load_state_dict(network.encoder.state_dict())
    return encoder


def test_paper_differs_where_attention_is_the_published_one(paper: PaperRun) -> None:
    """So that the equality above would see the mask."""
    features = paper.output.features[..., :28, :28]
    with torch.no_grad():
        code = paper.network.encoder(features)
        faulty = encoder_of(paper.network, attention="published")(features)
    assert (code - faulty).abs().max() > 0.01 * code.abs().max()


def test_a_preset_rebuilds_features_on_their_own_grid() -> None:
    config = AUTOENCODER
    network = build(config).eval()
    with torch.no_grad():
        output = network(drawn(1, 3, config.image_size, config.image_size))
    channels = config.network.reduced_channels
    assert output.features.shape == (1, channels, config.image_size // 4, config.image_size // 4)
    assert output.rebuilt.shape == output.features.shape
    assert (output.image is None) == (config.network.image_decoder is None)
    assert (output.logits is None) == (not config.network.classifier)
    assert output.rebuilt.min() < 0


@pytest.mark.parametrize("config", [DEFAULT, FAST], ids=["default", "fast"])
def test_without_an_autoencoder_there_are_features_alone(config: Config) -> None:
    network = build(config).eval()
    with torch.no_grad():
        output = network(drawn(1, 3, config.image_size, config.image_size))
    side = config.image_size // 8
    assert output.features.shape == (1, config.network.reduced_channels, side, side)
    assert output.rebuilt is output.features
    assert (output.image, output.logits) == (None, None)
    assert not [p for p in network.parameters() if p.requires_grad]


@pytest.mark.parametrize("image_decoder", [None, (8, 4)])
@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_output_is_one_type_in_every_mode(
    image_decoder: tuple[int, ...] | None, classifier: bool, training: bool
) -> None:
    config = TINY.replace(network={"image_decoder": image_decoder, "classifier": classifier})
    output = build(config).train(training)(drawn(2, 3, 64, 64))
    assert isinstance(output, HaloAEOutput)
    assert output._fields == ("features", "rebuilt", "image", "logits")
    assert output.features.shape == output.rebuilt.shape == (2, 12, 16, 16)
    if image_decoder is None:
        assert output.image is None
    else:
        assert output.image.shape == (2, 3, 64, 64)
    if classifier:
        assert output.logits.shape == (2, 2)
    else:
        assert output.logits is None


@pytest.mark.parametrize("mode", ["halo", "published", "window_mean", "global", "none"])
def test_any_attention_and_any_kernel_keeps_the_grid(mode: str) -> None:
    stages = [{"channels": 6, "kernel": kernel, "heads": 1} for kernel in (1, 3, 5, 7)]
    config = TINY.replace(
        network={
            "attention": {"mode": mode},
            "encoder": stages,
            "decoder": [*stages, {"heads": 1, "kernel": 1, "inner": 5}],
        }
    )
    output = build(config)(drawn(2, 3, 64, 64))
    assert output.rebuilt.shape == (2, 12, 16, 16)


@pytest.mark.parametrize(("kernel", "grid"), [(3, 14), (5, 12), (7, 10)])
def test_unpadded_head_shrinks_the_code_and_the_output_is_resized(kernel: int, grid: int) -> None:
    config = TINY.replace(network={"head_kernel": kernel, "head_padding": False})
    network = build(config)
    code = network.encoder(drawn(2, 12, 16, 16))
    assert code.shape == (2, 24, grid, grid)
    blocks = network.decoder.eval().blocks(code)
    rebuilt = network.decoder(code, grid=(16, 16))
    source = torch.arange(16) * grid // 16
    assert torch.equal(rebuilt, blocks[:, :, source][..., source])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("branch", ["rebuilt", "image"])
def test_final_relu_is_a_setting(branch: str, relu: bool) -> None:
    config = TINY.replace(network={f"{branch}_relu": relu})
    output = getattr(build(config)(drawn(2, 3, 64, 64)), branch)
    assert (output.min() >= 0) == relu


def test_every_block_but_the_last_ends_in_relu() -> None:
    for config in (TINY, PAPER):
        network = HaloDecoder(config.network, 24, 704)
        *inner, last = [block.relu for block in network.blocks]
        assert all(inner)
        assert last == config.network.rebuilt_relu
        assert all(block.relu for block in HaloEncoder(config.network, 704).blocks)


def test_skip_is_the_identity_where_channels_stay() -> None:
    stage, attention = TINY.network.encoder[0], TINY.network.attention
    for wide, narrow in ((6, 6), (6, 5)):
        block = HaloBlock(
            wide, narrow, stage=stage, attention=attention, convolution=nn.Conv2d, relu=False
        ).eval()
        assert isinstance(block.skip, nn.Identity) == (wide == narrow)
        nn.init.zeros_(block.conv2.weight)
        x = drawn(1, wide, 8, 8)
        torch.testing.assert_close(block(x), block.skip(x))


def test_bottleneck_noise_is_drawn_in_training_alone_and_from_the_generator() -> None:
    network = build(TINY.replace(network={"bottleneck_noise": 0.5}))
    image = drawn(2, 3, 64, 64)

    def rebuilt(seed: int) -> Tensor:
        with torch.no_grad():
            return network(image, generator=torch.Generator().manual_seed(seed)).rebuilt

    network.train()
    assert torch.equal(rebuilt(1), rebuilt(1))
    assert not torch.equal(rebuilt(1), rebuilt(2))
    network.eval()
    assert torch.equal(rebuilt(1), rebuilt(2))


def test_initial_weights_follow_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = build(TINY, seed=3).state_dict()
    torch.manual_seed(2)
    again = build(TINY, seed=3).state_dict()
    other = build(TINY, seed=4).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
    drawn_names = {name for name, tensor in first.items() if not torch.equal(tensor, other[name])}
    fixed = [name for name in first if name not in drawn_names]
    for name in fixed:
        is_norm = re.search(r"\.(norm\d|skip\.1|head\.1)\.", name)
        is_zero_bias = name.endswith("bias") and not first[name].any()
        assert is_norm or is_zero_bias or name.startswith(("extractor", "reducer")), name


def test_initial_weights_have_the_published_spread() -> None:
    network = build(PAPER, seed=7)
    head = network.encoder.head[0].weight.detach()
    assert head.std() == pytest.approx((2 / (704 * 25)) ** 0.5, rel=0.02)
    transposed = network.decoder.blocks[3].conv2.weight.detach()
    assert transposed.shape == (236, 237, 5, 5)
    # PyTorch takes dimension 1 for the fan in of every weight, a transposed one's too.
    assert transposed.std() == pytest.approx((2 / (237 * 25)) ** 0.5, rel=0.02)
    classifier = network.classifier.linear
    bound = 196_608**-0.5
    for values in (classifier.weight.detach(), classifier.bias.detach()):
        assert values.abs().max() <= bound
    assert classifier.weight.detach().std() == pytest.approx(bound / 3**0.5, rel=0.02)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
    for convolution in network.image_decoder.convolutions:
        assert not convolution.bias.any()


def test_classifier_reads_every_value_of_the_image() -> None:
    classifier = Classifier(3 * 8 * 8)
    x = drawn(2, 3, 8, 8).requires_grad_()
    logits = classifier(x)
    assert logits.shape == (2, 2)
    logits[:, 0].sum().backward()
    assert (x.grad[0].flatten() == classifier.linear.weight[0]).all()


def test_image_decoder_quadruples_the_side_and_sees_beyond_its_border() -> None:
    decoder = ImageDecoder(6, (5, 4), relu=False)
    constant = drawn(1, 6, 1, 1).expand(-1, -1, 8, 10)
    image = decoder(constant)
    assert image.shape == (1, 3, 32, 40)
    torch.testing.assert_close(image, image[..., :1, :1].expand_as(image))


def test_trunk_gets_no_gradient_and_everything_else_does() -> None:
    network = build(TINY).train()
    output = network(smooth_images(2, 64))
    loss = output.rebuilt.square().mean() + output.image.square().mean()
    (loss + F.cross_entropy(output.logits, torch.tensor([0, 1]))).backward()
    for name, parameter in network.named_parameters():
        if name.startswith("extractor."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    assert not any(module.training for module in network.extractor.modules())
    assert network.encoder.training


def test_one_batch_is_overfitted() -> None:
    network = build(TINY.replace(image_size=32)).train()
    images = F.interpolate(drawn(2, 3, 2, 2), size=(32, 32), mode="bilinear")
    labels = torch.tensor([0, 1])
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=5e-3)
    losses = []
    for _ in range(100):
        output = network(images)
        loss = (
            F.mse_loss(output.rebuilt, output.features)
            + F.mse_loss(output.image, images)
            + F.cross_entropy(output.logits, labels)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_encoder_and_decoder_are_the_tables_rows() -> None:
    encoder = HaloEncoder(PAPER.network, 704)
    decoder = HaloDecoder(PAPER.network, encoder.out_channels, 704)
    assert encoder.out_channels == 29
    for blocks, rows in ((encoder.blocks, ENCODER), (decoder.blocks, DECODER)):
        for block, (wide, narrow, kernel, heads) in zip(blocks, rows, strict=True):
            transposed = isinstance(block.conv2, nn.ConvTranspose2d)
            assert transposed == (blocks is decoder.blocks)
            assert block.conv1.in_channels == wide
            assert block.conv2.out_channels == narrow
            assert block.conv2.kernel_size == (kernel, kernel)
            assert block.attention.heads == heads
            assert (block.attention.block, block.attention.halo) == (12, 2)
            assert isinstance(block.attention, HaloAttention)
