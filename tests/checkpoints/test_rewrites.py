"""The rewritten network: the same function, whatever the size, scale and form."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import SAMPLE, SHIPPED_MODEL, lively_network, random_image
from torch.utils.flop_counter import FlopCounterMode

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.rewrites import (
    ConvolutionBlock,
    ProductBlock,
    fold_network,
    rewritten,
    run_network,
)
from aethernet.checkpoints.verification import compare, verification_frames
from aethernet.pictures.files import read_picture

BLOCKS = [ProductBlock, ConvolutionBlock]
SIZES = [(1, 1), (1, 2), (3, 1), (2, 2), (5, 7), (12, 9)]


def largest_error(network, other, image):
    outputs = (run_network(each, image) for each in (other, network))
    return compare(*outputs).max_abs_error


@pytest.mark.parametrize("block_type", BLOCKS)
@pytest.mark.parametrize("scale", [1, 8])  # the test below has every scale
@pytest.mark.parametrize("arguments", [{}, {"in_chans": 1, "img_range": 255.0}])
def test_computes_the_same_on_every_size(scale, arguments, block_type):
    network = lively_network(scale=scale, **arguments)
    for form in (network, copy.deepcopy(network).fuse()):
        other = rewritten(fold_network(form), block_type=block_type)
        for size in SIZES:
            image = random_image(2, network.in_chans, *size).numpy()
            # Float32 in another order of sums, on values around 1 to 4.
            assert largest_error(network, other, image) < 2e-5, size


@pytest.mark.parametrize("block_type", BLOCKS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("arguments", [{}, {"in_chans": 1, "img_range": 255.0}])
def test_is_exact_in_float64_on_every_size(scale, arguments, block_type):
    # To see errors that rounding would hide, at the edges of the picture for instance.
    network = lively_network(scale=scale, **arguments).double()
    for form in (network, copy.deepcopy(network).fuse()):
        other = rewritten(fold_network(form, "float64"), "float64", block_type)
        for size in SIZES:
            image = random_image(2, network.in_chans, *size).double().numpy()
            expected = run_network(network, image)
            error = np.abs(run_network(other, image) - expected).max()
            assert error <= 1e-12 * np.abs(expected).max(), size


@pytest.mark.parametrize("block_type", BLOCKS)
def test_the_shipped_model_on_a_photograph(block_type):
    network = load_checkpoint(SHIPPED_MODEL).build()
    pixels = read_picture(SAMPLE).pixels[40:104, 60:156, :3]
    image = (pixels / np.float32(255)).transpose(2, 0, 1)[None]
    other = rewritten(fold_network(network), block_type=block_type)
    assert largest_error(network, other, image) < 1e-5


@pytest.mark.parametrize("block_type", BLOCKS)
@pytest.mark.parametrize(("precision", "bar"), [("float16", 50), ("bfloat16", 40)])
def test_half_precisions_on_the_shipped_model(precision, bar, block_type):
    network = load_checkpoint(SHIPPED_MODEL).build()
    other = rewritten(fold_network(network), precision, block_type)
    frames = verification_frames(12, 16)
    for name in ("natural image", "checkerboard"):
        image = frames[name]
        difference = compare(run_network(other, image), run_network(network, image))
        assert difference.finite, name
        assert difference.psnr >= bar, name
        assert difference.max_abs_error > 1e-5, name  # it is half precision


def test_the_output_has_the_dtype_of_the_input():
    other = rewritten(fold_network(lively_network()), "float16")
    image = random_image(1, 3, 5, 6)
    assert other(image).dtype == torch.float32
    assert other(image.half()).dtype == torch.float16


def test_the_network_is_not_changed():
    network = lively_network(img_range=2.0)
    before = copy.deepcopy(network.state_dict())
    rewritten(fold_network(network))
    assert not network.is_fused
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("scale", "saved"), [(2, 0.10), (3, 0.20), (4, 0.28)])
def test_takes_less_work(scale, saved):
    network = load_checkpoint(SHIPPED_MODEL).build().fuse()
    network = type(network)(**{**network.hyperparameters, "scale": scale})

    def work(module):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            module(torch.zeros(1, 3, 32, 32))
        return counter.get_total_flops()

    # The outermost pixels are computed twice: on 32x32 less than one per cent.
    share = work(rewritten(fold_network(network))) / work(network)
    assert 1 - saved - 0.01 < share < 1 - saved + 0.01
