"""The recipe of a training, and the trainer that follows it step by step."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from muon import Muon
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aethernet.aether_core import VARIANTS, AetherNet
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.rewrites import as_tensors
from aethernet.errors import AetherError, ContradictionError
from aethernet.files import replacing
from aethernet.metrics import Figures, mean, measure

BETAS = (0.9, 0.99)  # as in the option files for the frameworks
LARGEST_NORM = 5.0  # of a gradient, as there: against a broken batch
# Muon's learning rate, as a multiple of AdamW's beside it: the ratio of the
# comparison in docs/training.md.
MUON_RATE = 2.5
LOSSES = {"l1": nn.functional.l1_loss, "l2": nn.functional.mse_loss}
MUON_WEIGHTS = re.compile(r"\.ffn\.fc(1_gate|1_main|2)\.weight$")


@dataclass(frozen=True)
class Recipe:
    """All settings that decide the weights; a run continues with the same ones only."""

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
    """SHA-256 of the pictures to validate on; empty: none."""
    decay: float = 0.1
    """Part of the iterations, the last, in which the learning rate falls to 0."""
    degrade: bool = False
    """Whether LR crops and validation pictures are degraded."""
    loss: str = "l1"
    """A name in LOSSES."""

    def rate_at(self, iteration: int) -> float:
        """Learning rate: a linear warm-up, constant, then linearly to 0."""
        warm = min(1.0, (iteration + 1) / max(self.warm_up, 1))
        falling = max(self.iterations - self.decay_start, 1)
        return self.rate * min(warm, (self.iterations - iteration) / falling)

    @property
    def decay_start(self) -> int:
        """Iteration from which the learning rate falls.

        Up to here a run is the same for every number of iterations.
        """
        return self.iterations - math.ceil(self.decay * self.iterations)

    def differences(self, before: Self, done: int) -> str:
        """What keeps a run that took `done` steps by `before` from going on by this.

        Another number of iterations is no difference as long as the learning rate
        falls in neither recipe: the steps so far would have been the same.
        """
        if done <= min(before.decay_start, self.decay_start):
            before = dataclasses.replace(before, iterations=self.iterations)
        old, new = dataclasses.asdict(before), dataclasses.asdict(self)
        return ", ".join(
            f"{name} {old[name]!r}, now {new[name]!r}"
            for name in new
            if old[name] != new[name]
        )


_Graph = tuple[Callable[[], None], list[Tensor], Tensor]
"""What repeats a step, the tensors that it reads, and its loss."""


class Trainer:
    """A network, the moving average of its weights, its optimizers, its progress."""

    def __init__(
        self, recipe: Recipe, start: dict[str, Tensor], device: torch.device
    ) -> None:
        """Begin with the tensors in `start`; weights that it lacks are fresh."""
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
        self.graphed = False
        """Take the steps as one CUDA graph, see `use_kernels`."""
        self._graph: _Graph | None = None

    def step(self, lr: Tensor, hr: Tensor) -> Tensor:
        """One iteration on LR and HR crops; its loss, on the device."""
        rate = self.recipe.rate_at(self.iteration)
        # Early on the average is short, so that it forgets the fresh weights.
        decay = min(self.recipe.ema, (1 + self.iteration) / (10 + self.iteration))
        torch.manual_seed(_seed(self.recipe.seed, self.iteration))  # stochastic depth
        lr, hr = (crops.to(self.device, non_blocking=True) for crops in (lr, hr))
        lr = lr.contiguous(memory_format=torch.channels_last)
        if self.graphed:
            loss = self._replay(lr, hr, rate, decay if self.iteration else 0.0)
        else:
            loss = self._update(lr, hr, rate)
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self.average.update_parameters(self.network)
        self.iteration += 1
        return loss

    def _update(self, lr: Tensor, hr: Tensor, rate: float | Tensor) -> Tensor:
        """Change the weights by one step; the loss before it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * _rate_factor(optimizer)
        half = self.recipe.precision == "bfloat16"
        # A CUDA graph cannot use the casts that autocast keeps.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=half, cache_enabled=False
        ):
            output = self.forward(lr)
        loss = LOSSES[self.recipe.loss](output.float(), hr)
        self.network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def _replay(self, lr: Tensor, hr: Tensor, rate: float, decay: float) -> Tensor:
        """`_update` and the average as one CUDA graph, which the first call records."""
        if self._graph is None:
            self._graph = self._record(lr, hr)
        replay, (lr_, hr_, rate_, decay_), loss = self._graph
        lr_.copy_(lr)
        hr_.copy_(hr)
        rate_.fill_(rate)
        decay_.fill_(decay)
        replay()
        self.average.n_averaged += 1
        return loss.clone()

    def _record(self, lr: Tensor, hr: Tensor) -> _Graph:
        number = torch.zeros((), device=self.device)
        inputs = [lr.clone(), hr.clone(), number, number.clone()]
        weights, averages = (
            [parameter.detach() for parameter in module.parameters()]
            for module in (self.network, self.average.module)
        )

        def step() -> Tensor:
            loss = self._update(*inputs[:3])
            decay = inputs[3]
            torch._foreach_mul_(averages, decay)
            added = torch._foreach_mul(weights, 1 - decay)  # noqa: SLF001 (documented)
            torch._foreach_add_(averages, added)
            return loss

        kept = [part.clone() for part in (*weights, *averages)]
        moments = _moments(self.optimizers)
        moments = {key: value.clone() for key, value in moments.items()}
        replay, loss = record_graph(step, self.device)
        # Undo the steps that were taken to record one.
        for part, before in zip((*weights, *averages), kept, strict=True):
            part.copy_(before)
        for key, value in _moments(self.optimizers).items():
            value.copy_(moments.get(key, torch.zeros_like(value)))
        return replay, inputs, loss

    def save(self, folder: Path) -> None:
        """Write `state.pt` and `net_g_latest.pth`, the latter read back and compared.

        Raises:
            AetherError: when weights are not finite, and nothing is written; or when
                writing fails.
        """
        checkpoint = self.checkpoint()
        if not all(value.isfinite().all() for value in checkpoint["params"].values()):
            raise diverged(self.iteration)
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
        """Continue from the state that `save` wrote.

        Raises:
            ContradictionError: when the state is of another recipe.
            AetherError: when the file is not what `save` wrote.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            before = Recipe(**state["recipe"])
            done = int(state["iteration"])
        except Exception as error:  # damage surfaces as many errors
            raise _damaged(path) from error
        changed = self.recipe.differences(before, done)
        if changed:
            raise ContradictionError(
                f"This folder holds a training with other settings ({changed}).",
                path.parent,
                "Repeat its flags to continue it, or name another folder (-o).",
            )
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(
                self.optimizers, state["optimizers"], strict=True
            ):
                # The state alone: its learning rate may be of another device.
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({**saved, "param_groups": groups})
                _check_moments(optimizer)
            self.iteration, self.best = done, {**state["best"]}
            if not 0 <= done <= self.recipe.iterations:
                raise ValueError("impossible iteration")
        except Exception as error:
            raise _damaged(path) from error

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


def use_kernels(trainer: Trainer) -> None:
    """Train on the Triton kernels, and each step as one CUDA graph.

    The step's kernels are so small that starting them one by one takes longer.
    """
    from aethernet.runtimes.triton.block import accelerate

    accelerate(trainer.network)
    trainer.graphed = True


def record_graph(
    step: Callable[[], Tensor], device: torch.device
) -> tuple[Callable[[], None], Tensor]:
    """Record what a function does on a GPU as a CUDA graph.

    It is called three times before, so that all memory is there and all kernels are
    compiled.

    Returns:
        What repeats it, and its result, which each repetition changes.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The thread that copies crops ahead may go on with that meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = step()
    return graph.replay, result


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a framework's checkpoint, and move it into place once it reads back equal.

    Raises:
        AetherError: when it does not, or writing fails.
    """
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)
        written = as_tensors(load_checkpoint(temporary).state_dict)
        wanted = checkpoint["params_ema"]
        if written.keys() != wanted.keys() or not all(
            torch.equal(written[key], value) for key, value in wanted.items()
        ):
            raise AetherError("The file does not read back as it was written.", path)


def _optimizers(network: AetherNet, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or for all but those of the linear layers, and Muon."""
    linear: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        by_muon = recipe.optimizer == "muon" and MUON_WEIGHTS.search(name)
        (linear if by_muon else others).append(parameter)
    adamw = torch.optim.AdamW(
        others,
        lr=recipe.rate,
        betas=BETAS,
        weight_decay=0,
        capturable=others[0].is_cuda,  # by a CUDA graph
    )
    if not linear:
        return [adamw]
    return [Muon(linear, lr=recipe.rate), adamw]


def _moments(
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[tuple[int, int, str], Tensor]:
    """All that optimizers keep, by optimizer, parameter and name; zeros at first."""
    return {
        (number, id(parameter), name): value
        for number, optimizer in enumerate(optimizers)
        for parameter, found in optimizer.state.items()
        for name, value in found.items()
    }


def _rate_factor(optimizer: torch.optim.Optimizer) -> float:
    return MUON_RATE if isinstance(optimizer, Muon) else 1.0


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError for moments of another shape than their parameters."""
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "momentum_buffer"):  # AdamW's, Muon's
            if moments.get(name, parameter).shape != parameter.shape:
                raise ValueError(f"{name} of another shape")


def diverged(iteration: int) -> AetherError:
    """The error to raise when weights or losses are not finite."""
    return AetherError(
        f"The training diverged before iteration {iteration}.",
        hint="What was saved before is kept; start again from that (--start) with a "
        "lower --rate.",
    )


def _damaged(path: Path) -> AetherError:
    return AetherError(
        "This is not the state of a training, or it is damaged. It was not used.",
        path,
        "Remove it to begin again from a checkpoint beside it (--start).",
    )


def _on_cpu(network: AetherNet) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().contiguous().clone()
        for name, value in network.state_dict().items()
    }


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
