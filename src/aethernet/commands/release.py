"""`aethernet release`: make a folder to publish a model."""

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aethernet.checkpoints.shipped import ENDINGS, find_model
from aethernet.errors import AetherError
from aethernet.files import check_source, unreadable
from aethernet.publish.openmodeldb import ANONYMOUS, model_id
from aethernet.text import in_columns, printable

if TYPE_CHECKING:
    from aethernet.checkpoints.checkpoint import Checkpoint
    from aethernet.publish.about import About
    from aethernet.publish.release import Release

# Keys of --training -> fields of an entry.
TRAINING = {
    "iterations": "trainingIterations",
    "epochs": "trainingEpochs",
    "batch": "trainingBatchSize",
    "hr-size": "trainingHRSize",
    "otf": "trainingOTF",
    "dataset": "dataset",
    "dataset-size": "datasetSize",
    "pretrained": "pretrainedModelG",
}

# Keys whose values are text, even if they look like a number.
_TEXTS = ("dataset", "pretrained")
_YES_NO = {"yes": True, "no": False}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Make a folder with everything to publish of a checkpoint: the training form, "
        "the fused form (.safetensors and .pth) and ONNX in float32 and float16, each "
        "compared with the checkpoint; a model card; the entry for OpenModelDB, with "
        "sizes and hashes; pictures before and after. The folder is written only if "
        "all of it is correct."
    )
    parser.epilog = (
        "example: aethernet release net_g_100000.pth -o release --name leaves --author "
        'helaman --license CC-BY-4.0 --tags photo --training batch=16 "dataset=my '
        'photographs" --notes notes.md --data Set5 Set14 --picture leaf.png'
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="preferably in training form, so that others can continue the training",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder, which must be new or empty",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier release in DIR when the new one is complete",
    )
    _define_about(parser.add_argument_group("your statements about the model"))
    group = parser.add_argument_group("content of the release")
    group.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=(),
        metavar="HR",
        help="folders of HR pictures; the card states PSNR-Y and SSIM-Y on each",
    )
    group.add_argument(
        "--picture",
        nargs="*",
        type=Path,
        metavar="P",
        help="LR pictures to show before and after; default: a small photograph that "
        "ships; give the flag without files for none",
    )
    group.add_argument(
        "--without",
        nargs="+",
        choices=tuple(ENDINGS),
        default=(),
        help="model files to leave out; the fused .safetensors is always written",
    )
    group.add_argument(
        "--param-key",
        metavar="KEY",
        help="key of the state dict to read; default: a moving average, if any",
    )
    group.add_argument(
        "--device",
        help="where PyTorch checks and measures: cpu, cuda, cuda:1, ..; default: on "
        "the CPU, by ONNX Runtime where PyTorch is not installed",
    )
    parser.set_defaults(job=release)


def _define_about(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--name",
        help="of the files, after the scale; default: the name of the variant",
    )
    group.add_argument(
        "--author",
        nargs="+",
        default=(ANONYMOUS,),
        metavar="ID",
        help=f"id in OpenModelDB, e.g. helaman; default: {ANONYMOUS}",
    )
    group.add_argument(
        "--license",
        metavar="ID",
        help="licence of the weights, an SPDX identifier, e.g. CC0-1.0, CC-BY-4.0 or "
        "MIT; default: not stated",
    )
    group.add_argument(
        "--description",
        metavar="TEXT",
        help="purpose of the model, in one or two sentences",
    )
    group.add_argument(
        "--tags",
        nargs="+",
        default=(),
        metavar="TAG",
        help="of OpenModelDB, e.g. photo, general-upscaler, denoise, jpeg, pretrained; "
        "default: general-upscaler, at 1x restoration",
    )
    group.add_argument("--date", metavar="YYYY-MM-DD", help="default: today")
    group.add_argument(
        "--training",
        nargs="+",
        type=_fact,
        default=(),
        metavar="KEY=VALUE",
        help=f"how it was trained; keys: {', '.join(TRAINING)}; iterations are read "
        "from the checkpoint if it counts them",
    )
    group.add_argument(
        "--notes",
        type=Path,
        metavar="FILE.md",
        help="text for the card in Markdown, with headings from ## on: recipe, known "
        "limits, thanks",
    )
    group.add_argument(
        "--url",
        metavar="BASE",
        help="address of the folder with the published files, e.g. "
        "https://github.com/me/models/releases/download/leaves",
    )


def release(arguments: argparse.Namespace) -> None:
    """Make a release of a checkpoint, and print what is in it."""
    # Imported here because they take time to load, which --help does not need.
    from aethernet.checkpoints.checkpoint import CheckpointOptions, load_checkpoint
    from aethernet.devices import choose_device
    from aethernet.publish import release as publisher

    about = _about(arguments)
    options = publisher.ReleaseOptions(
        data=arguments.data,
        pictures=arguments.picture,
        without=arguments.without,
        overwrite=arguments.overwrite,
    )
    device = arguments.device and str(choose_device(arguments.device))
    reading = CheckpointOptions(param_key=arguments.param_key, device=device)
    path = find_model(arguments.checkpoint)
    publisher.check_place(arguments.output, path, arguments.overwrite)
    source = load_checkpoint(path, reading)
    done = publisher.release(source, arguments.output, about, options)
    _print_release(source, done)
    if arguments.author == (ANONYMOUS,):
        print(f"No author was named (--author): the entry has {ANONYMOUS}.")
    if arguments.license is None:
        print("No licence was named (--license): nobody may use it without asking.")
    if arguments.url is None:
        print("No address was named (--url): the entry's `urls` are empty.")


def _about(arguments: argparse.Namespace) -> "About":
    from aethernet.publish.about import About

    return About(
        author=arguments.author,
        license=arguments.license,
        name=arguments.name,
        description=arguments.description,
        tags=arguments.tags,
        date=arguments.date or date.today().isoformat(),
        training=dict(arguments.training),
        notes="" if arguments.notes is None else _read_text(arguments.notes),
        url=arguments.url,
    )


def _read_text(path: Path) -> str:
    check_source(path, "a text")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise AetherError("The text is not in UTF-8.", path) from error
    except OSError as error:
        raise unreadable(error, path) from error


def _fact(text: str) -> tuple[str, Any]:
    """A field of the entry and its value, from KEY=VALUE."""
    key, _, value = text.partition("=")
    if key not in TRAINING or not value:
        known = ", ".join(TRAINING)
        raise argparse.ArgumentTypeError(
            f"expected KEY=VALUE with a key of {known}, not {text!r}"
        )
    if key in _TEXTS:
        return TRAINING[key], value
    if value.isdecimal():
        return TRAINING[key], int(value)
    return TRAINING[key], _YES_NO.get(value, value)


def _print_release(source: "Checkpoint", done: "Release") -> None:
    from aethernet.commands.conversion import print_img_range

    print(
        f"Read {printable(str(source.path))}: {source.variant or 'AetherNet'} "
        f"{source.scale}x, {source.form} form."
    )
    if source.form == "fused":
        print("The training form is missing: nobody can continue the training.")
    print_img_range(source)
    print("Written files against the checkpoint:")
    _print_table(
        [(file.name, f"{file.size / 1e6:.1f} MB", file.check) for file in done.files]
    )
    for name, by_method in done.figures.items():
        print(f"{printable(name)}:")
        _print_table([(method, str(each)) for method, each in by_method.items()])
    entry = f"data/models/{model_id(done.name, source.scale)}.json"
    print(f"Wrote {printable(str(done.folder))}. Its {done.name}.md is the card, and")
    print(f"{done.name}.json is the entry: {entry} in OpenModelDB.")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    for line in in_columns(rows):
        print(f"  {line}")
