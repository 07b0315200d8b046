"""Write the pull request that adds AetherNet to another project, into a clone of it.

    python tools/upstream_kit.py spandrel -o ../spandrel --repository ADDRESS

adds files to the clone and lines to a few of its own; `git diff` there shows the whole
pull request. ADDRESS is that of this repository, which the pull request
links to. docs/how-to/upstream.md says how to send it.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

import aethernet

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models/2x_aether_small.safetensors"
NETWORKS = ("aether", "aether_small", "aether_medium", "aether_large")

SPANDREL_TEST = Template("""\
from spandrel.architectures.AetherNet import AetherNet, AetherNetArch

from .util import (
    ModelFile,
    TestImage,
    assert_image_inference,
    assert_loads_correctly,
    assert_size_requirements,
    disallowed_props,
    skip_if_unchanged,
)

skip_if_unchanged(__file__)

URL = "$url"


def test_load():
    assert_loads_correctly(
        AetherNetArch(),
        lambda: AetherNet(),
        # small and large
        lambda: AetherNet(embed_dim=96, depths=(4, 4, 4, 4)),
        lambda: AetherNet(
            embed_dim=180, depths=(8,) * 8, mlp_ratio=2.5, lk_kernel=13, scale=2
        ),
        # every parameter that the weights tell
        lambda: AetherNet(depths=(1, 2), scale=1),
        lambda: AetherNet(depths=(1, 2), scale=2),
        lambda: AetherNet(depths=(1, 2), scale=3),
        lambda: AetherNet(depths=(1, 2), scale=8),
        lambda: AetherNet(depths=(1, 2), in_chans=1),
        lambda: AetherNet(depths=(2,), embed_dim=49, mlp_ratio=1 / 7),
        lambda: AetherNet(depths=(1, 2), lk_kernel=21, sk_kernel=5),
        lambda: AetherNet(depths=(1, 2), lk_kernel=1, sk_kernel=1),
        # fused
        lambda: AetherNet(depths=(1, 2), fused_init=True),
        lambda: AetherNet(depths=(1, 2), scale=2).fuse(),
    )


def test_size_requirements():
    file = ModelFile.from_url(URL)
    assert_size_requirements(file.load_model())


def test_aether_small_2x(snapshot):
    file = ModelFile.from_url(URL)
    model = file.load_model()
    assert model == snapshot(exclude=disallowed_props)
    assert isinstance(model.model, AetherNet)
    assert_image_inference(
        file,
        model,
        [TestImage.SR_16, TestImage.SR_32, TestImage.SR_64],
    )
""")

SPANDREL_SNAPSHOT = """\
# serializer version: 1
# name: test_aether_small_2x
  ImageModelDescriptor(
    architecture=AetherNetArch(
      id='AetherNet',
      name='AetherNet',
    ),
    input_channels=3,
    output_channels=3,
    purpose='SR',
    scale=2,
    size_requirements=SizeRequirements(minimum=0, multiple_of=1, square=False),
    supports_bfloat16=True,
    supports_half=True,
    tags=list([
      'small',
      'fused',
      '11lk',
    ]),
    tiling=<ModelTiling.SUPPORTED: 1>,
  )
# ---
"""

# What the adapter imports when it is one of spandrel's own architectures.
_IMPORTS = """\
from __future__ import annotations

import warnings

import torch
from typing_extensions import override

from spandrel.util import KeyCondition

from ...__helpers.model_descriptor import Architecture, ImageModelDescriptor, StateDict
"""


class KitError(Exception):
    """What stands in the way of the kit; a sentence."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("project", choices=PROJECTS)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a clone of the project"
    )
    parser.add_argument(
        "--repository",
        required=True,
        metavar="ADDRESS",
        help="of this repository on the web, for links and for spandrel's test, which "
        "downloads the shipped model from it: https://github.com/OWNER/NAME",
    )
    arguments = parser.parse_args()
    try:
        written = PROJECTS[arguments.project](
            Clone(arguments.output), arguments.repository.rstrip("/")
        )
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in written:
        print(name)
    return 0


class Clone:
    """A clone of another project; remembers what was written into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[str] = []

    def path(self, name: str) -> Path:
        """An existing file or folder of the project."""
        path = self.folder / name
        if not path.exists():
            raise KitError(f"{self.folder} has no {name}; it has to be a clone.")
        return path

    def write(self, name: str, content: str | bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
        self.written.append(name)

    def copy(self, source: Path, name: str) -> None:
        self.write(name, source.read_bytes())

    def insert(self, name: str, before: str, lines: str) -> None:
        """Insert text before another, which occurs once; again changes nothing."""
        path = self.path(name)
        text = path.read_bytes().decode()
        ends = "\r\n" if "\r\n" in text else "\n"
        lines = lines.replace("\n", ends)
        before = before.replace("\n", ends)
        if lines in text:
            return
        if text.count(before) != 1:
            raise KitError(
                f"{name} has changed: {before.strip()!r} occurs "
                f"{text.count(before)} times."
            )
        self.write(name, text.replace(before, lines + before))


def spandrel(clone: Clone, repository: str) -> list[str]:
    """Folder, two lines in the registry, README row, test, snapshots."""
    registry = "libs/spandrel/spandrel/__helpers/main_registry.py"
    clone.path(registry)
    ours = ROOT / "spandrel/architectures/AetherNet"
    target = "libs/spandrel/spandrel/architectures/AetherNet"
    clone.write(f"{target}/__init__.py", inside_spandrel(ours / "__init__.py"))
    for name in ("aether_core.py", "LICENSE"):
        clone.copy(ours / "__arch" / name, f"{target}/__arch/{name}")
    clone.insert(registry, "    AuraSR,\n", "    AetherNet,\n")
    support = "    ArchSupport.from_architecture({0}.{0}Arch()),\n"
    clone.insert(registry, support.format("AuraSR"), support.format("AetherNet"))
    row = f"- [AetherNet]({repository}) | [Models]({repository}/tree/main/models)\n"
    clone.insert("README.md", "\n#### Face Restoration\n", row)
    url = f"{repository}/raw/main/models/{MODEL.name}"
    clone.write("tests/test_AetherNet.py", SPANDREL_TEST.substitute(url=url))
    clone.write("tests/__snapshots__/test_AetherNet.ambr", SPANDREL_SNAPSHOT)
    model = aethernet.load(MODEL, runtime="pytorch", device="cpu", precision="float32")
    for size in ("16x16", "32x32", "64x64"):
        picture = clone.path(f"tests/images/inputs/{size}.png")
        output = f"tests/images/outputs/{size}/{MODEL.stem}.png"
        (clone.folder / output).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        Image.fromarray(model.upscale(pixels)).save(clone.folder / output)
        clone.written.append(output)
    return clone.written


def inside_spandrel(adapter: Path) -> str:
    """The adapter as one of spandrel's own architectures.

    It is without the docstring, the imports from outside and `install`.
    """
    text = adapter.read_text("utf-8")
    _, network, body = text.partition("from .__arch.aether_core import")
    classes, install, end = body.partition("def install(")
    names = end.partition("__all__ = ")[2]
    if not (network and install and ', "install"' in names):
        raise KitError(f"{adapter} has changed; change inside_spandrel, too.")
    names = names.replace(', "install"', "")
    return f"{_IMPORTS}{network}{classes}__all__ = {names}"


def trainner_redux(clone: Clone, repository: str) -> list[str]:
    """Drop-in file, option files, schema, reference of the archs, README, licences."""
    ours = ROOT / "traiNNer-redux"
    clone.path("traiNNer/archs/arch_info.py")
    arch = "traiNNer/archs/aether_arch.py"
    clone.copy(ours / arch, arch)
    for source in sorted((ours / "options").rglob("*.yml")):
        name = source.relative_to(ours / "options").as_posix()
        clone.copy(source, f"options/_templates/{name}")
    for kind in ("onnx", "test", "train"):  # users' own option files stay there
        ignore = clone.path(f"options/{kind}/ATD/.gitignore")
        clone.copy(ignore, f"options/{kind}/aether/.gitignore")
    schema = "schemas/redux-config.schema.json"
    definitions = (
        f'"{name}":{{"title":"{name}","type":"object","properties":'
        f'{{"type":{{"enum":["{name}"]}}}},"required":["type"]}},'
        for name in NETWORKS
    )
    clone.insert(schema, '"artcnn":{"title"', "".join(definitions))
    references = (f'{{"$ref":"#/$defs/{name}"}},' for name in NETWORKS)
    clone.insert(schema, '{"$ref":"#/$defs/artcnn"}', "".join(references))
    reference = "".join(
        f"#### {name}\n\n\n```yaml\ntype: {name}\n```\n" for name in sorted(NETWORKS)
    )
    clone.insert(
        "docs/source/arch_reference.md", "### ArtCNN\n", f"### AetherNet\n{reference}"
    )
    licence = f"[MIT License]({repository}/blob/main/LICENSE)"
    row = f"|[AetherNet]({repository}) | {licence}|\n"
    clone.insert("LICENSE/README.md", "|[APISR]", row)
    made_by = f"- The [AetherNet]({repository}) architecture is by Philip Hofmann.\n"
    clone.insert("README.md", "- The [FDAT]", made_by)
    return clone.written


def neosr(clone: Clone, repository: str) -> list[str]:
    """Drop-in file, option files, README row."""
    clone.path("neosr/archs/arch_util.py")
    arch = "archs/aether_arch.py"
    clone.copy(ROOT / "neosr" / arch, f"neosr/{arch}")
    for source in sorted((ROOT / "neosr/options").glob("*.toml")):
        clone.copy(source, f"options/{source.name}")
    names = ", ".join(f"`{name}`" for name in NETWORKS)
    row = f"| [AetherNet]({repository}) | {names} |\n"
    clone.insert("readme.md", "| [SRVGGNetCompact]", row)
    return clone.written


PROJECTS: dict[str, Callable[[Clone, str], Iterable[str]]] = {
    "spandrel": spandrel,
    "trainner-redux": trainner_redux,
    "neosr": neosr,
}

if __name__ == "__main__":
    sys.exit(main())
