"""Train AetherNet on a folder of photographs: one GPU or a CPU, one file.

    python training/train.py PHOTOS -o RUN --val Set5

For what the frameworks do not run without their full stack: a fidelity run (L1) on LR
pictures made here, from fresh weights or from a checkpoint. GAN training, degradations
and everything else is theirs.

RUN holds `net_g_latest.pth` and `net_g_best.pth`, as the frameworks write them
(`params`, `params_ema`, `iter`), `state.pt`, from which the same command goes on, and
TensorBoard's log. An iteration is a function of its number: its crops and random
numbers are drawn from the seed and the number alone. A run that was killed therefore
goes on as if it had not been; on a CPU with as many threads, to the last bit.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout  # which torch needs, too
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aethernet.aether_core import UPSAMPLE_FACTORS, VARIANTS, AetherNet
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.commands.run import exit_code
from aethernet.devices import choose_device, has_bfloat16_units
from aethernet.errors import AetherError, ContradictionError, import_optional
from aethernet.files import files_in, replacing, sha256_of
from aethernet.metrics import Figures, mean, measure
from aethernet.pictures.files import READABLE
from aethernet.pictures.training_crops import Crops, training_pair
from aethernet.quality.measure import find_samples

BETAS = (0.9, 0.99)  # as in the option files for the frameworks
LARGEST_NORM = 5.0  # of a gradient, as there: against a broken batch
LEAST_DETAIL = 1.5  # 8-bit steps between neighbours: drops skies, keeps soft faces
LOG_EVERY = 50  # iterations
DECAY_PART = 0.1  # of the iterations; the learning rate falls to 0 in them
# Muon's learning rate, as a multiple of AdamW's beside it. Of 3e-3 and 1e-2 beside
# 1.2e-3 the lower was better by 1.6 dB (400 iterations, docs/training.md).
MUON_RATE = 2.5
MUON_WEIGHTS = re.compile(r"\.ffn\.fc(1_gate|1_main|2)\.weight$")
SCALES = [scale for scale in UPSAMPLE_FACTORS if scale > 1]  # 1x needs LR of its own


@dataclass(frozen=True)
class Recipe:
    """What decides every weight of a run; a run goes on with the same one only."""

    variant: str
    scale: int
    iterations: int
    batch: int
    crop: int
    optimizer: str
    rate: float
    warm_up: int
    ema: float
    drop_path: float
    seed: int
    precision: str
    start: str
    """SHA-256 of the checkpoint's state dict to start from; empty: fresh weights."""
    photographs: str
    """SHA-256 of the files to train on."""
    val: str
    """SHA-256 of the files that say which weights are the best; empty: none do."""

    def rate_at(self, iteration: int) -> float:
        """Learning rate: a linear warm-up, constant, then in the last tenth to 0."""
        warm = min(1.0, (iteration + 1) / max(self.warm_up, 1))
        left = (self.iterations - iteration) / (self.iterations - self.decay_start)
        return self.rate * min(warm, left)

    @property
    def decay_start(self) -> int:
        """Iteration from which the learning rate falls.

        Up to here a run is the same for every number of iterations.
        """
        return self.iterations - math.ceil(DECAY_PART * self.iterations)


class Muon(torch.optim.Optimizer):
    """Momentum whose step for a matrix is made nearly orthogonal.

    K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; the step is
    scaled to the size of AdamW's as in J. Liu et al., 2025, arXiv 2502.16982, section
    2.2. The same step as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw",
    weight_decay=0)`, but in float32 and for all matrices of one shape at once: that
    one's bfloat16 products take as long as the rest of a training step on a processor
    without units for them.
    """

    MOMENTUM = 0.95
    COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic iteration
    STEPS = 5

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        """Take matrices, `(rows, columns)`, and a learning rate for AdamW's steps."""
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step by the gradients of all matrices."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in by_shape.items():
                updates = self._orthogonal(torch.stack([*map(self._update, matrices)]))
                size = 0.2 * math.sqrt(max(rows, columns)) * group["lr"]
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.sub_(update, alpha=size)

    def _update(self, matrix: Tensor) -> Tensor:
        """Nesterov's momentum of the matrix's gradient."""
        assert matrix.grad is not None
        gradient, state = matrix.grad.float(), self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - self.MOMENTUM)
        return gradient.lerp(state["momentum_buffer"], self.MOMENTUM)

    def _orthogonal(self, x: Tensor) -> Tensor:
        """`(N, rows, columns)` with all singular values brought near to 1."""
        if x.shape[1] > x.shape[2]:
            return self._orthogonal(x.mT).mT
        a, b, c = self.COEFFICIENTS
        x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
        for _ in range(self.STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x


class Trainer:
    """A network, its average and its optimizer, and how many steps they have taken."""

    def __init__(
        self, recipe: Recipe, start: dict[str, Tensor], device: torch.device
    ) -> None:
        """Start from fresh weights but where `start` has tensors of their names."""
        self.recipe, self.device = recipe, device
        self.iteration = 0
        self.best: dict[str, float] = {}
        torch.manual_seed(recipe.seed)
        network = AetherNet(
            **VARIANTS[f"aether_{recipe.variant}"],
            scale=recipe.scale,
            drop_path_rate=recipe.drop_path,
        )
        network.load_state_dict({**network.state_dict(), **start})
        network = network.to(memory_format=torch.channels_last)
        self.network = network.to(device).train()
        self.forward: Callable[[Tensor], Tensor] = self.network
        self.average = AveragedModel(self.network).eval()
        self.optimizers = _optimizers(self.network, recipe)

    def step(self, lr: Tensor, hr: Tensor) -> Tensor:
        """One iteration on LR and HR crops; its loss, on the device."""
        rate = self.recipe.rate_at(self.iteration)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * _rate_factor(optimizer)
        torch.manual_seed(_seed(self.recipe.seed, self.iteration))  # stochastic depth
        lr, hr = (crops.to(self.device, non_blocking=True) for crops in (lr, hr))
        lr = lr.contiguous(memory_format=torch.channels_last)
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            output = self.forward(lr)
        loss = nn.functional.l1_loss(output.float(), hr)
        self.network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
        # A young average is a short one, so that it forgets where it began.
        decay = min(self.recipe.ema, (1 + self.iteration) / (10 + self.iteration))
        self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.average.update_parameters(self.network)
        self.iteration += 1
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Write `state.pt` and `net_g_latest.pth`, the latter read back and compared.

        Raises:
            AetherError: when weights are not finite, and nothing is written; or when
                writing fails.
        """
        checkpoint = self.checkpoint()
        if not all(value.isfinite().all() for value in checkpoint["params"].values()):
            raise _diverged(self.iteration)
        write_checkpoint(checkpoint, folder / "net_g_latest.pth")
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "iteration": self.iteration,
            "best": self.best,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with replacing(folder / "state.pt") as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Go on where `save` was called.

        Raises:
            ContradictionError: when that run had another recipe.
            AetherError: when the file is not what `save` wrote.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            before = Recipe(**state["recipe"])
        except Exception as error:  # damage surfaces as many errors
            raise self._no_state(path) from error
        now = self.recipe
        both_constant = state["iteration"] <= min(before.decay_start, now.decay_start)
        if both_constant:  # nothing before depends on when the learning rate falls
            before = dataclasses.replace(before, iterations=now.iterations)
        if before != now:
            changed = ", ".join(
                f"{name} {was!r}, now {wanted!r}"
                for (name, was), wanted in zip(
                    dataclasses.asdict(before).items(),
                    dataclasses.asdict(now).values(),
                    strict=True,
                )
                if was != wanted
            )
            raise ContradictionError(
                f"The training in {path.parent} is another ({changed}); repeat its "
                "flags to go on, or name another folder (-o)."
            )
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(
                self.optimizers, state["optimizers"], strict=True
            ):
                optimizer.load_state_dict(saved)
                for parameter, moments in optimizer.state.items():
                    for name in ("exp_avg", "momentum_buffer"):
                        if moments.get(name, parameter).shape != parameter.shape:
                            raise ValueError
            self.iteration, self.best = int(state["iteration"]), {**state["best"]}
            if not 0 <= self.iteration <= self.recipe.iterations:
                raise ValueError
        except Exception as error:
            raise self._no_state(path) from error

    @staticmethod
    def _no_state(path: Path) -> AetherError:
        return AetherError(
            f"{path} is no state of a training, or damaged, and was not used; remove "
            "it to begin again, with --start and one of the checkpoints beside it."
        )

    def checkpoint(self) -> dict[str, Any]:
        """What frameworks write: weights, their average, and the iteration."""
        average = self.average.module
        assert isinstance(average, AetherNet)
        return {
            "params": _on_cpu(self.network),
            "params_ema": _on_cpu(average),
            "iter": self.iteration,
        }

    @torch.inference_mode()
    def validate(self, pairs: list[tuple[Tensor, Tensor]]) -> Figures:
        """Mean PSNR and SSIM of the average on whole pictures, `(3, H, W)` uint8."""
        figures = []
        for lr, hr in pairs:
            output = self.average(lr[None].to(self.device).float() / 255)[0]
            pixels = output.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
            first, second = (image.permute(1, 2, 0).numpy() for image in (pixels, hr))
            figures.append(measure(first, second, self.recipe.scale))
        return mean(figures)


def train(arguments: argparse.Namespace) -> int:
    """Job: train until the last iteration, the end of `minutes`, or a signal."""
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
    if state.exists():  # so that a contradiction is said before the pictures are read
        trainer.restore(state)
    if arguments.compile:
        trainer.forward = torch.compile(trainer.network)
    crops = Crops(paths, recipe.scale, least_detail=LEAST_DETAIL)
    if crops.largest_size < recipe.crop:
        raise AetherError(
            f"The smallest of the pictures has {crops.largest_size} LR pixels along a "
            f"side, a crop {recipe.crop}; leave it out, or take a smaller --crop."
        )
    pairs = [training_pair(sample.hr, recipe.scale) for sample in samples]
    with _alone_in(folder):
        if state.exists():
            trainer.restore(state)
            note = f"Going on after iteration {trainer.iteration}."
        print(note, flush=True)
        log = tensorboard(folder, purge_step=trainer.iteration + 1)
        return _run(trainer, crops, pairs, log, arguments, deadline)


def _run(
    trainer: Trainer,
    crops: Crops,
    pairs: list[tuple[Tensor, Tensor]],
    log: Any,
    arguments: argparse.Namespace,
    deadline: float,
) -> int:
    """Train as long as may be, and save; the exit code."""
    folder, recipe = arguments.output, trainer.recipe

    def look() -> None:
        """Validate where something is given, keep the best, and save."""
        if pairs:
            figures = trainer.validate(pairs)
            log.add_scalar("val/psnr_y", figures.psnr, trainer.iteration)
            log.add_scalar("val/ssim_y", figures.ssim, trainer.iteration)
            print(f"iteration {trainer.iteration}: {figures}", flush=True)
            if figures.psnr > trainer.best.get("psnr", -math.inf):
                trainer.best = {"psnr": figures.psnr, "iteration": trainer.iteration}
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
                look()
            if stopped or time.monotonic() > deadline:
                break
        if trainer.iteration % arguments.every:
            look()
    if trainer.iteration < recipe.iterations:
        print(f"Stopped after iteration {trainer.iteration}; the same command goes on.")
        return 128 + stopped[0] if stopped else 0
    best = trainer.best
    said = f"{best['psnr']:.3f} dB at {best['iteration']}" if best else "not validated"
    print(f"Finished. The best: {said}.")
    return 0


def _iterations(trainer: Trainer, crops: Crops, log: Any) -> Iterator[None]:
    """Take step after step; the next crops are cut meanwhile."""
    recipe = trainer.recipe

    def cut(iteration: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([recipe.seed, iteration])
        return crops.batch(recipe.batch, recipe.crop, random)

    losses: list[Tensor] = []
    since = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(cut, trainer.iteration)
        while trainer.iteration < recipe.iterations:
            lr, hr = following.result()
            following = pool.submit(cut, trainer.iteration + 1)
            losses.append(trainer.step(lr, hr))
            if trainer.iteration % LOG_EVERY == 0:
                loss = torch.stack(losses).mean().item()
                if not math.isfinite(loss):
                    raise _diverged(trainer.iteration)
                seconds = (time.monotonic() - since) / len(losses)
                log.add_scalar("train/l1", loss, trainer.iteration)
                rate = recipe.rate_at(trainer.iteration - 1)
                log.add_scalar("train/rate", rate, trainer.iteration)
                left = seconds * (recipe.iterations - trainer.iteration) / 60
                print(
                    f"{trainer.iteration:>7} of {recipe.iterations}  L1 {loss:.5f}  "
                    f"rate {rate:.2e}  {seconds:.3f} s each, {left:.0f} minutes left",
                    flush=True,
                )
                losses, since = [], time.monotonic()
            yield


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a framework's checkpoint, and move it into place once it reads back equal.

    Raises:
        AetherError: when it does not, or writing fails.
    """
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)
        written = load_checkpoint(temporary).state_dict
        wanted = checkpoint["params_ema"]
        if written.keys() != wanted.keys() or not all(
            torch.equal(written[key], value) for key, value in wanted.items()
        ):
            raise AetherError(f"{path} does not read back as it was written.")


def _start(arguments: argparse.Namespace) -> tuple[dict[str, Tensor], str, str]:
    """Tensors to start from, their digest, and what to say of them.

    Raises:
        ContradictionError: when more than the upsampler is of another shape: that is
            what a checkpoint of another scale has otherwise.
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
        for name, value in checkpoint.state_dict.items()
        if name in wanted and wanted[name].shape == value.shape
    }
    fresh = [name for name in wanted if name not in found]
    others = [name for name in fresh if not name.startswith("upsample.")]
    if others:
        raise ContradictionError(
            f"{arguments.start} is no aether_{arguments.variant} in training form: it "
            f"has no {others[0]} of this shape (see `aethernet info`)."
        )
    digest = hashlib.sha256()
    for name, value in sorted(found.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    note = f"Starting from {arguments.start}."
    if fresh:
        note += f" Fresh, because of another scale: {', '.join(fresh)}."
    return found, digest.hexdigest(), note


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Yield a list that a first Ctrl-C or SIGTERM is put into; a second one stops."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[number])
        print("Saving; once more to stop at once.", file=sys.stderr, flush=True)

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _optimizers(network: AetherNet, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or for all but those of the linear layers, and Muon."""
    linear: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        by_muon = recipe.optimizer == "muon" and MUON_WEIGHTS.search(name)
        (linear if by_muon else others).append(parameter)
    adamw = torch.optim.AdamW(others, lr=recipe.rate, betas=BETAS, weight_decay=0)
    if not linear:
        return [adamw]
    return [Muon(linear, lr=recipe.rate), adamw]


def _rate_factor(optimizer: torch.optim.Optimizer) -> float:
    return MUON_RATE if isinstance(optimizer, Muon) else 1.0


def _diverged(iteration: int) -> AetherError:
    return AetherError(
        f"The training diverged before iteration {iteration}. What was saved before is "
        "kept; start again from that (--start) with a lower --rate."
    )


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
    """Make the folder, and keep another training out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise AetherError(
            f"Another training runs in {folder}; stop it, or name another folder (-o)."
        ) from error
    except OSError as error:
        raise AetherError(f"Cannot write {folder}: {error.strerror}.") from error


def _on_cpu(network: AetherNet) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().contiguous().clone()
        for name, value in network.state_dict().items()
    }


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _digest(paths: Sequence[Path]) -> str:
    """Of the files' names and contents; empty of none."""
    if not paths:
        return ""
    content = json.dumps([[path.name, sha256_of(path)] for path in paths])
    return hashlib.sha256(content.encode()).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train AetherNet with L1 on a folder of photographs. The same "
        "command goes on where a run was stopped or killed.",
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
        help="checkpoint in training form to start from; of another scale all but the "
        "upsampler is taken; default: fresh weights",
    )
    number = parser.add_argument_group("the recipe")
    number.add_argument(
        "--optimizer",
        choices=("muon", "adamw"),
        default="muon",
        help="muon: Muon for the linear layers, AdamW for the rest; default: muon",
    )
    whole, natural, part = _number(int, 0), _number(int, 1), _number(float, 0, 1)
    for flag, kind, default, text in (
        (
            "--iterations",
            natural,
            300_000,
            "in all; in the last tenth the rate falls to 0",
        ),
        ("--batch", _number(int, 1, 4096), 16, "crops in an iteration"),
        ("--crop", _number(int, 1, 4096), 64, "side of a crop in LR pixels"),
        ("--rate", part, 5e-4, "highest learning rate"),
        ("--warm-up", whole, 1000, "iterations until the rate is at its highest"),
        ("--ema", part, 0.999, "decay of the weights' average, which is validated"),
        ("--drop-path", part, 0.0, "highest rate of stochastic depth"),
        ("--seed", whole, 0, "of weights and crops"),
    ):
        number.add_argument(flag, type=kind, default=default, help=f"{text}; {default}")
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--every",
        type=natural,
        default=1000,
        help="iterations between validations, and between savings; 1000",
    )
    run.add_argument(
        "--minutes",
        type=_number(float, 0),
        help="stop, saved, after so long; default: never",
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ..")
    run.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 where the device has units for it",
    )
    run.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile: a slow start, then faster",
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
    return exit_code(train, _parser().parse_args())


if __name__ == "__main__":
    sys.exit(main())
