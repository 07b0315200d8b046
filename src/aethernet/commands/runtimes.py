"""`aethernet runtimes`: what runs models on this computer, and what else could."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aethernet.checkpoints.shipped import find_model, shipped_model
from aethernet.commands.model_flags import add_runtime
from aethernet.devices import installed_versions, instructions, processor_name
from aethernet.errors import AetherError
from aethernet.runtimes.base import RuntimeSpec
from aethernet.runtimes.hardware import NVIDIA, FoundGpu, find_gpus, nvidia_cards
from aethernet.runtimes.registry import RUNTIMES, try_runtimes
from aethernet.runtimes.support import Support, supports_of
from aethernet.text import in_columns

if TYPE_CHECKING:
    from aethernet.runtimes.trial import Verdict


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "List the runtimes, the processor and the GPUs of this computer, which runtime "
        "uses them, and the lines that install what is missing. With --try, compare "
        "the speed of the installed runtimes on a model; `upscale` then uses the "
        "result."
    )
    parser.epilog = "example: aethernet runtimes --try --model my_2x.safetensors"
    parser.add_argument(
        "--try",
        action="store_true",
        dest="compare",
        help="compare the speed of the runtimes, in some ten seconds",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="M",
        help="for --try: a .safetensors, .pth or .onnx file, or a name that "
        "`aethernet models` lists; default: 2x-small",
    )
    add_runtime(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(job=_runtimes)


def _runtimes(arguments: argparse.Namespace) -> None:
    if arguments.compare:
        _try(arguments)
        return
    if arguments.model:
        raise AetherError("--model names the model for --try, which is missing.")
    rows = [_row(spec) for spec in RUNTIMES.values()]
    gpus = _gpus()
    if arguments.json:
        print(json.dumps(_as_json(rows, gpus), indent=1))
        return
    _print_table((("runtime", "library", "devices", "files"), *rows))
    features = " ".join(instructions())
    print(f"\nProcessor: {processor_name()}{features and f' ({features})'}")
    if not gpus:
        print("GPU: none found")
    for gpu in gpus:
        _print_gpu(gpu)


def _row(spec: RuntimeSpec) -> tuple[str, str, str, str]:
    """A runtime, its library with its version, its devices and its files."""
    library = _kernels() if spec.name == "native" else _library(spec)
    return spec.name, library, " ".join(spec.devices), " ".join(spec.suffixes)


def _library(spec: RuntimeSpec) -> str:
    versions = installed_versions(spec.distributions)
    if not versions:
        return "not installed"
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _kernels() -> str:
    """The state of the native kernels, which are no distribution."""
    from aethernet.runtimes.native.library import variants

    try:
        found = variants()
    except AetherError as error:
        return error.reason.rstrip(".")
    return f"kernels {found[0]}" if found else "not for this processor"


def _gpus() -> list[FoundGpu]:
    """The GPUs, those of NVIDIA as `nvidia-smi` lists them."""
    found, cards = [*find_gpus()], nvidia_cards()
    if not cards:
        return found
    others = [gpu for gpu in found if gpu.maker != NVIDIA]
    return [*(FoundGpu(NVIDIA, name, "nvidia-smi") for name in cards), *others]


def _print_gpu(gpu: FoundGpu) -> None:
    print(f"\nGPU: {gpu} (found by {gpu.found_by})")
    supports = supports_of(gpu)
    used = [support for support in supports if support.installed()]
    for support in used:
        print(f"  used by --runtime {support.runtime} --device {support.device}")
    if not used:
        print("  used by no installed library")
    missing = [support for support in supports if support not in used]
    for support in missing:
        remark = f" ({support.remark})" if support.remark else ""
        print(f"  {support.title}{remark}:")
        for line in support.install:
            print(f"    {line}")


def _as_json(rows: Sequence[Sequence[str]], gpus: Sequence[FoundGpu]) -> dict[str, Any]:
    names = ("runtime", "library", "devices", "files")
    return {
        "runtimes": [dict(zip(names, row, strict=True)) for row in rows],
        "processor": {"name": processor_name(), "instructions": instructions()},
        "gpus": [
            {
                "name": str(gpu),
                "found_by": gpu.found_by,
                "supports": [_support_as_json(each) for each in supports_of(gpu)],
            }
            for gpu in gpus
        ],
    }


def _support_as_json(support: Support) -> dict[str, Any]:
    return {
        "runtime": support.runtime,
        "device": support.device,
        "title": support.title,
        "installed": support.installed(),
        "install": support.install,
        "remark": support.remark,
    }


def _try(arguments: argparse.Namespace) -> None:
    path = find_model(arguments.model) if arguments.model else shipped_model()
    how = (arguments.runtime, arguments.device, arguments.precision)
    verdict = try_runtimes(path, *how)
    if arguments.json:
        print(json.dumps(_verdict_as_json(path, verdict), indent=1))
        return
    table: list[tuple[str, ...]] = [
        ("candidate", "ms", "CPU ms", "of the time", "of the CPU time")
    ]
    for row in verdict.rows:
        figures = (1000 * row.cost.wall, 1000 * row.cost.cpu)
        ratios = (row.ratio.wall, row.ratio.cpu)
        table.append(
            (
                str(row.candidate),
                *(f"{figure:.0f}" for figure in figures),
                *(f"{ratio:.2f}" for ratio in ratios),
            )
        )
    _print_table(table, right=range(1, 5))
    print(f"{path.name}: {verdict.winner}: {verdict.why}")
    if not verdict.agreed:
        print("The rounds disagree: the machine is busy. Try again later.")


def _verdict_as_json(path: Path, verdict: "Verdict") -> dict[str, Any]:
    return {
        "model": str(path),
        "candidates": [
            {
                "candidate": str(row.candidate),
                "seconds": row.cost.wall,
                "cpu_seconds": row.cost.cpu,
                "ratio": row.ratio.wall,
                "cpu_ratio": row.ratio.cpu,
            }
            for row in verdict.rows
        ],
        "winner": str(verdict.winner),
        "why": verdict.why,
        "agreed": verdict.agreed,
    }


def _print_table(table: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    for line in in_columns(table, right):
        print(line)
