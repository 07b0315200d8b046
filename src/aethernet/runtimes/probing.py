"""Find out by small trials what an ONNX file of any program takes and makes."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from aethernet.errors import AetherError, OutOfMemoryError, TooSlowError
from aethernet.runtimes.base import check_upscales, is_out_of_memory
from aethernet.runtimes.waiting import interruptible, watched

Shape = tuple[int, int, int, int]
"""`(B, C, H, W)`."""

Run = Callable[[Shape, float | None], tuple[int, ...]]
"""Runs a model on an input of that shape, for so many seconds at most (None: for any
time), and returns the output's shape. Raises `TooSlowError` if that is too short."""

LARGEST_SCALE = 32
"""Of a model."""

# Bytes that a library may take besides for a model and a picture: for itself, and for
# the stack and the heap of each of its threads.
_FOR_THE_LIBRARY, _FOR_A_THREAD = 2**29, 2**27

# How often a model may hold its file, and bytes for each pixel of a picture; the
# networks that spandrel knows take 30,000 at most.
_COPIES_OF_THE_FILE, _BYTES_PER_PIXEL = 6, 2**16

# Seconds that a trial may take, and more for each pixel and each byte of the file. The
# first trial of networks that spandrel knows takes a core 0.3 s at most.
_SECONDS, _SECONDS_PER_PIXEL, _SECONDS_PER_BYTE = 0.8, 0.002, 1e-7

# Seconds to load a file, and more for each of its bytes: SwinIR's small network, of
# 11 MB, takes ONNX Runtime 2 s and OpenVINO 7 s.
_SECONDS_TO_LOAD, _SECONDS_TO_LOAD_A_BYTE = 1.0, 1e-5

# Values of an input whose size the file fixes.
_LARGEST_INPUT = 2**27

# The first trial, height and width: odd, and not square.
_FIRST = (9, 11)

# Further odd heights, for models that need some pixels.
_LARGER = (17, 33, 65)

# Heights that are an odd multiple of each number, by which the sides may have to be
# divisible.
_MULTIPLES = {2: 66, 4: 68, 8: 72, 16: 80, 32: 96, 64: 192}


@dataclass(frozen=True)
class Sizes:
    """What was found out about a model."""

    scale: int
    least: int = 1
    """Pixels along each side that an input needs."""
    multiple: int = 1
    """By which each side of an input has to be divisible."""

    def padded(self, side: int) -> int:
        """The length to which a side has to be padded."""
        return max(-(-side // self.multiple) * self.multiple, self.least)


# Whether the system can refuse memory beyond a limit of this process.
_SYSTEM_REFUSES = sys.platform.startswith("linux")

_limiting = threading.Lock()

T = TypeVar("T")


def loaded(
    path: Path,
    device: str,
    load: Callable[[], T],
    stop: Callable[[], None] = lambda: None,
) -> T:
    """Load a model within bounds of time and memory; they hold on "cpu" only.

    Libraries compute while they load: all that does not depend on the picture.

    Args:
        path: of the model.
        device: that it is loaded for.
        load: calls the library.
        stop: as for `interruptible`, where the library can be stopped.

    Raises:
        OutOfMemoryError: when it takes too much memory.
        TooSlowError: when it takes too long.
        Exception: what else the library raises.
    """
    seconds = _SECONDS_TO_LOAD + _SECONDS_TO_LOAD_A_BYTE * path.stat().st_size
    try:
        if device != "cpu":
            return load()
        with memory_limit(path, device):
            return interruptible(load, stop, seconds)
    except TooSlowError as error:
        raise error.about(path) from error
    except Exception as error:  # of any library
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError("Loading it takes too much memory.", path) from error


@contextlib.contextmanager
def memory_limit(path: Path, device: str, pixels: int = 0) -> Iterator[None]:
    """Keep a small model from filling the memory in this block.

    On Linux, a library that asks for more is told that there is none, and raises its
    error. Elsewhere a call by `interruptible` ends soon after the process has grown by
    so much; one operator of the model may take more until then.

    Args:
        path: of the model.
        device: that it runs on; only on "cpu" there is a limit, because libraries of
            GPUs reserve much more than they take.
        pixels: of the picture that it is run on.
    """
    if device != "cpu":
        yield
        return
    more = _FOR_THE_LIBRARY + _FOR_A_THREAD * (1 + (os.cpu_count() or 1))
    more += _COPIES_OF_THE_FILE * path.stat().st_size + _BYTES_PER_PIXEL * pixels
    with _refused(more) if _SYSTEM_REFUSES else _noticed(more):
        yield


@contextlib.contextmanager
def _refused(more: int) -> Iterator[None]:
    """Let the system give this process only so many bytes more."""
    import resource

    kind = resource.RLIMIT_AS
    with _limiting:
        before = resource.getrlimit(kind)
        limit = psutil.Process().memory_info().vms + more
        known = [one for one in before if one != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min([limit, *known]), before[1]))
        try:
            yield
        finally:
            resource.setrlimit(kind, before)


@contextlib.contextmanager
def _noticed(more: int) -> Iterator[None]:
    """End a call once this process takes so many bytes more."""
    process = psutil.Process()
    limit = process.memory_info().rss + more

    def check() -> None:
        if process.memory_info().rss > limit:
            raise MemoryError

    with watched(check):
        yield


def found_sizes(
    path: Path,
    device: str,
    shape: Callable[[int, int], Shape],
    run: Run,
) -> Sizes:
    """Run a model on small inputs to learn its scale and the sizes that it takes.

    Args:
        path: of the model.
        device: that it runs on.
        shape: of an input of that height and width; the file may fix sides of it.
        run: runs the model.

    Raises:
        AetherError: when no input is enlarged by a whole number up to `LARGEST_SCALE`,
            or it takes too much memory or time.
    """
    sizes = _found(path, device, shape, run)
    if sizes.scale > LARGEST_SCALE:
        raise AetherError(
            f"The model enlarges pictures {sizes.scale} times, more than the "
            f"{LARGEST_SCALE} times that are possible.",
            path,
        )
    return sizes


def _found(
    path: Path,
    device: str,
    shape: Callable[[int, int], Shape],
    run: Run,
) -> Sizes:
    def tried(height: int, width: int) -> int:
        given = shape(height, width)
        return check_upscales(path, given, _run(path, device, given, run))

    def works(height: int, multiple: int = 1) -> int:
        try:
            return tried(height, height + 2 * multiple)
        except (OutOfMemoryError, TooSlowError):
            raise
        except AetherError:
            return 0

    try:
        return Sizes(tried(*_FIRST))
    except OutOfMemoryError as error:
        height, width = shape(*_FIRST)[2:]
        raise AetherError(
            f"The model takes too much memory for a picture of {width}x{height}.", path
        ) from error
    except TooSlowError:
        raise
    except AetherError:
        if shape(*_FIRST)[2:] != _FIRST:
            raise  # the file fixes the size
        for side in _LARGER:
            if scale := works(side):
                return Sizes(scale, least=side)
        for multiple, side in _MULTIPLES.items():
            if scale := works(side, multiple):
                least = multiple
                while least < side and not works(least, multiple):
                    least += multiple
                return Sizes(scale, least, multiple)
        raise


def _run(path: Path, device: str, given: Shape, run: Run) -> tuple[int, ...]:
    batch, channels, height, width = given
    if batch * channels * height * width > _LARGEST_INPUT:
        raise OutOfMemoryError(f"The input that it takes, {given}, is too large.", path)
    pixels = batch * height * width
    seconds = None
    if device == "cpu":
        seconds = _SECONDS + _SECONDS_PER_PIXEL * pixels
        seconds += _SECONDS_PER_BYTE * path.stat().st_size
    with memory_limit(path, device, pixels):
        try:
            return run(given, seconds)
        except TooSlowError as error:
            raise TooSlowError(
                f"The model takes more than {seconds:.1f} s for a picture of "
                f"{width}x{height}.",
                path,
            ) from error
