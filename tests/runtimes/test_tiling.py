"""Windows that cover a picture, and seams between them that cannot be seen."""

import itertools

import numpy as np
import pytest
from helpers import PLAIN, SAMPLE, SHIPPED_MODEL, Repeat, lively_file, random_array
from runtime_helpers import picture_file

from aethernet.checkpoints.verification import natural_image
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.pictures.files import read_picture
from aethernet.runtimes.base import InputSizes
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import DEFAULT_CONTEXT, Tiled, windows

# Of `helpers.TINY`: 3 of each 7x7 kernel in 3 blocks, 1 of each of five 3x3
# convolutions, the last of which sees a part of an input pixel; scale 1 has four.
RADIUS = {1: 3 * 3 + 4, 2: 3 * 3 + 5, 3: 3 * 3 + 5}


class TestWindows:
    @pytest.mark.parametrize("context", [0, 1, 16])
    @pytest.mark.parametrize("most", [33, 40, 97])
    def test_cover_every_pixel_once_with_context_around(self, context, most):
        for length in (*range(1, 150), 500, 1001):
            found = windows(length, most, context)
            assert found[0].keep_start == 0
            assert found[-1].keep_stop == length
            for one, after in itertools.pairwise(found):
                assert one.keep_stop == after.keep_start
            for one in found:
                assert 0 <= one.start <= one.keep_start < one.keep_stop <= one.stop
                assert one.stop <= length
                assert one.stop - one.start <= most
                assert one.start == 0 or one.keep_start - one.start >= context
                assert one.stop == length or one.stop - one.keep_stop >= context

    def test_have_one_size_and_are_as_few_as_possible(self):
        found = windows(1000, 300, 50)
        assert len({one.stop - one.start for one in found}) == 1
        assert len(found) == 5  # four would see 1000 - 3 * 100 more than 4 * 300

    def test_have_the_size_a_model_must_have(self):
        for length in (49, 90, 131, 200):
            found = windows(length, 48, 8, 48)
            assert {one.stop - one.start for one in found} == {48}
            assert found[-1].stop == length

    def test_what_fits_is_not_divided(self):
        assert len(windows(300, 300, 140)) == 1


def opened(path):
    return open_model(path, PLAIN, "cpu", "float32")


class TestSeams:
    @pytest.mark.parametrize("size", [(61, 83), (64, 40), (40, 131)])
    @pytest.mark.parametrize("scale", [1, 2, 3])
    def test_context_of_the_receptive_radius_gives_the_whole_picture(
        self, tmp_path, size, scale
    ):
        model = opened(lively_file(tmp_path / "m.safetensors", scale=scale))
        image = random_array(1, 3, *size)
        whole = model.run(image)
        tiled = Tiled(model, 16, RADIUS[scale]).run(image)
        # Other sizes are added up in another order, in float32.
        np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5)

    def test_less_context_can_be_seen(self, tmp_path):
        # Otherwise RADIUS is too large, and the test above passes for nothing.
        model = opened(lively_file(tmp_path / "m.safetensors"))
        image = random_array(1, 3, 61, 83)
        short = Tiled(model, 16, RADIUS[2] - 2).run(image)
        assert np.abs(short - model.run(image)).max() > 1e-4

    def test_a_model_of_one_size_sees_the_pixels_there_are(self, tmp_path):
        # Not padding in their place, where a picture is larger than that size.
        model = opened(lively_file(tmp_path / "m.safetensors"))
        image = random_array(1, 3, 91, 70)
        whole = model.run(image)
        model.input_sizes = InputSizes((48, 48), (48, 48))
        tiled = Tiled(model, None, RADIUS[2]).run(image)
        np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5)

    def test_rounded_to_8_bits_almost_nothing_differs(self, tmp_path):
        model = opened(picture_file(tmp_path / "m.safetensors"))
        image = natural_image(200, 300)
        whole, tiled = (
            np.rint(255 * m.run(image).clip(0, 1))
            for m in (model, Tiled(model, 64, 16))
        )
        off = np.abs(whole - tiled)
        assert off.max() <= 1
        assert np.count_nonzero(off) <= off.size // 10_000

    def test_default_context_hides_seams_of_the_shipped_model(self):
        model = opened(SHIPPED_MODEL)
        pixels = read_picture(SAMPLE).pixels[130:250, 170:290, :3]
        image = pixels.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / 255
        whole = model.run(np.ascontiguousarray(image))
        tiled = Tiled(model, 40).run(image)
        assert 255 * np.abs(tiled - whole).max() < 0.5
        near = Tiled(model, 40, DEFAULT_CONTEXT // 4).run(image)
        assert np.abs(near - whole).max() > np.abs(tiled - whole).max()


class TestTiled:
    def test_batches_and_planes_stay_apart(self):
        image = random_array(3, 3, 50, 70)
        tiled = Tiled(Repeat(), 20, 4).run(image)
        assert np.array_equal(tiled, image.repeat(2, 2).repeat(2, 3))

    def test_tile_0_is_the_whole_picture(self):
        model = Repeat()
        Tiled(model, 0).run(np.zeros((1, 3, 3000, 40), np.float32))
        assert [batch.shape[2:] for batch in model.seen] == [(3000, 40)]

    def test_by_default_the_tile_depends_on_free_memory(self, monkeypatch):
        tiles = []
        for free in (2**28, 2**32, 2**36):
            monkeypatch.setattr(
                "aethernet.runtimes.tiling.free_memory", lambda _, n=free: n
            )
            tiles.append(Tiled(Repeat()).tile)
        assert tiles[0] < tiles[1] < tiles[2]
        assert tiles[2] == 1024

    def test_a_model_that_takes_less_memory_has_larger_tiles(self, monkeypatch):
        monkeypatch.setattr(
            "aethernet.runtimes.tiling.free_memory", lambda _: 3 * 500**2 * 900
        )
        model = Repeat()
        model.bytes_per_pixel = 900
        assert Tiled(model, context=10).tile == 480 == 500 - 2 * 10

    def test_out_of_memory_halves_the_tile_and_goes_on(self, caplog):
        model = Repeat(capacity=60 * 60)
        tiled = Tiled(model, 0, 4)
        image = random_array(1, 3, 150, 190)
        assert np.array_equal(tiled.run(image), image.repeat(2, 2).repeat(2, 3))
        assert tiled.tile == 47
        assert "out of memory at 190x150: using tiles of 95" in caplog.text
        tiled.run(image)  # and it is remembered
        assert caplog.text.count("out of memory") == 2

    def test_no_memory_for_the_smallest_tile_is_an_error(self):
        tiled = Tiled(Repeat(capacity=10), 512, 8)
        with pytest.raises(OutOfMemoryError, match="Out of memory for"):
            tiled.run(np.zeros((1, 3, 100, 100), np.float32))

    def test_a_model_of_one_size_takes_any_picture(self):
        model = Repeat(input_sizes=InputSizes((32, 48), (32, 48)))
        for size in ((100, 130), (32, 48), (5, 200), (1, 1), (33, 47)):
            image = random_array(1, 3, *size)
            output = Tiled(model, None, 8).run(image)
            assert np.array_equal(output, image.repeat(2, 2).repeat(2, 3))
        assert {batch.shape[2:] for batch in model.seen} == {(32, 48)}

    def test_a_model_too_small_for_the_context_is_an_error(self):
        model = Repeat(input_sizes=InputSizes((32, 48), (32, 48)))
        with pytest.raises(AetherError, match="takes at most 32 pixels a") as caught:
            Tiled(model, None, 16)
        assert "--context" in caught.value.hint

    def test_seconds_in_the_model_are_counted(self):
        tiled = Tiled(Repeat(), 20, 4)
        tiled.run(np.zeros((1, 3, 60, 60), np.float32))
        assert 0 < tiled.busy < 5
