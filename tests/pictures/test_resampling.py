"""Resizing like MATLAB, on which published tables are based."""

import numpy as np
import pytest
from helpers import SAMPLE
from PIL import Image

from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.resampling import (
    enlarge,
    enlarge_sharply,
    lr_pixels,
    reduce,
    whole_pixels,
)
from aethernet.quality.baselines import Bicubic, Lanczos
from aethernet.upscaling.planes import upscale_picture


def keys(distance):
    """Keys' kernel, a = -0.5, from the paper."""
    x = abs(distance)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def imresize_matrix(side, factor):
    """MATLAB's contributions as a matrix, from its documented definition, by loops."""
    width = min(factor, 1)  # the kernel is widened when reducing
    matrix = np.zeros((round(side * factor), side))
    for row in range(len(matrix)):
        centre = (row + 0.5) / factor - 0.5
        reach = int(2 / width) + 2
        for at in range(int(centre) - reach, int(centre) + reach + 1):
            mirrored = at % (2 * side)
            source = min(mirrored, 2 * side - 1 - mirrored)
            matrix[row, source] += keys((centre - at) * width)
        matrix[row] /= matrix[row].sum()
    return matrix


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 2), (5, 7)])  # LR; edges are all there is of some
def test_both_ways_are_matlabs(scale, size):
    hr = np.random.default_rng(0).random((2, 3, *(side * scale for side in size)))
    rows, columns = (imresize_matrix(side * scale, 1 / scale) for side in size)
    lr = np.einsum("ij,bcjk,lk->bcil", rows, hr, columns)
    assert reduce(hr, scale) == pytest.approx(lr, abs=1e-14)
    rows, columns = (imresize_matrix(side, scale) for side in size)
    expected = np.einsum("ij,bcjk,lk->bcil", rows, lr, columns)
    assert enlarge(lr, scale) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
def test_float32_stays_float32_and_rounds_little(scale):
    pixels = np.random.default_rng(0).random((3, 4 * scale, 3 * scale))
    for resized in (reduce, enlarge, enlarge_sharply):
        rounded = resized(pixels.astype(np.float32), scale)
        assert rounded.dtype == np.float32
        assert np.abs(rounded - resized(pixels, scale)).max() <= 1e-6


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_each_way_is_pytorchs_where_that_has_it(scale):
    torch = pytest.importorskip("torch", reason="needs PyTorch, to compare with it")
    pixels = np.random.default_rng(0).random((1, 2, 16 * scale, 24 * scale))

    def bicubic(size, antialias):
        return torch.nn.functional.interpolate(
            torch.from_numpy(pixels), size=size, mode="bicubic", antialias=antialias
        ).numpy()

    larger = [side * scale for side in pixels.shape[2:]]
    sharp = bicubic(larger, antialias=False)
    assert np.abs(enlarge_sharply(pixels, scale) - sharp).max() <= 1e-12
    # With antialias it has MATLAB's kernel, but cuts it off at the edges.
    for resized, size, edge in ((reduce, (16, 24), 2), (enlarge, larger, 2 * scale)):
        inner = (..., slice(edge, -edge), slice(edge, -edge))
        expected = bicubic(size, antialias=True)[inner]
        assert np.abs(resized(pixels, scale)[inner] - expected).max() <= 1e-12


def test_lr_pictures_are_of_8_bits_and_whole():
    hr = read_picture(SAMPLE).pixels[:41, :31]
    lr = lr_pixels(hr, 4)
    assert lr.shape == (10, 7, 3)
    assert lr.dtype == np.uint8
    exact = reduce(hr[:40, :28].transpose(2, 0, 1) / 1.0, 4)
    wide = lr.transpose(2, 0, 1).astype(float)
    assert np.abs(wide - exact.clip(0, 255)).max() <= 0.5 + 1e-9
    assert np.array_equal(whole_pixels(hr, 4), hr[:40, :28])


def test_a_size_that_is_not_a_multiple_is_refused():
    with pytest.raises(ValueError, match="31x41 pixels are not a multiple of 4"):
        reduce(np.zeros((1, 41, 31)), 4)


@pytest.mark.parametrize(
    ("model", "filter"),
    [(Bicubic, Image.Resampling.BICUBIC), (Lanczos, Image.Resampling.LANCZOS)],
)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_away_from_the_edges_enlarging_is_that_of_pillow(model, filter, scale):
    lr = read_picture(SAMPLE).pixels[100:121, 200:217]
    result = upscale_picture(Picture(lr), model(scale), 8).pixels.astype(int)
    expected = Image.fromarray(lr).resize((17 * scale, 21 * scale), filter)
    inner = (slice(3 * scale, -3 * scale),) * 2
    difference = result[inner] - np.asarray(expected, int)[inner]
    assert np.abs(difference).max() <= 1  # Pillow rounds between rows and columns
