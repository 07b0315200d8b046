"""The only reader and writer of checkpoints.

A checkpoint is a file; a state dict is its content, NumPy arrays by key. Files are not
trusted: `.safetensors` holds no code, and PyTorch's formats are read so that none runs.
Only these need PyTorch, see `pickled`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aethernet.checkpoints.arrays import (
    FLOATS,
    Array,
    Stored,
    read_safetensors,
    safetensors_bytes,
)
from aethernet.checkpoints.folded import Folded, fold
from aethernet.checkpoints.formats import PICKLE_SUFFIXES, SUFFIXES
from aethernet.checkpoints.layout import (
    arguments_from_metadata,
    hyperparameters_from_shapes,
    variant_name,
    without_prefixes,
)
from aethernet.checkpoints.limits import check_keys, text_metadata, wrapped_dicts
from aethernet.checkpoints.pickled import as_stored, pickle_bytes, read_pickle
from aethernet.errors import (
    CheckpointError,
    ContradictionError,
    VerificationError,
    import_optional,
)
from aethernet.files import check_source, check_target, replacing
from aethernet.version import __version__

if TYPE_CHECKING:
    from aethernet.aether_core import AetherNet

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
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class CheckpointOptions:
    """How to read a checkpoint, what it should hold, and where to compute with it."""

    param_key: str | None = None
    """Key of the state dict to read, e.g. "params", or "net_g.params" for a nested one;
    or what its keys begin with beside others, "net_g" for "net_g.conv_first.weight".
    None reads the exponential moving average where there is one (see `WRAPPERS`)."""
    model_type: str | None = None
    """Variant that the weights must be of; "aether" is any. None: not compared."""
    scale: int | None = None
    """Scale that the weights must have. None: not compared."""
    in_chans: int | None = None
    """Number of image channels that the weights must take. None: not compared."""
    img_range: float | None = None
    """With which the network was trained, which no weight tells. None: as the metadata
    says, else 1."""
    device: str | None = None
    """Device on which PyTorch computes the reference for files made from it. None: as
    `comparison` chooses."""


DEFAULT_OPTIONS = CheckpointOptions()


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint of any network; keys have no wrapper or prefix."""

    path: Path
    state_dict: dict[str, Any]
    """Arrays of a .safetensors file; of another one tensors, but maybe anything."""
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

    state_dict: dict[str, Array]
    """float64, float32 or float16 as in the file; bfloat16 as float32."""
    dtype: str
    """Of the weights in the file: "float32", "bfloat16", .."""
    hyperparameters: dict[str, Any]
    """Arguments of `AetherNet` that fit the state dict with `strict=True`."""
    device: str | None = None
    """As in `CheckpointOptions`."""

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
    def img_range(self) -> float:
        """By which the network multiplies the image inside."""
        return self.hyperparameters.get("img_range", 1.0)

    @cached_property
    def folded(self) -> Folded:
        """The network as it is run, in float32; folded once."""
        return fold(self.state_dict, self.img_range)

    def build(self) -> "AetherNet":
        """The network with these weights in PyTorch: float32, on the CPU, evaluating.

        Raises:
            MissingExtraError: when PyTorch is not installed.
        """
        import_optional("torch", "torch")
        from aethernet.checkpoints.rewrites import build_network

        return build_network(self.hyperparameters, self.state_dict)


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
    weights = _read(Path(path), options.param_key)
    stored = {
        key: value if isinstance(value, Stored) else as_stored(value)
        for key, value in weights.state_dict.items()
    }
    try:
        derived = hyperparameters_from_shapes(
            {key: value.values.shape for key, value in stored.items()}
        )
        _check_values(stored)
        told = arguments_from_metadata(weights.metadata, derived)
        told = {**_given_range(options, told), **told}
    except CheckpointError as error:
        raise error.about(weights.path) from error
    checkpoint = Checkpoint(
        path=weights.path,
        state_dict={key: value.values for key, value in stored.items()},
        dtype=stored["conv_first.weight"].dtype,
        wrapper=weights.wrapper,
        other_wrappers=weights.other_wrappers,
        metadata=weights.metadata,
        iterations=weights.iterations,
        hyperparameters={**derived, **told},
        device=options.device,
    )
    _check_expectations(checkpoint, options)
    return checkpoint


def _given_range(
    options: CheckpointOptions, told: Mapping[str, Any]
) -> dict[str, float]:
    """The `img_range` of the options, checked against what the metadata tells."""
    given = options.img_range
    if given is None:
        return {}
    if "img_range" in told and told["img_range"] != given:
        raise CheckpointError(
            f"img_range was given as {given:g}, but the file says "
            f"{told['img_range']:g}."
        )
    return {"img_range": given}


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
    weights = _read(Path(path), param_key)
    plain = {
        key: value.values if isinstance(value, Stored) else value
        for key, value in weights.state_dict.items()
    }
    return replace(weights, state_dict=plain)


def is_aethernet(weights: Weights) -> bool:
    """Whether weights are those of an AetherNet, by their keys and shapes."""
    shapes = {
        key: getattr(value, "shape", ()) for key, value in weights.state_dict.items()
    }
    try:
        hyperparameters_from_shapes(shapes)
    except CheckpointError:
        return False
    return True


def _read(path: Path, param_key: str | None) -> Weights:
    """As `load_weights`, but arrays of a .safetensors file are still `Stored`."""
    check_source(path, "a checkpoint")
    if path.stat().st_size == 0:
        raise CheckpointError("The file is empty (0 bytes).", path)
    content: Mapping[Any, Any]
    if path.suffix.lower() == ".safetensors":
        content, metadata = read_safetensors(path)
    elif path.suffix.lower() in PICKLE_SUFFIXES:
        content, metadata = read_pickle(path), {}
    else:
        raise CheckpointError(
            f"Checkpoints have the suffix {', '.join(SUFFIXES)}.", path
        )
    try:
        metadata = metadata or _plain_metadata(content)
        state_dict, wrapper, others = _unwrap(content, param_key)
        check_keys(state_dict)
    except CheckpointError as error:
        raise error.about(path) from error
    state_dict = without_prefixes(state_dict)
    steps = content.get("iter")
    steps = steps if type(steps) is int and steps > 0 else None
    return Weights(path, state_dict, wrapper, others, metadata, steps)


def check_checkpoint_target(path: Path, source: Path | None = None) -> None:
    """Check that a checkpoint can be written, before any work is done for it.

    Args:
        path: of the file to write.
        source: the file it is made from, which it must not replace.

    Raises:
        CheckpointError: when the suffix is not one that is written.
        AetherError: as `check_target`.
    """
    if path.suffix.lower() not in (".safetensors", ".pth"):
        raise CheckpointError(
            "Cannot be written: the suffix is neither .safetensors nor .pth.", path
        )
    check_target(path, source)


def save_checkpoint(
    network: "AetherNet",
    path: str | Path,
    dtype: str = "float32",
    check: Callable[[Checkpoint], None] | None = None,
) -> None:
    """Write a PyTorch network's weights, see `write_checkpoint`.

    Args:
        network: either form, any device and dtype.
        path, dtype, check: as for `write_checkpoint`.
    """
    state_dict = {
        key: value.detach().cpu().double().numpy()  # holds every other type
        for key, value in network.state_dict().items()
    }
    write_checkpoint(state_dict, network.hyperparameters, path, dtype, check)


def write_checkpoint(
    state_dict: Mapping[str, Array],
    hyperparameters: Mapping[str, Any],
    path: str | Path,
    dtype: str = "float32",
    check: Callable[[Checkpoint], None] | None = None,
    bare: bool = False,
) -> None:
    """Write weights, read them back, compare, then move the file into place.

    Args:
        state_dict: floating-point arrays by key, of either form.
        hyperparameters: arguments of `AetherNet` that fit them.
        path: `.safetensors`, with metadata; or `.pth`, as `{"params": state_dict,
            "metadata": ..}`, which neosr, traiNNer-redux and spandrel read.
        dtype: of the file, a member of `DTYPES`.
        check: called with the content of the written file before the file is moved to
            `path`. An error that it raises is passed on, and no file is kept.
        bare: write a `.pth` file that is the state dict itself, without metadata.

    Raises:
        CheckpointError: when `path` has another suffix, `dtype` is another one, or a
            weight is not finite in it.
        VerificationError: when the file does not hold the weights.
        MissingExtraError: when a `.pth` file is to be written without PyTorch.
        AetherError: when the file cannot be written.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise CheckpointError(f"Checkpoints are {' or '.join(DTYPES)}, not {dtype}.")
    check_checkpoint_target(path)
    stored = _rounded(state_dict, path, dtype)
    metadata = {
        "architecture": "AetherNet",
        "hyperparameters": json.dumps(dict(hyperparameters)),
        "form": form_name(hyperparameters["fused_init"]),
        "dtype": dtype,
        "aethernet_version": __version__,
    }
    if path.suffix.lower() == ".safetensors":
        content = safetensors_bytes(stored, metadata)
    else:
        content = pickle_bytes(stored, None if bare else metadata, path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        written = load_checkpoint(temporary)
        if written.state_dict.keys() != stored.keys() or not all(
            np.array_equal(written.state_dict[key], value)
            for key, value in stored.items()
        ):
            raise VerificationError(
                "Not written: the weights read back are not those that were written.",
                path,
            )
        if check:
            check(written)


def _rounded(
    state_dict: Mapping[str, Array], path: Path, dtype: str
) -> dict[str, Array]:
    rounded = {}
    for key, value in state_dict.items():
        with np.errstate(over="ignore"):
            rounded[key] = np.ascontiguousarray(value, dtype)
        if not np.isfinite(rounded[key]).all():
            raise CheckpointError(
                f"Cannot be written: {key!r} is not finite in {dtype}.", path
            )
    return rounded


def _plain_metadata(content: Mapping[str, Any]) -> dict[str, str]:
    metadata = content.get("metadata")
    return text_metadata(metadata) if isinstance(metadata, Mapping) else {}


def _unwrap(
    content: Mapping[Any, Any], param_key: str | None
) -> tuple[dict[Any, Any], str | None, tuple[str, ...]]:
    wrapped = wrapped_dicts(content)
    if param_key is not None and param_key not in wrapped:
        return _with_prefix(content, wrapped, param_key)
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


def _with_prefix(
    content: Mapping[Any, Any], wrapped: Mapping[str, Any], param_key: str
) -> tuple[dict[Any, Any], str, tuple[str, ...]]:
    """As `_unwrap`: keys that begin with `param_key`, as in checkpoints of Lightning.

    Those hold the network's weights beside the ones of its losses, "net_g." and
    "loss.".
    """
    state_dict, wrapper, others = _unwrap(content, None)
    prefix = f"{param_key.removeprefix(f'{wrapper}.').removesuffix('.')}."
    found = {
        str(key).removeprefix(prefix): value
        for key, value in state_dict.items()
        if str(key).startswith(prefix)
    }
    if not found:
        have = ", ".join(list(wrapped)[:10]) or "none, the weights are not wrapped"
        raise CheckpointError(
            f"There is no state dict under the key {param_key!r}; it has: {have}."
        )
    named = prefix.removesuffix(".")
    return found, f"{wrapper}.{named}" if wrapper else named, others


def _check_values(stored: Mapping[str, Stored]) -> None:
    for key, (values, dtype) in stored.items():
        if dtype not in FLOATS:
            raise CheckpointError(
                f"The key {key!r} holds {dtype}, not floating-point weights."
            )
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"The key {key!r} holds NaN or infinite weights, so the training "
                "diverged.",
                hint="Use an earlier checkpoint.",
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
