"""Small files that would take minutes or gigabytes are refused at once."""

import collections
import io
import json
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import SHARED, lively_network
from limited import serving

from aethernet.checkpoints.checkpoint import load_checkpoint, load_weights
from aethernet.checkpoints.limits import check_pickle_limits

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits processes as Linux can"
)


@pytest.fixture(scope="module")
def limited():
    with serving() as server:
        yield server


def text(value):
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def number(value):
    data = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(data)]) + data


def call(name, arguments):
    return b"c" + name.replace(" ", "\n").encode() + b"\n" + arguments + b"R"


def params(value):
    """A pickle of {"params": value}."""
    return b"\x80\x02}" + text("params") + value + b"s."


def zipped(path, pickled, compression=zipfile.ZIP_STORED, **records):
    # The fastest level: some are hundreds of megabytes of zeros.
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"archive/data/{name}", data)


def stored(count, key="0"):
    """A storage of so many float32, by its persistent id."""
    return (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    ) + (number(count) + b"tQ")


def tensor(count, *size):
    sides = b"(" + b"".join(map(number, size)) + b"t"
    arguments = b"(" + stored(count) + b"K\x00" + sides + sides + b"\x89N" + b"t"
    return call("torch._utils _rebuild_tensor_v2", arguments)


def shared_levels(width, depth):
    level = {}
    for _ in range(depth):
        level = dict.fromkeys(map(str, range(width)), level)
    return level


def a_long_bytearray(path):
    path.write_bytes(params(call("builtins bytearray", number(5 * 10**9) + b"\x85")))


def a_large_storage(path):
    zipped(path, params(call("torch.storage UntypedStorage", number(10**10) + b"\x85")))


def a_large_tensor(path):
    zipped(path, params(call("torch FloatTensor", number(10**10) + b"\x85")))


def a_dict_that_holds_itself(path):
    content = {}
    content.update(dict.fromkeys(map(str, range(300)), content))
    torch.save(content, path)


def shared_dicts(path):
    torch.save(shared_levels(300, 4), path)


def shared_dicts_in_the_metadata(path):
    weights = lively_network().state_dict()
    torch.save({"params": weights, "metadata": {"a": shared_levels(2, 100)}}, path)


def a_key_of_nested_tuples(path):
    nested = ()
    for _ in range(100):
        nested = (nested, nested)
    torch.save({"params": torch.ones(1), "a": [nested]}, path)
    # PyTorch's writer would look the tuple up itself.
    data = pickle.dumps([nested], 2)[2:-1]
    zipped(path, b"\x80\x02}" + data + b"Ns.")


def a_compressed_pickle(path):
    zipped(path, b"N" * 300_000_000, zipfile.ZIP_DEFLATED)


def a_compressed_storage(path):
    records = {"0": bytes(400_000_000)}
    zipped(path, params(tensor(10**8, 10**8)), zipfile.ZIP_DEFLATED, **records)


def many_instructions(path):
    path.write_bytes(b"\x80\x02" + b"N" * 15_000_000 + b".")


def many_tensors_of_the_same_values(path):
    values = torch.zeros(10**6)
    torch.save({f"a{i}": values.view(1000, 1000) for i in range(5000)}, path)


def expanded_tensors(path):
    weights = lively_network().state_dict()
    weights["conv_first.weight"] = torch.zeros(1).expand(10**8, 3, 3, 3)
    torch.save(weights, path)


def a_storage_larger_than_the_file(path):
    zipped(path, params(tensor(2**62, 2**62)), **{"0": b""})


def an_old_storage_larger_than_the_file(path):
    old = io.BytesIO()
    torch.save({}, old, _use_new_zipfile_serialization=False)
    parts = old.getvalue().split(b"}q\x00.")
    assert len(parts) == 2
    path.write_bytes(parts[0] + params(tensor(10**10, 1)) + parts[1])


def many_sides(path):
    sides = [2**60] * 100_000
    zipped(path, params(tensor(1, *sides)), **{"0": bytes(4)})


def a_long_key(path):
    zipped(path, b"\x80\x02}" + text("k" * 10**6) + tensor(1, 1) + b"s.", **{"0": b"1"})


PICKLES = [
    a_long_bytearray,
    a_large_storage,
    a_large_tensor,
    a_dict_that_holds_itself,
    shared_dicts,
    shared_dicts_in_the_metadata,
    a_key_of_nested_tuples,
    a_compressed_pickle,
    a_compressed_storage,
    many_instructions,
    many_tensors_of_the_same_values,
    expanded_tensors,
    a_storage_larger_than_the_file,
    an_old_storage_larger_than_the_file,
    many_sides,
    a_long_key,
]


@pytest.mark.parametrize("make", PICKLES)
def test_a_pickle_is_refused_at_once(limited, make, tmp_path):
    path = tmp_path / "model.pth"
    make(path)
    limited.run("info", path).check_refused("model.pth: ")
    limited.run("fuse", path, "-o", tmp_path / "out.pth").check_refused("model.pth: ")


@pytest.mark.parametrize("name", ["bytearray.pth", "expanded_consistent.pth"])
def test_a_shared_case_is_refused_at_once(limited, name):
    path = SHARED / "cases/hostile" / name
    if not path.exists():
        pytest.skip("needs ../shared/cases")
    limited.run("info", path).check_refused("model", ".pth: ")


def many_keys(path, groups, blocks, block=("conv.lk_bias",)):
    """A .safetensors file of that many keys, whose tensors have no values."""
    header = {
        f"layers.{group}.{number}.{name}": {
            "dtype": "F32",
            "shape": [0],
            "data_offsets": [0, 0],
        }
        for group in range(groups)
        for number in range(blocks)
        for name in block
    }
    data = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data)


@pytest.mark.parametrize("groups", [1, 1000])
def test_many_keys(limited, groups, tmp_path):
    path = tmp_path / "model.safetensors"
    many_keys(path, groups, 200_000 // groups)
    limited.run("info", path).check_refused("it has 200,000 keys")
    many_keys(path, groups, 20_000 // groups)
    limited.run("info", path).check_refused("Not an AetherNet", "not")


class TestWhatIsAccepted:
    """Files that people have must go on loading."""

    def loaded(self, content, path, **options):
        torch.save(content, path, **options)
        return load_weights(path)

    def test_numpy_scalars_beside_the_weights(self, tmp_path):
        network = lively_network()
        content = {"params": network.state_dict(), "iter": np.int64(5)}
        for i, kind in enumerate(
            (np.float64, np.float32, np.int32, np.uint8, np.bool_)
        ):
            content[f"best_{i}"] = kind(1)
        path = tmp_path / "model.pth"
        torch.save({**content, "metadata": {"psnr": np.float64(31.5)}}, path)
        checkpoint = load_checkpoint(path)
        assert checkpoint.wrapper == "params"
        assert checkpoint.metadata == {"psnr": "31.5"}

    def test_a_numpy_type_that_is_not_plain_is_refused(self, tmp_path):
        for value in (np.array(["a"], object)[:1], np.str_("a"), np.datetime64("2026")):
            torch.save({"params": {}, "a": value}, tmp_path / "model.pth")
            with pytest.raises(Exception, match="other than tensors"):
                check_pickle_limits(tmp_path / "model.pth")

    def test_numpy_scalars_do_not_become_safe_for_others(self, tmp_path):
        before = {*torch.serialization.get_safe_globals()}
        self.loaded({"params": {"a": torch.ones(1)}}, tmp_path / "model.pth")
        assert {*torch.serialization.get_safe_globals()} == before

    @pytest.mark.parametrize("new", [True, False])
    def test_what_training_frameworks_write(self, tmp_path, new):
        weights = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        state_dict = weights.state_dict()
        optimizer = torch.optim.Adam(weights.parameters())
        weights(torch.ones(1, 3, 4, 4)).sum().backward()
        optimizer.step()
        content = {
            "state_dict": state_dict,
            "optimizer_states": [optimizer.state_dict()],
            "epoch": 3,
            "loss": [0.5, 1e-9, -1, 2**40],
            "seen": collections.Counter("aab"),
            "tags": {"a", 1},
            "size": torch.Size([1, 2]),
            "bytes": b"\x00\xff",
            ("x", 1): None,
        }
        path = tmp_path / "model.pth"
        options = {"_use_new_zipfile_serialization": new}
        found = self.loaded(content, path, **options).state_dict
        assert found.keys() == state_dict.keys()
        for key, value in state_dict.items():
            assert torch.equal(found[key], value)

    def test_parameters_views_and_empty_tensors(self, tmp_path):
        base = torch.arange(12.0)
        named = torch.nn.Parameter(base.view(3, 4).clone())
        named.comment = "kept"
        content = {
            "transposed": base.view(3, 4).T,
            "part": base[2:5],
            "same": base,
            "parameter": named,
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(3.0),
            "half": torch.ones(2, dtype=torch.bfloat16),
        }
        found = self.loaded(content, tmp_path / "model.pth").state_dict
        for key, value in content.items():
            assert torch.equal(found[key], value)

    def test_two_names_for_the_same_weights(self, tmp_path):
        weights = lively_network().state_dict()
        torch.save({"params": weights, "params_ema": weights}, tmp_path / "model.pth")
        assert load_checkpoint(tmp_path / "model.pth").wrapper == "params_ema"

    def test_a_compressed_zip(self, tmp_path):
        weights = lively_network().state_dict()
        torch.save(weights, tmp_path / "plain.pth")
        with (
            zipfile.ZipFile(tmp_path / "plain.pth") as plain,
            zipfile.ZipFile(tmp_path / "model.pth", "w", zipfile.ZIP_DEFLATED) as made,
        ):
            for record in plain.infolist():
                made.writestr(record.filename, plain.read(record))
        assert load_checkpoint(tmp_path / "model.pth").scale == 2
