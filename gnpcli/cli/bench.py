"""``gnp bench`` and its commands: each measures, and prints a table or JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli import bench_tables
from gnpcli.cli.options import (
    MOST,
    NOTHING_SET,
    JsonOption,
    PresetOption,
    SetOption,
    TrustOption,
    resolve_options,
    split_names,
)
from gnpcli.cli.output import print_json, start_measuring, tell
from gnpcli.config.paths import user_path

if TYPE_CHECKING:
    from gnpcli.config.resolved import Resolved

app = typer.Typer(invoke_without_command=True)

RoundsOption = Annotated[
    int,
    typer.Option("--rounds", min=1, max=MOST, help="Rounds. The figures are medians over them."),
]
StepsOption = Annotated[
    int, typer.Option("--steps", min=1, max=MOST, help="Steps of each kind in a round.")
]
AugmentationsOption = Annotated[
    str,
    typer.Option("--variants", help="Augmentations to compare in memory, joined by commas."),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        parser=user_path,
        metavar="FOLDER",
        help="Measure streaming instead, on the image files below this folder.",
    ),
]
CountOption = Annotated[
    int,
    typer.Option("--count", min=1, max=MOST, help="With --images: images that the feed decodes."),
]
FormsOption = Annotated[
    str | None,
    typer.Option("--variants", help="Forms of GR, joined by commas.", show_default="every one"),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile PyTorch's network with torch.compile.")
]
KindsOption = Annotated[
    str | None,
    typer.Option("--kinds", help="What to measure, joined by commas.", show_default="everything"),
]
MostSizeOption = Annotated[
    int | None,
    typer.Option("--most", min=1, max=MOST, help="The largest size.", show_default="all sizes"),
]


@app.callback()
def bench(
    context: typer.Context,
    preset: PresetOption = None,
    assignments: SetOption = NOTHING_SET,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure plain and GNP training steps of a preset, interleaved, on random images.

    Its commands measure the input pipelines, every form of GR, metrics and guard, the same network
    in PyTorch, the seconds to the first step, and growth with the size of data, logs and runs.
    """
    if context.invoked_subcommand is not None:
        return
    config = _configure(preset, assignments)
    from gnpcli.bench.steps import bench as measure

    result = measure(config, rounds=rounds, steps=steps, notify=tell)
    _print(result, as_json, bench_tables.print_steps)


@app.command("data")
def data(
    preset: PresetOption = None,
    assignments: SetOption = NOTHING_SET,
    variants: AugmentationsOption = "none,basic,autoaugment,mixup",
    images: ImagesOption = None,
    count: CountOption = 2000,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what feeding a preset costs, beside its training step.

    The images are in memory, or with --images decoded from the files of a folder.
    """
    config = _configure(preset, assignments)
    if images is not None:
        from gnpcli.bench.streamed import bench_streamed

        result = bench_streamed(config, images, count=count, rounds=rounds, notify=tell)
        _print(result, as_json, bench_tables.print_streamed)
        return
    from gnpcli.bench.data import bench_in_memory

    names = split_names(variants)
    result = bench_in_memory(config, variants=names, rounds=rounds, steps=steps, notify=tell)
    _print(result, as_json, bench_tables.print_in_memory)


@app.command("telemetry")
def telemetry(
    preset: PresetOption = None,
    assignments: SetOption = NOTHING_SET,
    rounds: RoundsOption = 7,
    steps: StepsOption = 3,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what metrics, guard and optimizer statistics cost, over a bare plain step."""
    config = _configure(preset, assignments)
    from gnpcli.bench.telemetry import bench_telemetry

    result = bench_telemetry(config, rounds=rounds, steps=steps, notify=tell)
    _print(result, as_json, bench_tables.print_telemetry)


@app.command("gr")
def gr(
    preset: PresetOption = None,
    assignments: SetOption = NOTHING_SET,
    variants: FormsOption = None,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure every form of GR as time and memory over plain training, on random images."""
    config = _configure(preset, assignments)
    from gnpcli.bench.gr import VARIANTS, bench_gr

    names = list(VARIANTS) if variants is None else split_names(variants)
    result = bench_gr(config, variants=names, rounds=rounds, steps=steps, notify=tell)
    _print(result, as_json, bench_tables.print_gr)


@app.command("peer")
def peer(
    preset: PresetOption = None,
    assignments: SetOption = NOTHING_SET,
    is_compiled: CompileOption = False,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure plain and GNP steps beside those of the same network in PyTorch."""
    config = _configure(preset, assignments)
    from gnpcli.bench.peer import bench_peer

    result = bench_peer(config, is_compiled=is_compiled, rounds=rounds, steps=steps, notify=tell)
    _print(result, as_json, bench_tables.print_peer)


@app.command("scale")
def scale(
    kinds: KindsOption = None, most: MostSizeOption = None, as_json: JsonOption = False
) -> None:
    """Measure how time and memory grow with images, classes, lines of a log and runs.

    All of it takes minutes, and a million files of no length in the folder of temporary files.
    """
    start_measuring()
    from gnpcli.bench.scale import KINDS, bench_scale

    names = list(KINDS) if kinds is None else split_names(kinds)
    _print(bench_scale(names, most, tell), as_json, bench_tables.print_scale)


@app.command("start")
def start(
    preset: PresetOption = None,
    assignments: SetOption = NOTHING_SET,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the seconds to the end of the first step, with nothing compiled before."""
    config = _configure(preset, assignments)
    from gnpcli.bench.start import bench_start

    _print(bench_start(config, notify=tell), as_json, bench_tables.print_start)


def _configure(preset: str | None, assignments: list[str]) -> Resolved:
    config = resolve_options(preset, assignments)
    start_measuring()
    return config


def _print(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        print_json(result)
    else:
        show(result)
