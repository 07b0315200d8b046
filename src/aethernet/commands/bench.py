"""`aethernet bench`: compare speed and memory with other networks."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from aethernet.aether_core import VARIANTS
from aethernet.checkpoints.shipped import find_model
from aethernet.commands.conversion import SCALES
from aethernet.commands.values import fixed_size
from aethernet.devices import choose_device, has_bfloat16_units
from aethernet.runtimes.base import PRECISIONS
from aethernet.runtimes.registry import RUNTIMES


def bench(arguments: argparse.Namespace) -> None:
    """Job: compare `variants`, `model`, `peers`; print, and write `json`, `plot`."""
    from aethernet.bench.contenders import Plan
    from aethernet.bench.report import as_table, check_targets, draw, write_json
    from aethernet.bench.rounds import run_benchmark
    from aethernet.checkpoints.checkpoint import load_checkpoint

    check_targets(arguments.json, arguments.plot)
    device = choose_device(arguments.device)
    runtimes, precisions = arguments.runtimes, arguments.precisions
    if runtimes is None:
        gpu = device.type == "cuda"
        runtimes = [name for name in RUNTIMES if gpu or name != "tensorrt"]
    if precisions is None:
        # A processor without units for a precision takes many times as long in it.
        precisions = PRECISIONS
        if device.type == "cpu":
            precisions = ("float32", "bfloat16")[: 1 + has_bfloat16_units()]
    scale, model = arguments.scale, arguments.model
    if model:
        model = find_model(model)
    if scale is None:
        scale = load_checkpoint(model).scale if model else 2
    _, height, width = arguments.size.typical
    plan = Plan(
        scale=scale,
        width=width,
        height=height,
        variants=tuple(arguments.variants),
        peers=tuple(arguments.peers),
        runtimes=tuple(runtimes),
        precisions=tuple(precisions),
        model=model,
        runs=arguments.runs,
        seconds=arguments.seconds,
        device=str(device),
        memory=arguments.memory,
    )
    report = run_benchmark(plan)
    print(as_table(report))
    if arguments.json:
        write_json(report, arguments.json, shlex.join(["aethernet", *arguments.words]))
    if arguments.plot:
        draw(report, arguments.plot)


def define(parser: argparse.ArgumentParser) -> None:
    from aethernet.bench.peers import PEERS

    parser.description = (
        "Time AetherNet in all its forms, and other networks of the same scale on the "
        "same input, side by side: each is loaded, then all take turns. Also measures "
        "memory and the share of the machine's arithmetic that each one reaches."
    )
    parser.epilog = (
        "example: aethernet bench --model my_2x.safetensors --variants --peers compact "
        "--json bench.json --plot bench.png"
    )
    parser.add_argument(
        "--scale", type=int, choices=SCALES, help="default: the model's, else 2"
    )
    parser.add_argument(
        "--size",
        type=fixed_size,
        default="128x128",
        metavar="WxH",
        help="of the LR image; default: 128x128",
    )
    names: tuple[tuple[str, Sequence[str], Sequence[str] | None, str], ...] = (
        ("--variants", tuple(VARIANTS), tuple(VARIANTS), "all; none after it: none"),
        ("--peers", tuple(PEERS), tuple(PEERS), "all; none after it: none"),
        ("--runtimes", tuple(RUNTIMES), None, "all that suit the device"),
        ("--precisions", PRECISIONS, None, "all, on a CPU those it is made for"),
    )
    for flag, choices, default, said in names:
        parser.add_argument(
            flag, nargs="*", choices=choices, default=default, help=f"default: {said}"
        )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="CHECKPOINT",
        help="compare this one too, also with what --runtime auto makes of it",
    )
    parser.add_argument(
        "--runs", type=int, default=10, metavar="N", help="rounds, at most; default: 10"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30,
        metavar="S",
        help="a contender that has run for so long leaves later rounds; default: 30",
    )
    parser.add_argument(
        "--device", default="auto", help="default: a GPU where there is one"
    )
    parser.add_argument(
        "--no-memory",
        dest="memory",
        action="store_false",
        help="do not measure memory, which takes a process for each contender",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw speed and work, .png or .svg"
    )
    parser.set_defaults(job=bench)
