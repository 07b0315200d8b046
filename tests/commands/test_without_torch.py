"""What runs without importing torch, which takes seconds."""

import os

import pytest
from helpers import FUSE_SCRIPT, ONNX_SCRIPT, ROOT, block_imports, run

import aethernet
from aethernet.commands.main import COMMANDS

LIGHT = ["--version", "--help", "models", "models --json"]

CODE = """
import sys
from aethernet.commands.main import main
try:
    code = main({arguments!r})
except SystemExit as stop:
    code = stop.code
assert not code, code
heavy = [name for name in ("torch", "pyvips", "onnx") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize("line", [*LIGHT, *(f"{name} --help" for name in COMMANDS)])
def test_commands_that_run_no_network(line):
    done = run("-c", CODE.format(arguments=line.split()))
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", LIGHT[:3])
def test_they_take_little_time(line):
    resource = pytest.importorskip("resource", reason="times of processes, as on POSIX")
    times = []
    for _ in range(3):  # other processes slow down a single run
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("-m", "aethernet", *line.split()).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        )
    assert min(times) < 0.7, times


# Prints the setting at the moment that NumPy is imported, which reads it.
WATCHED = """
import os, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("threads:", os.environ.get("OPENBLAS_NUM_THREADS"))
sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "words",
    [
        (ROOT / "src/aethernet/__main__.py", "export"),
        (FUSE_SCRIPT,),
        (ONNX_SCRIPT,),
    ],
    ids=lambda words: words[0].name,
)
def test_numpy_gets_one_thread(words):
    """With more the proof of a model takes many times the CPU time."""
    without = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    done = run("-c", WATCHED, *words, "--help", env=without)
    assert done.returncode == 0, done.stderr
    assert "threads: 1" in done.stdout.splitlines()


def test_the_package_itself():
    code = "import aethernet, sys; assert 'torch' not in sys.modules"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_its_names_are_loaded_when_they_are_used():
    code = (
        "import aethernet, sys\n"
        "assert 'aethernet.errors' not in sys.modules\n"
        "aethernet.AetherError\n"
        "assert 'torch' not in sys.modules\n"
        "aethernet.load_checkpoint\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("import aethernet; aethernet.AetherNet", "torch"),
        ("import spandrel_aethernet", "spandrel"),
    ],
)
def test_names_that_need_it_say_how_to_install_it(tmp_path, line, extra):
    block_imports(tmp_path, "torch", "spandrel")
    package = tmp_path / "spandrel_aethernet"
    package.symlink_to(ROOT / "spandrel/architectures/AetherNet")
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    done = run("-c", line, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path)
    assert done.returncode == 1
    assert f'python -m pip install "aethernet-sr[{extra}]"' in done.stderr


def test_all_names_are_there_and_are_listed():
    pytest.importorskip("torch", reason="needs PyTorch, which some of them bring")
    for name in aethernet.__all__:
        assert getattr(aethernet, name) is not None
    assert {*aethernet.__all__} <= {*dir(aethernet)}
    assert "__path__" in dir(aethernet)


def test_names_are_those_of_their_modules():
    pytest.importorskip("torch", reason="needs PyTorch")
    from aethernet import AetherNet, aether_core, load_checkpoint
    from aethernet.checkpoints import checkpoint

    assert AetherNet is aether_core.AetherNet
    assert load_checkpoint is checkpoint.load_checkpoint


def test_a_name_that_is_missing():
    with pytest.raises(AttributeError, match="'aethernet' has no attribute 'absent'"):
        aethernet.absent  # noqa: B018
    with pytest.raises(ImportError):
        from aethernet import absent  # noqa: F401


def test_every_command_is_described(capsys):
    from aethernet.commands.main import main

    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in COMMANDS)
