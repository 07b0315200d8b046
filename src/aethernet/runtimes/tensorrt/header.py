"""The header beside a TensorRT engine: what the engine is, and where it runs.

An engine file describes itself only once a GPU has loaded it. `my_2x.engine` stays as
the library writes it, for other programs; `my_2x.engine.json` beside it is the header.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError
from aethernet.files import check_source, command_line, unreadable

LIBRARIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
"""Python package -> its name for people."""

SUFFIX = ".engine"

FORMAT = 1  # version of the header; headers of other versions are refused

DTYPES = ("float32", "float16", "bfloat16")

_MAX_BYTES = 1 << 20  # a header of ours has 2 KiB; metadata of other files add to it

Shape = tuple[int, int, int, int]  # batch, channels, height, width


@dataclass(frozen=True)
class EngineHeader:
    """The content of an engine's header."""

    library: str
    """The package that built it, a key of `LIBRARIES`."""
    library_version: str
    compute_capabilities: tuple[str, ...]
    """Of the GPUs it runs on, e.g. ("8.9",); "8.6+" is this one and newer ones."""
    gpu: str | None
    """The GPU it was tuned on; None if it was built without one."""
    precision: str
    """As the ONNX file states it, otherwise the type of its input."""
    scale: int
    channels: int
    input_name: str
    input_dtype: str
    output_name: str
    output_dtype: str
    profile: tuple[Shape, Shape, Shape]
    """Smallest, typical and largest input."""
    activation_bytes: int | None
    """GPU memory for the largest input, besides weights, input and output."""
    onnx_name: str
    onnx_sha256: str
    onnx_metadata: dict[str, str]
    engine_sha256: str
    aethernet_version: str

    def __post_init__(self) -> None:
        """Check the values, which may come from a file.

        Raises:
            ValueError: with the group of values that is wrong.
        """
        self._check_texts()
        self._check_numbers()

    def _check_texts(self) -> None:
        names = (
            self.library_version,
            self.precision,
            self.input_name,
            self.output_name,
            self.onnx_name,
            self.onnx_sha256,
            self.engine_sha256,
            *self.compute_capabilities,
        )
        if self.library not in LIBRARIES or not all(
            isinstance(name, str) and name for name in names
        ):
            raise ValueError("names and versions")
        if not all(
            re.fullmatch(r"\d{1,3}\.\d\+?", name) for name in self.compute_capabilities
        ):
            raise ValueError("compute capabilities")
        if {self.input_dtype, self.output_dtype} - set(DTYPES):
            raise ValueError("types")
        if Path(self.onnx_name).name != self.onnx_name:
            raise ValueError("name of the ONNX file")
        if not isinstance(self.gpu, str | None):
            raise ValueError("GPU")

    def _check_numbers(self) -> None:
        if not isinstance(self.activation_bytes, int | None):
            raise ValueError("memory")
        if [len(shape) for shape in self.profile] != [4, 4, 4]:
            raise ValueError("profile")
        numbers = [self.scale, self.channels, *sum(self.profile, ())]
        if not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError("numbers")
        if any(shape[1] != self.channels for shape in self.profile):
            raise ValueError("channels")

    @property
    def library_title(self) -> str:
        """The name of the library for people, with its version."""
        return f"{LIBRARIES[self.library]} {self.library_version}"

    @property
    def gpus(self) -> str:
        """The compute capabilities, for people."""
        return " and ".join(self.compute_capabilities).replace("+", " or newer")

    def to_json(self) -> bytes:
        """The content of the header's file."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        return (json.dumps(content, indent=2) + "\n").encode()


def header_path(engine: Path) -> Path:
    """The path of an engine's header."""
    return engine.with_name(f"{engine.name}.json")


def read_header(engine: Path) -> EngineHeader:
    """Read the header beside an engine.

    Raises:
        AetherError: when it is missing, cannot be read or is not valid.
    """
    path = header_path(engine)
    if not path.exists():
        build = f"aethernet engine MODEL.onnx -o {command_line([engine])}"
        raise AetherError(
            f"The engine's header, {path.name}, is missing beside it.",
            engine,
            f"Keep both files together, or build the engine again: {build}",
        )
    check_source(path, "the header of an engine")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(error, path) from error
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError("too large")
        values: dict[str, Any] = json.loads(content)
        version = values["format"]
        if version == FORMAT:
            return _header_of(values)
    # Not JSON, too deeply nested, not a header, or values of other types.
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise AetherError(
            "This is no header of an engine, or it is damaged.",
            path,
            "Build the engine again with `aethernet engine`.",
        ) from error
    raise AetherError(
        f"The header has format {version!r}; this version of AetherNet reads {FORMAT}.",
        path,
        "Update AetherNet, or build the engine again with `aethernet engine`.",
    )


def _header_of(values: dict[str, Any]) -> EngineHeader:
    names = [field.name for field in dataclasses.fields(EngineHeader)]
    kept = {name: values[name] for name in names}
    kept["profile"] = tuple(tuple(shape) for shape in kept["profile"])
    kept["compute_capabilities"] = tuple(kept["compute_capabilities"])
    return EngineHeader(**kept)


def check_content(engine: Path, header: EngineHeader, content: bytes) -> None:
    """Check that the header was written for this engine.

    Raises:
        AetherError: it was written for another one.
    """
    if hashlib.sha256(content).hexdigest() != header.engine_sha256:
        raise AetherError(
            f"{header_path(engine).name} was not written for this engine: one of the "
            "two was replaced or is damaged.",
            engine,
            _build_again(engine, header),
        )


def check_fits(
    engine: Path,
    header: EngineHeader,
    version: str,
    gpu: str,
    compute_capability: tuple[int, int],
) -> None:
    """Check that an engine was built for this library version and this GPU.

    Args:
        engine: its path.
        header: the one beside it.
        version: of the library installed here.
        gpu: name of the device to run it on.
        compute_capability: of that device, e.g. (8, 9).

    Raises:
        AetherError: it was built for another one.
    """
    if version != header.library_version:
        # Neither library promises to load engines of its other releases.
        raise AetherError(
            f"The engine was built by {header.library_title}, and {version} is "
            "installed here.",
            engine,
            _build_again(engine, header),
        )
    if not covers_gpu(header.compute_capabilities, compute_capability):
        here = "{}.{}".format(*compute_capability)
        where = f" on {header.gpu}" if header.gpu else ""
        raise AetherError(
            f"The engine was built{where} for compute capability {header.gpus}, and "
            f"{gpu} here has {here}.",
            engine,
            _build_again(engine, header, gpu=here),
        )


def covers_gpu(built: tuple[str, ...], compute_capability: tuple[int, int]) -> bool:
    """Whether an engine built for some compute capabilities runs on another.

    Args:
        built: as in the header, e.g. ("8.9", "8.6+").
        compute_capability: of a GPU, e.g. (8, 9).
    """
    here = "{}.{}".format(*compute_capability)
    return here in built or any(
        name.endswith("+") and compute_capability >= _parts(name[:-1]) for name in built
    )


def check_covers(engine: Path, header: EngineHeader, shape: tuple[int, ...]) -> None:
    """Check that the profile covers an input; a larger batch is fine, it can be split.

    Raises:
        AetherError: it does not.
    """
    low, _, high = header.profile
    if len(shape) != 4 or shape[1] != header.channels:
        raise AetherError(
            f"The engine takes images of {header.channels} channels, not an input of "
            f"shape {[*shape]}.",
            engine,
        )
    batch, _, height, width = shape
    if batch < low[0]:
        raise AetherError(
            f"The engine takes batches of {low[0]} to {high[0]} images, not {batch}.",
            engine,
            _build_again(engine, header),
        )
    if not (low[2] <= height <= high[2] and low[3] <= width <= high[3]):
        raise AetherError(
            f"The engine takes images of {low[3]}x{low[2]} to {high[3]}x{high[2]} "
            f"pixels (width x height), and this one has {width}x{height}.",
            engine,
            _build_again(engine, header, include=(height, width)),
        )


def rebuild_command(
    engine: Path,
    header: EngineHeader,
    include: tuple[int, int] | None = None,
    gpu: str | None = None,
) -> str:
    """The command line that builds the engine again.

    The header has the name of the ONNX file, not its folder: the file is assumed to be
    beside the engine.

    Args:
        engine: its path.
        header: the one beside it.
        include: a height and width to cover as well.
        gpu: the compute capability to build for, if it is another one.
    """
    low, typical, high = ([*shape] for shape in header.profile)
    for side, length in zip((2, 3), include or (), strict=False):
        low[side] = min(low[side], length)
        high[side] = max(high[side], length)
    words = ["aethernet", "engine", str(engine.with_name(header.onnx_name))]
    words += ["-o", str(engine)]
    for flag, shape in (("--min", low), ("--opt", typical), ("--max", high)):
        words += [flag, f"{shape[3]}x{shape[2]}"]  # width first on the command line
    words += ["--batch", ",".join(str(shape[0]) for shape in (low, typical, high))]
    named = [name for name in header.compute_capabilities if not name.endswith("+")]
    named = [gpu] if gpu else named
    if header.library == "tensorrt_rtx" and named:
        words += ["--compute-capability", *named]
    return command_line(words)


def _build_again(
    engine: Path,
    header: EngineHeader,
    include: tuple[int, int] | None = None,
    gpu: str | None = None,
) -> str:
    return f"Build it again: {rebuild_command(engine, header, include, gpu)}"


def _parts(compute_capability: str) -> tuple[int, ...]:
    return tuple(
        int(part) for part in compute_capability.split(".") if part.isdecimal()
    )
