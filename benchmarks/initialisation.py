"""Compare two initialisations: `python benchmarks/initialisation.py FOLDER`.

Trains a small network twice for each seed, on the same crops in the same order: from
the published initialisation (truncated normal, standard deviation 0.02), and from one
that preserves variance, with depthwise kernels that begin as the identity. FOLDER has
HR pictures. Prints the mean L1 loss of the 50 steps before each mark, and at the end
PSNR (RGB) on crops of pictures that are not trained on.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aethernet.aether_core import AetherNet, ReparamLargeKernelConv
from aethernet.files import files_in
from aethernet.pictures.files import SUFFIXES
from aethernet.pictures.training_crops import TrainingCrops

SCALE = 2
BATCH, SIZE = 8, 16  # crops, LR pixels
HELD_OUT = 6  # pictures
PEAK_RATE, WARM_UP = 1e-3, 100
WINDOW = 50  # steps over which the printed loss is averaged
GATE_VARIANCE = 0.425  # of GELU(a) * b, a and b standard normal: E[GELU(a)^2]


def published(network: AetherNet) -> None:
    """Keep the initialisation of the network itself."""


@torch.no_grad()
def variance_preserving(network: AetherNet) -> None:
    for name, module in network.named_modules():
        if isinstance(module, ReparamLargeKernelConv):
            large, small = module.lk_conv.weight, module.sk_conv.weight
            large.normal_(std=0.1 / large.shape[-1])  # a hundredth of the variance
            small.zero_()[:, :, small.shape[2] // 2, small.shape[3] // 2] = 1
        elif isinstance(module, nn.Linear | nn.Conv2d) and ".conv." not in name:
            module.weight.normal_(std=module.weight[0].numel() ** -0.5)
            if name.endswith("fc2"):
                module.weight.div_(math.sqrt(GATE_VARIANCE))
    network.conv_last.weight.mul_(0.1)  # the output begins near the mean, as published


def train(
    start: str, seed: int, steps: int, crops: TrainingCrops
) -> tuple[list[float], float]:
    """Loss of every step, and the final PSNR in dB."""
    torch.manual_seed(seed)
    network = AetherNet(embed_dim=48, depths=(3, 3), scale=SCALE)
    STARTS[start](network)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE)
    random = np.random.default_rng(seed)
    losses = []
    for step in range(steps):
        warm = min(1.0, (step + 1) / WARM_UP)
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = PEAK_RATE * warm * cosine
        lr, hr = crops.batch(BATCH, SIZE, random)
        loss = nn.functional.l1_loss(network(lr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    lr, hr = crops.held_out(64, 64)
    with torch.inference_mode():
        error = torch.cat([network.eval()(a[None]) for a in lr]).clamp(0, 1) - hr
    return losses, -10 * error.square().mean(dim=(1, 2, 3)).log10().mean().item()


STARTS = {"published": published, "variance-preserving": variance_preserving}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="HR pictures, more than six")
    parser.add_argument("--steps", type=int, default=3000, help="default: 3000")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is no folder")
    paths = files_in(arguments.folder, SUFFIXES, "pictures")
    if len(paths) <= HELD_OUT:
        parser.error(f"{arguments.folder} holds {len(paths)} pictures, more are needed")
    crops = TrainingCrops(paths, SCALE, held_out=HELD_OUT)
    marks = [m for m in (100, 400, 1000, 2000) if m < arguments.steps]
    marks.append(arguments.steps)
    print("start", "seed", *(f"L1@{mark}" for mark in marks), "PSNR", sep="\t")
    for seed in range(arguments.seeds):
        for start in STARTS:
            losses, psnr = train(start, seed, arguments.steps, crops)
            means = [np.mean(losses[max(0, mark - WINDOW) : mark]) for mark in marks]
            row = [start, seed, *(f"{mean:.4f}" for mean in means), f"{psnr:.2f}"]
            print(*row, sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
