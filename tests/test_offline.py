"""Nothing phones home: no look-up leaves a command."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT, lively_file, photo, write

# Run in a network without a route, whose only name server is this program, which
# prints the questions that it was asked.
WATCHER = r"""
import json, socket, subprocess, sys, threading, time

questions = []
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))

def listen():
    while True:
        questions.append(server.recvfrom(4096)[0][12:60].decode("latin-1"))

threading.Thread(target=listen, daemon=True).start()
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, text=True)
if sys.argv[1] == "until ended":
    process.communicate()
else:
    process.stdout.readline()
    time.sleep(3)
    process.terminate()
    process.communicate()
print(json.dumps([process.returncode, questions]))
"""

INSIDE = (
    'ip link set lo up && mount --bind "$0" /etc/resolv.conf && '
    'mount --bind "$1" /etc/nsswitch.conf && shift && exec "$@"'
)


@pytest.fixture
def watched(tmp_path):
    """Runs a command in that network; returns its exit code and the questions."""
    (tmp_path / "resolv.conf").write_text(
        "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"  # nobody answers
    )
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    files = [tmp_path / "resolv.conf", tmp_path / "nsswitch.conf"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    network = ["unshare", "-rnm", "sh", "-c", INSIDE, *map(str, files)]
    try:
        subprocess.run([*network, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unshare, ip and mount, as Linux has")

    def run(*words, until="until ended"):
        command = [sys.executable, "-c", WATCHER, until, sys.executable, *words]
        done = subprocess.run(
            [*network, *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={
                **os.environ,
                "AETHERNET_CACHE": str(tmp_path / "cache"),
                "HOME": str(tmp_path / "absent"),
                "TMPDIR": str(temporary),
            },
        )
        assert done.stdout, done.stderr
        code, questions = json.loads(done.stdout.splitlines()[-1])
        assert os.listdir(temporary) == []
        return code, questions, done.stderr

    return run


@pytest.fixture
def model(tmp_path):
    return lively_file(tmp_path / "m.safetensors", depths=(1,))


def test_the_watcher_sees_a_question(watched):
    code = (
        "import socket\ntry:\n socket.getaddrinfo('a.example', 1)\nexcept OSError: pass"
    )
    assert any("example" in question for question in watched("-c", code)[1])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "pytorch"])
def test_upscale(watched, model, tmp_path, runtime):
    pytest.importorskip({"pytorch": "torch"}.get(runtime, runtime))
    write(photo(), tmp_path / "in.png")
    words = ["upscale", tmp_path / "in.png", "-o", tmp_path / "out.png"]
    words += ["--model", model, "--device", "cpu", "--runtime", runtime]
    code, questions, error = watched("-m", "aethernet", *words)
    assert (code, questions) == (0, []), error


def test_export(watched, model, tmp_path):
    pytest.importorskip("onnxruntime")
    words = ["-m", "aethernet", "export", model, "-o", tmp_path / "m.onnx"]
    code, questions, error = watched(*words)
    assert (code, questions) == (0, []), error


@pytest.mark.slow  # Gradio takes seconds to load; tests/ui watches the server, too
def test_ui(watched, model):
    pytest.importorskip("gradio")
    words = ["-m", "aethernet", "ui", "--no-browser", "--model", model]
    _, questions, error = watched(*words, until="until the first line and a while")
    assert questions == [], error
