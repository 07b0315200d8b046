"""Pictures in strips and tiles, and several pictures one after another."""

import threading

import numpy as np
import pytest
from helpers import Repeat, photo, without_hidden

from aethernet.errors import AetherError
from aethernet.pictures import write
from aethernet.pictures.files import Picture, PictureReader, read_picture
from aethernet.pictures.write import PictureWriter, write_picture
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling import files
from aethernet.upscaling.files import Options, Size, upscale_file, upscale_files
from aethernet.upscaling.folders import Job


class TestInStrips:
    @pytest.mark.parametrize("bands", [1, 3, 4])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_strips_tiles_and_pieces_are_not_seen(
        self, tmp_path, monkeypatch, bands, dtype
    ):
        monkeypatch.setattr(files, "STRIP_BYTES", 100_000)
        monkeypatch.setattr(files, "PIECE_BYTES", 3000)
        monkeypatch.setattr(write, "SPOOL_BYTES", 1000)
        pixels = photo(211, 150, bands, dtype)
        write_picture(Picture(pixels), tmp_path / "in.png")
        model = Repeat()
        upscale_file(tmp_path / "in.png", tmp_path / "out.png", Tiled(model, 40, 5))
        assert max(max(seen.shape[2:]) for seen in model.seen) <= 50
        found = read_picture(tmp_path / "out.png").pixels
        assert np.array_equal(found, pixels.repeat(2, 0).repeat(2, 1))
        assert without_hidden(tmp_path) == ["in.png", "out.png"]

    def test_two_passes_in_strips(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "STRIP_BYTES", 100_000)
        pixels = photo(101, 80)
        write_picture(Picture(pixels), tmp_path / "in.png")
        upscale_file(
            *(tmp_path / "in.png", tmp_path / "out.png", Tiled(Repeat(), 40, 5)),
            Options(Size(scale=4)),
        )
        found = read_picture(tmp_path / "out.png").pixels
        assert np.array_equal(found, pixels.repeat(4, 0).repeat(4, 1))

    def test_tiles_of_the_network_itself(self, tmp_path, model):
        write_picture(Picture(photo(120, 90)), tmp_path / "in.png")
        for name, one in (("whole", model), ("tiled", Tiled(model, 32, 16))):
            upscale_file(tmp_path / "in.png", tmp_path / f"{name}.png", one)
        whole, tiled = (
            read_picture(tmp_path / f"{name}.png").pixels.astype(int)
            for name in ("whole", "tiled")
        )
        off = np.abs(whole - tiled)
        assert off.max() <= 1
        assert np.count_nonzero(off) <= off.size // 10_000


class TestSeveral:
    def test_one_that_fails_does_not_stop_the_rest(self, tmp_path):
        jobs = []
        for index in range(6):
            source = tmp_path / f"{index}.png"
            write_picture(Picture(photo(20 + index)), source)
            jobs.append(Job(source, tmp_path / f"{index}_out.png"))
        content = jobs[2].source.read_bytes()
        jobs[2].source.write_bytes(content[: len(content) // 2])
        jobs[4].source.write_text("no picture")
        jobs.append(Job(tmp_path / "absent.png", tmp_path / "x.png"))
        outcomes = [*upscale_files(jobs, Repeat())]
        assert [outcome.job for outcome in outcomes] == jobs
        status = [outcome.status for outcome in outcomes]
        assert status == ["done", "done", "failed", "done", "failed", "done", "failed"]
        assert "ends early" in outcomes[2].reason
        assert "no picture" in outcomes[4].reason
        for outcome in outcomes:
            assert outcome.job.target.exists() is (outcome.status == "done")
        without_hidden(tmp_path)

    @pytest.mark.parametrize("why", ["its target", "the model"])
    def test_a_picture_that_is_refused_is_read_no_further(
        self, tmp_path, monkeypatch, why
    ):
        monkeypatch.setattr(files, "PIECE_BYTES", 1)  # a row at a time
        write_picture(Picture(photo(300, 8, 4)), tmp_path / "long.png")
        write_picture(Picture(photo()), tmp_path / "next.png")
        read = []

        class Reader(PictureReader):
            def rows(self, count):
                read.append(self.path.name)
                return super().rows(count)

        monkeypatch.setattr(files, "PictureReader", Reader)
        targets = ["long.jpg" if why == "its target" else "long_.png", "next_.png"]
        sources = ["long.png", "next.png"]
        jobs = [
            Job(tmp_path / source, tmp_path / target)
            for source, target in zip(sources, targets, strict=True)
        ]

        class OnlySmall(Repeat):
            def run(self, image):
                if image.shape[3] < 20:
                    raise AetherError("Too narrow.")
                return super().run(image)

        outcomes = [*upscale_files(jobs, Tiled(OnlySmall(), 16, 4))]
        assert [outcome.status for outcome in outcomes] == ["failed", "done"]
        # What a strip and the queue hold, of 300.
        assert read.count("long.png") < 50
        assert read.count("next.png") == 20

    def test_progress_is_reported_in_pixels_of_the_source(self, tmp_path):
        write_picture(Picture(photo(100, 30)), tmp_path / "in.png")
        told = []
        job = Job(tmp_path / "in.png", tmp_path / "out.png")
        list(
            upscale_files(
                [job], Tiled(Repeat(), 20, 4), advanced=lambda _, *n: told.append(n)
            )
        )
        assert told[0] == (0, 3000)
        assert told[-1] == (3000, 3000)
        assert told == sorted(told)
        assert len(told) > 4

    def test_reading_running_and_writing_overlap(self, tmp_path, monkeypatch):
        # A picture is read before the network is done with the last, which in turn is
        # written while the network works: seen by what waits for what.
        jobs = []
        for index in range(3):
            write_picture(Picture(photo()), tmp_path / f"{index}.png")
            jobs.append(Job(tmp_path / f"{index}.png", tmp_path / f"{index}_.png"))
        read, second, written = (threading.Event() for _ in range(3))

        class Waiting(Repeat):
            def run(self, image):
                if not self.seen:
                    assert read.wait(10), "the second is not read meanwhile"
                elif len(self.seen) == 1:
                    second.set()
                    assert written.wait(10), "the first is not written meanwhile"
                return super().run(image)

        class Reader(PictureReader):
            def __init__(self, path, *rest, **options):
                super().__init__(path, *rest, **options)
                if path.name == "1.png":
                    read.set()

        class Writer(PictureWriter):
            def finish(self):
                if self.path.name == "0_.png":
                    assert second.wait(10), "the network waits for the writer"
                super().finish()
                written.set()

        monkeypatch.setattr(files, "PictureReader", Reader)
        monkeypatch.setattr(files, "PictureWriter", Writer)
        outcomes = [*upscale_files(jobs, Waiting())]
        assert [outcome.status for outcome in outcomes] == ["done"] * 3
