"""Halo attention against slow, obvious versions, and what of the input reaches what."""

from collections.abc import Callable
from typing import Any

import halonet_pytorch
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from haloae.errors import ConfigError
from haloae.network.attention import ATTENTION, Attention, register_attention
from haloae.network.attention.halo import PAIRS_AT_ONCE, HaloAttention
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.presets import preset
from oracles import halo_attention_by_loops, mean_of_values_by_loops, unfolded_attention

WINDOW_MODES = ("halo", "published", "window_mean")
SIZES = {"dim": 5, "block": 4, "halo": 2, "heads": 2, "head_dim": 3}


def attention(mode: str = "halo", **changes: Any) -> Attention:  # noqa: ANN401 - any setting
    """A small layer whose every weight is drawn, biases too."""
    layer = ATTENTION[mode](**(SIZES | changes))
    generator = torch.Generator().manual_seed(1)
    layer.reset_parameters(generator)
    if mode != "none":
        nn.init.normal_(layer.to_out.bias, generator=generator)
    return layer


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def blocks_of(x: Tensor, block: int) -> list[tuple[slice, slice]]:
    return [
        (slice(row, row + block), slice(column, column + block))
        for row in range(0, x.shape[-2], block)
        for column in range(0, x.shape[-1], block)
    ]


@pytest.mark.parametrize("grid", [(8, 12), (13, 17), (5, 7), (3, 4), (1, 1)])
@pytest.mark.parametrize(
    ("block", "halo", "heads", "head_dim"), [(4, 2, 2, 3), (8, 1, 1, 4), (3, 3, 3, 2), (1, 2, 2, 3)]
)
def test_it_is_the_definition_as_trained_and_in_use(
    grid: tuple[int, int],
    block: int,
    halo: int,
    heads: int,
    head_dim: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = attention(block=block, halo=halo, heads=heads, head_dim=head_dim)
    x = drawn(2, SIZES["dim"], *grid)
    expected = halo_attention_by_loops(x, layer.state_dict(), block=block, halo=halo, heads=heads)
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
    for pairs_at_once in (100, PAIRS_AT_ONCE):
        monkeypatch.setattr("haloae.network.attention.halo.PAIRS_AT_ONCE", pairs_at_once)
        with torch.inference_mode():
            in_use = layer.lean()(x)
        torch.testing.assert_close(in_use.double(), expected, atol=1e-5, rtol=1e-5)


def test_it_is_the_definition_at_the_papers_sizes() -> None:
    sizes = {"block": 12, "halo": 2, "heads": 4}
    layer = attention(dim=9, head_dim=16, **sizes)
    x = drawn(1, 9, 12, 14)
    expected = halo_attention_by_loops(x, layer.state_dict(), **sizes)
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_large_inputs_are_the_definition_too() -> None:
    layer = attention()
    x = 10 * drawn(1, SIZES["dim"], 5, 7)
    expected = halo_attention_by_loops(x, layer.state_dict(), block=4, halo=2, heads=2)
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-3, rtol=1e-3)


def test_padding_is_left_out_where_every_real_logit_is_far_below_zero() -> None:
    layer = attention(heads=1)
    keys, _ = layer.to_kv.weight.detach().chunk(2)
    layer.to_q.weight.data = -keys
    for table in (layer.rel_height, layer.rel_width):
        nn.init.zeros_(table)
    x = drawn(1, SIZES["dim"], 1, 1).expand(-1, -1, 12, 12)
    key = layer.to_kv(x[..., 0, 0])[..., :3]
    x = x * (5000 / (key.square().sum() / 3**0.5)).sqrt()
    out = layer(x)
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))


@pytest.mark.parametrize(("block", "halo", "grid"), [(4, 2, (12, 8)), (12, 2, (24, 24))])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 8), (4, 16)])
def test_it_agrees_with_an_independent_implementation(
    block: int, halo: int, grid: tuple[int, int], heads: int, head_dim: int
) -> None:
    """On whole blocks with padding masked, where the two definitions are the same."""
    layer = attention(dim=6, block=block, halo=halo, heads=heads, head_dim=head_dim)
    other = halonet_pytorch.HaloAttention(
        dim=6, block_size=block, halo_size=halo, heads=heads, dim_head=head_dim
    )
    other.load_state_dict(
        {
            f"rel_pos_emb.{name}" if name.startswith("rel_") else name: tensor
            for name, tensor in layer.state_dict().items()
        }
    )
    x = drawn(2, 6, *grid)
    torch.testing.assert_close(layer(x), other(x), atol=1e-5, rtol=1e-5)


def test_the_unfolded_oracle_is_the_loops() -> None:
    """So that the published fault and the paper's network are compared with something sound."""
    weights = attention().state_dict()
    x = drawn(2, SIZES["dim"], 8, 12)
    sizes = {"block": 4, "halo": 2, "heads": 2}
    expected = halo_attention_by_loops(x, weights, **sizes)
    out = unfolded_attention(x, weights, **sizes)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(12, 12), (13, 17), (5, 7)])
def test_window_mean_is_the_mean_of_the_values(grid: tuple[int, int]) -> None:
    layer = attention(mode="window_mean")
    x = drawn(2, SIZES["dim"], *grid)
    expected = mean_of_values_by_loops(x, layer.state_dict(), block=4, halo=2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("grid", [(12, 12), (4, 4), (20, 16)])
def test_published_is_attention_with_its_mask_inverted(grid: tuple[int, int]) -> None:
    layer = attention(mode="published")
    x = drawn(2, SIZES["dim"], *grid)
    expected = unfolded_attention(x, layer.state_dict(), block=4, halo=2, heads=2, masked="inside")
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_published_leaves_nine_blocks_of_twenty_five_a_mean_and_the_others_the_bias() -> None:
    layer = attention(mode="published", dim=6, block=12, heads=4, head_dim=16)
    weights = layer.state_dict()
    x = drawn(1, 6, 60, 60)
    out = layer(x)
    faulty = unfolded_attention(x, weights, block=12, halo=2, heads=4, masked="inside")
    torch.testing.assert_close(out, faulty, atol=1e-5, rtol=1e-5)
    means = mean_of_values_by_loops(x, weights, block=12, halo=2)
    bias = weights["to_out.bias"][:, None, None].expand(1, 6, 12, 12)
    blocks = blocks_of(x, 12)
    only_bias = [b for b in blocks if torch.equal(out[..., b[0], b[1]], bias)]
    only_mean = [b for b in blocks if torch.allclose(out[..., b[0], b[1]], means[..., b[0], b[1]])]
    assert (len(only_bias), len(only_mean), len(blocks)) == (16, 9, 25)
    assert not any(b in only_mean for b in only_bias)


def test_with_the_mask_inverted_nothing_but_values_learns() -> None:
    """The fault itself, in the oracle: queries, keys and positions get gradients of zero."""
    weights = {n: p.detach().clone().requires_grad_() for n, p in attention().named_parameters()}
    x = drawn(1, SIZES["dim"], 12, 12)
    out = unfolded_attention(x, weights, block=4, halo=2, heads=2, masked="inside")
    out.square().sum().backward()
    keys, values = weights["to_kv.weight"].grad.chunk(2)
    for gradient in (weights["to_q.weight"].grad, keys, weights["rel_height"].grad):
        assert not gradient.any()
    assert values.abs().sum() > 0


@pytest.mark.parametrize("grid", [(8, 12), (13, 17)])
def test_global_is_softmax_over_the_whole_grid(grid: tuple[int, int]) -> None:
    layer = attention(mode="global")
    x = drawn(2, SIZES["dim"], *grid)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (
        projected.unflatten(-1, (2, 3)).transpose(1, 2)
        for projected in (layer.to_q(tokens), *layer.to_kv(tokens).chunk(2, dim=-1))
    )
    mixed = (q @ k.transpose(-1, -2) / 3**0.5).softmax(-1) @ v
    expected = layer.to_out(mixed.transpose(1, 2).flatten(-2)).transpose(1, 2).unflatten(-1, grid)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert not [name for name in layer.state_dict() if name.startswith("rel_")]


def test_none_is_the_input_itself() -> None:
    layer = attention(mode="none")
    x = drawn(2, SIZES["dim"], 5, 7)
    assert layer(x) is x
    assert not layer.state_dict()


def test_window_modes_share_one_state_dict() -> None:
    shapes = [
        {name: tensor.shape for name, tensor in attention(mode=mode).state_dict().items()}
        for mode in WINDOW_MODES
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    inner, table = 2 * 3, (2 * (4 + 2 * 2) - 1, 3)
    assert shapes[0] == {
        "to_q.weight": (inner, 5),
        "to_kv.weight": (2 * inner, 5),
        "to_out.weight": (5, inner),
        "to_out.bias": (5,),
        "rel_height": table,
        "rel_width": table,
    }


@pytest.mark.parametrize("mode", WINDOW_MODES)
def test_what_learns(mode: str) -> None:
    layer = attention(mode=mode)
    layer(drawn(1, SIZES["dim"], 13, 17)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    keys, values = gradients["to_kv.weight"].chunk(2)
    learns = {
        "q": gradients["to_q.weight"],
        "k": keys,
        "rel_height": gradients["rel_height"],
        "rel_width": gradients["rel_width"],
    }
    for name, gradient in learns.items():
        moved = 0.0 if gradient is None else float(gradient.abs().max())
        assert (moved > 1e-6) == (mode == "halo"), name
    for gradient in (values, gradients["to_out.weight"], gradients["to_out.bias"]):
        assert gradient.abs().max() > 1e-6


def test_every_row_of_the_position_tables_learns() -> None:
    """Every offset between a query of a block and a key of its window occurs, save where none is.

    The tables hold 2·window - 1 rows for the published weights to fit; a block smaller than its
    window leaves those past ±(block + halo - 1) untouched.
    """
    layer = attention()
    layer(drawn(1, SIZES["dim"], 12, 12)).square().sum().backward()
    offsets = [j - i for i in range(4) for j in range(8)]
    used = sorted({offset + 8 - 1 for offset in offsets})
    for table in (layer.rel_height, layer.rel_width):
        assert table.grad.abs().sum(1).nonzero().flatten().tolist() == used


@pytest.mark.parametrize("mode", ["halo", "window_mean", "global"])
@pytest.mark.parametrize("grid", [(12, 12), (13, 17)])
def test_constant_input_gives_constant_output_up_to_the_border(
    grid: tuple[int, int], mode: str
) -> None:
    layer = attention(mode=mode)
    x = drawn(1, SIZES["dim"], 1, 1).expand(-1, -1, *grid)
    out = layer(x)
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))


@pytest.mark.parametrize("place", [(0, 0), (5, 6), (4, 8), (7, 3), (12, 16), (1, 15), (10, 9)])
def test_influence_reaches_the_blocks_whose_window_holds_the_place(place: tuple[int, int]) -> None:
    layer = attention().double()
    x = drawn(1, SIZES["dim"], 13, 17, dtype=torch.float64)
    perturbed = x.clone()
    perturbed[..., place[0], place[1]] += 1
    changes = (layer(x) != layer(perturbed)).all(dim=1)[0]
    partly_changes = (layer(x) != layer(perturbed)).any(dim=1)[0]
    expected = torch.zeros(13, 17, dtype=torch.bool)
    for rows, columns in blocks_of(x, 4):
        is_in_rows = rows.start - 2 <= place[0] < rows.stop + 2
        is_in_columns = columns.start - 2 <= place[1] < columns.stop + 2
        expected[rows, columns] = is_in_rows and is_in_columns
    assert torch.equal(changes, expected)
    assert torch.equal(partly_changes, expected)


def test_images_of_a_batch_do_not_mix() -> None:
    layer = attention()
    x = drawn(3, SIZES["dim"], 13, 17)
    alone = torch.cat([layer(image[None]) for image in x])
    torch.testing.assert_close(layer(x), alone)


@pytest.mark.parametrize("mode", ["halo", "global"])
def test_cost_is_linear_in_positions_but_for_global(mode: str) -> None:
    layer = attention(mode=mode, dim=32, block=8, heads=4, head_dim=16)

    def operations(grid: int) -> int:
        # Only this kernel is made of matrix products that the counter sees on every device.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            layer(drawn(1, 32, grid, grid))
        return counter.get_total_flops()

    small, large = operations(24), operations(48)
    if mode == "global":
        assert large > 8 * small
        return
    assert large == pytest.approx(4 * small, rel=0.05)
    window, inner = 12, 64
    projections = 24**2 * 32 * inner * 4
    pairs = 24**2 * window**2 * 4 * (16 + 2 * window) * 2
    assert small == pytest.approx(2 * (projections + pairs), rel=0.1)


@pytest.mark.parametrize("mode", [*WINDOW_MODES, "global"])
def test_gradients_are_those_of_the_function(mode: str) -> None:
    layer = attention(dim=2, block=2, halo=1, heads=2, head_dim=2, mode=mode).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    x = drawn(1, 2, 3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize(
    "mode",
    [
        "halo",
        "published",
        "window_mean",
        "global",
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near(mode: str, dtype: torch.dtype) -> None:
    layer = attention(mode=mode, dim=8, head_dim=16)
    x = drawn(2, 8, 13, 17)
    exact = layer(x)
    out = attention(mode=mode, dim=8, head_dim=16).to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert (out.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("mode", [*WINDOW_MODES, "global"])
def test_mixed_precision_trains(mode: str) -> None:
    layer = attention(mode=mode, dim=8, head_dim=16)
    x = drawn(2, 8, 13, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    out.float().square().mean().backward()
    exact = layer(x)
    assert (out.float() - exact).abs().mean() < 0.03 * exact.abs().mean()
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ],
)
def test_memory_layout_does_not_matter(layout: Callable[[Tensor], Tensor]) -> None:
    layer = attention()
    x = drawn(2, SIZES["dim"], 8, 13)
    torch.testing.assert_close(layer(layout(x)), layer(x))


def test_initial_weights_follow_the_generator_and_have_the_published_spread() -> None:
    layers = [HaloAttention(64, block=8, halo=2, heads=8, head_dim=16) for _ in range(2)]
    for layer in layers:
        layer.reset_parameters(torch.Generator().manual_seed(5))
    assert all(
        torch.equal(a, b)
        for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True)
    )
    spreads = {name: float(p.std()) for name, p in layers[0].state_dict().items()}
    assert spreads["to_q.weight"] == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert spreads["to_kv.weight"] == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert spreads["to_out.weight"] == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert spreads["rel_height"] == pytest.approx(16**-0.5, rel=0.15)
    assert spreads["rel_width"] == pytest.approx(16**-0.5, rel=0.15)
    assert not layers[0].to_out.bias.any()


def test_a_kind_from_outside_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTENTION, "doubled", Attention)  # so that it goes again

    @register_attention("doubled")
    class Doubled(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    assert ATTENTION["doubled"] is Doubled
    config = preset("autoencoder").replace(network={"attention": {"mode": "doubled"}}).network
    generator = torch.Generator().manual_seed(0)
    network = HaloAE(config, image_size=64, weights="random", generator=generator).eval().double()
    x = drawn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        wanted, found = network(x).rebuilt, lean(network, image=False)(x).rebuilt
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_an_unknown_kind_is_refused_by_name() -> None:
    config = preset("autoencoder").replace(network={"attention": {"mode": "doubled"}}).network
    with pytest.raises(ConfigError, match=r"network\.attention\.mode is 'doubled': .*'halo'"):
        HaloAE(config, image_size=64, weights="random")


@pytest.mark.parametrize("mode", ATTENTION)
def test_the_lean_form_computes_the_same_of_weights_its_own(mode: str) -> None:
    layer = attention(mode=mode)
    x = drawn(2, SIZES["dim"], 13, 17)
    in_use = layer.lean().requires_grad_(False)
    torch.testing.assert_close(in_use(x), layer(x), atol=1e-5, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in layer.parameters())
    ours = {p.data_ptr() for p in layer.parameters()}
    assert not ours & {p.data_ptr() for p in in_use.parameters()}
