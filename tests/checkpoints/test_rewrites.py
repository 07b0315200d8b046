"""The rewritten network: the same function, whatever the size, scale and form."""

import copy

import pytest
import torch
from helpers import SAMPLE, SHIPPED_MODEL, lively_network, random_image
from torch.utils.flop_counter import FlopCounterMode

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.rewrites import (
    ConvolutionBlock,
    ProductBlock,
    ShuffledConvolution,
    as_convolution,
    projections,
    rewritten,
)
from aethernet.checkpoints.verification import compare, verification_frames
from aethernet.pictures.files import read_picture

BLOCKS = [ProductBlock, ConvolutionBlock]
SIZES = [(1, 1), (1, 2), (3, 1), (2, 2), (5, 7), (24, 17)]


def largest_error(network, other, image):
    with torch.inference_mode():
        return compare(other(image), network(image)).max_abs_error


@pytest.mark.parametrize("block_type", BLOCKS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("arguments", [{}, {"in_chans": 1, "img_range": 255.0}])
def test_computes_the_same_on_every_size(scale, arguments, block_type):
    network = lively_network(scale=scale, **arguments)
    for form in (network, copy.deepcopy(network).fuse()):
        other = rewritten(form, block_type=block_type)
        for size in SIZES:
            image = random_image(2, network.in_chans, *size)
            # Float32 in another order of sums, on values around 1 to 4.
            assert largest_error(network, other, image) < 2e-5, size


def test_the_edge_is_as_exact_as_the_middle():
    # In float64, to see errors that rounding would hide: the second 3x3 pads, too.
    network = lively_network(scale=3).double()
    *_, widen, shuffle = network.upsample
    both = ShuffledConvolution(widen, shuffle.upscale_factor, network.conv_last)
    features = random_image(1, 64, 9, 8).double()
    with torch.inference_mode():
        expected = network.conv_last(shuffle(widen(features)))
        torch.testing.assert_close(both(features), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block_type", BLOCKS)
def test_the_shipped_model_on_a_photograph(block_type):
    network = load_checkpoint(SHIPPED_MODEL).build()
    pixels = read_picture(SAMPLE).pixels[40:104, 60:156, :3]
    image = torch.from_numpy(pixels / 255).float().permute(2, 0, 1).unsqueeze(0)
    assert largest_error(network, rewritten(network, block_type=block_type), image) < (
        1e-5
    )


@pytest.mark.parametrize("block_type", BLOCKS)
@pytest.mark.parametrize(("precision", "bar"), [("float16", 50), ("bfloat16", 40)])
def test_half_precisions_on_the_shipped_model(precision, bar, block_type):
    network = load_checkpoint(SHIPPED_MODEL).build()
    other = rewritten(network, precision, block_type)
    frames = verification_frames(24, 32)
    for name in ("natural image", "checkerboard"):
        image = frames[name]
        with torch.inference_mode():
            difference = compare(other(image), network(image))
        assert difference.finite, name
        assert difference.psnr >= bar, name
        assert difference.max_abs_error > 1e-5, name  # it is half precision


def test_the_output_has_the_dtype_of_the_input():
    other = rewritten(lively_network(), "float16")
    image = random_image(1, 3, 5, 6)
    assert other(image).dtype == torch.float32
    assert other(image.half()).dtype == torch.float16


def test_projections_include_the_layer_norm_and_leave_the_block_alone():
    block = lively_network().double().layers[0][0]
    before = copy.deepcopy(block.state_dict())
    gate, main, last = projections(block)
    normal = random_image(5, 12).double()  # the output of LayerNorm, without its scale
    with torch.no_grad():
        scaled = block.norm.weight * normal + block.norm.bias
        for ours, original in ((gate, block.ffn.fc1_gate), (main, block.ffn.fc1_main)):
            difference = (ours(normal) - original(scaled)).abs().max()
            assert difference < 1e-12
            assert not torch.equal(ours.weight, original.weight)
        for ours in (gate, main, last):
            ours.weight.zero_()
            ours.bias.zero_()
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name
    again = projections(block)
    assert all(each.weight.abs().max() > 0 for each in again)


def test_a_linear_layer_is_a_convolution_of_single_pixels():
    linear = projections(lively_network().layers[0][0])[0]
    pixels = random_image(2, 12, 3, 4)
    with torch.no_grad():
        expected = linear(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        output = as_convolution(linear)(pixels)
    torch.testing.assert_close(output, expected)


def test_the_network_is_not_changed():
    network = lively_network(img_range=2.0)
    before = copy.deepcopy(network.state_dict())
    rewritten(network)
    assert not network.is_fused
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("scale", "saved"), [(2, 0.10), (3, 0.19), (4, 0.25)])
def test_takes_less_work(scale, saved):
    network = load_checkpoint(SHIPPED_MODEL).build().fuse()
    network = type(network)(**{**network.hyperparameters, "scale": scale})

    def work(module):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            module(torch.zeros(1, 3, 32, 32))
        return counter.get_total_flops()

    # The outermost pixels are computed twice: on 32x32 a few per cent.
    share = work(rewritten(network)) / work(network)
    assert 1 - saved - 0.02 < share < 1 - saved + 0.08
