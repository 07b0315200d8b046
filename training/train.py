"""Train AetherNet on a folder of photographs, on one GPU or a processor.

    python training/train.py PHOTOS -o RUN --val Set5

This is a fidelity training (L1 or L2 loss): the LR pictures are made here, clean or
with `--degrade`, and it starts from fresh weights or from a checkpoint. Use neosr or
traiNNer-redux for GAN training.

RUN receives `net_g_latest.pth` and `net_g_best.pth` in the frameworks' form (`params`,
`params_ema`, `iter`), `state.pt`, from which the same command continues, and a log for
TensorBoard. Crops and random numbers of an iteration depend on the seed and on its
number alone. A run that was killed therefore continues as if it had never stopped; on a
processor, with the same number of threads, the result is identical to the last bit.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout  # which torch needs, too
from torch import Tensor
from trainer import LOSSES, Recipe, Trainer, diverged, use_kernels, write_checkpoint

from aethernet.aether_core import UPSAMPLE_FACTORS, VARIANTS, AetherNet
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.rewrites import as_tensors
from aethernet.commands.run import exit_code
from aethernet.devices import choose_device, has_bfloat16_units
from aethernet.errors import AetherError, ContradictionError, import_optional
from aethernet.files import files_in, sha256_of, unwritable
from aethernet.pictures.files import READABLE
from aethernet.pictures.training_crops import (
    TrainingCrops,
    TrainingPair,
    degraded_pair,
    training_pair,
)
from aethernet.quality.measure import Sample, find_samples

LEAST_DETAIL = 1.5  # 8-bit steps between neighbours: drops skies, keeps soft faces
LOG_EVERY = 50  # iterations
MOST_WORKERS = 12  # processes that cut crops for a GPU
SCALES = [scale for scale in UPSAMPLE_FACTORS if scale > 1]  # 1x needs LR of its own


def train(arguments: argparse.Namespace) -> int:
    """Train until the last iteration, the end of `minutes`, or a signal."""
    minutes = math.inf if arguments.minutes is None else arguments.minutes
    deadline = time.monotonic() + 60 * minutes
    tensorboard = _tensorboard()
    device = choose_device(arguments.device)
    paths = files_in(arguments.photographs, READABLE, "pictures")
    samples = find_samples(arguments.val, arguments.scale) if arguments.val else []
    start, start_digest, note = _start(arguments)
    recipe = Recipe(
        **{
            field.name: getattr(arguments, field.name)
            for field in dataclasses.fields(Recipe)
            if field.name not in ("precision", "start", "photographs", "val")
        },
        precision=_precision(arguments.precision, device),
        start=start_digest,
        photographs=_digest(paths),
        val=_digest([sample.hr for sample in samples]),
    )
    trainer = Trainer(recipe, start, device)
    folder: Path = arguments.output
    state = folder / "state.pt"
    if state.exists():  # reports a contradiction before the pictures are read
        trainer.restore(state)
    if arguments.compile:
        trainer.forward = torch.compile(trainer.network)
    elif kernels_serve(arguments.kernels, recipe, device):
        use_kernels(trainer)
    crops = _crops(paths, arguments)
    sets = _validation(samples, recipe)
    _warn_of_the_same(samples, sets, crops)
    with _alone_in(folder):
        if state.exists():
            trainer.restore(state)
            note = f"Continuing after iteration {trainer.iteration}."
        print(note, flush=True)
        log = tensorboard(folder, purge_step=trainer.iteration + 1)
        return _run(trainer, crops, sets, log, arguments, deadline)


def _crops(paths: Sequence[Path], arguments: argparse.Namespace) -> TrainingCrops:
    """The pictures to train on, none of which is smaller than a crop."""
    crops = TrainingCrops(
        paths,
        arguments.scale,
        least_detail=LEAST_DETAIL,
        degrade=arguments.degrade,
    )
    if crops.largest_size < arguments.crop:
        raise AetherError(
            f"The smallest picture allows crops of {crops.largest_size} LR pixels at "
            f"most, less than asked for ({arguments.crop}).",
            arguments.photographs,
            "Leave it out, or use a smaller --crop.",
        )
    return crops


def _validation(
    samples: Sequence[Sample], recipe: Recipe
) -> dict[str, list[TrainingPair]]:
    """Pairs to validate on, by their name in the log; the first decide which is best.

    Degraded ones are the same in every run: each picture's number is their seed.
    """
    if not samples:
        return {}
    clean = [training_pair(sample.hr, recipe.scale) for sample in samples]
    if not recipe.degrade:
        return {"val": clean}
    degraded = [
        degraded_pair(hr, recipe.scale, np.random.default_rng(number), clean_share=0)
        for number, (_, hr) in enumerate(clean)
    ]
    return {"val": degraded, "val_clean": clean}


def _warn_of_the_same(
    samples: Sequence[Sample], sets: dict[str, list[TrainingPair]], crops: TrainingCrops
) -> None:
    """Name pictures that the run would both train on and validate on."""
    for sample, (_, hr) in zip(samples, sets.get("val", []), strict=True):
        same = crops.same_as(hr)
        if same:
            print(
                f"Note: {sample.hr.name} to validate on is also among the photographs "
                f"({same.name}). Its figures will be too good: leave one of them out.",
                file=sys.stderr,
                flush=True,
            )


def _run(
    trainer: Trainer,
    crops: TrainingCrops,
    sets: dict[str, list[TrainingPair]],
    log: Any,
    arguments: argparse.Namespace,
    deadline: float,
) -> int:
    """Train, validate and save until the end or a signal; return the exit code."""
    folder, recipe = arguments.output, trainer.recipe

    def validate_and_save() -> None:
        found = {name: trainer.validate(pairs) for name, pairs in sets.items()}
        for name, figures in found.items():
            log.add_scalar(f"{name}/psnr_y", figures.psnr, trainer.iteration)
            log.add_scalar(f"{name}/ssim_y", figures.ssim, trainer.iteration)
        if found:
            psnr = found["val"].psnr
            text = "; clean ".join(map(str, found.values()))
            print(f"iteration {trainer.iteration}: {text}", flush=True)
            if psnr > trainer.best.get("psnr", -math.inf):
                trainer.best = {"psnr": psnr, "iteration": trainer.iteration}
                write_checkpoint(trainer.checkpoint(), folder / "net_g_best.pth")
        trainer.save(folder)
        log.flush()

    with _stopping() as stopped, log:
        print(
            f"{trainer.device}, {recipe.precision}, iterations "
            f"{trainer.iteration} to {recipe.iterations}",
            flush=True,
        )
        for _ in _iterations(trainer, crops, log):
            if trainer.iteration % arguments.every == 0:
                validate_and_save()
            if stopped or time.monotonic() > deadline:
                break
        if trainer.iteration % arguments.every:
            validate_and_save()
    if trainer.iteration < recipe.iterations:
        print(
            f"Stopped after iteration {trainer.iteration}; run the same command to "
            "continue."
        )
        return 128 + stopped[0] if stopped else 0
    best = trainer.best
    if best:
        print(f"Finished. Best: {best['psnr']:.3f} dB at {best['iteration']}.")
    else:
        print("Finished, without validation.")
    return 0


def _iterations(trainer: Trainer, crops: TrainingCrops, log: Any) -> Iterator[None]:
    """Take the steps one by one; the next crops are cut meanwhile."""
    recipe = trainer.recipe
    losses: list[Tensor] = []
    since = time.monotonic()
    with batches(crops, trainer) as pairs:
        for lr, hr in pairs:
            losses.append(trainer.step(lr, hr))
            if trainer.iteration % LOG_EVERY == 0:
                loss = torch.stack(losses).mean().item()
                if not math.isfinite(loss):
                    raise diverged(trainer.iteration)
                seconds = (time.monotonic() - since) / len(losses)
                log.add_scalar(f"train/{recipe.loss}", loss, trainer.iteration)
                rate = recipe.rate_at(trainer.iteration - 1)
                log.add_scalar("train/rate", rate, trainer.iteration)
                left = seconds * (recipe.iterations - trainer.iteration) / 60
                print(
                    f"{trainer.iteration:>7} of {recipe.iterations}  "
                    f"{recipe.loss.upper()} {loss:.3g}  "
                    f"rate {rate:.2e}  {seconds:.4f} s each, {left:.0f} minutes left",
                    flush=True,
                )
                losses, since = [], time.monotonic()
            yield


class _Batches(torch.utils.data.Dataset[TrainingPair]):
    """The crops of each iteration, which its number and the seed decide."""

    def __init__(self, crops: TrainingCrops, recipe: Recipe) -> None:
        self.crops, self.recipe = crops, recipe

    def __len__(self) -> int:
        return self.recipe.iterations

    def __getitem__(self, iteration: int) -> TrainingPair:
        random = np.random.default_rng([self.recipe.seed, iteration])
        return self.crops.batch(self.recipe.batch, self.recipe.crop, random)


@contextmanager
def batches(crops: TrainingCrops, trainer: Trainer) -> Iterator[Iterator[TrainingPair]]:
    """The crops from the next iteration on, cut ahead.

    On a processor by one thread beside the training. A GPU takes a step in milliseconds
    and needs more: processes, where they can share the pictures (not on Windows).
    """
    dataset = _Batches(crops, trainer.recipe)
    numbers = range(trainer.iteration, len(dataset))
    workers = min((os.cpu_count() or 1) - 1, MOST_WORKERS)
    if trainer.device.type == "cuda" and workers > 1 and sys.platform == "linux":
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            pin_memory=True,
            multiprocessing_context="fork",
        )
        yield iter(loader)
        return
    with ThreadPoolExecutor(1) as pool:

        def ahead() -> Iterator[TrainingPair]:
            following = None
            for number in numbers:
                ready = following or pool.submit(dataset.__getitem__, number)
                following = pool.submit(dataset.__getitem__, number + 1)
                yield ready.result()

        yield ahead()


def kernels_serve(asked: str, recipe: Recipe, device: torch.device) -> bool:
    """Whether to train on the Triton kernels; a line says so, and why not.

    Raises:
        AetherError: when they were asked for and cannot serve.
    """
    variant = VARIANTS[f"aether_{recipe.variant}"]
    why = ""
    if asked == "pytorch":
        return False
    if device.type != "cuda" or recipe.precision != "bfloat16":
        why = "They need an NVIDIA GPU and bfloat16."
    elif recipe.drop_path:
        why = "They have no stochastic depth (--drop-path)."
    elif find_spec("triton") is None:
        why = "They need Triton (pip install triton)."
    else:
        from aethernet.runtimes.triton.block import MOST_ERROR, training_error

        size = (variant["embed_dim"], variant["lk_kernel"], variant["mlp_ratio"])
        try:
            error = training_error(*size)
            if not error <= MOST_ERROR:
                why = f"Compared with PyTorch they are off by {error:.2g} on this GPU."
        except Exception as problem:  # of a compiler and a driver, in many classes
            why = f"Triton failed: {type(problem).__name__}."
    if why and asked == "triton":
        raise AetherError(f"The Triton kernels cannot be used here. {why}")
    if device.type == "cuda":
        print(f"PyTorch's kernels. {why}" if why else "Triton's kernels.", flush=True)
    return not why


def _start(arguments: argparse.Namespace) -> tuple[dict[str, Tensor], str, str]:
    """Tensors to start from, their digest, and a line that describes them.

    Raises:
        ContradictionError: when a tensor outside the upsampler has another shape. In
            the upsampler another shape means another scale; those weights are fresh.
    """
    if not arguments.start:
        return {}, "", "Starting from fresh weights."
    checkpoint = load_checkpoint(arguments.start)
    with torch.device("meta"):
        wanted = AetherNet(
            **VARIANTS[f"aether_{arguments.variant}"], scale=arguments.scale
        ).state_dict()
    found = {
        name: value.float()
        for name, value in as_tensors(checkpoint.state_dict).items()
        if name in wanted and wanted[name].shape == value.shape
    }
    fresh = [name for name in wanted if name not in found]
    others = [name for name in fresh if not name.startswith("upsample.")]
    if others:
        raise ContradictionError(
            f"This is not an aether_{arguments.variant} in training form: it has no "
            f"{others[0]} of the right shape.",
            arguments.start,
            "`aethernet info` shows what it is.",
        )
    digest = hashlib.sha256()
    for name, value in sorted(found.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    note = f"Starting from {arguments.start}."
    if fresh:
        note += f" The scale differs; fresh weights: {', '.join(fresh)}."
    return found, digest.hexdigest(), note


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Yield a list that receives the first Ctrl-C or SIGTERM; a second one stops."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[number])
        print("Saving. Repeat the signal to stop at once.", file=sys.stderr, flush=True)

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tensorboard() -> Callable[..., Any]:
    import_optional("tensorboard", "train")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


def _precision(asked: str, device: torch.device) -> str:
    if asked != "auto":
        return asked
    if device.type == "cuda" and torch.cuda.is_bf16_supported(
        including_emulation=False
    ):
        return "bfloat16"
    return "bfloat16" if device.type == "cpu" and has_bfloat16_units() else "float32"


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make the folder and lock it against another training."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise AetherError(
            "Another training runs in this folder.",
            folder,
            "Stop it, or name another folder (-o).",
        ) from error
    except OSError as error:
        raise unwritable(error, folder) from error
    try:
        yield
    finally:
        lock.release()


def _digest(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' names and contents; empty without files."""
    if not paths:
        return ""
    content = json.dumps([[path.name, sha256_of(path)] for path in paths])
    return hashlib.sha256(content.encode()).hexdigest()


def command_parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    parser = argparse.ArgumentParser(
        description="Train AetherNet on a folder of photographs. Run the same command "
        "again to continue a run that was stopped or killed.",
    )
    parser.add_argument("photographs", type=Path, help="folder of HR pictures")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of this run"
    )
    parser.add_argument(
        "--val", type=Path, help="folder of HR pictures to validate on, such as Set5"
    )
    variants = [name.removeprefix("aether_") for name in VARIANTS]
    parser.add_argument("--variant", choices=variants, default="small")
    parser.add_argument("--scale", type=int, choices=SCALES, default=2)
    parser.add_argument(
        "--start",
        type=Path,
        help="checkpoint in training form to start from; if its scale differs, the "
        "upsampler gets fresh weights; default: fresh weights",
    )
    number = parser.add_argument_group("the recipe")
    number.add_argument(
        "--optimizer",
        choices=("muon", "adamw"),
        default="muon",
        help="muon: Muon for the linear layers, AdamW for the rest; default: muon",
    )
    number.add_argument(
        "--loss",
        choices=tuple(LOSSES),
        default="l1",
        help="l1: mean absolute error; l2: mean squared error, the one in PSNR, for a "
        "last run from good weights; default: l1",
    )
    whole, natural, part = _number(int, 0), _number(int, 1), _number(float, 0, 1)
    for flag, kind, default, text in (
        (
            "--iterations",
            natural,
            300_000,
            "in total",
        ),
        ("--batch", _number(int, 1, 4096), 16, "crops per iteration"),
        ("--crop", _number(int, 1, 4096), 64, "side of a crop in LR pixels"),
        ("--rate", part, 5e-4, "highest learning rate"),
        ("--warm-up", whole, 1000, "iterations until the learning rate reaches --rate"),
        (
            "--decay",
            part,
            0.1,
            "last part of the iterations, in which the rate falls to 0",
        ),
        ("--ema", part, 0.999, "decay of the moving average of the weights"),
        ("--drop-path", part, 0.0, "highest rate of stochastic depth"),
        ("--seed", whole, 0, "random seed of weights and crops"),
    ):
        number.add_argument(flag, type=kind, default=default, help=f"{text}; {default}")
    number.add_argument(
        "--degrade",
        action="store_true",
        help="blur, noise and compression for the LR pictures, also those to validate "
        "on, for a model for photographs from phones and the web; default: clean LR",
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--every",
        type=natural,
        default=1000,
        help="validate and save after this many iterations; 1000",
    )
    run.add_argument(
        "--minutes",
        type=_number(float, 0),
        help="save and stop after this many minutes; default: never",
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ..")
    run.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 where the device has units for it",
    )
    faster = run.add_mutually_exclusive_group()
    faster.add_argument(
        "--kernels",
        choices=("auto", "triton", "pytorch"),
        default="auto",
        help="what computes the blocks; auto: Triton on an NVIDIA GPU in bfloat16, "
        "once it has proved right there",
    )
    faster.add_argument(
        "--compile",
        action="store_true",
        help="use torch.compile instead: a slow start, then faster steps",
    )
    return parser


def _number(
    kind: type[float], least: float, most: float = 1e12
) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:  # NaN is not
            raise argparse.ArgumentTypeError(f"{text} is not in {least} .. {most:g}")
        return value

    convert.__name__ = kind.__name__  # what argparse calls it
    return convert


def main() -> int:
    """The command line; returns the exit code."""
    return exit_code(train, command_parser().parse_args())


if __name__ == "__main__":
    sys.exit(main())
