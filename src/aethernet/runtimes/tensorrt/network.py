"""An ONNX file in TensorRT's builder: its shapes, its scale, the engine made of it."""

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from aethernet.checkpoints.onnx import ShapeRange
from aethernet.errors import AetherError
from aethernet.runtimes.base import check_upscales, no_picture_model
from aethernet.runtimes.tensorrt.header import DTYPES, Shape
from aethernet.runtimes.tensorrt.library import Library, current_gpu

_log = logging.getLogger(__name__)

PORTABLE = ("8.6+",)
"""What TensorRT for RTX builds for by default (its guide, "CPU-Only AOT").

Turing, 7.5, has to be named.
"""

Profile = tuple[Shape, Shape, Shape]  # smallest, typical and largest input

_PROGRESS_SECONDS = 10.0  # between two messages about one phase

_MOST_MEMORY = 288 * 10**9  # bytes, of the largest GPU there is (B300)


class ParsedNetwork:
    """An ONNX file that a library has read.

    It holds the library's builder and parser, because the network refers to both.
    """

    def __init__(
        self, library: Library, builder: Any, network: Any, parser: Any, source: Path
    ) -> None:
        """Take over what `parse` made.

        Raises:
            AetherError: when the file is no picture model.
        """
        self.library, self.source = library, source
        self._builder, self._network, self._parser = builder, network, parser
        types = library.module.DataType
        values = (types.FLOAT, types.HALF, types.BF16)
        self._dtypes = dict(zip(values, DTYPES, strict=True))
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        if (
            (network.num_inputs, network.num_outputs) != (1, 1)
            or any(len(tensor.shape) != 4 for tensor in tensors)
            or tensors[0].shape[1] < 1
            or any(tensor.dtype not in self._dtypes for tensor in tensors)
        ):
            raise no_picture_model(source, "float32, float16 or bfloat16")
        self._input, self._output = tensors
        self.channels: int = self._input.shape[1]
        self.input_name: str = self._input.name
        self.input_dtype = self._dtypes[self._input.dtype]
        self.output_name: str = self._output.name
        self.output_dtype = self._dtypes[self._output.dtype]

    @classmethod
    def parse(cls, library: Library, source: Path, content: bytes) -> Self:
        """Read the content of an ONNX file.

        Raises:
            AetherError: when the library cannot read it, or it is no picture model.
        """
        trt = library.module
        builder = trt.Builder(library.logger)
        # TensorRT 11 and TensorRT for RTX have no other networks and ignore the flag.
        strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(strongly_typed)
        parser = trt.OnnxParser(network, library.logger)
        # The path is for weights that files of other programs may keep beside them.
        if not parser.parse(content, str(source)):
            reason = library.messages.reason()
            if parser.num_errors:
                error = parser.get_error(0)
                node = f"node {error.node_name()!r}, {error.node_operator()}: "
                reason = (node if error.node_operator() else "") + error.desc()
                reason = f"{' '.join(reason.split()).rstrip('.')} ({error.code().name})"
            raise AetherError(f"{library.title} does not read it: {reason}.", source)
        return cls(library, builder, network, parser, source)

    def profile(self, shapes: ShapeRange | None) -> Profile:
        """The range of inputs for an engine: as asked, or as the file fixes it.

        Args:
            shapes: None for the file's own sizes, `ShapeRange()` where it has none.

        Raises:
            AetherError: when the file fixes another size.
        """
        asked = shapes or ShapeRange()
        bounds: list[list[int]] = []
        for fixed, *wanted in zip(
            self._fixed_sides(),
            asked.minimum,
            asked.typical,
            asked.maximum,
            strict=True,
        ):
            if fixed is not None and shapes and set(wanted) != {fixed}:
                side = ("batch size", "height", "width")[len(bounds)]
                raise AetherError(
                    f"The file takes a {side} of {fixed} only, not {wanted[0]} to "
                    f"{wanted[2]} as asked for.",
                    self.source,
                    "Leave out the sizes, or export it with free sizes.",
                )
            bounds.append(wanted if fixed is None else [fixed] * 3)
        low, typical, high = (
            (batch, self.channels, height, width)
            for batch, height, width in zip(*bounds, strict=True)
        )
        return low, typical, high

    def _fixed_sides(self) -> tuple[int | None, int | None, int | None]:
        """Batch, height and width where the file fixes them, None where free."""
        shape = self._input.shape
        batch, _, height, width = (side if side > 0 else None for side in shape)
        return batch, height, width

    def measure(self, profile: Profile) -> tuple[int, int]:
        """The scale of the network, and its largest tensor for the largest input.

        Both by the library's own shape inference; the tensor in bytes.

        Raises:
            AetherError: when an input of the profile is not enlarged by one scale, or
                no GPU has the memory for the largest one.
        """
        messages = self.library.messages
        free = tuple(self._input.shape)
        scales = set()
        for shape in profile:
            self._input.shape = shape
            try:
                scales.add(
                    check_upscales(self.source, shape, tuple(self._output.shape))
                )
            except AetherError:
                if not messages.errors:
                    raise
                raise AetherError(
                    f"{self.library.title} finds no size for the output: "
                    f"{messages.reason()}.",
                    self.source,
                ) from None
        if len(scales) > 1:
            raise AetherError(
                "The scale depends on the size of the input.", self.source
            )
        largest = self._largest_tensor()
        self._input.shape = free
        if largest > _MOST_MEMORY:
            raise AetherError(
                f"No GPU has the memory for inputs of {profile[2]}: one tensor inside "
                f"takes {largest / 1e9:.0f} GB.",
                hint="Choose a smaller --max or --batch.",
            )
        return scales.pop(), largest

    def _largest_tensor(self) -> int:
        """Bytes of the largest tensor inside, for the input's present shape."""
        network, largest = self._network, 0
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            for tensor in (layer.get_output(i) for i in range(layer.num_outputs)):
                volume = math.prod(max(side, 0) for side in tensor.shape)
                largest = max(largest, volume * tensor.dtype.itemsize)
        return largest

    def build(
        self, profile: Profile, compute_capabilities: Sequence[str]
    ) -> tuple[bytes, tuple[str, ...]]:
        """Build an engine; this takes from seconds to many minutes.

        Returns:
            The engine file's content, and the compute capabilities it is for.

        Raises:
            AetherError: when the library cannot build it.
        """
        config = self._builder.create_builder_config()
        if None in self._fixed_sides():
            self._set_profile(config, profile)
        built_for = self._set_compute_capabilities(config, compute_capabilities)
        return self._serialized(config), built_for

    def _set_profile(self, config: Any, profile: Profile) -> None:
        own = self._builder.create_optimization_profile()
        own.set_shape(self.input_name, *profile)
        accepted = tuple(tuple(shape) for shape in own.get_shape(self.input_name))
        if config.add_optimization_profile(own) < 0 or accepted != profile:
            raise AetherError(
                f"{self.library.title} does not take inputs of {profile[0]} to "
                f"{profile[2]}: {self.library.messages.reason()}."
            )

    def _set_compute_capabilities(
        self, config: Any, names: Sequence[str]
    ) -> tuple[str, ...]:
        """Set what to build for, and return it as the header has it."""
        library = self.library
        if library.name == "tensorrt":
            if names:
                raise AetherError(
                    f"{library.title} builds for the GPU of this machine only.",
                    hint="Leave out --compute-capability, or use TensorRT for RTX.",
                )
            gpu = current_gpu()
            assert gpu  # else this library would not have been chosen
            return ("{}.{}".format(*gpu.capability),)
        known = {
            f"{name[2:-1]}.{name[-1]}": value
            for name, value in library.module.ComputeCapability.__members__.items()
            if name.startswith("SM")
        }
        for name in names:
            if name not in known:
                raise AetherError(
                    f"{library.title} does not build for compute capability {name}, "
                    f"only for {', '.join(known)}."
                )
        chosen = sorted(set(names), key=list(known).index)
        config.num_compute_capabilities = len(chosen)
        for index, name in enumerate(chosen):
            config.set_compute_capability(known[name], index)
        return tuple(chosen) or PORTABLE

    def _serialized(self, config: Any) -> bytes:
        library, progress = self.library, _Progress()
        monitor = type(
            "Monitor",
            (library.module.IProgressMonitor,),
            {
                "phase_start": lambda _, name, parent, count: progress.start(
                    name, count
                ),
                "phase_finish": lambda _, name: None,
                "step_complete": lambda _, name, step: progress.step(name, step),
            },
        )()
        config.progress_monitor = monitor
        # In a thread of its own: Ctrl-C reaches the main thread. Otherwise it would be
        # raised in one of our methods that the library calls, which only prints it.
        with ThreadPoolExecutor(max_workers=1) as pool:
            build = pool.submit(
                self._builder.build_serialized_network, self._network, config
            )
            try:
                engine = build.result()
            except BaseException:
                progress.stop = True
                raise
        if engine is None:
            raise AetherError(
                f"{library.title} cannot build an engine: {library.messages.reason()}.",
                self.source,
            )
        for warning in library.messages.warnings:
            if "values are not self-consistent" in warning:  # works for smaller inputs
                raise AetherError(
                    f"{library.title} does not take inputs that large: {warning}."
                )
        return bytes(engine)


class _Progress:
    """Logs the phases of a build, and stops it on request."""

    def __init__(self) -> None:
        self.stop = False
        self._phases: dict[str, int] = {}
        self._logged = time.monotonic()

    def start(self, phase: str, steps: int) -> None:
        if phase not in self._phases:
            _log.info("%s", phase)
        self._phases[phase] = steps

    def step(self, phase: str, number: int) -> bool:
        """Whether to go on."""
        if time.monotonic() - self._logged > _PROGRESS_SECONDS:
            self._logged = time.monotonic()
            _log.info("%s: %d of %d", phase, number + 1, self._phases[phase])
        return not self.stop
