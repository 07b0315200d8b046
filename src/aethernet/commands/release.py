"""The command `aethernet release`: its flags, and what it says."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aethernet.checkpoints.shipped import ENDINGS, find_model
from aethernet.errors import AetherError
from aethernet.files import check_source
from aethernet.publish.openmodeldb import NOBODY, model_id
from aethernet.text import in_columns, printable

if TYPE_CHECKING:
    from aethernet.publish.release import About, Release


# Words of --training -> fields of an entry.
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

_TEXTS = ("dataset", "pretrained")

_YES_NO = {"yes": True, "no": False}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Make a folder of what is published of a checkpoint: the training form, the "
        "fused form (.safetensors and .pth), ONNX in float32 and float16, each checked "
        "against the checkpoint; a model card; the entry for OpenModelDB, with sizes "
        "and hashes; pictures before and after. It appears when all of it is right. "
        "Needs the extra `onnx`."
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
        help="best in training form, from which others can train on",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder, which must not exist yet, or be empty",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier release in DIR, once the new one is whole",
    )
    _define_about(parser.add_argument_group("what you say of it"))
    group = parser.add_argument_group("what is made of it")
    group.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=(),
        metavar="HR",
        help="folders of HR pictures, each a set whose PSNR-Y and SSIM-Y the card says",
    )
    group.add_argument(
        "--picture",
        nargs="*",
        type=Path,
        metavar="P",
        help="to show before and after, as the model takes them; default: a small "
        "photograph that ships; none after it: none",
    )
    group.add_argument(
        "--without",
        nargs="+",
        choices=tuple(ENDINGS),
        default=(),
        help="model files to leave out; the fused .safetensors is always there",
    )
    group.add_argument(
        "--param-key",
        metavar="KEY",
        help="which state dict of the file to take; default: a moving average",
    )
    group.add_argument(
        "--device",
        default="cpu",
        help="where PyTorch checks and measures: cpu (default), cuda, cuda:1, ..",
    )
    parser.set_defaults(job=release)


def _define_about(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--name",
        help="of the files, which begin with the scale; default: the variant's",
    )
    group.add_argument(
        "--author",
        nargs="+",
        default=(NOBODY,),
        metavar="ID",
        help=f"as OpenModelDB spells it, e.g. helaman; default: {NOBODY}",
    )
    group.add_argument(
        "--license",
        metavar="ID",
        help="of the weights, an SPDX identifier, e.g. CC0-1.0, CC-BY-4.0, MIT; "
        "default: not stated",
    )
    group.add_argument(
        "--description", metavar="TEXT", help="what it is for, in a sentence or two"
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
        metavar="WORD=VALUE",
        help=f"how it was trained: {', '.join(TRAINING)}; iterations are read from the "
        "checkpoint where it counts them",
    )
    group.add_argument(
        "--notes",
        type=Path,
        metavar="FILE.md",
        help="more for the card: the recipe, known limits, thanks; Markdown, headings "
        "from ## on",
    )
    group.add_argument(
        "--url",
        metavar="BASE",
        help="where the files will lie, e.g. "
        "https://github.com/me/models/releases/download/leaves",
    )


def release(arguments: argparse.Namespace) -> None:
    """Job: a folder `output` of what is published of `checkpoint`."""
    from aethernet.devices import choose_device
    from aethernet.publish import release as room

    done = room.release(
        find_model(arguments.checkpoint),
        arguments.output,
        _about(arguments),
        data=arguments.data,
        pictures=arguments.picture,
        without=arguments.without,
        param_key=arguments.param_key,
        device=choose_device(arguments.device),
        overwrite=arguments.overwrite,
    )
    _print(done)
    if arguments.author == (NOBODY,):
        print(f"No author was named (--author): the entry says {NOBODY}.")
    if arguments.license is None:
        print("No licence was named (--license): nobody may use it without asking.")
    if arguments.url is None:
        print("No address was named (--url): the entry's `urls` are empty.")


def _about(arguments: argparse.Namespace) -> "About":
    from aethernet.publish.release import About

    said: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("author", "license", "name", "description", "tags", "url")
    }
    if arguments.date is not None:
        said["date"] = arguments.date
    if arguments.notes is not None:
        said["notes"] = _read(arguments.notes)
    return About(**said, training=dict(arguments.training))


def _read(path: Path) -> str:
    check_source(path, "a text")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise AetherError(f"{path} is no text in UTF-8.") from error


def _fact(text: str) -> tuple[str, Any]:
    word, _, value = text.partition("=")
    if word not in TRAINING or not value:
        known = ", ".join(TRAINING)
        raise argparse.ArgumentTypeError(
            f"expected WORD=VALUE of {known}, not {text!r}"
        )
    if word in _TEXTS:
        return TRAINING[word], value
    if value.isdecimal():
        return TRAINING[word], int(value)
    return TRAINING[word], _YES_NO.get(value, value)


def _print(done: "Release") -> None:
    source = done.source
    print(
        f"Read {printable(str(source.path))}: {source.variant or 'AetherNet'} "
        f"{source.scale}x, {source.form} form."
    )
    if source.form == "fused":
        print("Without its training form nobody can train on from it.")
    img_range = source.hyperparameters.get("img_range", 1.0)
    if img_range != 1:
        print(f"img_range is {img_range}: spandrel cannot know, and takes it as 1.")
    rows = [(file.name, f"{file.size / 1e6:.1f} MB", file.check) for file in done.files]
    print("Written files against the checkpoint:")
    for line in in_columns(rows):
        print(f"  {line}")
    for name, by_method in done.figures.items():
        print(f"{printable(name)}:")
        for line in in_columns([(m, str(f)) for m, f in by_method.items()]):
            print(f"  {line}")
    print(f"Wrote {printable(str(done.folder))} with {done.name}.md, the card, and")
    print(
        f"{done.name}.json, the entry: data/models/{model_id(done.name, source.scale)}"
        ".json in OpenModelDB."
    )
