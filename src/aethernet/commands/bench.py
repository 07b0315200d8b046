"""`aethernet bench`: compare speed and memory with other networks."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from aethernet.checkpoints.layout import VARIANTS
from aethernet.checkpoints.shipped import find_model
from aethernet.commands.conversion import SCALES
from aethernet.commands.model_flags import add_threads
from aethernet.commands.values import size
from aethernet.devices import (
    choose_device,
    device_kind,
    has_bfloat16_units,
    limit_threads,
)
from aethernet.errors import import_optional
from aethernet.files import check_target
from aethernet.runtimes.base import PRECISIONS
from aethernet.runtimes.registry import RUNTIMES, runtimes_for


def bench(arguments: argparse.Namespace) -> None:
    """Run a benchmark, print its table, and write --json and --plot."""
    import_optional("torch", "bench")
    from aethernet.bench.contenders import BenchPlan
    from aethernet.bench.plot import check_plot, draw
    from aethernet.bench.report import as_table, write_json
    from aethernet.bench.rounds import run_benchmark
    from aethernet.checkpoints.checkpoint import CheckpointOptions, load_checkpoint

    if arguments.threads:
        limit_threads(arguments.threads)
    if arguments.json:
        check_target(arguments.json)
    if arguments.plot:
        check_plot(arguments.plot)
    device = str(choose_device(arguments.device))
    model = None
    if arguments.model:
        expected = CheckpointOptions(scale=arguments.scale, in_chans=3)
        model = load_checkpoint(find_model(arguments.model), expected)
    width, height = arguments.size
    plan = BenchPlan(
        scale=model.scale if model else arguments.scale or 2,
        width=width,
        height=height,
        variants=tuple(arguments.variants),
        peers=tuple(arguments.peers),
        runtimes=_given(arguments.runtimes, runtimes_for(device)),
        precisions=_given(arguments.precisions, _precisions_for(device)),
        model=model,
        runs=arguments.runs,
        seconds=arguments.seconds,
        device=device,
        memory=arguments.memory,
        cpu_time=arguments.cpu_time,
    )
    report = run_benchmark(plan)
    print(as_table(report))
    if arguments.json:
        write_json(report, arguments.json, arguments.command_line)
    if arguments.plot:
        draw(report, arguments.plot)


def _given(names: Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """What a flag gives, which may be nothing; the default where it is not used."""
    return default if names is None else tuple(names)


def _precisions_for(device: str) -> tuple[str, ...]:
    """All precisions; on a CPU those that do not take many times as long."""
    if device_kind(device) != "cpu":
        return PRECISIONS
    return ("float32", "bfloat16") if has_bfloat16_units() else ("float32",)


def define(parser: argparse.ArgumentParser) -> None:
    from aethernet.bench.peers import PEERS

    parser.description = (
        "Time AetherNet in all its forms, and other networks of the same scale on the "
        "same input. All of them are loaded, then they run in turns. Also measures "
        "memory, and the share of the machine's arithmetic that each network reaches."
    )
    parser.epilog = (
        "example: aethernet bench --model my_2x.safetensors --variants --peers compact "
        "--json bench.json --plot bench.png"
    )
    parser.add_argument(
        "--scale", type=int, choices=SCALES, help="default: the model's, otherwise 2"
    )
    parser.add_argument(
        "--size",
        type=size,
        default="128x128",
        metavar="WxH",
        help="of the LR image; default: 128x128",
    )
    nothing = "give the flag without values for none"
    names: tuple[tuple[str, Sequence[str], Sequence[str] | None, str], ...] = (
        ("--variants", tuple(VARIANTS), tuple(VARIANTS), f"all; {nothing}"),
        ("--peers", tuple(PEERS), tuple(PEERS), f"all; {nothing}"),
        ("--runtimes", tuple(RUNTIMES), None, "all that --runtime auto may take there"),
        ("--precisions", PRECISIONS, None, "all; on a CPU those that it is made for"),
    )
    for flag, choices, default, text in names:
        parser.add_argument(
            flag, nargs="*", choices=choices, default=default, help=f"default: {text}"
        )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="CHECKPOINT",
        help="also compare this one, in every form and as --runtime auto runs it",
    )
    parser.add_argument(
        "--runs", type=int, default=10, metavar="N", help="rounds, at most; default: 10"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30,
        metavar="S",
        help="a contender that has run for so long is left out of later rounds; "
        "default: 30",
    )
    parser.add_argument(
        "--device", default="auto", help="default: a GPU if there is one"
    )
    add_threads(parser)
    parser.add_argument(
        "--no-memory",
        dest="memory",
        action="store_false",
        help="do not measure memory, which takes a process for each contender",
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="also show processor time and its ratios, for machines with other work",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all results, with the times of every round",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw speed against arithmetic, .png or .svg",
    )
    parser.set_defaults(job=bench)
