"""`aethernet upscale` on a single picture, with real models."""

import numpy as np
import pytest
import pyvips
from helpers import PLAIN, SAMPLE, lively_file, photo, run, without_hidden
from PIL import Image

from aethernet.commands.main import main
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture


class TestCommand:
    def test_upscales_the_sample_with_the_shipped_model(self, tmp_path, capsys):
        target = tmp_path / "sample_2x.png"
        # A quarter of it, for time's sake.
        pixels = read_picture(SAMPLE).pixels[:128, :128]
        write_picture(Picture(pixels), tmp_path / "in.png")
        arguments = ["upscale", str(tmp_path / "in.png"), "-o", str(target)]
        assert main([*arguments, "--device", "cpu", "--runtime", PLAIN]) == 0
        printed = capsys.readouterr().out
        assert "128x128" in printed
        assert "256x256" in printed
        assert "2x_aether_small" in printed
        result = read_picture(target).pixels.astype(float)
        # Reduced again it is the sample: bicubic inverts any sensible upscaling.
        small = Image.fromarray(result.astype(np.uint8)).resize(
            (128, 128), Image.Resampling.BICUBIC
        )
        error = np.asarray(small, float) - pixels
        assert np.sqrt(np.square(error).mean()) < 1

    def test_names_the_output_itself_and_makes_it_once(self, tmp_path, capsys):
        lively_file(tmp_path / "m.safetensors", scale=3)
        write_picture(Picture(photo()), tmp_path / "my photo.jpg")
        arguments = ["upscale", str(tmp_path / "my photo.jpg"), "--runtime", PLAIN]
        arguments += ["--model", str(tmp_path / "m.safetensors")]
        assert main(arguments) == 0
        done = tmp_path / "my photo_3x.jpg"
        done.write_bytes(b"finished, and then somebody changed it")
        assert main(arguments) == 0
        assert "my photo_3x.jpg" in capsys.readouterr().out
        assert done.read_bytes().startswith(b"finished")
        assert main([*arguments, "--overwrite"]) == 0
        assert read_picture(done).pixels.shape == (60, 93, 3)

    def test_a_failed_write_leaves_the_old_picture(self, tmp_path, capsys, monkeypatch):
        write_picture(Picture(photo()), tmp_path / "in.png")
        lively_file(tmp_path / "m.safetensors")
        target = tmp_path / "out.png"
        target.write_bytes(b"an older picture")

        def fail(*args, **options):
            raise pyvips.Error("unable to write", "no space left on device")

        monkeypatch.setattr(pyvips.Image, "pngsave_target", fail, raising=False)
        arguments = ["upscale", str(tmp_path / "in.png"), "-o", str(target)]
        arguments += ["--runtime", PLAIN]
        assert main([*arguments, "--model", str(tmp_path / "m.safetensors")]) == 1
        assert target.read_bytes() == b"an older picture"
        assert without_hidden(tmp_path) == ["in.png", "m.safetensors", "out.png"]

    @pytest.mark.parametrize(
        "arguments", [[], ["upscale"], ["info"], ["fuse"], ["export"]]
    )
    def test_help_is_worth_reading(self, capsys, arguments):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--help"])
        assert stop.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) > 8

    def test_version_and_module_entry(self):
        done = run("-m", "aethernet", "--version")
        assert done.stdout.strip() == "0.1.0"
