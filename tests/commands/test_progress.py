"""What a run prints on terminals, into pipes and for programs."""

import contextlib
import io
import json
import logging
import os
import re
import sys
import threading
from pathlib import Path

import pytest
from helpers import PLAIN, lively_file
from PIL import Image

from aethernet.commands.main import main
from aethernet.commands.progress import progress, steps_progress
from aethernet.upscaling.folders import Job, Outcome

terminals = pytest.mark.skipif(
    os.name != "posix", reason="needs pseudo terminals, which POSIX systems have"
)

JOBS = [Job(Path(f"in/{i}.png"), Path(f"out/{i}.png")) for i in range(4)]
REASON = "in/1.png: The file is damaged, or ends early."
SUMMARY = (
    "Upscaled 1 of 3 pictures; 1 was there already (--overwrite to replace); 2 failed."
)


def done(job, **options):
    sizes = {"size_before": (100, 50), "size_after": (200, 100)}
    return Outcome(job, "done", **{**sizes, "seconds": 0.25, **options})


def failed(job, reason=REASON):
    return Outcome(job, "failed", reason)


def run(*outcomes, quiet=False, json=False, on_start=None):
    """Report these outcomes as a job does: first those that were done before."""
    skipped = [o for o in outcomes if o.status == "skipped"]
    with progress(quiet, json) as shown:
        shown.total(len(outcomes) - len(skipped), len(skipped))
        for outcome in [*skipped, *(o for o in outcomes if o not in skipped)]:
            if outcome not in skipped:
                shown.started(outcome.job)
                shown.advanced(0, 5000)
                shown.advanced(2500, 5000)
                if on_start:
                    on_start(shown)
            shown.finished(outcome)


MIXED = (
    Outcome(JOBS[0], "skipped", "it is there already"),
    failed(JOBS[1]),
    done(JOBS[2]),
    failed(JOBS[3], "Out of memory."),
)


class TestPipes:
    def test_a_line_for_each_picture(self, capsys):
        run(*MIXED)
        out, error = capsys.readouterr()
        assert out == "in/2.png (100x50) -> out/2.png (200x100)\n"
        assert error.splitlines() == [
            f"error: {REASON}",
            "error: in/3.png: Out of memory.",
            SUMMARY,
        ]

    def test_a_single_picture_needs_no_summary(self, capsys):
        run(done(JOBS[0]))
        out, error = capsys.readouterr()
        assert out.count("\n") == 1
        assert error == ""

    def test_a_single_failure_is_one_line(self, capsys):
        run(failed(JOBS[0], "Out of memory."))
        assert capsys.readouterr() == ("", "error: Out of memory.\n")

    def test_a_run_with_nothing_left_to_do(self, capsys):
        run(*(Outcome(job, "skipped", "it is there already") for job in JOBS))
        out, error = capsys.readouterr()
        assert out == ""
        assert error == "4 were there already (--overwrite to replace).\n"

    def test_an_interrupted_run_prints_how_far_it_got(self, capsys):
        with pytest.raises(KeyboardInterrupt), progress(False, False) as shown:
            shown.total(3, 0)
            shown.finished(done(JOBS[0]))
            raise KeyboardInterrupt
        assert capsys.readouterr().err == "Upscaled 1 of 3 pictures.\n"

    @pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
    def test_no_bar_even_where_colours_are_forced(self, capsys, monkeypatch, variable):
        monkeypatch.setenv(variable, "1")
        run(*MIXED)
        out, error = capsys.readouterr()
        assert "\x1b" not in out + error
        assert "MP/s" not in out + error

    def test_each_line_is_printed_when_its_picture_is_done(self, monkeypatch):
        sent = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(sent))
        with progress(False, False) as shown:
            shown.total(2, 0)
            shown.finished(done(JOBS[0]))
            assert sent.getvalue().startswith(b"in")

    def test_closed_streams_stop_nothing(self, monkeypatch):
        monkeypatch.setattr("sys.stdout", None)
        monkeypatch.setattr("sys.stderr", None)
        run(*MIXED)
        run(*MIXED, json=True)

    def test_errors_do_not_go_to_stdout_where_stderr_is_closed(
        self, capsys, monkeypatch
    ):
        monkeypatch.setattr("sys.stderr", None)
        run(*MIXED, quiet=True)
        assert capsys.readouterr().out == ""


class TestQuiet:
    def test_errors_only(self, capsys):
        run(*MIXED, quiet=True)
        assert capsys.readouterr() == (
            "",
            f"error: {REASON}\nerror: in/3.png: Out of memory.\n",
        )

    def test_json_is_printed_if_asked_for(self, capsys):
        run(*MIXED, quiet=True, json=True)
        out, error = capsys.readouterr()
        assert len(out.splitlines()) == 4
        assert error.count("error: ") == len(error.splitlines()) == 2


class TestJson:
    def test_one_object_per_line_for_every_file(self, capsys):
        run(*MIXED, json=True)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["status"] for line in lines] == [
            "skipped",
            "failed",
            "done",
            "failed",
        ]
        assert lines[0]["reason"] == "it is there already"
        assert lines[1] == {
            "source": str(JOBS[1].source),
            "target": str(JOBS[1].target),
            "status": "failed",
            "reason": REASON,
            "size_before": None,
            "size_after": None,
            "seconds": None,
        }
        assert lines[2]["size_before"] == [100, 50]
        assert lines[2]["size_after"] == [200, 100]
        assert lines[2]["seconds"] == 0.25

    @pytest.mark.skipif(os.name != "posix", reason="needs names of bytes, as on POSIX")
    def test_any_name_is_valid_text(self, capsys):
        names = ["two\nlines", "été 東京 🖼", "\x1b[31m", 'a"b\\c', "\u2028"]
        for name in (*names, os.fsdecode(b"caf\xe9")):
            job = Job(Path(name), Path(f"{name}.png"))
            run(done(job), json=True)
            out, _ = capsys.readouterr()
            assert out.isascii()
            assert out.count("\n") == 1
            read = json.loads(out)["source"]
            read.encode()  # no halves of surrogate pairs
            assert read == (name if name in names else "caf\\xe9")

    def test_the_prefix_of_long_windows_paths_is_not_part_of_the_name(self, capsys):
        job = Job(Path("\\\\?\\C:\\a.png"), Path("\\\\?\\UNC\\server\\a.png"))
        run(done(job), json=True)
        line = json.loads(capsys.readouterr().out)
        assert line["source"] == "C:\\a.png"
        assert line["target"] == "\\\\server\\a.png"


class TestNames:
    def test_cannot_break_lines_or_command_the_terminal(self, capsys):
        name = os.fsdecode(b"caf\xe9\n\x1b[31m") + "\u202egnp.\u2028"
        run(done(Job(Path(name), Path("out.png"))), failed(Job(Path(name), Path("o"))))
        out, error = capsys.readouterr()
        shown = r"caf\xe9\n\x1b[31m\u202egnp.\u2028"
        if os.name == "posix":
            assert out == f"{shown} (100x50) -> out.png (200x100)\n"
        assert len(out.splitlines()) == 1
        assert len(error.splitlines()) == 2


@contextlib.contextmanager
def terminal(monkeypatch, *streams, width=100, kind="xterm-256color"):
    """A pseudo terminal as these streams; yields a list for what it receives."""
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "24")
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    ours, theirs = os.openpty()
    sent: list[str] = []
    received = bytearray()

    def receive():
        with contextlib.suppress(
            OSError
        ):  # raised by Linux when the terminal is closed
            while block := os.read(ours, 1 << 16):
                received.extend(block)

    reader = threading.Thread(target=receive)
    reader.start()
    with monkeypatch.context() as patch:
        stream = os.fdopen(theirs, "w", encoding="utf-8", errors="backslashreplace")
        for name in streams:
            patch.setattr(f"sys.{name}", stream)
        try:
            yield sent
        finally:
            stream.close()
            reader.join()
            os.close(ours)
            sent.append(received.decode())


def screen(sent):
    """The lines on the screen at the end; knows the few sequences that a bar uses."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", sent):
        command = re.fullmatch(r"\x1b\[([?0-9;]*)([A-Za-z])", part)
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif command is None:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + len(part) :]
            column += len(part)
        elif command[2] == "A":
            row -= int(command[1] or 1)
        elif command[2] == "K":
            lines[row] = ""
        else:
            assert command[2] in "mhl", part
    return "\n".join(line.rstrip() for line in lines).strip("\n").splitlines()


@terminals
class TestTerminals:
    def test_the_bar_shows_pictures_rate_time_left_and_name(self, monkeypatch):
        with terminal(monkeypatch, "stderr") as sent:
            run(
                *(done(job) for job in JOBS), on_start=lambda shown: shown.bar.refresh()
            )
        text = re.sub(r"\x1b\[[0-9;]*m", "", sent[0])
        assert re.search(r"2\.png +\S+ +2/4 +[0-9.e+-]+ MP/s +\S+ +left", text), text
        assert screen(sent[0]) == ["Upscaled 4 of 4 pictures."]

    def test_results_stay_on_stdout(self, monkeypatch, capsys):
        with terminal(monkeypatch, "stderr") as sent:
            run(done(JOBS[0]), done(JOBS[1]))
        assert capsys.readouterr().out.count(" -> ") == 2
        assert " -> " not in sent[0]

    def test_other_output_is_printed_above_the_bar(self, monkeypatch):
        with terminal(monkeypatch, "stderr", "stdout") as sent:
            logger = logging.getLogger("aethernet")
            handler = (
                logging.StreamHandler()
            )  # bound to the terminal, as in the command
            logger.addHandler(handler)

            def talk(shown):
                shown.bar.refresh()
                logger.warning("a message of ours")
                sys.stderr.write("a message of a library\n")

            try:
                run(*MIXED, on_start=talk)
                logger.warning("after it")
                assert handler.stream is sys.stderr
            finally:
                logger.removeHandler(handler)
        messages = ["a message of ours", "a message of a library"]
        assert screen(sent[0]) == [
            *messages,
            f"error: {REASON}",
            *messages,
            "in/2.png (100x50) -> out/2.png (200x100)",
            *messages,
            "error: in/3.png: Out of memory.",
            SUMMARY,
            f"  {REASON}",
            "  in/3.png: Out of memory.",
            "after it",
        ]

    def test_json_on_a_terminal_is_not_wrapped(self, monkeypatch):
        job = Job(Path("in/[red]:smile:.png"), Path("o" * 150))
        with terminal(monkeypatch, "stderr", "stdout", width=60) as sent:
            run(done(job), json=True)
        lines = [line for line in screen(sent[0]) if line.startswith("{")]
        assert json.loads(lines[0])["source"] == str(job.source)

    def test_names_are_not_markup_and_not_commands(self, monkeypatch):
        job = Job(Path("[red]a\x1b[2J:smile:"), Path("out.png"))
        with terminal(monkeypatch, "stderr") as sent:
            run(done(job), on_start=lambda shown: shown.bar.refresh())
        assert r"[red]a\x1b[2J:smile:" in sent[0]
        assert "\x1b[2J" not in sent[0]

    def test_steps_are_named_and_counted(self, monkeypatch):
        with terminal(monkeypatch, "stderr") as sent, steps_progress(3) as told:
            for name in ("model, a.png", "model, b\x07.png"):
                told(name)
        text = re.sub(r"\x1b\[[0-9;]*m", "", sent[0])
        assert re.search(r"model, b\\x07\.png +\S+ +1/3", text), text
        assert screen(sent[0]) == []

    def test_a_narrow_terminal(self, monkeypatch):
        with terminal(monkeypatch, "stderr", "stdout", width=20) as sent:
            run(*MIXED, on_start=lambda shown: shown.bar.refresh())
        assert "".join(screen(sent[0])).count("in/2.png") == 1

    def test_pictures_that_overlap_count_once(self, monkeypatch):
        """One picture is upscaled while the one before it is written."""
        with terminal(monkeypatch, "stderr"), progress(False, False) as shown:
            shown.total(3, 0)
            counted = []
            for step in (
                lambda: (shown.started(JOBS[0]), shown.advanced(5000, 5000)),
                lambda: (shown.started(JOBS[1]), shown.advanced(2500, 5000)),
                lambda: shown.finished(done(JOBS[0])),
                lambda: shown.finished(failed(JOBS[1])),
                lambda: shown.finished(done(JOBS[2])),  # whose start was not reported
            ):
                step()
                counted.append(shown.bar.tasks[0].completed)
        assert counted == [1, 1.5, 1.5, 2, 3]

    def test_no_bar_with_quiet_or_on_a_dumb_terminal(self, monkeypatch):
        for kind, quiet in (("xterm", True), ("dumb", False)):
            with terminal(monkeypatch, "stderr", kind=kind) as sent:
                run(*MIXED, quiet=quiet)
            assert "\x1b" not in sent[0]
            assert "MP/s" not in sent[0]
            assert "" not in sent[0].splitlines()

    def test_an_error_restores_the_terminal(self, monkeypatch):
        with terminal(monkeypatch, "stderr") as sent:
            before = sys.stderr
            with (
                contextlib.suppress(ZeroDivisionError),
                progress(False, False) as shown,
            ):
                shown.total(2, 0)
                raise ZeroDivisionError
            assert sys.stderr is before
        assert sent[0].rstrip().count("\x1b[?25h") == 1  # the cursor
        assert screen(sent[0]) == ["Upscaled 0 of 2 pictures."]


@terminals
def test_the_command_shows_the_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    lively_file(tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    for name in ("frame10.png", "frame2.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "in" / name)
    (tmp_path / "in/frame3.png").write_text("not a picture")
    logger = logging.getLogger("aethernet")
    monkeypatch.setattr(logger, "handlers", [])  # the command adds one
    monkeypatch.setattr(logger, "level", logger.level)
    arguments = ["upscale", tmp_path / "in", "-o", tmp_path / "out"]
    arguments += ["--model", tmp_path / "m.safetensors", "--runtime", PLAIN]
    with terminal(monkeypatch, "stderr", width=200) as sent:
        assert main([*map(str, arguments), "--device", "cpu"]) == 1
    assert "MP/s" in sent[0]
    assert "left" in sent[0]
    assert screen(sent[0])[-2] == "Upscaled 2 of 3 pictures; 1 failed."
    assert "frame3.png" in screen(sent[0])[-1]
    frames = re.findall(r"(frame\d+)\.png \(40x30\) -> ", capsys.readouterr().out)
    assert frames == ["frame2", "frame10"]


def test_a_closed_pipe_ends_a_run(monkeypatch):
    """The rest of the output has no reader."""
    reader, writer = os.pipe()
    os.close(reader)
    stdout = io.TextIOWrapper(os.fdopen(writer, "wb", buffering=0), write_through=True)
    monkeypatch.setattr("sys.stdout", stdout)
    with pytest.raises(OSError), progress(True, True) as shown:
        shown.total(2, 0)
        shown.finished(done(JOBS[0]))
    with contextlib.suppress(OSError):
        stdout.close()
