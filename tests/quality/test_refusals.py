"""What `aethernet quality` refuses, before any model has run."""

import pytest
from helpers import sample_part, without_hidden, write
from quality_helpers import quality, refused

from aethernet.quality.measure import find_samples


class TestBadInput:
    @pytest.fixture(autouse=True)
    def nothing_runs(self, request, monkeypatch):
        """What is wrong is found before any model has run."""

        def run(*_):
            raise AssertionError("a model ran")

        monkeypatch.setattr("aethernet.quality.measure.upscale_planes", run)

    @pytest.fixture
    def model(self, folder):
        return "--model", folder / "one.safetensors"

    def test_a_damaged_picture(self, folder, model, tmp_path, capsys):
        write(sample_part(64, 64), tmp_path / "a.png")
        content = write(sample_part(180, 180), tmp_path / "b.png").read_bytes()
        (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
        assert "b.png" in refused(capsys, "--data", tmp_path, *model)

    def test_no_picture(self, folder, model, tmp_path, capsys):
        (tmp_path / "a.png").write_text("Not found.")
        assert "no picture" in refused(capsys, "--data", tmp_path, *model)
        (tmp_path / "empty").mkdir()
        assert "There are no pictures" in refused(
            capsys, "--data", tmp_path / "empty", *model
        )
        absent = refused(capsys, "--data", tmp_path / "absent", *model)
        assert "Cannot be read: No such file" in absent

    def test_a_picture_without_room_for_a_window(self, model, tmp_path, capsys):
        write(sample_part(40, 15), tmp_path / "hr/a.png")
        error = refused(capsys, "--data", tmp_path / "hr", *model)
        assert "takes at least 16 along each side" in error
        write(sample_part(40, 16), tmp_path / "hr/a.png")
        assert find_samples(tmp_path / "hr", 2)

    def test_scales_that_differ(self, folder, model, capsys):
        words = ("--data", folder / "hr", *model, folder / "four.safetensors")
        assert "one 2x, four 4x" in refused(capsys, *words)

    def test_another_scale_than_the_models(self, folder, model, capsys):
        words = ("--data", folder / "hr", *model, "--scale", 3)
        assert "given as 3, but the models are one 2x" in refused(capsys, *words)

    def test_1x_without_pictures_to_restore(self, folder, capsys):
        words = ("--data", folder / "hr", "--scale", 1)
        assert "--lr" in refused(capsys, *words)

    def test_lr_pictures_that_are_missing_or_several(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--scale", 2, "--lr", tmp_path / "lr")
        write(sample_part(20, 20), tmp_path / "lr/third.png")
        assert "first.png at 2x" in refused(capsys, *words)
        for name in ("first_x2", "first_LR", "second"):
            write(sample_part(20, 20), tmp_path / f"lr/{name}.png")
        assert "the folder has 2 of them" in refused(capsys, *words)

    def test_lr_pictures_of_another_size(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--scale", 2, "--lr", tmp_path / "lr")
        write(sample_part(35, 42), tmp_path / "lr/first.png")
        write(sample_part(32, 24), tmp_path / "lr/second.png")
        assert "has 42x35 pixels" in refused(capsys, *words)

    def test_not_as_many_folders_of_lr(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--scale", 2, "--lr", folder, folder)
        assert "1 folders of HR and 2 of LR" in refused(capsys, *words)

    def test_what_cannot_be_written(self, folder, model, tmp_path, capsys):
        words = ("--data", folder / "hr", *model)
        (tmp_path / "file").touch()
        for flag, target in (
            ("--json", tmp_path / "absent/a.json"),
            ("--csv", tmp_path),
            ("--plot", tmp_path / "a.jpg"),
            ("--crops", tmp_path / "file"),
            ("--crops", tmp_path / "absent/crops"),
        ):
            assert str(target) in refused(capsys, *words, flag, target)
        assert without_hidden(tmp_path) == ["file"]

    def test_crops_of_no_model(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--scale", 2, "--crops", tmp_path / "c")
        assert "--model" in refused(capsys, *words)

    def test_an_unknown_model(self, folder, capsys):
        assert "7x-huge" in refused(
            capsys, "--data", folder / "hr", "--model", "7x-huge"
        )

    def test_an_interrupt_leaves_nothing(self, folder, model, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("aethernet.quality.measure.upscale_planes", interrupt)
        words = ("--data", folder / "hr", *model, "--json", tmp_path / "a.json")
        assert quality(*words, "--crops", tmp_path / "crops") == 130
        assert without_hidden(tmp_path) == []
