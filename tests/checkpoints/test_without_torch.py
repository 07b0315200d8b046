"""Checkpoints in `.safetensors` files without PyTorch: the commands and the scripts.

Each runs in a process of its own in which torch cannot be imported.
"""

import json
import os
import pkgutil

import numpy as np
import pytest
from helpers import (
    FUSE_SCRIPT,
    ONNX_SCRIPT,
    ROOT,
    block_imports,
    lively_arrays,
    lively_file,
    photo,
    run,
    without_hidden,
    write,
)

from aethernet import checkpoints
from aethernet.checkpoints.checkpoint import load_checkpoint, write_checkpoint
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.verification import compare, natural_image

AETHERNET = ("-m", "aethernet")


@pytest.fixture
def source(tmp_path):
    return lively_file(tmp_path / "m.safetensors", depths=(1,))


def run_without_torch(folder, *words):
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    block_imports(hidden, "torch")
    path = os.pathsep.join([str(hidden), str(ROOT / "src")])
    return run(*words, cwd=folder, env={**os.environ, "PYTHONPATH": path})


def expected(source, image):
    return evaluate(load_checkpoint(source).folded, image)


@pytest.mark.parametrize(
    ("words", "dtype", "psnr"),
    [
        (["--precision", "float32"], "float32", 100),
        (["--precision", "float16"], "float16", 50),
        (["--precision", "float16", "--io", "float32"], "float32", 50),
        (["--precision", "bfloat16"], "float32", None),  # no CPU runs it
        (["--static", "13x11"], "float32", 100),
    ],
)
def test_export_to_onnx(source, tmp_path, words, dtype, psnr):
    onnxruntime = pytest.importorskip("onnxruntime")
    done = run_without_torch(
        *(tmp_path, *AETHERNET, "export", source.name, "-o", "m.onnx", *words)
    )
    assert done.returncode == 0, done.stderr
    assert "ONNX Runtime against NumPy float32:" in done.stdout
    assert done.stdout.count("max abs error") == 7  # five frames and two sizes
    if psnr is None:
        return
    image = natural_image(11, 13)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    output = session.run(None, {"input": image.astype(dtype)})[0]
    assert output.dtype == dtype
    assert compare(output, expected(source, image)).psnr > psnr


def test_export_to_int8(source, tmp_path):
    pytest.importorskip("onnxruntime")
    write(photo(40, 40), tmp_path / "pictures/a.png")
    words = ["export", source.name, "-o", "m.onnx", "--precision", "int8"]
    words += ["--calibrate", "pictures", "--min-psnr", "10"]
    done = run_without_torch(tmp_path, *AETHERNET, *words)
    assert done.returncode == 0, done.stderr
    assert "ONNX Runtime against the same file in float32:" in done.stdout
    assert "a.png" in done.stdout


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_export_to_ncnn(source, tmp_path, precision):
    words = ["export", source.name, "-o", "m.param", "--precision", precision]
    done = run_without_torch(tmp_path, *AETHERNET, *words)
    assert done.returncode == 0, done.stderr
    assert "against NumPy float32:" in done.stdout
    assert {"m.param", "m.bin"} <= {*without_hidden(tmp_path)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fuse(source, tmp_path, dtype):
    weights, arguments = lively_arrays(depths=(1,), in_chans=1)
    weights["conv_last.weight"] *= np.float32(0.05)  # into the range of pictures
    write_checkpoint(weights, arguments, source)
    words = ["fuse", source.name, "-o", "f.safetensors", "--dtype", dtype]
    done = run_without_torch(tmp_path, *AETHERNET, *words)
    assert done.returncode == 0, done.stderr
    assert "Written file against the source, in NumPy float32:" in done.stdout
    fused = load_checkpoint(tmp_path / "f.safetensors")
    assert (fused.form, fused.dtype) == ("fused", dtype)
    image = natural_image(11, 13, 1)
    output = evaluate(fused.folded, image)
    assert compare(output, expected(source, image)).max_abs_error < 2e-3


def test_info(source, tmp_path):
    done = run_without_torch(tmp_path, *AETHERNET, "info", source.name)
    assert done.returncode == 0, done.stderr
    network = load_checkpoint(source)
    count = sum(value.size for value in network.state_dict.values())
    assert f"{count:,}" in done.stdout
    assert "training" in done.stdout


def test_the_scripts(source, tmp_path):
    pytest.importorskip("onnxruntime")
    words = ["--model_path", source.name, "--output_path", "fused.safetensors"]
    done = run_without_torch(tmp_path, FUSE_SCRIPT, *words)
    assert done.returncode == 0, done.stderr
    words = ["--input_model_path", "fused.safetensors", "--output_onnx_path", "m.onnx"]
    words += ["--dynamic_shapes", "--fp_mode", "fp16", "--io", "float32"]
    done = run_without_torch(tmp_path, ONNX_SCRIPT, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.onnx").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["info", "net_g.pth"],
        ["fuse", "net_g.pth", "-o", "f.safetensors"],
        ["export", "net_g.pth", "-o", "m.onnx"],
        ["fuse", "m.safetensors", "-o", "f.pth"],
        ["fuse", "m.safetensors", "-o", "f.safetensors", "--device", "cpu"],
    ],
)
def test_what_needs_torch_says_how_to_install_it(source, tmp_path, words):
    (tmp_path / "net_g.pth").write_bytes(b"PK\x03\x04 more")
    before = without_hidden(tmp_path)
    done = run_without_torch(tmp_path, *AETHERNET, *words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "The package torch is missing." in done.stderr
    assert "python -m pip install torch" in done.stderr
    assert 'python -m pip install "aethernet-sr[torch]"' in done.stderr
    if "--device" not in words:
        assert ".pth files need PyTorch." in done.stderr
    assert {*without_hidden(tmp_path)} == {*before, "hidden"}


def test_only_one_module_imports_torch_when_it_is_imported():
    names = [module.name for module in pkgutil.iter_modules(checkpoints.__path__)]
    names.remove("rewrites")
    code = "; ".join(f"import aethernet.checkpoints.{name}" for name in names)
    done = run("-c", f"import sys; {code}; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_bfloat16_weights_are_read(source, tmp_path):
    state_dict = load_checkpoint(source).state_dict
    bits = {key: value.view("<u4") >> 16 for key, value in state_dict.items()}
    header, content = {}, b""
    for key, value in bits.items():
        added = content + value.astype("<u2").tobytes()
        header[key] = {
            "dtype": "BF16",
            "shape": value.shape,
            "data_offsets": [len(content), len(added)],
        }
        content = added
    head = json.dumps(header).encode()
    file = tmp_path / "b.safetensors"
    file.write_bytes(len(head).to_bytes(8, "little") + head + content)
    found = load_checkpoint(file)
    assert found.dtype == "bfloat16"
    for key, value in bits.items():
        wide = (value << 16).view(np.float32)
        assert np.array_equal(found.state_dict[key], wide), key
    assert found.folded.scale == 2
