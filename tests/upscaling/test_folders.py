"""Plans of what to upscale: nothing taken twice, nothing lost or mixed up."""

import logging
import ntpath
import os
import re
import sys
from pathlib import Path

import pytest
from helpers import without_hidden

from aethernet.errors import AetherError
from aethernet.files import replacing
from aethernet.upscaling.folders import Job, extended, plan, prepare

MARK = "-[0-9a-f]{8}"
SEPARATOR = os.sep

posix_only = pytest.mark.skipif(
    os.name != "posix", reason="needs a POSIX system: links, pipes, names of bytes"
)
eats_names = pytest.mark.skipif(
    sys.platform in ("darwin", "win32"),
    reason="needs a file system that tells case and normal forms apart, as on Linux",
)


def fill(folder, *names):
    """Empty files: planning reads none of them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def planned(*inputs, to=None, **options):
    defaults = {"suffix": None, "format": None, "overwrite": False}
    words = {**defaults, "scale_suffix": lambda: "_2x", **options}
    return plan(inputs, to, **words)


def names(plan, folder):
    """Source and target of each job, as they are called in that folder."""
    return {
        job.source.relative_to(folder).as_posix(): (
            job.target.relative_to(folder).as_posix()
        )
        for job in plan.jobs
    }


def targets(plan, folder):
    return list(names(plan, folder).values())


def finish(plan):
    """What a run does, but for the pictures."""
    prepare(plan)
    for job in plan.jobs:
        job.target.touch()


class TestFolders:
    def test_structure_is_kept_under_the_output_folder(self, tmp_path):
        fill(tmp_path / "in", "a.jpg", "deep/er/b.png", "deep/c.webp")
        result = planned(tmp_path / "in", to=tmp_path / "out")
        assert names(result, tmp_path) == {
            "in/a.jpg": "out/a.jpg",
            "in/deep/c.webp": "out/deep/c.webp",
            "in/deep/er/b.png": "out/deep/er/b.png",
        }
        assert not (tmp_path / "out").exists()
        finish(result)
        assert without_hidden(tmp_path / "out/deep") == ["c.webp", "er"]

    def test_several_inputs_keep_their_folders_names(self, tmp_path):
        fill(tmp_path, "one/x.png", "two/x.png", "y.png")
        result = planned(
            *(tmp_path / word for word in ("one", "two", "y.png")), to=tmp_path / "out"
        )
        assert targets(result, tmp_path) == [
            "out/one/x.png",
            "out/two/x.png",
            "out/y.png",
        ]

    def test_a_folder_named_by_dots_has_a_name_too(self, tmp_path, monkeypatch):
        fill(tmp_path, "here/a.png", "b.png")
        monkeypatch.chdir(tmp_path / "here")
        result = planned(".", "../b.png", to="../out")
        assert {str(job.target) for job in result.jobs} == {
            os.path.join("..", "out", "here", "a.png"),
            os.path.join("..", "out", "b.png"),
        }

    def test_without_an_output_each_goes_beside_its_source(self, tmp_path):
        fill(tmp_path, "a.jpg", "in/b.png")
        result = planned(tmp_path / "a.jpg", tmp_path / "in")
        assert names(result, tmp_path) == {
            "a.jpg": "a_2x.jpg",
            "in/b.png": "in/b_2x.png",
        }
        assert result.folders == ()

    def test_only_pictures_are_found(self, tmp_path):
        fill(
            tmp_path / "in",
            "a.JPG",
            "b.gif",
            "notes.txt",
            "png",
            "clip.mp4",
            "c.png.bak",
        )
        assert [*names(planned(tmp_path / "in", to=tmp_path / "o"), tmp_path)] == [
            "in/a.JPG",
            "in/b.gif",
        ]

    def test_a_named_file_is_taken_whatever_it_is_called(self, tmp_path):
        fill(tmp_path, "scan", ".hidden.png")
        result = planned(tmp_path / "scan", tmp_path / ".hidden.png", to=tmp_path / "o")
        assert targets(result, tmp_path) == ["o/.hidden.png", "o/scan.png"]

    def test_numbers_sort_by_value(self, tmp_path):
        frames = [f"frame{i}.png" for i in (10, 2, 1, 100)]
        fill(tmp_path / "in", *frames, "Frame3.png", "b10/1.png", "b9/1.png")
        found = names(planned(tmp_path / "in", to=tmp_path / "out"), tmp_path)
        order = "b9/1 b10/1 frame1 frame2 Frame3 frame10 frame100"
        assert [*found] == [f"in/{name}.png" for name in order.split()]

    def test_hidden_files_and_our_temporary_ones_are_not_seen(self, tmp_path):
        fill(tmp_path, "a.png", ".b.png", "._a.png", ".trash/c.png")
        with replacing(tmp_path / "d.png"):
            assert [*names(planned(tmp_path), tmp_path)] == ["a.png"]

    @pytest.mark.parametrize("words", [["empty"], ["empty", "text"], ["text"]])
    def test_no_picture_at_all_is_an_error(self, tmp_path, words):
        fill(tmp_path, "text/a.txt")
        (tmp_path / "empty").mkdir()
        with pytest.raises(AetherError, match=r"There is no picture in .*\.png"):
            planned(*(tmp_path / word for word in words), to=tmp_path / "out")

    def test_one_empty_folder_among_others_is_a_warning(self, tmp_path, caplog):
        fill(tmp_path, "a/a.png", "b/b.txt")
        with caplog.at_level(logging.WARNING, "aethernet"):
            result = planned(tmp_path / "a", tmp_path / "b", to=tmp_path / "out")
        assert len(result.jobs) == 1
        assert "no picture in" in caplog.text

    def test_what_is_missing_is_found_before_any_work(self, tmp_path):
        fill(tmp_path, "a.png")
        for word in (tmp_path / "absent.png", tmp_path / "absent/b.png"):
            with pytest.raises(AetherError, match="no such file") as error:
                planned(tmp_path / "a.png", word)
            assert error.value.path == word

    @posix_only
    def test_links_in_circles_end(self, tmp_path):
        fill(tmp_path / "in", "a.png", "sub/b.png")
        (tmp_path / "in/sub/up").symlink_to(tmp_path / "in")
        (tmp_path / "in/0").symlink_to(tmp_path / "in/sub")
        (tmp_path / "in/self.png").symlink_to(tmp_path / "in/self.png")
        result = planned(tmp_path / "in", to=tmp_path / "out")
        # The link that leads nowhere is kept, to be an error when it is read.
        assert [*names(result, tmp_path)] == ["in/a.png", "in/self.png", "in/sub/b.png"]

    @posix_only
    def test_a_link_to_elsewhere_is_followed_once(self, tmp_path):
        fill(tmp_path, "in/a.png", "elsewhere/b.png")
        for name in ("in/x", "in/y"):
            (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        (tmp_path / "link").symlink_to(tmp_path / "in")
        result = planned(tmp_path / "link", to=tmp_path / "out")
        assert len(result.jobs) == 2
        assert re.fullmatch("out/(x|y)/b.png", targets(result, tmp_path)[1])

    @posix_only
    def test_pipes_are_not_pictures(self, tmp_path):
        fill(tmp_path, "in/a.png")
        os.mkfifo(tmp_path / "in/b.png")
        assert len(planned(tmp_path / "in", to=tmp_path / "out").jobs) == 1

    def test_a_locked_folder_is_a_warning(self, tmp_path, caplog, monkeypatch):
        fill(tmp_path, "in/a.png", "in/locked/b.png")
        listdir = os.listdir

        def locked(path):
            if Path(path).name == "locked":  # nothing keeps root out
                raise PermissionError(13, "Permission denied")
            return listdir(path)

        monkeypatch.setattr(os, "listdir", locked)
        result = planned(tmp_path / "in", to=tmp_path / "out")
        assert len(result.jobs) == 1
        assert "cannot search" in caplog.text

    def test_what_is_named_twice_is_taken_once(self, tmp_path, monkeypatch):
        fill(tmp_path, "in/a.png")
        monkeypatch.chdir(tmp_path)
        words = ("in", tmp_path / "in", "in/a.png", "./in/../in/a.png", "in/*.png")
        assert len(planned(*words, to="out").jobs) == 1


class TestPatterns:
    def test_what_the_shell_left_is_matched_here(self, tmp_path):
        fill(tmp_path, "a1.png", "a2.jpg", "a3.txt", "b/a4.png", "b/c/a5.png")
        for pattern, count in (("a*", 2), ("a?.png", 1), ("[ab]*", 4), ("**/*.png", 3)):
            assert len(planned(tmp_path / pattern, to=tmp_path / "o").jobs) == count

    def test_a_file_called_like_a_pattern_is_that_file(self, tmp_path):
        fill(tmp_path, "a[1].png", "a1.png")
        result = planned(tmp_path / "a[1].png")
        assert names(result, tmp_path) == {"a[1].png": "a[1]_2x.png"}

    def test_no_match_is_an_error(self, tmp_path):
        fill(tmp_path, "a.txt")
        with pytest.raises(AetherError, match=r"no picture matches"):
            planned(tmp_path / "*")


class TestOutput:
    def test_a_single_file_goes_to_the_name_given(self, tmp_path):
        fill(tmp_path, "a.png", "there.jpg")
        for name in ("new.webp", "there.jpg"):  # which is replaced: it was named
            result = planned(tmp_path / "a.png", to=tmp_path / name)
            assert names(result, tmp_path) == {"a.png": name}

    def test_a_single_file_goes_into_a_folder(self, tmp_path):
        fill(tmp_path, "a.png", "out/x")
        result = planned(tmp_path / "a.png", to=tmp_path / "out")
        assert targets(result, tmp_path) == ["out/a.png"]
        result = planned(tmp_path / "a.png", to=f"{tmp_path / 'new'}{SEPARATOR}")
        assert targets(result, tmp_path) == ["new/a.png"]
        finish(result)
        assert os.listdir(tmp_path / "new") == ["a.png"]

    @pytest.mark.parametrize("words", [["a.png", "b.png"], ["in"]])
    @pytest.mark.parametrize("output", ["x.png", "new.jpg"])
    def test_several_need_a_folder(self, tmp_path, words, output):
        fill(tmp_path, "a.png", "b.png", "in/c.png", "x.png")
        with pytest.raises(AetherError, match="names a file"):
            planned(*(tmp_path / word for word in words), to=tmp_path / output)

    def test_a_file_is_no_folder(self, tmp_path):
        fill(tmp_path, "a.png", "file")
        with pytest.raises(AetherError, match="not a folder"):
            planned(tmp_path / "a.png", to=f"{tmp_path / 'file'}{SEPARATOR}")

    def test_a_folder_that_cannot_be_made_is_an_error(self, tmp_path):
        fill(tmp_path, "in/a.png", "file")
        result = planned(tmp_path / "in", to=tmp_path / "file/out")
        with pytest.raises(AetherError, match="Cannot make the folder"):
            prepare(result)

    def test_names_formats_and_suffixes(self, tmp_path):
        fill(tmp_path / "in", "a.jpg", "B.PNG", "c.gif", "d.e.tif")
        for options, expected in (
            ({}, ["a.jpg", "B.PNG", "c.png", "d.e.tif"]),
            ({"suffix": "_up"}, ["a_up.jpg", "B_up.PNG", "c_up.png", "d.e_up.tif"]),
            ({"format": ".webp"}, ["a.webp", "B.webp", "c.webp", "d.e.webp"]),
        ):
            result = planned(tmp_path / "in", to=tmp_path / "out", **options)
            assert [job.target.name for job in result.jobs] == expected

    @pytest.mark.parametrize("suffix", ["/x", "..\\x", "a:b", "*", "\n"])
    def test_a_suffix_stays_in_its_folder(self, tmp_path, suffix):
        fill(tmp_path, "a.png")
        with pytest.raises(AetherError, match="suffix"):
            planned(tmp_path / "a.png", suffix=suffix)

    def test_a_format_that_cannot_be_written(self, tmp_path):
        fill(tmp_path, "a.png")
        with pytest.raises(AetherError, match=r"Cannot write \.gif .*\.png"):
            planned(tmp_path / "a.png", format=".gif")

    def test_flags_that_do_not_apply_to_a_named_file(self, tmp_path):
        fill(tmp_path, "a.png")
        for options in ({"suffix": "_2x"}, {"format": ".png"}):
            with pytest.raises(AetherError, match="only name outputs in a folder"):
                planned(tmp_path / "a.png", to=tmp_path / "b.png", **options)

    def test_an_output_folder_inside_is_not_searched(self, tmp_path):
        fill(tmp_path / "in", "a.png", "sub/b.png", "out/old.png")
        result = planned(tmp_path / "in", to=tmp_path / "in/out")
        assert [*names(result, tmp_path / "in")] == ["a.png", "sub/b.png"]

    def test_the_folder_of_the_pictures_needs_a_suffix(self, tmp_path, monkeypatch):
        fill(tmp_path / "in", "a.png")
        monkeypatch.chdir(tmp_path / "in")
        for folder in (tmp_path / "in", "."):
            with pytest.raises(
                AetherError, match=r"the folder of the pictures.*suffix"
            ):
                planned(tmp_path / "in", to=folder, format=".jpg")
        result = planned(tmp_path / "in", to=".", suffix="_up")
        assert [str(job.target) for job in result.jobs] == ["a_up.png"]

    def test_no_input_is_ever_replaced(self, tmp_path):
        fill(tmp_path, "a.png", "in/b/c.png", "in/b/b/c.png")
        for word, output in (("a.png", "."), ("in/b", "in")):
            with pytest.raises(AetherError, match="one of the inputs"):
                planned(tmp_path / word, to=tmp_path / output)

    def test_one_of_several_folders_is_no_output_folder(self, tmp_path):
        # What is written there would be found there the next time.
        fill(tmp_path, "a/x.png", "b/x.png")
        with pytest.raises(AetherError, match="Name another output folder"):
            planned(tmp_path / "a", tmp_path / "b", to=tmp_path / "a", suffix="_up")


class TestAgain:
    def test_the_finished_are_skipped_and_the_rest_done(self, tmp_path):
        fill(tmp_path, "in/a.png", "in/b.png", "out/a.png")
        result = planned(tmp_path / "in", to=tmp_path / "out")
        assert targets(result, tmp_path) == ["out/b.png"]
        assert result.done == (Job(tmp_path / "in/a.png", tmp_path / "out/a.png"),)

    def test_overwrite_does_all_again(self, tmp_path):
        fill(tmp_path, "in/a.png", "in/b.png", "out/a.png")
        result = planned(tmp_path / "in", to=tmp_path / "out", overwrite=True)
        assert targets(result, tmp_path) == ["out/a.png", "out/b.png"]
        assert result.done == ()

    def test_a_folder_in_the_place_of_an_output_is_not_finished(self, tmp_path):
        fill(tmp_path, "in/a.png", "out/a.png/x")
        result = planned(tmp_path / "in", to=tmp_path / "out")
        assert len(result.jobs) == 1

    @pytest.mark.parametrize("to", [None, "same"])
    @pytest.mark.parametrize("format", [None, ".webp"])
    def test_outputs_beside_their_sources_are_not_sources(self, tmp_path, to, format):
        fill(tmp_path, "a.jpg", "a.png", "sub/B.png", "lonely_2x.png")
        words = {"suffix": "_2x", "format": format, "to": to and tmp_path}
        first = planned(tmp_path, **words)
        assert len(first.jobs) == 4
        finish(first)
        again = planned(tmp_path, **words)
        assert again.jobs == ()
        assert again.done == first.jobs
        # Nor in other formats, or of models of other scales.
        other = planned(tmp_path, format=".tif", scale_suffix=lambda: "_4x")
        assert {job.source for job in other.jobs} == {job.source for job in first.jobs}

    def test_nor_where_the_shell_named_them(self, tmp_path):
        fill(tmp_path, "a.jpg", "a_2x.jpg", "a_2x_2x.jpg")
        result = planned(*tmp_path.glob("*.jpg"))
        assert (len(result.jobs), len(result.done)) == (0, 1)
        assert result.done[0].source == tmp_path / "a.jpg"

    def test_elsewhere_such_a_name_is_a_picture_like_any(self, tmp_path):
        fill(tmp_path / "in", "a.jpg", "a_2x.jpg")
        for suffix in (None, "_2x"):
            result = planned(tmp_path / "in", to=tmp_path / "out", suffix=suffix)
            assert len(result.jobs) == 2
        assert len(planned(tmp_path / "in/a_2x.jpg").jobs) == 1


class TestCollisions:
    def check(self, folder, count, **options):
        """As many outputs as sources, also on a system blind to case."""
        result = planned(folder, to=folder.parent / "out", **options)
        found = [job.target.name for job in result.jobs]
        assert len(set(map(str.casefold, found))) == count
        finish(result)
        assert len(os.listdir(folder.parent / "out")) == count
        again = planned(folder, to=folder.parent / "out", **options)
        assert again.done == result.jobs
        return found

    def test_of_formats(self, tmp_path):
        fill(tmp_path / "in", "photo.jpg", "photo.png", "other.png")
        found = self.check(tmp_path / "in", 3, format=".png", suffix="_up")
        assert found[0] == "other_up.png"
        for name in found[1:]:  # none of them is plain photo_up.png
            assert re.fullmatch(f"photo{MARK}_up.png", name)

    @eats_names
    def test_of_case(self, tmp_path):
        fill(tmp_path / "in", "Photo.jpg", "photo.jpg")
        self.check(tmp_path / "in", 2)

    @eats_names
    def test_of_normal_forms(self, tmp_path):
        fill(tmp_path / "in", "caf\u00e9.png", "cafe\u0301.png")
        for name in self.check(tmp_path / "in", 2):
            assert re.fullmatch(f"caf.*{MARK}.png", name)

    def test_of_a_file_and_a_folder(self, tmp_path):
        fill(tmp_path / "in", "a.jpg", "a.png/b.jpg")
        result = planned(tmp_path / "in", to=tmp_path / "out", format=".png")
        assert re.fullmatch(f"out/a{MARK}.png", names(result, tmp_path)["in/a.jpg"])
        finish(result)

    def test_of_a_mark_that_is_somebodys_name(self, tmp_path):
        fill(tmp_path / "in", "photo.jpg", "photo.png")
        marked = self.check(tmp_path / "in", 2, format=".png")[0]
        fill(tmp_path / "new/in", "photo.jpg", "photo.png", marked)
        self.check(tmp_path / "new/in", 3, format=".png")

    def test_of_named_files_of_one_name(self, tmp_path):
        fill(tmp_path, "a/x.png", "b/x.png", "b/y.png")
        words = [tmp_path / word for word in ("a/x.png", "b/x.png", "b/y.png")]
        result = planned(*words, to=tmp_path / "out")
        first, second, third = targets(result, tmp_path)
        assert first != second
        assert third == "out/y.png"

    def test_names_do_not_depend_on_others_and_stay_when_folders_move(self, tmp_path):
        fill(tmp_path / "in", "photo.jpg", "photo.png")
        options = {"to": tmp_path / "out", "format": ".png"}
        before = targets(planned(tmp_path / "in", **options), tmp_path)
        (tmp_path / "in").rename(tmp_path / "moved")
        fill(tmp_path / "moved", "0.jpg", "photo.webp", "z.jpg")
        after = targets(planned(tmp_path / "moved", **options), tmp_path)
        assert set(before) < set(after)

    def test_an_output_never_passes_for_that_of_a_neighbour(self, tmp_path):
        fill(tmp_path / "in", "photo.jpg")
        finish(planned(tmp_path / "in", to=tmp_path / "out", format=".png"))
        fill(tmp_path / "in", "photo.png")
        result = planned(tmp_path / "in", to=tmp_path / "out", format=".png")
        assert len(result.jobs) == 2
        assert result.done == ()

    def test_beside_the_sources(self, tmp_path):
        fill(tmp_path, "photo.jpg", "photo.png")
        result = planned(tmp_path, format=".webp")
        for name in targets(result, tmp_path):
            assert re.fullmatch(f"photo{MARK}_2x.webp", name)


class TestNames:
    @pytest.mark.parametrize(
        "name", ["two words.png", "été 東京 🖼.png", "-o.png", "100% {x} 'q'.png"]
    )
    def test_stay_as_they_are(self, tmp_path, name):
        fill(tmp_path / "in", name)
        result = planned(tmp_path / "in", to=tmp_path / "out")
        finish(result)
        assert os.listdir(tmp_path / "out") == os.listdir(tmp_path / "in")

    @eats_names
    def test_bytes_that_are_no_text_and_control_characters(self, tmp_path):
        odd = [os.fsdecode(b"caf\xe9.png"), "two\nlines\x1b[31m.png", "tab\t.png"]
        fill(tmp_path / "in", *odd)
        result = planned(tmp_path / "in", to=tmp_path / "out")
        finish(result)
        assert sorted(os.listdir(tmp_path / "out")) == sorted(odd)

    @pytest.mark.parametrize("letter", ["x", "é", "東"])
    def test_as_long_as_file_systems_take(self, tmp_path, letter):
        """The longest are cut where something is added to them, and kept apart."""
        longest = (255 - len(".jpg")) // len(letter.encode())
        fill(tmp_path / "in", *(letter * (longest - 1) + end + ".jpg" for end in "ab"))
        result = planned(tmp_path / "in", to=tmp_path / "plain")
        assert [job.target.name for job in result.jobs] == [
            job.source.name for job in result.jobs
        ]
        result = planned(tmp_path / "in", to=tmp_path / "out", suffix="_2x")
        prepare(result)
        for job in result.jobs:
            with replacing(job.target) as temporary:
                temporary.write_bytes(b"x")
            assert job.target.name.endswith("_2x.jpg")
        assert len(without_hidden(tmp_path / "out")) == 2


class TestLongPathsOfWindows:
    def test_short_ones_stay(self):
        for path in ("C:\\a.png", "\\\\server\\share\\a.png", "C:\\" + "a" * 200):
            assert extended(path) == path

    @pytest.mark.parametrize("length", [250, 259, 260, 32000])
    def test_long_ones_get_the_prefix_that_lifts_the_limit(self, length):
        tail = "a\\" * (length // 2)
        assert extended("C:\\" + tail) == "\\\\?\\C:\\" + tail
        share = "\\\\server\\share\\" + tail
        assert extended(share) == "\\\\?\\UNC\\server\\share\\" + tail
        for done in (extended(share), extended("C:\\" + tail)):
            assert extended(done) == done
            assert ntpath.isabs(done)

    def test_a_temporary_name_fits_where_the_name_does(self):
        # 15 characters more, or the folder itself: 259 and 247 are Windows' limits.
        plain = [n for n in range(300) if extended("a" * n) == "a" * n]
        assert max(plain) + 15 <= 259
        assert max(plain) <= 247


class TestPrepare:
    def test_makes_no_folder_where_nothing_is_to_do(self, tmp_path):
        fill(tmp_path, "a.png")
        prepare(planned(tmp_path / "a.png", to=tmp_path / "absent/b.png"))
        assert os.listdir(tmp_path) == ["a.png"]
