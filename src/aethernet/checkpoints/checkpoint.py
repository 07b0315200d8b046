"""The only reader and writer of checkpoints.

A checkpoint is a file; a state dict is its content. Files are not trusted: safetensors
holds no code, and PyTorch's zip and pickle formats are read with `weights_only=True`,
which runs none.
"""

import io
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from aethernet.aether_core import (
    AetherNet,
    hyperparameters_from_state_dict,
    variant_name,
)
from aethernet.checkpoints.formats import (
    PICKLE_SUFFIXES,
    SUFFIXES,
    damaged_safetensors,
)
from aethernet.checkpoints.layout import arguments_from_metadata, without_prefixes
from aethernet.checkpoints.limits import (
    check_keys,
    check_pickle_limits,
    numpy_globals,
    text_metadata,
    wrapped_dicts,
)
from aethernet.errors import (
    CheckpointError,
    ContradictionError,
    VerificationError,
    import_optional,
)
from aethernet.files import check_source, replacing
from aethernet.version import __version__

# Keys under which training frameworks keep the state dict, best first: authors validate
# the exponential moving average, and publish it.
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

# Types that a checkpoint can be written in.
DTYPES = {"float32": torch.float32, "float16": torch.float16}

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class CheckpointOptions:
    """How to read a checkpoint, what it should hold, and where to compute with it."""

    param_key: str | None = None
    """Key of the state dict to read, e.g. "params", or "net_g.params" for a nested one.
    None reads the exponential moving average where there is one (see `WRAPPERS`)."""
    model_type: str | None = None
    """Variant that the weights must be of; "aether" is any. None: not compared."""
    scale: int | None = None
    """Scale that the weights must have. None: not compared."""
    in_chans: int | None = None
    """Number of image channels that the weights must take. None: not compared."""
    device: str | torch.device = "cpu"
    """Device on which PyTorch computes the reference for files made from it."""


DEFAULT_OPTIONS = CheckpointOptions()


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint of any network; keys have no wrapper or prefix."""

    path: Path
    state_dict: dict[str, Any]
    """Values may be anything."""
    wrapper: str | None
    """The key that held the state dict, e.g. "params_ema"; None if there was none."""
    other_wrappers: tuple[str, ...]
    """Keys of the other state dicts in the file, which `param_key` would select."""
    metadata: dict[str, str]
    """Metadata of the file; empty if it has none."""
    iterations: int | None
    """Training steps, if the file counts them (as "iter")."""


@dataclass(frozen=True)
class Checkpoint(Weights):
    """The content of an AetherNet checkpoint."""

    state_dict: dict[str, Tensor]
    """Floating point, on the CPU, in the dtype of the file."""
    hyperparameters: dict[str, Any]
    """Arguments of `AetherNet` that fit the state dict with `strict=True`."""
    device: str | torch.device = "cpu"
    """Device on which `reference` computes."""

    @property
    def form(self) -> str:
        """ "training" or "fused"."""
        return form_name(self.hyperparameters["fused_init"])

    @property
    def scale(self) -> int:
        return self.hyperparameters["scale"]

    @property
    def in_chans(self) -> int:
        """Channels of input and output image."""
        return self.hyperparameters["in_chans"]

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

    def reference(self) -> AetherNet:
        """As `build`, on `device` and in channels last, which halves the time on a CPU.

        Files made from the checkpoint are compared with its output.
        """
        return self.build().to(memory_format=torch.channels_last).to(self.device)


def form_name(is_fused: bool) -> str:
    """The name of a form: "training" or "fused"."""
    return "fused" if is_fused else "training"


def load_checkpoint(
    path: str | Path, options: CheckpointOptions = DEFAULT_OPTIONS
) -> Checkpoint:
    """Read an AetherNet checkpoint of neosr, traiNNer-redux, spandrel or our own.

    Args:
        path: `.safetensors`, `.pth`, `.pt` or `.ckpt`.
        options: which state dict to read, and what it has to be.

    Raises:
        CheckpointError: as `load_weights`; also when the weights are of another
            architecture or not finite.
        ContradictionError: when the weights are not what `options` expects.
        AetherError: when there is no such file, or it cannot be read.
    """
    weights = load_weights(path, options.param_key)
    try:
        derived = hyperparameters_from_state_dict(weights.state_dict)
    except ValueError as error:
        raise CheckpointError(str(error), weights.path) from error
    _check_values(weights)
    try:
        told = arguments_from_metadata(weights.metadata, derived)
    except CheckpointError as error:
        raise error.about(weights.path) from error
    checkpoint = Checkpoint(
        path=weights.path,
        state_dict=weights.state_dict,
        wrapper=weights.wrapper,
        other_wrappers=weights.other_wrappers,
        metadata=weights.metadata,
        iterations=weights.iterations,
        hyperparameters={**derived, **told},
        device=options.device,
    )
    _check_expectations(checkpoint, options)
    return checkpoint


def load_weights(path: str | Path, param_key: str | None = None) -> Weights:
    """Read a checkpoint of any network, without looking at its weights.

    Args:
        path: `.safetensors`, `.pth`, `.pt` or `.ckpt`.
        param_key: as in `CheckpointOptions`.

    Raises:
        CheckpointError: when the file is truncated, is not a checkpoint, or holds
            Python objects other than tensors and plain values.
        AetherError: when there is no such file, or it cannot be read.
    """
    path = Path(path)
    check_source(path, "a checkpoint")
    if path.stat().st_size == 0:
        raise CheckpointError("The file is empty (0 bytes).", path)
    if path.suffix.lower() == ".safetensors":
        content, metadata = _read_safetensors(path)
    elif path.suffix.lower() in PICKLE_SUFFIXES:
        content, metadata = _read_pickle(path), {}
    else:
        raise CheckpointError(
            f"Checkpoints have the suffix {', '.join(SUFFIXES)}.", path
        )
    try:
        metadata = metadata or _plain_metadata(content)
        state_dict, wrapper, others = _unwrap(path, content, param_key)
        check_keys(state_dict)
    except CheckpointError as error:
        raise error.about(path) from error
    state_dict = without_prefixes(state_dict)
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
        check: called with the content of the written file before the file is moved to
            `path`. An error that it raises is passed on, and no file is kept.

    Raises:
        CheckpointError: when `path` has another suffix, `dtype` is another one, or a
            weight is not finite in it.
        VerificationError: when the file does not hold the network's weights.
        AetherError: when the file cannot be written.
    """
    path = Path(path)
    if dtype not in DTYPES.values():
        raise CheckpointError(f"Checkpoints are {' or '.join(DTYPES)}, not {dtype}.")
    if path.suffix.lower() not in (".safetensors", ".pth"):
        raise CheckpointError(
            "Cannot be written: the suffix is neither .safetensors nor .pth.", path
        )
    state_dict = _stored_state_dict(network, path, dtype)
    content = _file_content(network, path, state_dict, dtype)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        written = load_checkpoint(temporary)
        if written.state_dict.keys() != state_dict.keys() or not all(
            torch.equal(written.state_dict[key], value)
            for key, value in state_dict.items()
        ):
            raise VerificationError(
                "Not written: the weights read back are not those that were written.",
                path,
            )
        if check:
            check(written)


def _stored_state_dict(
    network: AetherNet, path: Path, dtype: torch.dtype
) -> dict[str, Tensor]:
    state_dict = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in network.state_dict().items()
    }
    for key, value in state_dict.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"Cannot be written: {key!r} is not finite in {dtype}.", path
            )
    return state_dict


def _file_content(
    network: AetherNet, path: Path, state_dict: dict[str, Tensor], dtype: torch.dtype
) -> bytes:
    metadata = {
        "architecture": "AetherNet",
        "hyperparameters": json.dumps(network.hyperparameters),
        "form": form_name(network.is_fused),
        "dtype": str(dtype).removeprefix("torch."),
        "aethernet_version": __version__,
    }
    if path.suffix.lower() == ".safetensors":
        safetensors = import_optional("safetensors.torch")
        # transformers and others look for "format" in the header.
        return safetensors.save(state_dict, {"format": "pt", **metadata})
    buffer = io.BytesIO()
    torch.save({"params": state_dict, "metadata": metadata}, buffer)
    return buffer.getvalue()


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    safetensors = import_optional("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            keys = file.keys()
            check_keys(keys)
            tensors = {key: file.get_tensor(key) for key in keys}
            return tensors, file.metadata() or {}
    except CheckpointError as error:
        raise error.about(path) from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise damaged_safetensors(path, error) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"PK\x03\x04" and magic[:1] != b"\x80":  # zip, or a bare pickle
        raise CheckpointError("Not a PyTorch checkpoint, despite its suffix.", path)
    check_pickle_limits(path)
    try:
        with warnings.catch_warnings(), safe_globals(numpy_globals()):
            warnings.simplefilter("ignore")  # about TorchScript, which is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # RuntimeError, EOFError, KeyError and others
        raise _unpickling_error(path, error) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"The file holds a {type(content).__name__}, not a dict of weights.", path
        )
    return dict(content)


def _unpickling_error(path: Path, error: Exception) -> CheckpointError:
    """What is wrong with a file that torch refuses.

    The message of torch is left out: it advises to load with weights_only=False.
    """
    if "TorchScript" in str(error):
        return CheckpointError("A TorchScript archive, not a state dict.", path)
    if isinstance(error, pickle.UnpicklingError) and "truncated" not in str(error):
        return CheckpointError(
            "The file holds Python objects other than tensors. They could run code "
            "when loaded, so the file was not loaded.",
            path,
            "Ask its author for the bare state dict.",
        )
    return CheckpointError(
        "The file is truncated or damaged.", path, "Download or copy it again."
    )


def _plain_metadata(content: Mapping[str, Any]) -> dict[str, str]:
    metadata = content.get("metadata")
    if not isinstance(metadata, Mapping):
        return {}
    return text_metadata(metadata)


def _unwrap(
    path: Path, content: Mapping[Any, Any], param_key: str | None
) -> tuple[dict[Any, Any], str | None, tuple[str, ...]]:
    wrapped = wrapped_dicts(content)
    if param_key is not None and param_key not in wrapped:
        have = ", ".join(wrapped) or "none, the weights are not wrapped"
        raise CheckpointError(
            f"There is no state dict under the key {param_key!r}; it has: {have}.", path
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


def _check_values(weights: Weights) -> None:
    for key, value in weights.state_dict.items():
        kind: object = (
            value.dtype if isinstance(value, Tensor) else type(value).__name__
        )
        if kind in _FLOATS and (value.layout, value.is_meta) != (torch.strided, False):
            kind = f"a {'meta' if value.is_meta else value.layout} tensor"
        if kind not in _FLOATS:
            raise CheckpointError(
                f"The key {key!r} holds {kind}, not floating-point weights.",
                weights.path,
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"The key {key!r} holds NaN or infinite weights, so the training "
                "diverged.",
                weights.path,
                "Use an earlier checkpoint.",
            )


def _check_expectations(checkpoint: Checkpoint, options: CheckpointOptions) -> None:
    variant = checkpoint.variant or "of no named variant"
    if options.model_type not in (None, "aether", checkpoint.variant):
        _contradict(checkpoint, "type", options.model_type, f"are {variant}")
    if options.scale not in (None, checkpoint.scale):
        _contradict(checkpoint, "scale", options.scale, f"are {checkpoint.scale}x")
    if options.in_chans not in (None, checkpoint.in_chans):
        found = f"take {checkpoint.in_chans}"
        _contradict(checkpoint, "number of channels", options.in_chans, found)


def _contradict(checkpoint: Checkpoint, what: str, given: object, found: str) -> None:
    raise ContradictionError(
        f"The {what} was given as {given}, but the weights {found}.",
        checkpoint.path,
        "Leave this option out: the weights tell it.",
    )
