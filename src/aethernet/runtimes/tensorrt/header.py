"""The header beside a TensorRT engine: what the engine is, and where it runs.

A plan tells nothing about itself before a GPU has loaded it. So `my_2x.engine`, which
stays a plain plan for other programs, has `my_2x.engine.json` beside it.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError
from aethernet.files import check_source, command_line

LIBRARIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
"""Python package -> what people call it."""

SUFFIX = ".engine"

FORMAT = 1  # of the header; a reader refuses others

DTYPES = ("float32", "float16", "bfloat16")

_MAX_BYTES = 1 << 20  # ours take 2 KiB; the metadata of other people's files some more

Shape = tuple[int, int, int, int]  # batch, channels, height, width


@dataclass(frozen=True)
class EngineHeader:
    """What the header of an engine says."""

    library: str
    """The package that built it, a key of `LIBRARIES`."""
    library_version: str
    compute_capabilities: tuple[str, ...]
    """Of the GPUs it is for, e.g. ("8.9",); "8.6+" is that one and newer ones."""
    gpu: str | None
    """The GPU it was tuned on; None where none was needed."""
    precision: str
    """As the ONNX file states it, else the type of its input."""
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
        if self.library not in LIBRARIES or not all(
            isinstance(name, str) and name
            for name in (
                self.library_version,
                self.precision,
                self.input_name,
                self.output_name,
                self.onnx_name,
                self.onnx_sha256,
                self.engine_sha256,
                *self.compute_capabilities,
            )
        ):
            raise ValueError("names and versions")
        if not all(
            re.fullmatch(r"\d{1,3}\.\d\+?", name) for name in self.compute_capabilities
        ):
            raise ValueError("compute capabilities")
        if {self.input_dtype, self.output_dtype} - set(DTYPES):
            raise ValueError("types")
        if [len(shape) for shape in self.profile] != [4, 4, 4]:
            raise ValueError("profile")
        if Path(self.onnx_name).name != self.onnx_name:
            raise ValueError("name of the ONNX file")
        if not isinstance(self.gpu, str | None) or not isinstance(
            self.activation_bytes, int | None
        ):
            raise ValueError("GPU")
        numbers = [self.scale, self.channels, *sum(self.profile, ())]
        if not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError("numbers")
        if any(shape[1] != self.channels for shape in self.profile):
            raise ValueError("channels")

    @property
    def library_title(self) -> str:
        """The library for people, with its version."""
        return f"{LIBRARIES[self.library]} {self.library_version}"

    @property
    def gpus(self) -> str:
        """The compute capabilities for people."""
        return " and ".join(self.compute_capabilities).replace("+", " or newer")

    def to_json(self) -> bytes:
        """The header file's content."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        return (json.dumps(content, indent=2) + "\n").encode()


def header_path(engine: Path) -> Path:
    """Where the header of an engine lies."""
    return engine.with_name(f"{engine.name}.json")


def read_header(engine: Path) -> EngineHeader:
    """The header beside an engine.

    Raises:
        AetherError: when there is none, or it cannot be read or understood.
    """
    path = header_path(engine)
    if not path.exists():
        raise AetherError(
            f"There is no {path.name} beside {engine}, so nothing says what it is; "
            f"keep both together, or build it anew: aethernet engine MODEL.onnx -o "
            f"{command_line([engine])}"
        )
    check_source(path, "the header of an engine")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError("too large")
        values: dict[str, Any] = json.loads(content)
        written = values["format"]
        if written == FORMAT:
            names = [field.name for field in dataclasses.fields(EngineHeader)]
            kept = {name: values[name] for name in names}
            kept["profile"] = tuple(tuple(shape) for shape in kept["profile"])
            kept["compute_capabilities"] = tuple(kept["compute_capabilities"])
            return EngineHeader(**kept)
    # Not JSON, too deeply nested, not a header, or values of other types.
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise AetherError(
            f"{path} is no header of an engine, or a damaged one; build the engine "
            "anew with `aethernet engine`."
        ) from error
    raise AetherError(
        f"{path} is of format {written!r}, this version of aethernet reads {FORMAT}; "
        "update aethernet, or build the engine anew with `aethernet engine`."
    )


def check_content(engine: Path, header: EngineHeader, content: bytes) -> None:
    """Say so when the header was written for another engine.

    Raises:
        AetherError: it was.
    """
    if hashlib.sha256(content).hexdigest() != header.engine_sha256:
        raise AetherError(
            f"{header_path(engine).name} was not written for this {engine}: one of "
            "them was replaced or damaged. " + _build_anew(engine, header)
        )


def check_fits(
    engine: Path,
    header: EngineHeader,
    version: str,
    gpu: str,
    compute_capability: tuple[int, int],
) -> None:
    """Say so when an engine is stale: for another library version or another GPU.

    Args:
        version: of the library installed here.
        gpu, compute_capability: of the device that shall run it.

    Raises:
        AetherError: it is stale.
    """
    if version != header.library_version:
        # Neither library promises to load what another release of it has built.
        raise AetherError(
            f"{engine} was built by {header.library_title}, and {version} is installed "
            "here. " + _build_anew(engine, header)
        )
    if not covers_gpu(header.compute_capabilities, compute_capability):
        here = "{}.{}".format(*compute_capability)
        where = f" on {header.gpu}" if header.gpu else ""
        raise AetherError(
            f"{engine} was built{where} for compute capability {header.gpus}, and "
            f"{gpu} here has {here}. " + _build_anew(engine, header, gpu=here)
        )


def covers_gpu(built: tuple[str, ...], compute_capability: tuple[int, int]) -> bool:
    """Whether an engine for these compute capabilities ("8.9", "8.6+") is for that."""
    here = "{}.{}".format(*compute_capability)
    return here in built or any(
        name.endswith("+") and compute_capability >= _parts(name[:-1]) for name in built
    )


def check_covers(engine: Path, header: EngineHeader, shape: tuple[int, ...]) -> None:
    """Say so when the profile does not take an input; a larger batch can be split.

    Raises:
        AetherError: it does not.
    """
    low, _, high = header.profile
    if len(shape) != 4 or shape[1] != header.channels:
        raise AetherError(
            f"{engine} takes images of {header.channels} channels, not an input of "
            f"shape {[*shape]}."
        )
    batch, _, height, width = shape
    if batch < low[0]:
        raise AetherError(
            f"{engine} takes batches of {low[0]} to {high[0]} images, not {batch}. "
            + _build_anew(engine, header)
        )
    if not (low[2] <= height <= high[2] and low[3] <= width <= high[3]):
        sizes = f"{low[2]}x{low[3]} to {high[2]}x{high[3]}"
        raise AetherError(
            f"{engine} takes {sizes} pixels (height x width), and this image has "
            f"{height}x{width}. " + _build_anew(engine, header, include=(height, width))
        )


def rebuild_command(
    engine: Path,
    header: EngineHeader,
    include: tuple[int, int] | None = None,
    gpu: str | None = None,
) -> str:
    """The line that builds the engine anew.

    The header has the name of the ONNX file, not its folder: the file is taken to lie
    beside the engine.

    Args:
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
        words += [flag, f"{shape[2]}x{shape[3]}"]
    words += ["--batch", ",".join(str(shape[0]) for shape in (low, typical, high))]
    named = [name for name in header.compute_capabilities if not name.endswith("+")]
    named = [gpu] if gpu else named
    if header.library == "tensorrt_rtx" and named:
        words += ["--compute-capability", *named]
    return command_line(words)


def _build_anew(
    engine: Path,
    header: EngineHeader,
    include: tuple[int, int] | None = None,
    gpu: str | None = None,
) -> str:
    return f"Build it anew: {rebuild_command(engine, header, include, gpu)}"


def _parts(compute_capability: str) -> tuple[int, ...]:
    return tuple(
        int(part) for part in compute_capability.split(".") if part.isdecimal()
    )
