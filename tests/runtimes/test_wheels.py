"""The kernels' libraries for all systems: wheels, and runs under emulators."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from helpers import ROOT, lively_network, random_image
from replay import Recorder, record

from aethernet.checkpoints.folded import fold
from aethernet.runtimes.native import build, library

sys.path.insert(0, str(ROOT / "tools"))
import build_wheels
from object_files import read_library

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("ziglang"), reason="needs ziglang"
)
ZIG = [sys.executable, "-m", "ziglang", "cc"]
TAGS = [*build.TARGETS]
# Where Debian's package has it, which is not on the path.
WINE = shutil.which("wine64") or shutil.which("/usr/lib/wine/wine64")
IN_WHEEL = {
    *("__init__.py", "build.py", "kernels.c", "level.c", "library.py"),
    *("pack.py", "run.py", "runtime.py", "threads.py"),
}


@pytest.mark.parametrize(
    ("tag", "with_page"),
    # Each takes seconds, so the one that is built by default has the page.
    [(TAGS[2], True), *(pytest.param(t, False, marks=pytest.mark.slow) for t in TAGS)],
)
def test_what_is_in_a_wheel(tag, with_page, tmp_path):
    page = tmp_path / "built"
    (page / "runtime").mkdir(parents=True)
    (page / "index.html").touch()
    (page / "runtime/card.bin").touch()
    wheel = build_wheels.build_wheel(tag, tmp_path, page if with_page else None)
    assert wheel.name.endswith(f"-py3-none-{tag}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        facts = archive.read(next(n for n in names if n.endswith("/WHEEL"))).decode()
    folder = f"{build_wheels.NATIVE}/"
    native = {n.removeprefix(folder) for n in names if n.startswith(folder)}
    library_name = build.TARGETS[tag].library
    assert native == IN_WHEEL | {library_name, *(p.name for p in build.PAGE_KERNELS)}
    assert "Root-Is-Purelib: false" in facts
    for one in tag.split("."):
        assert f"Tag: py3-none-{one}\n" in facts
    packages = {n.partition("/")[0] for n in names if ".dist-info/" not in n}
    assert packages == {"aethernet", "spandrel_aethernet"}
    assert not [n for n in names if "training.safetensors" in n or "/tests/" in n]
    found = {n for n in names if n.startswith("aethernet/page/")}
    brought = {"aethernet/page/index.html", "aethernet/page/runtime/card.bin"}
    assert found == (brought if with_page else set())


def test_without_the_page_no_wheel_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(build_wheels, "PAGE", tmp_path / "absent")
    monkeypatch.setattr(sys, "argv", ["build_wheels.py"])
    with pytest.raises(SystemExit, match="npm --prefix web run page"):
        build_wheels.main()


def test_a_wheel_of_another_system_is_refused(tmp_path):
    wheel = tmp_path / f"a-1-py3-none-{TAGS[0]}.whl"
    target = build.TARGETS[TAGS[1]]
    made = build.build(tmp_path / target.library, ZIG, target)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{build_wheels.NATIVE}/kernels.c", "")
        archive.write(made, f"{build_wheels.NATIVE}/kernels.so")
        for path in build.PAGE_KERNELS:
            archive.writestr(f"{build_wheels.NATIVE}/{path.name}", "")
    with pytest.raises(build_wheels.WheelError, match="is for arm64"):
        build_wheels.check_wheel(wheel, TAGS[0])
    with pytest.raises(ValueError, match="no ELF"):
        read_library(b"x")


@pytest.fixture
def broken_zig(tmp_path, monkeypatch):
    """A compiler that fails, before the installed one."""
    package = tmp_path / "broken/ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("raise SystemExit('no such target')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


@pytest.mark.usefixtures("broken_zig")
class TestWithoutACompiler:
    def test_building_says_why(self, tmp_path):
        output = tmp_path / "kernels.so"
        with pytest.raises(build.BuildError, match=r"failed.*\n.*no such target"):
            build.build(output, ZIG)
        assert not output.exists()
        with pytest.raises(build.BuildError, match="no such target"):
            build.build_page(tmp_path, ZIG)
        assert not [*tmp_path.glob("*.wasm")]

    @pytest.mark.slow
    def test_an_installation_goes_on_without_the_kernels(self, tmp_path):
        copy = build_wheels.copy_sources(tmp_path / "copy")
        command = [sys.executable, "-m", "pip", "wheel", str(copy), "-v", "--no-deps"]
        command += ["--no-build-isolation", "--no-cache-dir", "-w", str(tmp_path)]
        # pip's releases differ in where they log.
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, **streams, text=True, check=True)
        assert "installed without its native kernels: The compiler" in done.stdout
        (wheel,) = tmp_path.glob("*.whl")
        assert wheel.name.endswith("-py3-none-any.whl")
        with zipfile.ZipFile(wheel) as archive:
            assert not [n for n in archive.namelist() if n.endswith((".so", ".dll"))]


def test_the_kernels_of_the_page(tmp_path):
    relaxed, plain = build.build_page(tmp_path, ZIG)
    contents = [path.read_bytes() for path in (relaxed, plain)]
    for content in contents:
        assert content.startswith(b"\0asm\1\0\0\0")
        assert build.is_current(content)
        for name in (*build.FUNCTIONS, "sources"):
            suffix = "" if name == "sources" else "_page"
            assert f"aether_{name}{suffix}".encode() in content
    assert contents[0] != contents[1]
    assert not build.is_current(contents[0].replace(b"\x42", b"\x41"))
    with pytest.raises(build.BuildError, match="pip install ziglang"):
        build.build_page(tmp_path, ["clang"])


class TestEmulated:
    """Calls recorded here give the same numbers on another machine."""

    @pytest.fixture
    def recorded(self, request, tmp_path, monkeypatch):
        """Input and answer of `replay.c`, with vectors of as many numbers as there."""
        flags = [f"-DLANES={request.param}"]
        path = build.build(tmp_path / "here" / build.LIBRARY.name, extra=flags)
        kernels = Recorder(path, library.variants(path)[-1])
        network = lively_network(embed_dim=20, scale=3, depths=(2,))
        arrays = {key: value.numpy() for key, value in network.state_dict().items()}
        image = random_image(1, 3, 13, 31).numpy()
        folded = fold(arrays, network.img_range)
        return record(folded, kernels, image, monkeypatch)

    def replayed(self, command, folder, recorded):
        given, expected = recorded
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            check=False,
            cwd=folder,
            env={**os.environ, "WINEPREFIX": str(folder), "WINEDEBUG": "-all"},
        )
        assert done.returncode == 0, done.stderr
        found = np.frombuffer(done.stdout, np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    @pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="needs qemu-user")
    @pytest.mark.parametrize("recorded", [4], indirect=True)
    def test_neon_under_qemu(self, recorded, tmp_path):
        program = tmp_path / "replay"
        source = ROOT / "tests/replay.c"
        flags = [*build.FLAGS, "-DVARIANT=neon", f"-I{build.KERNELS.parent}"]
        flags += ["-target", "aarch64-linux-musl", "-static", "-nostdlib"]
        done = [*ZIG, *flags, str(source), "-Wl,-e,start", "-o", str(program)]
        subprocess.run(done, check=True)
        self.replayed(["qemu-aarch64", str(program)], tmp_path, recorded)

    @pytest.mark.slow
    @pytest.mark.skipif(not WINE, reason="needs wine64")
    @pytest.mark.parametrize("recorded", [8], indirect=True)
    def test_the_library_for_windows_under_wine(self, recorded, tmp_path):
        target = build.TARGETS["win_amd64"]
        build.build(tmp_path / target.library, ZIG, target)
        program = tmp_path / "replay.exe"
        source = ROOT / "tests/replay.c"
        flags = [*build.FLAGS, "-target", target.triple, "-nostdlib", "-lkernel32"]
        done = [*ZIG, *flags, str(source), "-Wl,-e,start", "-o", str(program)]
        subprocess.run(done, check=True)
        self.replayed([WINE, str(program)], tmp_path, recorded)
