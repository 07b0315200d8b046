"""The errors this package raises on purpose.

Each knows what is wrong (`reason`), with which file (`path`) and what to do (`hint`);
the message is made here, in `AetherError.__str__`. Only `commands.run` turns errors
into exit codes.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Self


class AetherError(Exception):
    """Something a user can act on; the base of the family.

    As text: `PATH: REASON HINT`, without the parts that are not given.
    """

    def __init__(
        self, reason: str, path: "str | os.PathLike[str] | None" = None, hint: str = ""
    ) -> None:
        """Describe what is wrong.

        Args:
            reason: what was found and, where it helps, what was expected; a sentence.
            path: of the file or folder concerned; a `str` may also be its URI. The text
                shows it as it is given.
            hint: what to do about it; a sentence.
        """
        super().__init__(reason, path, hint)  # all of them, so that pickle brings them
        self.reason, self.hint = reason, hint
        self.path = None if path is None else Path(path)
        self._shown = "" if path is None else os.fspath(path)

    def __str__(self) -> str:
        text = self.reason if self.path is None else f"{self._shown}: {self.reason}"
        return f"{text} {self.hint}" if self.hint else text

    def about(self, path: "str | os.PathLike[str]") -> Self:
        """The same error of another path: of the target instead of a temporary file."""
        return type(self)(self.reason, path, self.hint)


def first_line(error: BaseException) -> str:
    """The first line of an error message, or the class of an error without one."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def system_reason(error: OSError) -> str:
    """What the system says of a failure, without a full stop."""
    return (error.strerror or first_line(error)).rstrip(".")


class CheckpointError(AetherError):
    """A file that should hold AetherNet weights does not."""


class ImageError(AetherError):
    """A picture that cannot be read, or not by this model."""


class AnimatedError(ImageError):
    """A picture that is animated, where a still one is expected."""


class ContradictionError(AetherError):
    """The user's statements about a file do not match its content."""


class VerificationError(AetherError):
    """A file we made does not compute what the network it came from computes."""


class OutOfMemoryError(AetherError):
    """A model needs more memory for a picture than its device has."""


class TooSlowError(AetherError):
    """A model takes longer for a small picture than any network needs."""


class MissingExtraError(AetherError):
    """An optional library is needed and absent."""


def install_line(extra: str) -> str:
    """The command that installs an extra of ours.

    Where AetherNet is installed already, also from a clone, pip adds what is missing.
    """
    return f'python -m pip install "aethernet-sr[{extra}]"'  # as every shell takes it


# Variables by which libraries are told, before they are imported, to send nothing about
# their use. ONNX Runtime would open a connection.
_SENDS_NOTHING = {
    "onnxruntime": ("ORT_DISABLE_TELEMETRY", "1"),
    "ray": ("RAY_USAGE_STATS_ENABLED", "0"),
}


@contextlib.contextmanager
def _telemetry_off(package: str) -> Iterator[None]:
    """Keep a library from sending messages about its use while it is imported."""
    if package in _SENDS_NOTHING:
        os.environ.setdefault(*_SENDS_NOTHING[package])
    sender = "openvino_telemetry"
    if package != "openvino" or sender in sys.modules:
        yield
        return
    sys.modules[sender] = None  # type: ignore[assignment]
    try:  # without this package, openvino has a stand-in that sends nothing
        yield
    finally:
        del sys.modules[sender]


def import_optional(module: str, extra: str | None = None) -> ModuleType:
    """Import an optional library, or raise an error that tells how to install it.

    A namespace package does not count as the library: started inside a clone,
    `import onnx` would find the clone's folder of that name.

    Args:
        module: dotted name.
        extra: the extra of ours that brings it; None where it is installed by its name.

    Raises:
        MissingExtraError: when `module` is not installed, or does not load.
    """
    package = module.partition(".")[0]
    try:
        with _telemetry_off(package):
            found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package and not (error.name or "").startswith(f"{package}."):
            raise
        found = None
    except (ImportError, OSError) as error:  # installed, without what it needs itself
        raise MissingExtraError(
            f"The package {package} is installed but does not load: "
            f"{first_line(error).rstrip('.')}."
        ) from error
    if found is None or found.__file__ is None:
        hint = f"Install it: python -m pip install {package}"
        if extra:
            hint += f", or AetherNet's extra: {install_line(extra)}"
        raise MissingExtraError(f"The package {package} is missing.", hint=f"{hint}.")
    return found
