"""Compile the native runtime's kernels as a part of every installation.

Everything else of the package is in `pyproject.toml`. The library goes into the wheel,
or beside its sources for an editable installation. Where it cannot be built, the
installation succeeds without it: a line in the log says why, and other runtimes are
used.

`--plat-name TAG` of bdist_wheel builds for another machine: `tools/build_wheels.py`.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

PACKAGE = Path("aethernet/runtimes/native")
# By its path: AetherNet and NumPy are not installed yet.
native = SimpleNamespace(**runpy.run_path(str(Path("src") / PACKAGE / "build.py")))


class BuildNative(Command):
    """Compile the kernels."""

    description = "compile the native runtime's kernels"
    user_options = [("build-lib=", None, "folder of the package that is built")]  # noqa: RUF012 - setuptools' own form

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False
        self.tag = ""
        self.built: dict[str, str] = {}

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        target = native.TARGETS.get(self.tag)
        name = target.library if target else native.LIBRARY.name
        folder = Path(self.build_lib or "") / PACKAGE
        place = native.LIBRARY.parent if self.editable_mode else folder
        for other in native.TARGETS.values():  # of an earlier build for a wheel
            (folder / other.library).unlink(missing_ok=True)
        made: list[Path] = []
        try:
            made.append(native.build(place / name, target=target))
            made += native.build_page(place)
        except (native.BuildError, OSError) as error:
            if target:
                raise SystemExit(str(error)) from None
            what = "the kernels of the web page" if made else "its native kernels"
            self.warn(f"AetherNet is installed without {what}: {error}")
        self.built = {str(folder / path.name): str(path) for path in made}

    def get_source_files(self) -> list[str]:
        return [str(Path("src") / PACKAGE / f) for f in ("kernels.c", "level.c")]

    def get_outputs(self) -> list[str]:
        return [*self.built]

    def get_output_mapping(self) -> dict[str, str]:
        return self.built if self.editable_mode else {}


class BuildAll(build):
    """Also the kernels."""

    sub_commands = [*build.sub_commands, ("build_native", None)]  # noqa: RUF012


class Wheel(bdist_wheel):
    """A wheel for any Python 3, and for one kind of machine if it has the library."""

    def run(self) -> None:
        kernels = self.get_finalized_command("build_native")
        kernels.tag = self.plat_name if self.plat_name in native.TARGETS else ""
        self.run_command("build_native")
        self.root_is_pure = not kernels.built
        # So that `install` puts the files where those of one machine belong.
        self.distribution.has_ext_modules = lambda: not self.root_is_pure
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        tag = "any" if self.root_is_pure else super().get_tag()[2]
        known = self.plat_name in native.TARGETS
        return "py3", "none", self.plat_name if known else tag


setup(
    cmdclass={
        "build": BuildAll,
        "build_native": BuildNative,
        "bdist_wheel": Wheel,
    }
)
