"""The jobs on a Ray cluster: plans, storage, and workers that die."""

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster_helpers
import numpy as np
import onnxruntime
import psutil
import pytest
from cluster_helpers import Fragile, make_pictures, planned
from helpers import LIGHT, ROOT, lively_file, repeating_onnx, without_hidden

from aethernet.commands.main import main
from aethernet.devices import limit_threads, told_threads
from aethernet.errors import (
    AetherError,
    CheckpointError,
    ImageError,
    MissingExtraError,
    OutOfMemoryError,
)
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes import onnx_files
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.request import ModelRequest
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.cluster import run
from aethernet.upscaling.cluster.ray_session import (
    Pool,
    check_reachable,
    ray_session,
    worker_pool,
)
from aethernet.upscaling.cluster.run import upscale_on_cluster
from aethernet.upscaling.cluster.storage import (
    Location,
    RemoteJob,
    file_system,
    reason_without_keys,
    remote_plan,
    remove_unfinished,
    temporary_name,
    upload,
)
from aethernet.upscaling.cluster.worker import (
    Worker,
    WorkerSetup,
    worth_retrying,
)
from aethernet.upscaling.files import Options, upscale_file
from aethernet.upscaling.folders import Job

WORKERS = 2


@pytest.fixture(scope="module")
def worker_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    lively_file(path)
    return ModelRequest(path, LIGHT, "cpu", "float32")


@pytest.fixture(scope="module")
def model(worker_model):
    return Tiled(open_model(worker_model.path, LIGHT, "cpu", "float32"))


@pytest.fixture
def start_worker(worker_model, monkeypatch):
    """Makes a worker in this process, and restores the threads that it changes."""
    before = told_threads() or 1
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))  # or none, afterwards

    def start(model=worker_model, threads=before, overwrite=False):
        files = {model.path.name: model.path.read_bytes()}
        setup = WorkerSetup(model, files, Options(), "12ab", threads, overwrite)
        return Worker(setup)

    yield start
    limit_threads(before)


@pytest.fixture(scope="module")
def two_workers():
    """A Ray of this machine, with two workers whatever it has."""
    pytest.importorskip("ray.data", reason="needs pip install -e '.[cluster]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "worker_pool", lambda *_: Pool(WORKERS, 0.5, 0, 0))
        with ray_session(None) as ray:
            yield ray


def answer_of(worker, job):
    """What a worker answers to a job that comes as from Ray."""
    return pickle.loads(worker({"job": pickle.dumps((0, job))})["answer"])


def check_same_as_alone(outcomes, model, folder):
    """Check that each output is what `upscale_file` makes, and nothing else is left."""
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
        assert worker_pool(nodes, "auto") == (6, 4, 1, 0)

    def test_processors_in_fours_where_memory_allows(self):
        large = {"CPU": 64, "memory": 40 * 2**30}
        small = {"CPU": 8, "memory": 2**40, "GPU": 1}
        assert worker_pool(self.nodes(large, small), "cpu") == (7, 4, 0, 8 * 2**30)

    def test_the_smallest_machine_gets_a_worker_too(self):
        nodes = self.nodes({"CPU": 2, "memory": 2**30}, {"CPU": 4, "memory": 2**40})
        assert worker_pool(nodes, "auto") == (3, 2, 0, 2**30)

    def test_a_head_without_processors_is_left_out(self):
        nodes = self.nodes({"memory": 2**40}, {"CPU": 4, "memory": 2**40})
        assert worker_pool(nodes, "auto").workers == 1
        with pytest.raises(AetherError, match="No machine of the cluster offers"):
            worker_pool(nodes[:1], "auto")


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
def test_only_errors_that_may_not_come_again_are_worth_retrying(error, expected):
    assert worth_retrying(error) == expected
    ours = AetherError("It cannot be read.")
    ours.__cause__ = error
    assert worth_retrying(ours) == expected


class TestErrorsAcrossProcesses:
    @pytest.mark.parametrize("kind", [AetherError, CheckpointError, OutOfMemoryError])
    def test_an_error_keeps_its_fields(self, kind):
        error = kind("It is damaged.", "s3://bucket/a.png", "Copy it again.")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        fields = (copy.reason, copy.path, copy.hint)
        assert fields == (error.reason, error.path, error.hint)
        assert str(copy) == "s3://bucket/a.png: It is damaged. Copy it again."

    def test_ray_gives_back_the_error_of_a_worker(self, two_workers):
        def fail():
            raise CheckpointError("It is damaged.", "model.pth", "Copy it again.")

        with pytest.raises(CheckpointError) as caught:
            two_workers.get(two_workers.remote(fail).remote())
        error = caught.value
        assert (error.reason, error.hint) == ("It is damaged.", "Copy it again.")
        assert error.path == Path("model.pth")


class TestWorker:
    def test_what_another_run_finished_meanwhile_is_left(self, tmp_path, start_worker):
        make_pictures(tmp_path, 1)
        job = Job(tmp_path / "p00.png", tmp_path / "out.png")
        job.target.write_bytes(b"made by another run")
        outcome = answer_of(start_worker(), job).outcome
        assert outcome.status == "skipped"
        assert job.target.read_bytes() == b"made by another run"
        outcome = answer_of(start_worker(overwrite=True), job).outcome
        assert (outcome.status, outcome.job) == ("done", job)
        assert outcome.size_after == (80, 80)
        assert read_picture(job.target).pixels.shape == (80, 80, 3)

    def test_errors_name_the_target_and_nothing_is_left(self, tmp_path, start_worker):
        make_pictures(tmp_path, 1)
        job = Job(tmp_path / "p00.png", tmp_path / "out.xyz")
        answer = answer_of(start_worker(), job)
        assert answer.outcome.status == "failed"
        assert answer.outcome.reason.startswith(f"{job.target}: ")
        assert not answer.worth_retrying
        assert os.listdir(tmp_path) == ["p00.png"]

    def test_errors_name_the_source(self, tmp_path, start_worker):
        job = Job(tmp_path / "bad.png", tmp_path / "out.png")
        job.source.write_text("no picture")
        outcome = answer_of(start_worker(), job).outcome
        assert outcome.reason.startswith(f"{job.source}: ")

    def test_a_model_that_cannot_be_opened_is_the_answer_to_each_job(
        self, tmp_path, start_worker
    ):
        path = tmp_path / "m.safetensors"
        path.write_text("no model")
        worker = start_worker(ModelRequest(path, LIGHT, "cpu"))
        job = Job(tmp_path / "a.png", tmp_path / "b.png")
        for _ in range(2):
            error = answer_of(worker, job)
            assert isinstance(error, CheckpointError)
            assert error.path == path

    @pytest.mark.parametrize("share", [1, 3])
    def test_a_worker_takes_its_share_of_the_processors(
        self, tmp_path, monkeypatch, start_worker, share
    ):
        # ONNX Runtime would take all, and so would the other workers of the machine.
        path = repeating_onnx(tmp_path / "others.onnx")
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
        monkeypatch.setattr(onnx_files, "usable_cores", lambda: 4)
        taken = []

        class Session(onnxruntime.InferenceSession):
            def __init__(self, model, options, providers):
                taken.append(options.intra_op_num_threads)
                super().__init__(model, options, providers)

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        start_worker(ModelRequest(path, "onnxruntime", "cpu"), threads=share)
        assert set(taken) == {share}


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
        names = {"suffix": "_x", "format": ".webp"}
        found = remote_plan(source.as_uri(), output.as_uri(), **names)
        assert [job.target.path for job in found.jobs] == [
            "a b é.gif_x.webp",
            "inner/p03_x.webp",
            "p00_x.webp",
            "p02_x.webp",
        ]
        assert [job.target.path for job in found.done] == ["inner/p01_x.webp"]
        assert str(found.done[0].source) == f"{source.as_uri()}/inner/p01.png"
        again = remote_plan(source.as_uri(), str(output), **names, overwrite=True)
        assert len(again.jobs) == 5
        assert not again.done

    def test_outputs_inside_the_source_are_not_sources(self, tmp_path):
        make_pictures(tmp_path, 2)
        make_pictures(tmp_path / "out", 2)
        found = remote_plan(tmp_path.as_uri(), f"{tmp_path.as_uri()}/out")
        assert len(found.done) == 2
        assert not found.jobs

    def test_bad_folders_give_clear_errors(self, tmp_path):
        make_pictures(tmp_path, 1)
        uri = tmp_path.as_uri()
        (tmp_path / "empty").mkdir()
        for source, output, message in (
            (uri, str(tmp_path), f"{tmp_path}: This is the folder of the pictures."),
            (f"{uri}/absent", uri, f"{uri}/absent: There is no such folder."),
            ("what://there", uri, "what://there: Cannot be reached: "),
            (f"{uri}/empty", f"{uri}/out", f"{uri}/empty: There is no picture here"),
        ):
            with pytest.raises(AetherError) as caught:
                remote_plan(source, output)
            assert str(caught.value).startswith(message)

    def test_access_keys_are_not_shown(self):
        root = "s3://key:secret@bucket/folder?region=x"
        assert str(Location(root, "a/b.png")) == "s3://bucket/folder/a/b.png"
        error = OSError(f"When listing {root}:\nAccess denied")
        assert "secret" not in reason_without_keys(error)

    def test_a_picture_is_copied_through_a_folder_of_the_worker(
        self, tmp_path, model, start_worker
    ):
        make_pictures(tmp_path / "in", 2)
        found = remote_plan((tmp_path / "in").as_uri(), (tmp_path / "out").as_uri())
        worker = start_worker()
        for job in found.jobs:
            assert answer_of(worker, job).outcome.status == "done"
        assert without_hidden(tmp_path / "out") == ["inner", "p00.png"]
        for name in ("p00.png", "inner/p01.png"):
            upscale_file(tmp_path / "in" / name, tmp_path / "alone.png", model)
            expected = (tmp_path / "alone.png").read_bytes()
            assert (tmp_path / "out" / name).read_bytes() == expected
        assert answer_of(worker, found.jobs[0]).outcome.status == "skipped"

    def test_half_an_upload_is_not_moved_into_place(self, tmp_path, monkeypatch):
        from pyarrow import fs

        (tmp_path / "whole").write_bytes(b"all of it")

        def half(source, target, *_):
            target.write(source.read()[:4])

        monkeypatch.setattr(shutil, "copyfileobj", half)
        with pytest.raises(OSError, match="what arrived is not what was sent"):
            upload(
                tmp_path / "whole",
                fs.LocalFileSystem(),
                str(tmp_path / "out/p.png"),
                ".0.part.png",
            )
        assert os.listdir(tmp_path / "out") == []

    def test_errors_name_the_address_of_a_remote_source(self, tmp_path, start_worker):
        (tmp_path / "bad.png").write_text("no picture")
        root = tmp_path.as_uri()
        job = RemoteJob(Location(root, "bad.png"), Location(root, "out/bad.png"))
        outcome = answer_of(start_worker(), job).outcome
        assert outcome.status == "failed"
        assert outcome.reason.startswith(f"{root}/bad.png: ")

    def test_unfinished_files_of_a_run_are_removed_and_those_of_others_kept(
        self, tmp_path
    ):
        mine, other = (temporary_name(3, run, ".png") for run in ("12ab", "99"))
        for name in (mine, f".{mine[:-4]}.77.part.png", other):
            (tmp_path / name).touch()
        remove_unfinished([tmp_path, tmp_path / "absent"], "12ab")
        assert os.listdir(tmp_path) == [other]


class TestCluster:
    def test_a_folder_gives_what_it_gives_without_a_cluster(
        self, tmp_path, worker_model, model, two_workers, capsys, caplog
    ):
        make_pictures(tmp_path / "in", 6)
        jpeg = tmp_path / "in/two.jpg"
        write_picture(read_picture(tmp_path / "in/p00.png"), jpeg)
        jpeg.write_bytes(2 * jpeg.read_bytes())
        (tmp_path / "in/bad.png").write_text("no picture")
        (tmp_path / "out").mkdir()
        finished = tmp_path / "out/p02.png"
        finished.write_bytes(b"made by an earlier run")
        command = ["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
        command += ["--cluster", "--json", "--model", str(worker_model.path)]
        command += ["--runtime", LIGHT, "--device", "cpu"]
        assert main(command) == 1
        printed = capsys.readouterr()
        assert f"{tmp_path / 'in/bad.png'}: " in printed.err
        assert "Traceback" not in printed.err
        lines = [json.loads(line) for line in printed.out.splitlines()]
        assert len({line["source"] for line in lines}) == len(lines) == 8
        assert f"{tmp_path / 'out/two.jpg'}: left out 1 more picture" in caplog.text
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
            "two.jpg",
        ]

    def test_a_model_that_no_worker_can_open_is_one_error(self, tmp_path, two_workers):
        make_pictures(tmp_path, 1)
        (tmp_path / "m.safetensors").write_text("no model")
        jobs = [Job(tmp_path / "p00.png", tmp_path / "out.png")]
        model = ModelRequest(tmp_path / "m.safetensors", LIGHT, "cpu")
        with pytest.raises(AetherError, match="cannot open the model") as caught:
            [*upscale_on_cluster(jobs, model, Options(), None)]
        assert caught.value.path == model.path

    @pytest.mark.slow
    def test_a_killed_worker_s_pictures_are_made_by_others_once(
        self, tmp_path, worker_model, model, two_workers, caplog
    ):
        make_pictures(tmp_path / "in", 16, side=400)
        jobs = planned(tmp_path / "in", tmp_path / "out")
        outcomes = []
        with contextlib.closing(
            upscale_on_cluster(jobs, worker_model, Options(), None)
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
        self, tmp_path, worker_model, model, two_workers
    ):
        server = pytest.importorskip("moto.server", reason="needs pip install moto")
        from pyarrow.fs import FileSelector

        service = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        service.start()
        try:
            host, port = service.get_host_and_port()
            end = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
            bucket = "s3://key:secret@bucket"
            root = f"{bucket}/in{end}&allow_bucket_creation=true"
            store, _ = file_system(Location(root, ""))
            store.create_dir("bucket")
            make_pictures(tmp_path, 3)
            for name in ("p00.png", "p02.png", "inner/p01.png"):
                with store.open_output_stream(f"bucket/in/{name}") as stream:
                    stream.write((tmp_path / name).read_bytes())
            uris = f"{bucket}/in{end}", f"{bucket}/out{end}"
            jobs = remote_plan(*uris).jobs
            outcomes = [*upscale_on_cluster(jobs, worker_model, Options(), None)]
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
    def test_what_kills_its_worker_each_time_fails_and_what_fails_once_is_made(
        self, tmp_path, worker_model, two_workers, monkeypatch
    ):
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(cluster_helpers)
        monkeypatch.setattr(run, "Worker", Fragile)
        make_pictures(tmp_path / "in", 5)
        (tmp_path / "in/p00.png").rename(tmp_path / "in/poison.png")
        (tmp_path / "in/p02.png").rename(tmp_path / "in/flaky.png")
        jobs = planned(tmp_path / "in", tmp_path / "out")
        outcomes = [*upscale_on_cluster(jobs, worker_model, Options(), None)]
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
        self, tmp_path, worker_model, two_workers
    ):
        make_pictures(tmp_path / "in", 24, side=500)
        address = two_workers.get_runtime_context().gcs_address
        script = tmp_path / "join.py"
        script.write_text(JOIN)
        process = subprocess.Popen(
            [sys.executable, script, tmp_path, worker_model.path, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        )
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert first.startswith("done"), errors
        assert errors == "interrupted\n"
        made = len(output.splitlines()) + 1
        assert made < 24
        deadline = time.monotonic() + 30
        while busy_workers() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not busy_workers()
        left = [name for _, _, names in os.walk(tmp_path / "out") for name in names]
        assert not [name for name in left if ".part" in name]


JOIN = """
import sys
from pathlib import Path
from cluster_helpers import planned
from helpers import LIGHT
from aethernet.runtimes.request import ModelRequest
from aethernet.upscaling.cluster.run import upscale_on_cluster
from aethernet.upscaling.files import Options

folder, model, address = sys.argv[1:]
jobs = planned(Path(folder, "in"), Path(folder, "out"))
worker_model = ModelRequest(Path(model), LIGHT, "cpu", "float32")
coming = upscale_on_cluster(jobs, worker_model, Options(), address)
try:
    for outcome in coming:
        print(outcome.status, outcome.reason, flush=True)
except KeyboardInterrupt:
    coming.close()
    print("interrupted", file=sys.stderr)
"""


def busy_workers():
    """Processes of Ray that upscale a picture at the moment."""
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
    def test_without_ray_the_extra_is_named(self, monkeypatch, worker_model, tmp_path):
        monkeypatch.setitem(sys.modules, "ray", None)
        jobs = [Job(tmp_path / "a.png", tmp_path / "b.png")]
        with pytest.raises(MissingExtraError, match=r"ray is missing.*\[cluster\]"):
            next(upscale_on_cluster(jobs, worker_model, Options(), None))

    def test_an_address_where_nothing_listens_is_one_error(self):
        with pytest.raises(AetherError, match=r"Cannot reach .*127\.0\.0\.1:9"):
            check_reachable("127.0.0.1:9")

    def test_a_missing_model_is_an_error_before_ray_starts(self, tmp_path):
        model = ModelRequest(tmp_path / "absent.pth")
        with pytest.raises(AetherError, match="There is no such file") as caught:
            next(upscale_on_cluster([], model, Options(), None))
        assert caught.value.path == model.path
