"""The best and the worst crop of each model."""

import numpy as np
from helpers import sample_part, without_hidden

from aethernet.pictures.files import read_picture
from aethernet.quality.crops import CROP, CropPicker


class TestCrops:
    def test_crops_of_every_model_are_written(self, folder, run):
        names = [f"hr_{m}_{k}.png" for m in ("one", "other") for k in ("best", "worst")]
        assert without_hidden(folder / "crops") == sorted(names)
        for name in names:
            # HR, bicubic and two models; the pictures are smaller than a crop.
            height, width = read_picture(folder / "crops" / name).pixels.shape[:2]
            assert width > 4 * 3 * 48
            assert height > 3 * 48

    def test_crops_are_where_a_model_gains_most_and_where_it_is_worst(self):
        hr = np.full((400, 500, 3), 100, np.uint8)
        bicubic, model = hr.copy(), hr.copy()
        bicubic[20:60, 30:70] = 150  # which the model has right
        model[300:340, 400:440] = 180
        crops = CropPicker(["m"])
        crops.look_at("dull", hr, {"bicubic": hr, "m": hr})
        crops.look_at("telling", hr, {"bicubic": bicubic, "m": model})
        for crop, (top, left) in (
            (crops.best["m"], (20, 30)),
            (crops.worst["m"], (300, 400)),
        ):
            assert crop.picture == "telling"
            assert top + 40 - CROP <= crop.top <= top
            assert left + 40 - CROP <= crop.left <= left
            part = slice(crop.top, crop.top + CROP), slice(crop.left, crop.left + CROP)
            assert np.array_equal(crop.parts["m"], model[part])
            assert np.array_equal(crop.parts["bicubic"], bicubic[part])

    def test_names_are_made_fit_for_files(self, tmp_path):
        hr = sample_part(100, 100)
        crops = CropPicker(["a/b: c"])
        crops.look_at("p", hr, {"bicubic": hr, "a/b: c": 255 - hr})
        written = crops.write(tmp_path / "new", "se/t")
        assert without_hidden(tmp_path / "new") == sorted(p.name for p in written)
        assert written[0].name == "se_t_a_b_c_best.png"
