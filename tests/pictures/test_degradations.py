"""Degraded LR pictures: what each step does, and that a seed decides all of it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers import SAMPLE
from PIL import Image

from aethernet.pictures.degradations import (
    CLEAN_SHARE,
    MARGIN,
    MOST_BLUR,
    MOST_NOISE,
    QUALITIES,
    SHARP_SHARE,
    Degradation,
    blurred,
    draw,
    gaussian,
    placed,
)
from aethernet.pictures.resampling import lr_pixels

GRAY = np.full((128, 160, 3), 120, np.uint8)


@pytest.fixture(scope="module")
def photo():
    return np.asarray(Image.open(SAMPLE).convert("RGB"))[40:241, 15:256]


def lr_of(hr, seed=0, scale=2, **settings):
    return Degradation(**settings).lr(hr, scale, np.random.default_rng(seed))


def roughness(pixels):
    return np.abs(np.diff(pixels.astype(float), axis=1)).mean()


def blockiness(pixels):
    """Steps between neighbouring columns, by the place of the left one in 8."""
    steps = np.abs(np.diff(pixels.astype(float), axis=1)).mean(axis=(0, 2))
    return np.array([steps[place::8].mean() for place in range(8)])


@pytest.fixture(scope="module")
def drawn():
    random = np.random.default_rng(0)
    return [draw(random) for _ in range(4000)]


class TestDegradation:
    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_without_settings_is_the_published_protocol(self, photo, scale):
        assert np.array_equal(lr_of(photo, scale=scale), lr_pixels(photo, scale))

    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_makes_whole_lr_pixels_of_any_size(self, photo, drawn, scale):
        random = np.random.default_rng(0)
        height, width = (side // scale for side in photo.shape[:2])
        for degradation in drawn[:20]:
            lr = degradation.lr(photo, scale, random)
            assert (lr.shape, lr.dtype) == ((height, width, 3), np.uint8)
        assert draw(random, 0).lr(photo[:scale, :scale], scale, random).size == 3

    def test_a_seed_decides_every_pixel(self, photo):
        def made(seed):
            random = np.random.default_rng(seed)
            return [draw(random, clean_share=0).lr(photo, 2, random) for _ in range(8)]

        assert all(map(np.array_equal, made(1), made(1)))
        assert not any(map(np.array_equal, made(1), made(2)))

    def test_blur_softens_along_its_axis_and_keeps_the_mean(self, photo):
        clean = lr_of(photo)
        along = lr_of(photo, blur=(0.7, 0.1), angle=0)
        across = lr_of(photo, blur=(0.7, 0.1), angle=np.pi / 2)
        both = lr_of(photo, blur=(0.7, 0.7))
        assert roughness(both) < roughness(along) < roughness(clean)
        assert roughness(along) < 0.95 * roughness(across)
        upright = across.transpose(1, 0, 2), along.transpose(1, 0, 2)
        assert roughness(upright[0]) < 0.95 * roughness(upright[1])
        for lr in (along, across, both):
            assert abs(lr.mean() - clean.mean()) < 0.5

    def test_blur_is_as_strong_at_every_scale(self, photo):
        # It is given in LR pixels: relative to the clean LR it softens alike.
        softer = [
            roughness(lr_of(photo, scale=scale, blur=(0.6, 0.6)))
            / roughness(lr_of(photo, scale=scale))
            for scale in (2, 4)
        ]
        assert softer[0] == pytest.approx(softer[1], rel=0.15)

    def test_reductions_differ_and_keep_their_place(self, photo):
        clean = lr_of(photo).astype(float)
        area = lr_of(photo, reduction="area")
        crop = photo[:200, :240].astype(float)
        means = crop.reshape(100, 2, 120, 2, 3).mean(axis=(1, 3))
        assert np.abs(area - means).max() <= 0.5
        bilinear = lr_of(photo, reduction="bilinear").astype(float)
        for lr in (area, bilinear):
            shifted = np.abs(lr[:, 1:] - clean[:, :-1]).mean()
            assert 0 < np.abs(lr - clean).mean() < 0.5 * shifted
        assert roughness(bilinear) < roughness(area)

    @pytest.mark.parametrize("gray", [False, True])
    def test_gaussian_noise_has_its_deviation_and_colour(self, gray):
        noise = lr_of(GRAY, noise=6.0, gray=gray) - 120.0
        assert noise.std() == pytest.approx(6, rel=0.05)
        assert abs(noise.mean()) < 0.3
        equal = (noise[..., 0] == noise[..., 1]).mean()
        assert equal == 1 if gray else equal < 0.2

    def test_poisson_noise_grows_with_light(self):
        deviations = [
            (lr_of(np.full_like(GRAY, level), photons=1000.0) - float(level)).std()
            for level in (0, 60, 240)
        ]
        assert deviations[0] == 0
        expected = [np.sqrt(level / 255 / 1000) * 255 for level in (60, 240)]
        assert deviations[1:] == pytest.approx(expected, rel=0.05)

    def test_values_stay_in_range(self):
        for level in (0, 255):
            lr = lr_of(np.full_like(GRAY, level), noise=8.0)
            assert np.abs(lr - float(level)).max() < 60  # nothing wraps around

    @pytest.mark.parametrize("codec", ["JPEG", "WEBP"])
    def test_compression_costs_more_at_lower_quality(self, photo, codec):
        clean = lr_of(photo).astype(float)
        errors = [
            np.abs(lr_of(photo, codec=codec, quality=quality) - clean).mean()
            for quality in (98, 80, 60)
        ]
        assert 0 < errors[0] < errors[1] < errors[2] < 10

    def test_jpeg_leaves_its_blocks_where_it_coded_them(self, photo):
        steps = blockiness(lr_of(photo, codec="JPEG", quality=30))
        assert steps.argmax() == 7  # from the last column of a block to the next

    def test_colour_is_halved_at_420_only(self):
        stripes = np.zeros((64, 64, 3), np.uint8)
        stripes[:, :, 0] = np.where(np.arange(64) % 4 < 2, 60, 180)  # 1 LR pixel each
        stripes[:, :, 2] = 240 - stripes[:, :, 0]
        errors = {
            kind: np.abs(
                lr_of(stripes, codec="JPEG", quality=95, subsampling=kind)
                - lr_of(stripes).astype(float)
            ).mean()
            for kind in ("4:4:4", "4:2:0")
        }
        assert errors["4:2:0"] > 5 * errors["4:4:4"]


class TestDraw:
    def test_leaves_its_share_clean(self, drawn):
        clean = Degradation()
        assert np.mean([d == clean for d in drawn]) == pytest.approx(
            CLEAN_SHARE, abs=0.02
        )
        random = np.random.default_rng(0)
        assert clean not in [draw(random, clean_share=0) for _ in range(100)]
        assert {draw(random, clean_share=1) for _ in range(100)} == {clean}

    def test_has_every_kind_and_stays_mild(self, drawn):
        degraded = [d for d in drawn if d != Degradation()]
        assert np.mean([not any(d.blur) for d in degraded]) == pytest.approx(
            SHARP_SHARE, abs=0.03
        )
        assert max(max(d.blur) for d in degraded) <= MOST_BLUR
        assert any(len({*d.blur}) == 2 for d in degraded)
        assert MOST_NOISE * 0.9 < max(d.noise for d in degraded) <= MOST_NOISE
        assert not any(d.noise and d.photons for d in degraded)
        assert any(d.photons for d in degraded)
        assert {d.gray for d in degraded} == {False, True}
        assert {d.reduction for d in degraded} == {"bicubic", "area", "bilinear"}
        assert {d.subsampling for d in degraded} == {"4:4:4", "4:2:0"}
        codecs = Counter(d.codec for d in degraded)
        assert codecs["JPEG"] > codecs[""] > 0 < codecs["WEBP"]
        qualities = [d.quality for d in degraded if d.codec]
        assert (min(qualities), max(qualities)) == QUALITIES
        assert np.mean(qualities) > np.mean(QUALITIES)


def test_a_crop_lies_anywhere_in_the_blocks_of_its_patch():
    random = np.random.default_rng(0)
    places = [placed(random) for _ in range(4000)]
    assert {(row % 16, column % 16) for row, column in places} == {
        (row, column) for row in range(16) for column in range(16)
    }
    assert min(map(min, places)) >= 4
    assert max(map(max, places)) <= MARGIN - 4


def test_a_gaussian_is_even_and_turns():
    kernel = gaussian((1.4, 0.4), 0.3)
    assert kernel.sum() == pytest.approx(1)
    assert np.allclose(kernel, kernel[::-1, ::-1])
    assert np.allclose(gaussian((1.4, 0.4), 0), gaussian((0.4, 1.4), np.pi / 2))
    columns = np.arange(len(kernel)) - len(kernel) // 2
    spread = np.sqrt((gaussian((1.4, 0.4), 0).sum(axis=0) * columns**2).sum())
    assert spread == pytest.approx(1.4, rel=0.03)


def test_blurring_moves_nothing():
    planes = np.zeros((1, 21, 31))
    planes[0, 10, 15] = 1
    kernel = gaussian((1.0, 0.5), 0.7)
    reach = len(kernel) // 2
    found = blurred(planes, kernel)
    inside = found[0, 10 - reach : 11 + reach, 15 - reach : 16 + reach]
    assert np.allclose(inside, kernel)
    assert found.sum() == pytest.approx(1)
    assert np.allclose(blurred(np.full((3, 9, 7), 5.0), kernel), 5)


def test_compression_comes_after_the_noise(photo):
    # So a codec of high quality leaves the noise as it was.
    noisy = Degradation(noise=5.0)
    lossless = noisy.lr(photo, 2, np.random.default_rng(4)).astype(float)
    coded = replace(noisy, codec="JPEG", quality=98, subsampling="4:4:4")
    assert np.abs(coded.lr(photo, 2, np.random.default_rng(4)) - lossless).mean() < 2
