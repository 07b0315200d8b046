"""The only reader and writer of checkpoints.

A checkpoint is a file, a state dict is what is in it. Files are untrusted: safetensors,
or PyTorch's zip and pickle formats with `weights_only=True`, which runs no code.
"""

import io
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aethernet.aether_core import (
    AetherNet,
    hyperparameters_from_state_dict,
    variant_name,
)
from aethernet.errors import (
    CheckpointError,
    ContradictionError,
    VerificationError,
    import_optional,
)
from aethernet.files import check_source, replacing
from aethernet.version import __version__

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt")

SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

# Under which keys training frameworks keep the state dict, best first: an exponential
# moving average is what its author validated and would publish.
WRAPPERS = (
    "params_ema",
    "params-ema",
    "params",
    "model_state_dict",
    "state_dict",
    "net_g",
    "model",
    "net",
)

# What DataParallel, torch.compile, AveragedModel and GAN trainers put before every key.
PREFIXES = ("module.", "_orig_mod.", "netG.")

# Arguments of AetherNet that no weight tells; only metadata can.
_UNTOLD = ("img_range", "drop_rate", "drop_path_rate")

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# What a checkpoint can be written in.
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Weights:
    """What a checkpoint of any network holds, its keys freed of wrappers and prefixes.

    The fields are those of `Checkpoint`; values of the state dict may be anything.
    """

    path: Path
    state_dict: dict[str, Any]
    wrapper: str | None
    other_wrappers: tuple[str, ...]
    metadata: dict[str, str]
    iterations: int | None


@dataclass(frozen=True)
class Checkpoint:
    """An AetherNet checkpoint as read, its keys freed of wrappers and prefixes."""

    path: Path
    state_dict: dict[str, Tensor]
    """Floating point, on the CPU, in the dtype of the file."""
    hyperparameters: dict[str, Any]
    """Arguments of `AetherNet` that take the state dict with `strict=True`."""
    wrapper: str | None
    """The key that held the state dict, e.g. "params_ema"; None for a bare one."""
    other_wrappers: tuple[str, ...]
    """Further state dicts in the same file, which `param_key` would select."""
    metadata: dict[str, str]
    """What the file says of itself; empty where it says nothing."""
    iterations: int | None = None
    """Training steps, where the file counts them (as "iter")."""

    @property
    def form(self) -> str:
        return form_name(self.hyperparameters["fused_init"])

    @property
    def scale(self) -> int:
        return self.hyperparameters["scale"]

    @property
    def variant(self) -> str | None:
        """ "aether_small", "aether_medium", "aether_large", or None for other sizes."""
        return variant_name(self.hyperparameters)

    @property
    def dtype(self) -> torch.dtype:
        return self.state_dict["conv_first.weight"].dtype

    def build(self) -> AetherNet:
        """The network with these weights: float32, on the CPU, in evaluation mode."""
        network = AetherNet(**self.hyperparameters)
        network.load_state_dict(self.state_dict)
        return network.eval()

    def expect(
        self,
        model_type: str | None = None,
        scale: int | None = None,
        in_chans: int | None = None,
    ) -> None:
        """Compare what the user says of the file with what its weights say.

        Args:
            model_type: a variant's name; "aether" stands for any.
            scale: 1, 2, 3, 4 or 8.
            in_chans: channels of the image.

        Raises:
            ContradictionError: when they are not the same; None is never compared.
        """
        said = {"type": model_type, "scale": scale, "number of channels": in_chans}
        found = {
            "type": model_type if model_type == "aether" else self.variant,
            "scale": self.scale,
            "number of channels": self.hyperparameters["in_chans"],
        }
        for what, value in said.items():
            if value is not None and value != found[what]:
                have = found[what] or "of none of the named variants"
                raise ContradictionError(
                    f"The {what} was given as {value}, but the weights in {self.path} "
                    f"are {have}. Leave the flag out: it is read from the weights."
                )


def form_name(is_fused: bool) -> str:
    return "fused" if is_fused else "training"


def load_checkpoint(path: str | Path, param_key: str | None = None) -> Checkpoint:
    """Read an AetherNet checkpoint that neosr, traiNNer-redux, spandrel or we wrote.

    Args:
        path: `.safetensors`, `.pth`, `.pt` or `.ckpt`.
        param_key: which of the file's state dicts to take, e.g. "params", or with dots
            where they are nested, "net_g.params"; by default the exponential moving
            average where there is one (see `WRAPPERS`).

    Raises:
        CheckpointError: as `load_weights`, and when they are foreign or not finite.
        AetherError: when there is no such file, or it cannot be read.
    """
    weights = load_weights(path, param_key)
    path, state_dict = weights.path, weights.state_dict
    try:
        hyperparameters = hyperparameters_from_state_dict(state_dict)
    except ValueError as error:
        raise CheckpointError(f"{path} holds no AetherNet weights. {error}") from error
    _check_values(path, state_dict)
    told = _told_by_metadata(path, weights.metadata, hyperparameters)
    return Checkpoint(
        path,
        state_dict,
        {**hyperparameters, **told},
        weights.wrapper,
        weights.other_wrappers,
        weights.metadata,
        weights.iterations,
    )


def load_weights(path: str | Path, param_key: str | None = None) -> Weights:
    """Read a checkpoint of whatever network; what it holds is not looked at yet.

    Args:
        path, param_key: as for `load_checkpoint`.

    Raises:
        CheckpointError: when the file is truncated, no checkpoint, or holds Python
            objects other than tensors and plain values.
        AetherError: when there is no such file, or it cannot be read.
    """
    path = Path(path)
    check_source(path, "a checkpoint")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes).")
    if path.suffix.lower() == ".safetensors":
        content, metadata = _read_safetensors(path)
    elif path.suffix.lower() in PICKLE_SUFFIXES:
        content = _read_pickle(path)
        metadata = _plain_metadata(content)
    else:
        raise CheckpointError(
            f"{path} is no checkpoint by its name; expected {', '.join(SUFFIXES)}."
        )
    state_dict, wrapper, others = _unwrap(path, content, param_key)
    state_dict = _without_prefixes(state_dict)
    steps = content.get("iter")
    steps = steps if type(steps) is int and steps > 0 else None
    return Weights(path, state_dict, wrapper, others, metadata, steps)


def save_checkpoint(
    network: AetherNet,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    check: Callable[[Checkpoint], None] | None = None,
) -> None:
    """Write the network's weights, read them back, compare, then move into place.

    Args:
        network: either form, any device and dtype.
        path: `.safetensors`, with metadata; or `.pth`, as `{"params": state_dict,
            "metadata": ..}`, which neosr, traiNNer-redux and spandrel read.
        dtype: of the file, `torch.float32` or `torch.float16`.
        check: called with the written file, read again, before it takes its place; what
            it raises is passed on and leaves nothing behind.

    Raises:
        CheckpointError: when `path` has another suffix or `dtype` is another one.
        VerificationError: when the file does not hold the network's weights.
        AetherError: when the file cannot be written.
    """
    path = Path(path)
    if dtype not in DTYPES.values():
        raise CheckpointError(f"Checkpoints are {' or '.join(DTYPES)}, not {dtype}.")
    if path.suffix.lower() not in (".safetensors", ".pth"):
        raise CheckpointError(
            f"Cannot write {path}: name it .safetensors (metadata, no pickle) or .pth."
        )
    state_dict = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in network.state_dict().items()
    }
    for key, value in state_dict.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"Cannot write {path}: in {dtype} {key!r} is not finite."
            )
    metadata = {
        "architecture": "AetherNet",
        "hyperparameters": json.dumps(network.hyperparameters),
        "form": form_name(network.is_fused),
        "dtype": str(dtype).removeprefix("torch."),
        "aethernet_version": __version__,
    }
    if path.suffix.lower() == ".safetensors":
        safetensors = import_optional("safetensors.torch")
        # "format" is what transformers and others look for in the header.
        content = safetensors.save(state_dict, {"format": "pt", **metadata})
    else:
        buffer = io.BytesIO()
        torch.save({"params": state_dict, "metadata": metadata}, buffer)
        content = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        written = load_checkpoint(temporary)
        if written.state_dict.keys() != state_dict.keys() or not all(
            torch.equal(written.state_dict[key], value)
            for key, value in state_dict.items()
        ):
            raise VerificationError(
                f"{path} was not kept: what was read back is not what was written."
            )
        if check:
            check(written)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    safetensors = import_optional("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no .safetensors file, or a truncated one ({_one_line(error)})."
        ) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"PK\x03\x04" and magic[:1] != b"\x80":  # zip, or a bare pickle
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, whatever its name says."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on TorchScript, which is refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damage surfaces as RuntimeError, EOFError, KeyError and others. What torch
        # says is not passed on: it advises to load with weights_only=False.
        if "TorchScript" in str(error):
            what = "is a TorchScript archive, not a state dict"
        elif isinstance(error, pickle.UnpicklingError) and "truncated" not in str(
            error
        ):
            what = (
                "holds Python objects other than tensors, which could run code when "
                "loaded, so it was not; ask its author for the bare state dict"
            )
        else:
            what = "is truncated or damaged; download or copy it again"
        raise CheckpointError(f"{path} {what}.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, where a dict of weights belongs."
        )
    return dict(content)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _plain_metadata(content: Mapping[str, Any]) -> dict[str, str]:
    metadata = content.get("metadata")
    if not isinstance(metadata, Mapping):
        return {}
    return {
        str(key): value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in metadata.items()
    }


def _unwrap(
    path: Path, content: Mapping[Any, Any], param_key: str | None
) -> tuple[dict[Any, Any], str | None, tuple[str, ...]]:
    wrapped = dict(_wrapped(content))
    if param_key is not None and param_key not in wrapped:
        have = ", ".join(wrapped) or "none, its weights are bare"
        raise CheckpointError(
            f"{path} has no state dict under the key {param_key!r}; it has: {have}."
        )
    chosen = param_key
    while True:
        inner = [f"{chosen}.{key}" if chosen else key for key in WRAPPERS]
        deeper = next((key for key in inner if key in wrapped), None)
        if deeper is None:
            break
        chosen = deeper
    if chosen is None:
        return dict(content), None, ()
    others = tuple(
        key
        for key in wrapped
        if key.rpartition(".")[2] in WRAPPERS and not f"{chosen}.".startswith(f"{key}.")
    )
    return dict(wrapped[chosen]), chosen, others


def _wrapped(
    content: Mapping[Any, Any], prefix: str = "", depth: int = 3
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Dicts inside the file by dotted name; a file may contain itself, hence depth."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value and key != "metadata":
            yield f"{prefix}{key}", value
            if depth > 1:
                yield from _wrapped(value, f"{prefix}{key}.", depth - 1)


def _without_prefixes(state_dict: dict[str, Any]) -> dict[str, Any]:
    # AveragedModel counts its updates in "n_averaged", with or without a prefix.
    state_dict = {
        str(key): value
        for key, value in state_dict.items()
        if str(key).rpartition(".")[2] != "n_averaged"
    }
    stripped = True
    while state_dict and stripped:
        stripped = False
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in state_dict):
                state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items()}
                stripped = True
    return state_dict


def _check_values(path: Path, state_dict: dict[str, Tensor]) -> None:
    for key, value in state_dict.items():
        kind: object = (
            value.dtype if isinstance(value, Tensor) else type(value).__name__
        )
        if kind in _FLOATS and (value.layout, value.is_meta) != (torch.strided, False):
            kind = f"a {'meta' if value.is_meta else value.layout} tensor"
        if kind not in _FLOATS:
            raise CheckpointError(
                f"{path}: key {key!r} holds {kind}, not float weights."
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{path}: key {key!r} holds NaN or infinite weights, so the training "
                "diverged; use an earlier checkpoint."
            )


def _told_by_metadata(
    path: Path, metadata: dict[str, str], derived: dict[str, Any]
) -> dict[str, Any]:
    try:
        stored: Mapping[str, Any] = metadata  # as traiNNer-redux puts it in a .pth
        # Ours, and traiNNer-redux's in a .safetensors.
        for key in ("hyperparameters", "metadata"):
            if metadata.get(key, "").startswith("{"):
                stored = json.loads(metadata[key])
        told: dict[str, Any] = {k: float(stored[k]) for k in _UNTOLD if k in stored}
        if derived["fused_init"] and "sk_kernel" in stored:
            told["sk_kernel"] = int(stored["sk_kernel"])  # fused weights lost it
        with torch.device("meta"):
            AetherNet(**{**derived, **told})  # are they possible?
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has damaged metadata ({_one_line(error)})."
        ) from error
    return told


def is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES
