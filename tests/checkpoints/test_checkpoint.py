import json
import os
import pickle
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import lively_network, random_image, run, without_hidden
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from aethernet.checkpoints.checkpoint import (
    WRAPPERS,
    CheckpointOptions,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from aethernet.checkpoints.rewrites import as_tensors
from aethernet.errors import (
    AetherError,
    CheckpointError,
    ContradictionError,
    VerificationError,
)


def load_key(path, key):
    return load_checkpoint(path, CheckpointOptions(param_key=key))


def same_weights(checkpoint, network):
    wanted = network.state_dict()
    assert checkpoint.state_dict.keys() == wanted.keys()
    found = as_tensors(checkpoint.state_dict)
    assert all(torch.equal(found[k], v) for k, v in wanted.items())
    return True


class TestReading:
    @pytest.mark.parametrize("wrapper", WRAPPERS)
    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
    def test_unwraps_what_frameworks_write(self, tmp_path, wrapper, suffix):
        network = lively_network()
        path = tmp_path / f"model{suffix}"
        torch.save({"iter": 5, "epoch": 1, wrapper: network.state_dict()}, path)
        checkpoint = load_checkpoint(path)
        assert same_weights(checkpoint, network)
        assert checkpoint.wrapper == wrapper

    def test_reads_bare_weights_in_both_formats(self, tmp_path):
        network = lively_network()
        torch.save(network.state_dict(), tmp_path / "bare.pth")
        save_file(network.state_dict(), tmp_path / "bare.safetensors")
        for name in ("bare.pth", "bare.safetensors"):
            checkpoint = load_checkpoint(tmp_path / name)
            assert same_weights(checkpoint, network)
            assert checkpoint.wrapper is None
            assert checkpoint.metadata == {}

    def test_prefers_the_moving_average_and_takes_the_key_that_is_asked_for(
        self, tmp_path
    ):
        raw, ema = lively_network(1), lively_network(2)
        path = tmp_path / "model.pth"
        torch.save({"params": raw.state_dict(), "params_ema": ema.state_dict()}, path)
        checkpoint = load_checkpoint(path)
        assert same_weights(checkpoint, ema)
        assert checkpoint.other_wrappers == ("params",)
        assert same_weights(load_key(path, "params"), raw)
        with pytest.raises(CheckpointError, match=r"'net'.*params, params_ema"):
            load_key(path, "net")

    def test_nested_state_dicts_are_chosen_with_dots(self, tmp_path):
        raw, ema = lively_network(1), lively_network(2)
        path = tmp_path / "model.pth"
        inner = {"params": raw.state_dict(), "params_ema": ema.state_dict()}
        torch.save({"net_g": inner, "metadata": {"a": {"b": 1}}}, path)
        checkpoint = load_checkpoint(path)
        assert same_weights(checkpoint, ema)
        assert checkpoint.wrapper == "net_g.params_ema"
        assert checkpoint.other_wrappers == ("net_g.params",)
        assert same_weights(load_key(path, "net_g.params"), raw)
        assert same_weights(load_key(path, "net_g"), ema)
        have = r"it has: net_g, net_g\.params, net_g\.params_ema\."
        with pytest.raises(CheckpointError, match=have):
            load_key(path, "params")

    def test_an_empty_moving_average_does_not_hide_the_weights(self, tmp_path):
        network = lively_network()
        path = tmp_path / "model.pth"
        torch.save({"params": network.state_dict(), "params_ema": {}}, path)
        assert same_weights(load_checkpoint(path), network)

    def test_reads_trainner_redux_pth_with_metadata(self, tmp_path):
        network = lively_network()
        path = tmp_path / "model.pth"
        metadata = {"img_range": 255.0, "scale": 2, "other": {"deep": [1]}}
        torch.save({"metadata": metadata, "params": network.state_dict()}, path)
        checkpoint = load_checkpoint(path)
        assert same_weights(checkpoint, network)
        assert checkpoint.metadata == {
            "img_range": "255.0",
            "scale": "2",
            "other": '{"deep": [1]}',
        }
        assert checkpoint.hyperparameters["img_range"] == 255

    def test_reads_trainner_redux_safetensors_with_metadata(self, tmp_path):
        # It writes the network's hyperparameters, as JSON under one key.
        network = lively_network(img_range=255.0)
        path = tmp_path / "model.safetensors"
        text = json.dumps(network.hyperparameters)
        save_file(network.state_dict(), path, {"metadata": text})
        checkpoint = load_checkpoint(path)
        assert same_weights(checkpoint, network)
        assert checkpoint.hyperparameters["img_range"] == 255

    @pytest.mark.parametrize(
        "prefix", ["module.", "_orig_mod.", "netG.", "module._orig_mod."]
    )
    def test_strips_prefixes(self, tmp_path, prefix):
        network = lively_network()
        weights = {prefix + key: value for key, value in network.state_dict().items()}
        path = tmp_path / "model.pth"
        torch.save({"params": weights}, path)
        assert same_weights(load_checkpoint(path), network)

    def test_reads_what_averaged_model_saves(self, tmp_path):
        network = lively_network()
        path = tmp_path / "model.pth"
        torch.save({"params_ema": AveragedModel(network).state_dict()}, path)
        assert same_weights(load_checkpoint(path), network)

    def test_reads_the_legacy_format_and_other_float_types(self, tmp_path):
        network = lively_network().bfloat16()
        path = tmp_path / "model.pth"
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
        checkpoint = load_checkpoint(path)
        assert checkpoint.dtype == "bfloat16"
        for key, value in network.state_dict().items():
            assert np.array_equal(checkpoint.state_dict[key], value.float()), key
        assert checkpoint.build().conv_first.weight.dtype == torch.float32

    def test_derives_everything_and_builds_the_network(self, tmp_path):
        network = lively_network(scale=4, in_chans=1, sk_kernel=5)
        path = tmp_path / "model.pth"
        torch.save(network.state_dict(), path)
        checkpoint = load_checkpoint(path)
        assert (checkpoint.scale, checkpoint.form) == (4, "training")
        assert checkpoint.variant is None
        image = random_image(1, 1, 6, 7)
        assert torch.equal(checkpoint.build()(image), network(image))

    def test_names_the_shipped_variant(self, demo_checkpoint):
        checkpoint = load_checkpoint(demo_checkpoint)
        assert checkpoint.variant == "aether_small"
        assert (checkpoint.wrapper, checkpoint.other_wrappers) == (
            "params_ema",
            ("params",),
        )

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"scale": 4}, "scale was given as 4, but the weights are 2x"),
            ({"model_type": "aether_small"}, "aether_small, but .* no named variant"),
            ({"in_chans": 1}, "channels was given as 1, but the weights take 3"),
        ],
    )
    def test_contradictions_are_errors(self, tmp_path, wrong, reason):
        path = tmp_path / "model.pth"
        torch.save(lively_network().state_dict(), path)
        right = CheckpointOptions(model_type="aether", scale=2, in_chans=3)
        assert load_checkpoint(path, right).scale == 2
        with pytest.raises(ContradictionError, match=reason) as raised:
            load_checkpoint(path, CheckpointOptions(**wrong))
        assert raised.value.path == path
        assert "Leave this option out" in raised.value.hint

    def test_only_a_number_of_steps_counts_as_iterations(self, tmp_path):
        path = tmp_path / "net.pth"
        weights = {"params": lively_network().state_dict()}
        for iterations in (0, -1, True, 1.5, "9", torch.tensor(3)):
            torch.save({**weights, "iter": iterations}, path)
            assert load_checkpoint(path).iterations is None
        torch.save({**weights, "iter": 1234}, path)
        assert load_checkpoint(path).iterations == 1234

    def test_weights_of_any_network_are_read(self, tmp_path):
        path = tmp_path / "other.pth"
        torch.save({"params": {"module.a": torch.ones(1)}, "iter": 7}, path)
        found = load_weights(path)
        assert [*found.state_dict] == ["a"]
        assert (found.wrapper, found.iterations) == ("params", 7)


class Exploit:
    """Runs a command when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"echo hacked > {self.mark}",)


class TestBadFiles:
    def message(self, path):
        with pytest.raises(AetherError) as error:
            load_checkpoint(path)
        assert error.value.path == path
        assert str(path) not in error.value.reason
        text = str(error.value)
        assert "\n" not in text
        assert "weights_only" not in text  # no advice to switch the safety off
        return text

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_in_a_pickle_is_not_run(self, tmp_path, zipped):
        mark = tmp_path / "hacked"
        path = tmp_path / "model.pth"
        content = {"params": {"conv_first.weight": Exploit(mark)}}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert "could run code" in self.message(path)
        (tmp_path / "bare.pth").write_bytes(pickle.dumps(Exploit(mark)))
        self.message(tmp_path / "bare.pth")
        assert not mark.exists()

    def test_numpy_arrays_are_not_weights(self, tmp_path):
        path = tmp_path / "model.pth"
        torch.save({"params": {"conv_first.weight": np.zeros(3)}}, path)
        assert "other than tensors" in self.message(path)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("kept", [0, 7, 0.3, 0.99])
    def test_truncated(self, tmp_path, suffix, kept):
        whole = tmp_path / f"whole{suffix}"
        save_checkpoint(lively_network(), whole)
        content = whole.read_bytes()
        length = int(kept * len(content)) if kept < 1 else kept
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(content[:length])
        text = self.message(path)
        assert any(word in text for word in ("truncated", "empty", "Not a PyTorch"))

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
    def test_text_under_that_name(self, tmp_path, suffix):
        path = tmp_path / f"model{suffix}"
        path.write_text("<html>404: not found</html>" * 50)
        assert str(path) in self.message(path)

    def test_missing_folder_and_other_suffix(self, tmp_path):
        assert "no such file" in self.message(tmp_path / "absent.pth")
        assert "folder" in self.message(tmp_path)
        (tmp_path / "model.bin").write_bytes(b"123")
        assert ".safetensors" in self.message(tmp_path / "model.bin")

    @pytest.mark.parametrize("content", [[1, 2], 5, {}, {"params": {}}, {1: 2}])
    def test_no_weights_inside(self, tmp_path, content):
        path = tmp_path / "model.pth"
        torch.save(content, path)
        self.message(path)

    def test_another_architecture_is_named_by_its_key(self, tmp_path):
        path = tmp_path / "esrgan.pth"
        weights = {
            "conv_first.weight": torch.zeros(64, 3, 3, 3),
            "body.0.rdb1.conv1.weight": torch.zeros(32, 64, 3, 3),
        }
        torch.save({"params_ema": weights}, path)
        assert "body.0.rdb1.conv1.weight" in self.message(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_diverged_weights_are_named(self, tmp_path, value):
        network = lively_network()
        weights = network.state_dict()
        weights["layers.1.0.ffn.fc2.bias"][3] = value
        path = tmp_path / "model.pth"
        torch.save(weights, path)
        text = self.message(path)
        assert "layers.1.0.ffn.fc2.bias" in text
        assert "diverged" in text

    def test_integer_weights_are_refused(self, tmp_path):
        weights = lively_network().state_dict()
        weights["norm.bias"] = weights["norm.bias"].int()
        path = tmp_path / "model.pth"
        torch.save(weights, path)
        assert "norm.bias" in self.message(path)

    @pytest.mark.parametrize(
        "weird",
        [
            torch.ones(12).to_sparse(),
            torch.ones(12, device="meta"),
            torch.ones(12, dtype=torch.complex64),
            torch.ones(12).to(torch.float8_e4m3fn),
            None,
            "text",
        ],
    )
    def test_weights_of_odd_kinds_are_named(self, tmp_path, weird):
        path = tmp_path / "model.pth"
        torch.save({**lively_network().state_dict(), "norm.bias": weird}, path)
        assert "norm.bias" in self.message(path)

    def test_a_file_that_contains_itself(self, tmp_path):
        content = {}
        content["params"] = content
        torch.save(content, tmp_path / "model.pth")
        self.message(tmp_path / "model.pth")

    def test_damaged_metadata_of_ours(self, tmp_path):
        path = tmp_path / "model.safetensors"
        for text in (
            "{",
            '{"img_range": "x"}',
            '{"img_range": -1}',
            '{"img_range": 1e999}',
            '{"img_range": 1' + 400 * "0" + "}",
            '{"a":' * 100_000,
        ):
            save_file(
                lively_network().state_dict(),
                path,
                {"architecture": "AetherNet", "hyperparameters": text},
            )
            assert "metadata" in self.message(path)


class TestWriting:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("fused", [False, True])
    def test_round_trip(self, tmp_path, suffix, dtype, fused):
        network = lively_network(scale=3, in_chans=1, sk_kernel=5)
        if fused:
            network.fuse()
        path = tmp_path / f"model{suffix}"
        save_checkpoint(network, path, dtype)
        checkpoint = load_checkpoint(path)
        assert same_weights(checkpoint, network.to(getattr(torch, dtype)))
        assert checkpoint.dtype == dtype
        assert checkpoint.form == ("fused" if fused else "training")
        assert without_hidden(tmp_path) == [path.name]

    def test_keeps_what_no_weight_tells(self, tmp_path):
        network = lively_network(img_range=255.0, drop_path_rate=0.3)
        for name in ("model.safetensors", "model.pth"):
            save_checkpoint(network, tmp_path / name)
            again = load_checkpoint(tmp_path / name)
            assert again.build().hyperparameters == network.hyperparameters
            image = random_image(1, 3, 5, 6)
            assert torch.equal(again.build()(image), network(image))

    def test_keeps_the_small_kernel_that_fused_weights_lost(self, tmp_path):
        network = lively_network(sk_kernel=5).fuse()
        for name in ("model.safetensors", "model.pth"):
            save_checkpoint(network, tmp_path / name)
            again = load_checkpoint(tmp_path / name)
            assert again.hyperparameters["sk_kernel"] == 5

    def test_layout_is_the_one_the_frameworks_read(self, tmp_path):
        network = lively_network()
        save_checkpoint(network, tmp_path / "model.pth")
        content = torch.load(tmp_path / "model.pth", weights_only=True)
        assert content["params"].keys() == network.state_dict().keys()
        save_checkpoint(network, tmp_path / "model.safetensors")
        assert load_file(tmp_path / "model.safetensors").keys() == (
            network.state_dict().keys()
        )
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            metadata = file.metadata()
        assert metadata["architecture"] == "AetherNet"
        assert metadata["form"] == "training"
        assert '"scale": 2' in metadata["hyperparameters"]

    def test_shared_and_strided_weights_are_written_whole(self, tmp_path):
        network = lively_network().to(memory_format=torch.channels_last)
        save_checkpoint(network, tmp_path / "model.safetensors")
        assert same_weights(load_checkpoint(tmp_path / "model.safetensors"), network)

    def test_a_failed_check_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "model.safetensors"
        save_checkpoint(lively_network(1), path)
        before = path.read_bytes()

        def refuse(checkpoint):
            raise VerificationError("no")

        with pytest.raises(VerificationError):
            save_checkpoint(lively_network(2), path, check=refuse)
        assert path.read_bytes() == before
        assert without_hidden(tmp_path) == [path.name]

    def test_a_file_that_does_not_hold_the_weights_is_not_kept(
        self, tmp_path, monkeypatch
    ):
        save = torch.save

        def save_wrongly(content, file):
            params = content["params"]
            save({"params": {**params, "norm.bias": params["norm.bias"] + 1}}, file)

        monkeypatch.setattr(torch, "save", save_wrongly)
        with pytest.raises(VerificationError, match="read back") as raised:
            save_checkpoint(lively_network(), tmp_path / "model.pth")
        assert raised.value.path == tmp_path / "model.pth"
        assert without_hidden(tmp_path) == []

    def test_overflow_in_float16_is_not_written(self, tmp_path):
        network = lively_network()
        with torch.no_grad():
            network.conv_first.weight.mul_(1e6)
        with pytest.raises(CheckpointError, match="not finite"):
            save_checkpoint(network, tmp_path / "model.pth", "float16")
        assert without_hidden(tmp_path) == []

    def test_other_suffixes_and_dtypes_are_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"neither \.safetensors nor \.pth"):
            save_checkpoint(lively_network(), tmp_path / "model.ckpt")
        with pytest.raises(CheckpointError, match="float32 or float16"):
            save_checkpoint(lively_network(), tmp_path / "model.pth", "float64")

    def test_missing_folder_and_folder_as_target(self, tmp_path):
        with pytest.raises(AetherError, match="does not exist"):
            save_checkpoint(lively_network(), tmp_path / "absent/model.pth")
        (tmp_path / "model.pth").mkdir()
        with pytest.raises(AetherError, match="it is a folder"):
            save_checkpoint(lively_network(), tmp_path / "model.pth")
        assert without_hidden(tmp_path) == ["model.pth"]

    @pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
    def test_a_full_disk_leaves_the_old_file(self, tmp_path):
        # A limit on the file size stands in for the disk: write() fails the same way.
        import resource

        path = tmp_path / "model.safetensors"
        save_checkpoint(lively_network(), path)
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(AetherError, match="Cannot be written: ") as caught:
                save_checkpoint(lively_network(embed_dim=16), path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.path == path
        assert path.read_bytes() == before
        assert without_hidden(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("suffix", "needed"), [(".safetensors", ["safetensors"]), (".pth", ["torch"])]
)
def test_loading_a_checkpoint_imports_what_its_format_needs(tmp_path, suffix, needed):
    path = tmp_path / f"model{suffix}"
    save_checkpoint(lively_network(), path)
    heavy = ("pyvips", "onnx", "onnxruntime", "safetensors", "spandrel", "torch")
    code = (
        "import sys, aethernet; aethernet.load_checkpoint(sys.argv[1]);"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert run("-c", code, path).stdout.strip() == str(needed)
