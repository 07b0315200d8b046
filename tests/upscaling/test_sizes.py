"""Results of another size than the model's scale gives."""

import numpy as np
import pytest
from helpers import Repeat, photo

from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.upscaling.files import Options, Size, upscale_file


class TestSize:
    @pytest.mark.parametrize(
        ("size", "wanted"),
        [
            (Size(), (200, 100)),
            (Size(scale=3), (300, 150)),
            (Size(scale=0.5), (50, 25)),
            (Size(width=150), (150, 75)),
            (Size(height=75), (150, 75)),
            (Size(width=150, height=60), (120, 60)),
            (Size(max_mp=0.005), (100, 50)),
            (Size(scale=4, max_mp=1), (400, 200)),
        ],
    )
    def test_what_was_asked_for(self, tmp_path, size, wanted):
        assert size.of(100, 50, 2) == wanted
        pixels = photo(50, 100)
        write_picture(Picture(pixels), tmp_path / "in.png")
        model = Repeat()
        done = upscale_file(
            tmp_path / "in.png", tmp_path / "out.png", model, Options(size)
        )
        assert done.size_after == wanted
        result = read_picture(tmp_path / "out.png").pixels
        assert result.shape == (wanted[1], wanted[0], 3)
        assert result.dtype == np.uint8
        assert len(model.seen) == (2 if max(wanted) > 200 else 1)

    def test_at_most_means_at_most(self):
        random = np.random.default_rng(0)
        for _ in range(2000):
            width, height = random.integers(1, 5000, 2).tolist()
            limit = float(random.uniform(1e-6, 20))
            across, down = Size(max_mp=limit).of(width, height, 2)
            assert across >= 1 <= down
            assert across * down <= max(limit * 1e6, 1)

    def test_a_ramp_keeps_its_place_and_values(self, tmp_path):
        # Once by the model, the rest by resampling: no shift, no change of brightness.
        ramp = np.linspace(5000, 60000, 64).astype(np.uint16)
        pixels = np.broadcast_to(ramp[None, :, None], (32, 64, 1))
        write_picture(Picture(np.ascontiguousarray(pixels)), tmp_path / "in.png")
        upscale_file(
            *(tmp_path / "in.png", tmp_path / "out.png", Repeat()),
            Options(Size(scale=1.5)),
        )
        found = read_picture(tmp_path / "out.png").pixels[24, :, 0]
        positions = (np.arange(96) + 0.5) / 1.5 - 0.5
        wanted = np.interp(positions, np.arange(64), ramp)
        assert np.abs(found - wanted)[6:-6].max() < 300  # of steps of 870

    def test_beyond_two_passes_it_is_resampled_with_a_warning(self, tmp_path, caplog):
        write_picture(Picture(photo(10, 12)), tmp_path / "in.png")
        done = upscale_file(
            *(tmp_path / "in.png", tmp_path / "out.png", Repeat()),
            Options(Size(scale=6)),
        )
        assert done.size_after == (72, 60)
        assert "48x40 after two passes" in caplog.text
