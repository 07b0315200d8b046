"""The jobs on a Ray cluster: plans, storage, and workers that die."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import ROOT, lively_network, without_hidden

from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.commands.main import main
from aethernet.errors import AetherError, ImageError, OutOfMemoryError
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.cluster import run as cluster
from aethernet.upscaling.cluster.run import upscale_on_cluster
from aethernet.upscaling.cluster.storage import Location, RemoteJob, remote_plan
from aethernet.upscaling.cluster.worker import ModelWords
from aethernet.upscaling.files import Options, upscale_file
from aethernet.upscaling.folders import Job, plan, prepare

WORKERS = 2


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(lively_network(), path)
    return ModelWords(path, "pytorch", "cpu", "float32")


@pytest.fixture(scope="module")
def model(words):
    return Tiled(open_model(words.path, "pytorch", "cpu", "float32"))


@pytest.fixture(scope="module")
def two_workers():
    """A Ray of this machine, with two workers whatever it has."""
    pytest.importorskip("ray.data", reason="needs pip install -e '.[cluster]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "_pool", lambda *_: cluster._Pool(WORKERS, 0.5, 0, 0))
        with cluster._ray(None) as ray:
            yield ray


def make_pictures(folder, count, side=40):
    """Different pictures, named p00.png and so on; in two folders."""
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("inner" if i % 2 else ".") / f"p{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (side, side + i, 3), np.uint8)
        write_picture(Picture(pixels), path)


def planned(source, output):
    found = plan(
        [source],
        f"{output}/",
        suffix=None,
        scale_suffix="_2x",
        format=None,
        overwrite=False,
    )
    prepare(found)
    return found.jobs


def check_same_as_alone(outcomes, model, folder):
    """Each output is what `upscale_file` makes, and nothing else is left."""
    for outcome in outcomes:
        alone = folder / "alone.png"
        upscale_file(outcome.job.source, alone, model)
        assert outcome.job.target.read_bytes() == alone.read_bytes()
        without_hidden(outcome.job.target.parent)


class TestPool:
    @staticmethod
    def nodes(*resources):
        return [{"Alive": True, "Resources": r} for r in resources]

    def test_a_worker_for_each_gpu_with_its_share_of_processors(self):
        nodes = self.nodes({"CPU": 32, "GPU": 4}, {"CPU": 8, "GPU": 2}, {"CPU": 64})
        assert cluster._pool(nodes, "auto") == (6, 4, 1, 0)

    def test_processors_in_fours_where_memory_allows(self):
        large = {"CPU": 64, "memory": 40 * 2**30}
        small = {"CPU": 8, "memory": 2**40, "GPU": 1}
        assert cluster._pool(self.nodes(large, small), "cpu") == (7, 4, 0, 8 * 2**30)

    def test_the_smallest_machine_takes_part(self):
        nodes = self.nodes({"CPU": 2, "memory": 2**30}, {"CPU": 4, "memory": 2**40})
        assert cluster._pool(nodes, "auto") == (3, 2, 0, 2**30)

    def test_a_head_without_processors_is_left_out(self):
        nodes = self.nodes({"memory": 2**40}, {"CPU": 4, "memory": 2**40})
        assert cluster._pool(nodes, "auto").workers == 1
        with pytest.raises(AetherError, match="no machine with a processor"):
            cluster._pool(nodes[:1], "auto")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError("AWS Error SLOW_DOWN"), True),
        (OutOfMemoryError("full"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ImageError("no picture"), False),
        (ValueError("a defect"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, expected):
    assert cluster._may_pass(error) == expected
    ours = AetherError("Cannot read it.")
    ours.__cause__ = error
    assert cluster._may_pass(ours) == expected


class TestWork:
    def test_what_another_run_finished_meanwhile_is_left(self, tmp_path, model):
        make_pictures(tmp_path, 1)
        job = Job(tmp_path / "p00.png", tmp_path / "out.png")
        job.target.write_bytes(b"made by another run")
        assert cluster._upscale_local(job, ".x.png", model, Options(), False) is None
        assert job.target.read_bytes() == b"made by another run"
        done = cluster._upscale_local(job, ".x.png", model, Options(), True)
        assert done.target == job.target
        assert read_picture(job.target).pixels.shape == (80, 80, 3)

    def test_errors_name_the_target_and_nothing_is_left(self, tmp_path, model):
        make_pictures(tmp_path, 1)
        job = Job(tmp_path / "p00.png", tmp_path / "out.xyz")
        with pytest.raises(AetherError, match=r"out\.xyz"):
            cluster._upscale_local(job, ".x.xyz", model, Options(), False)
        assert os.listdir(tmp_path) == ["p00.png"]

    @pytest.mark.parametrize("share", [1, 3])
    def test_a_worker_takes_its_share_of_the_processors(
        self, tmp_path, monkeypatch, share
    ):
        # ONNX Runtime would take all, and so would the other workers of the machine.
        others = pytest.importorskip("test_runtimes", reason="needs the extra onnx")
        path = others.repeating_onnx(tmp_path / "others.onnx")
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
        words = ModelWords(path, "onnxruntime", "cpu")
        files = {path.name: path.read_bytes()}
        before = torch.get_num_threads()
        try:
            worker = cluster._Worker(files, words, Options(), "run", share, False)
        finally:
            torch.set_num_threads(before)
        session = worker.model.model._session
        assert session.get_session_options().intra_op_num_threads == share

    def test_what_a_killed_worker_began_is_removed_and_of_others_kept(self, tmp_path):
        for name in (".3.12ab.part.png", "..3.12ab.part.77.part.png", ".3.99.part.png"):
            (tmp_path / name).touch()
        cluster._remove_begun({tmp_path, tmp_path / "absent"}, "12ab")
        assert os.listdir(tmp_path) == [".3.99.part.png"]


class TestStorage:
    @pytest.fixture(autouse=True)
    def pyarrow(self):
        pytest.importorskip("pyarrow.fs", reason="needs pip install -e '.[cluster]'")

    def test_plan_of_a_uri_keeps_names_and_skips_what_is_done(self, tmp_path):
        source, output = tmp_path / "in", tmp_path / "out"
        make_pictures(source, 4)
        write_picture(Picture(np.zeros((9, 9, 3), np.uint8)), source / "a b é.gif.png")
        (source / "notes.txt").touch()
        (source / ".hidden.png").touch()
        (output / "inner").mkdir(parents=True)
        (output / "inner/p01_x.webp").touch()
        words = {"suffix": "_x", "format": ".webp"}
        found = remote_plan(source.as_uri(), output.as_uri(), **words)
        assert [job.target.path for job in found.jobs] == [
            "a b é.gif_x.webp",
            "inner/p03_x.webp",
            "p00_x.webp",
            "p02_x.webp",
        ]
        assert [job.target.path for job in found.done] == ["inner/p01_x.webp"]
        assert str(found.done[0].source) == f"{source.as_uri()}/inner/p01.png"
        again = remote_plan(source.as_uri(), str(output), **words, overwrite=True)
        assert len(again.jobs) == 5
        assert not again.done

    def test_outputs_inside_the_source_are_not_taken_for_sources(self, tmp_path):
        make_pictures(tmp_path, 2)
        make_pictures(tmp_path / "out", 2)
        found = remote_plan(tmp_path.as_uri(), f"{tmp_path.as_uri()}/out")
        assert len(found.done) == 2
        assert not found.jobs

    def test_bad_folders_are_a_sentence(self, tmp_path):
        make_pictures(tmp_path, 1)
        uri = tmp_path.as_uri()
        with pytest.raises(AetherError, match="is the folder of the pictures"):
            remote_plan(uri, str(tmp_path))
        with pytest.raises(AetherError, match=r"There is no folder .*absent"):
            remote_plan(f"{uri}/absent", uri)
        with pytest.raises(AetherError, match="Cannot reach what://there"):
            remote_plan("what://there", uri)
        (tmp_path / "empty").mkdir()
        with pytest.raises(AetherError, match="no picture in"):
            remote_plan(f"{uri}/empty", f"{uri}/out")

    def test_words_of_access_are_not_shown(self):
        root = "s3://key:secret@bucket/folder?region=x"
        assert str(Location(root, "a/b.png")) == "s3://bucket/folder/a/b.png"

    def test_a_picture_comes_and_goes_through_a_folder_of_the_worker(
        self, tmp_path, model
    ):
        make_pictures(tmp_path / "in", 2)
        found = remote_plan((tmp_path / "in").as_uri(), (tmp_path / "out").as_uri())
        for job in found.jobs:
            assert cluster._upscale_remote(job, ".x.part", model, Options(), False)
        assert without_hidden(tmp_path / "out") == ["inner", "p00.png"]
        for name in ("p00.png", "inner/p01.png"):
            upscale_file(tmp_path / "in" / name, tmp_path / "alone.png", model)
            expected = (tmp_path / "alone.png").read_bytes()
            assert (tmp_path / "out" / name).read_bytes() == expected
        job = found.jobs[0]
        assert cluster._upscale_remote(job, ".x.part", model, Options(), False) is None

    def test_half_an_upload_is_not_moved_into_place(self, tmp_path, monkeypatch):
        from pyarrow import fs

        (tmp_path / "whole").write_bytes(b"all of it")

        def half(source, target, *_):
            target.write(source.read()[:4])

        monkeypatch.setattr(cluster.shutil, "copyfileobj", half)
        with pytest.raises(OSError, match="what arrived is not what was sent"):
            cluster._upload(
                tmp_path / "whole",
                fs.LocalFileSystem(),
                str(tmp_path / "out/p.png"),
                ".0.part.png",
            )
        assert os.listdir(tmp_path / "out") == []

    def test_a_picture_that_is_none_is_called_by_its_address(self, tmp_path, model):
        (tmp_path / "bad.png").write_text("no picture")
        root = tmp_path.as_uri()
        job = RemoteJob(Location(root, "bad.png"), Location(root, "out/bad.png"))
        with pytest.raises(AetherError) as caught:
            cluster._upscale_remote(job, ".x.part", model, Options(), False)
        assert str(caught.value).startswith(f"{root}/bad.png is no picture")


class TestCluster:
    def test_a_folder_becomes_what_it_becomes_without(
        self, tmp_path, words, model, two_workers, capsys
    ):
        make_pictures(tmp_path / "in", 6)
        (tmp_path / "in/bad.png").write_text("no picture")
        (tmp_path / "out").mkdir()
        finished = tmp_path / "out/p02.png"
        finished.write_bytes(b"made by an earlier run")
        command = ["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
        command += ["--cluster", "--json", "--model", str(words.path)]
        command += ["--runtime", "pytorch", "--device", "cpu"]
        assert main(command) == 1
        said = capsys.readouterr()
        assert "bad.png is no picture" in said.err
        assert "Traceback" not in said.err
        lines = [json.loads(line) for line in said.out.splitlines()]
        assert len({line["source"] for line in lines}) == len(lines) == 7
        status = {Path(line["source"]).name: line["status"] for line in lines}
        assert status.pop("bad.png") == "failed"
        assert status.pop("p02.png") == "skipped"
        assert finished.read_bytes() == b"made by an earlier run"
        assert set(status.values()) == {"done"}
        for name in ("p00.png", "p04.png", *(f"inner/p0{i}.png" for i in (1, 3, 5))):
            upscale_file(tmp_path / "in" / name, tmp_path / "alone.png", model)
            expected = (tmp_path / "alone.png").read_bytes()
            assert (tmp_path / "out" / name).read_bytes() == expected
        assert without_hidden(tmp_path / "out") == [
            "inner",
            "p00.png",
            "p02.png",
            "p04.png",
        ]

    def test_a_model_that_no_worker_can_open_is_a_sentence(self, tmp_path, two_workers):
        make_pictures(tmp_path, 1)
        (tmp_path / "m.pth").write_text("no model")
        jobs = [Job(tmp_path / "p00.png", tmp_path / "out.png")]
        words = ModelWords(tmp_path / "m.pth", "pytorch", "cpu")
        with pytest.raises(AetherError, match=r"cannot open the model: m\.pth is"):
            [*upscale_on_cluster(jobs, words, Options(), None)]

    @pytest.mark.slow
    def test_a_killed_worker_s_pictures_are_made_by_others_once(
        self, tmp_path, words, model, two_workers, caplog
    ):
        make_pictures(tmp_path / "in", 16, side=400)
        jobs = planned(tmp_path / "in", tmp_path / "out")
        outcomes = []
        with contextlib.closing(
            upscale_on_cluster(jobs, words, Options(), None)
        ) as coming:
            outcomes.append(next(coming))
            workers = busy_workers()
            assert len(workers) == WORKERS, workers
            workers[0].send_signal(signal.SIGKILL)
            outcomes += coming
        assert "pictures again" in caplog.text
        assert len(outcomes) == len(jobs)
        assert {o.job.source for o in outcomes} == {j.source for j in jobs}
        # One that the dead worker finished and could not tell of is skipped.
        assert {o.status for o in outcomes} <= {"done", "skipped"}
        check_same_as_alone(outcomes, model, tmp_path)

    @pytest.mark.slow
    def test_an_object_store_gets_whole_pictures_and_nothing_else(
        self, tmp_path, words, model, two_workers
    ):
        server = pytest.importorskip("moto.server", reason="needs pip install moto")
        from pyarrow.fs import FileSelector

        service = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        service.start()
        try:
            host, port = service.get_host_and_port()
            end = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
            bucket = "s3://key:secret@bucket"
            store, _ = cluster._file_system(
                f"{bucket}/in{end}&allow_bucket_creation=true"
            )
            store.create_dir("bucket")
            make_pictures(tmp_path, 3)
            for name in ("p00.png", "p02.png", "inner/p01.png"):
                with store.open_output_stream(f"bucket/in/{name}") as stream:
                    stream.write((tmp_path / name).read_bytes())
            uris = f"{bucket}/in{end}", f"{bucket}/out{end}"
            jobs = remote_plan(*uris).jobs
            outcomes = [*upscale_on_cluster(jobs, words, Options(), None)]
            assert [o.status for o in outcomes] == ["done"] * 3, outcomes
            found = store.get_file_info(FileSelector("bucket/out", recursive=True))
            made = {info.path for info in found if info.is_file}
            assert made == {str(job.target).removeprefix("s3://") for job in jobs}
            for name in ("p00.png", "inner/p01.png"):
                upscale_file(tmp_path / name, tmp_path / "alone.png", model)
                content = store.open_input_stream(f"bucket/out/{name}").read()
                assert content == (tmp_path / "alone.png").read_bytes()
            assert len(remote_plan(*uris).done) == 3
        finally:
            service.stop()

    @pytest.mark.slow
    def test_what_kills_its_worker_each_time_is_listed_and_passing_errors_pass(
        self, tmp_path, words, two_workers, monkeypatch
    ):
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        monkeypatch.setattr(cluster, "_Worker", Fragile)
        make_pictures(tmp_path / "in", 5)
        (tmp_path / "in/p00.png").rename(tmp_path / "in/poison.png")
        (tmp_path / "in/p02.png").rename(tmp_path / "in/flaky.png")
        jobs = planned(tmp_path / "in", tmp_path / "out")
        outcomes = [*upscale_on_cluster(jobs, words, Options(), None)]
        by_name = {outcome.job.source.name: outcome for outcome in outcomes}
        assert len(by_name) == len(outcomes) == 5
        poison = by_name.pop("poison.png")
        assert poison.status == "failed"
        assert "worker that had it died" in poison.reason
        assert "Tried 3 times" in poison.reason
        assert {o.status for o in by_name.values()} == {"done"}
        assert without_hidden(tmp_path / "out") == ["flaky.png", "inner", "p04.png"]

    @pytest.mark.slow
    def test_another_process_joins_by_address_and_an_interrupt_ends_it(
        self, tmp_path, words, two_workers
    ):
        make_pictures(tmp_path / "in", 24, side=500)
        address = two_workers.get_runtime_context().gcs_address
        script = tmp_path / "join.py"
        script.write_text(JOIN)
        process = subprocess.Popen(
            [sys.executable, script, tmp_path, words.path, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        )
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=60)
        assert first.startswith("done"), complaint
        assert complaint == "interrupted\n"
        made = len(said.splitlines()) + 1
        assert made < 24
        deadline = time.monotonic() + 30
        while busy_workers() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not busy_workers()
        left = [name for _, _, names in os.walk(tmp_path / "out") for name in names]
        assert not [name for name in left if ".part" in name]


class Fragile(cluster._Worker):
    """One picture kills its worker, another fails once."""

    def _answer(self, number, job):
        if job.source.name == "poison.png":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.source.name == "flaky.png":
            mark = job.source.with_name("seen")
            if not mark.exists():
                mark.touch()
                error = OSError(errno.EIO, "Input/output error")
                failed = cluster.Outcome(job, "failed", str(error))
                return cluster._Answer(number, failed, cluster._may_pass(error))
        return super()._answer(number, job)


JOIN = """
import sys
from pathlib import Path
from test_cluster import planned
from aethernet.upscaling.cluster.worker import ModelWords
from aethernet.upscaling.cluster.run import upscale_on_cluster
from aethernet.upscaling.files import Options

folder, model, address = sys.argv[1:]
jobs = planned(Path(folder, "in"), Path(folder, "out"))
words = ModelWords(Path(model), "pytorch", "cpu", "float32")
coming = upscale_on_cluster(jobs, words, Options(), address)
try:
    for outcome in coming:
        print(outcome.status, outcome.reason, flush=True)
except KeyboardInterrupt:
    coming.close()
    print("interrupted", file=sys.stderr)
"""


def busy_workers():
    """Processes of Ray that have a picture under way."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()) and ours(process):
                found.append(process)
    return found


def ours(process):
    """Whether this process, of perhaps several that test, started that one."""
    return os.getpid() in [parent.pid for parent in process.parents()]


class TestUnreachable:
    def test_without_ray_the_extra_is_named(self, monkeypatch, words, tmp_path):
        monkeypatch.setitem(sys.modules, "ray", None)
        jobs = [Job(tmp_path / "a.png", tmp_path / "b.png")]
        with pytest.raises(AetherError, match=r"ray is missing.*\[cluster\]"):
            next(upscale_on_cluster(jobs, words, Options(), None))

    def test_an_address_where_nobody_listens_is_a_sentence(self, words, tmp_path):
        with pytest.raises(AetherError, match=r"Cannot reach .*127\.0\.0\.1:9"):
            cluster._check_reachable("127.0.0.1:9")

    def test_a_missing_model_is_said_before_ray_starts(self, tmp_path):
        words = ModelWords(tmp_path / "absent.pth")
        with pytest.raises(AetherError, match="There is no file"):
            next(upscale_on_cluster([], words, Options(), None))
