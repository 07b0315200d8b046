"""The errors this package raises on purpose.

Each message is one sentence or two for the person at the keyboard: what was found, what
was expected, what to do. Only the command turns them into exit codes.
"""

import importlib
from types import ModuleType


class AetherError(Exception):
    """Something a user can act on; the base of the family."""


class CheckpointError(AetherError):
    """A file that should hold AetherNet weights does not."""


class ImageError(AetherError):
    """A picture that cannot be read, or not by this model."""


class ContradictionError(AetherError):
    """What the user said and what the file says are not the same."""


class VerificationError(AetherError):
    """A file we made does not compute what the network it came from computes."""


class OutOfMemoryError(AetherError):
    """A model needs more memory for a picture than its device has."""


class MissingExtraError(AetherError):
    """An optional library is needed and absent."""


def import_optional(module: str, extra: str | None = None) -> ModuleType:
    """Import a library that not everybody has, or say how to install it.

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
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package and not (error.name or "").startswith(f"{package}."):
            raise
        found = None
    except (ImportError, OSError) as error:  # installed, without what it needs itself
        raise MissingExtraError(
            f"The package {package} is installed and does not load: {error}"
        ) from error
    if found is None or found.__file__ is None:
        how = f"pip install {package}"
        if extra:
            how += f"; in AetherNet's folder pip install -e '.[{extra}]' brings all"
        raise MissingExtraError(f"The package {package} is missing: {how}.")
    return found
