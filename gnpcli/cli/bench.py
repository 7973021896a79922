"""``gnp bench`` and its commands: each measures, and prints a table or JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli.options import JsonOption, PresetOption, SetOption, resolve_options

if TYPE_CHECKING:
    from gnpcli.config import RunConfig

app = typer.Typer(invoke_without_command=True)

RoundsOption = Annotated[
    int, typer.Option("--rounds", min=1, help="Rounds; the figures are medians over them.")
]
StepsOption = Annotated[int, typer.Option("--steps", min=1, help="Steps of each kind in a round.")]


@app.callback()
def bench(
    context: typer.Context,
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure plain and GNP training steps of a preset, interleaved, on random images of its shape.

    The commands measure the input pipelines, every form of GR, metrics and guard, and the same
    network in PyTorch.
    """
    if context.invoked_subcommand is not None:
        return
    config = _configure(preset, assignments)
    from gnpcli.bench.steps import bench as measure

    _tell(measure(config, rounds=rounds, steps=steps, notify=_notify), as_json, _print_steps)


@app.command("data")
def data(
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    variants: Annotated[
        str,
        typer.Option(
            "--variants", help="What to compare in memory: augmentations, joined by commas."
        ),
    ] = "none,basic,autoaugment,mixup",
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Measure streaming instead, on the image files below this folder."
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", min=1, help="With --images: images that the feed decodes.")
    ] = 2000,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure what feeding a preset costs: in memory beside its training step, or decoding the
    files of a folder.
    """
    config = _configure(preset, assignments)
    if images is None:
        from gnpcli.bench.data import bench_in_memory

        result = bench_in_memory(
            config, variants=_names(variants), rounds=rounds, steps=steps, notify=_notify
        )
        _tell(result, as_json, _print_in_memory)
    else:
        from gnpcli.bench.streamed import bench_streamed

        result = bench_streamed(config, images, count=count, rounds=rounds, notify=_notify)
        _tell(result, as_json, _print_streamed)


@app.command("telemetry")
def telemetry(
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    rounds: RoundsOption = 7,
    steps: StepsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure what a step's metrics, its guard and the statistics of its optimizer cost, over a
    bare plain step.
    """
    config = _configure(preset, assignments)
    from gnpcli.bench.telemetry import bench_telemetry

    _tell(
        bench_telemetry(config, rounds=rounds, steps=steps, notify=_notify),
        as_json,
        _print_telemetry,
    )


@app.command("gr")
def gr(
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    variants: Annotated[
        str | None,
        typer.Option("--variants", help="Forms of GR, joined by commas. [default: every one]"),
    ] = None,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure every form of GR as time and memory over plain training, interleaved, on random
    images.
    """
    config = _configure(preset, assignments)
    from gnpcli.bench.gr import VARIANTS, bench_gr

    names = list(VARIANTS) if variants is None else _names(variants)
    _tell(
        bench_gr(config, variants=names, rounds=rounds, steps=steps, notify=_notify),
        as_json,
        _print_gr,
    )


@app.command("peer")
def peer(
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    is_compiled: Annotated[
        bool, typer.Option("--compile", help="Put PyTorch's network through torch.compile.")
    ] = False,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure plain and GNP steps beside those of the same network in PyTorch (timm, torchvision),
    interleaved.
    """
    config = _configure(preset, assignments)
    from gnpcli.bench.peer import bench_peer

    result = bench_peer(config, is_compiled=is_compiled, rounds=rounds, steps=steps, notify=_notify)
    _tell(result, as_json, _print_peer)


def _configure(preset: str | None, assignments: list[str]) -> RunConfig:
    config = resolve_options(preset, assignments)
    from gnpcli.devices.process import keep_freed_memory

    keep_freed_memory()
    return config


def _names(joined: str) -> list[str]:
    return [name.strip() for name in joined.split(",")]


def _notify(text: str) -> None:
    typer.echo(text, err=True)


def _tell(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(result, indent=2))
    else:
        show(result)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=None, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _in_title(result: dict[str, Any]) -> str:
    return f"{result['model']}, batch {result['batch_size']}, {result['dtype']}"


def _or_dash(value: float | None, form: str, scale: float = 1) -> str:
    return "-" if value is None else format(value * scale, form)


def _print_steps(result: dict[str, Any]) -> None:
    _print_table(
        f"{_in_title(result)}, {result['devices']} device(s)",
        ("", "img/s", "ms/step", "min-max", "compile s", "MB", "GFLOP/step", "of matmul peak"),
        [
            (
                row["name"], f"{row['images_per_s']:.1f}", f"{row['step_ms']:.1f}",
                f"{row['step_ms_min']:.0f}-{row['step_ms_max']:.0f}", f"{row['compile_s']:.1f}",
                _or_dash(row["peak_bytes"], ",.0f", 1e-6), _or_dash(row["flops_per_step"], ".1f", 1e-9),
                _or_dash(row["share_of_matmul_peak"], ".0%"),
            )
            for row in result["measurements"]
        ],
    )  # fmt: skip
    ratio = result["measurements"][0]["gnp_over_plain"]
    typer.echo(f"GNP / plain: {ratio:.3f} (median of {result['rounds']} rounds)")


def _print_in_memory(result: dict[str, Any]) -> None:
    _print_table(
        f"{result['model']}, batch {result['batch_size']}, {result['image_size']} px, "
        f"{result['dtype']}, "
        f"{result['devices']} device(s)",
        ("", "empty model img/s", "training img/s", "feed / step", "of the first"),
        [
            (
                row["name"], f"{row['feed_images_per_s']:,.0f}", f"{row['images_per_s']:,.1f}",
                f"{row['feed_share']:.1%}", f"{row['relative_rate']:.1%}",
            )
            for row in result["measurements"]
        ],
    )  # fmt: skip


def _print_streamed(result: dict[str, Any]) -> None:
    typer.echo(
        f"{result['images']} files to {result['image_size']} px, cropped, flipped, normalised, in "
        "one thread:"
    )
    for row in result["measurements"]:
        typer.echo(
            f"  {row['name']:<12}{row['images_per_s']:6,.0f} img/s  {row['over_pillow']:.2f} times "
            "pillow"
        )
    feed = result["feed"]
    workers = "one worker per core" if feed["workers"] is None else f"{feed['workers']} worker(s)"
    typer.echo(f"feed, {workers}: {feed['images_per_s']:,.0f} img/s")
    if feed["memory"][0][1] is not None:
        told = ", ".join(
            f"{megabytes:,.0f} MB after {images:,}" for images, megabytes in feed["memory"]
        )
        typer.echo(f"memory: {told}")


def _print_telemetry(result: dict[str, Any]) -> None:
    cpu = result["cpu_step_over_bare"]
    typer.echo(f"{_in_title(result)}: {result['step_ms']:.1f} ms bare")
    typer.echo(
        f"metrics and guard: {result['step_over_bare']:.4f} times a bare step"
        + ("" if cpu is None else f", {cpu:.4f} in processor time")
    )
    if result["statistics_ms"] is not None:
        typer.echo(
            f"adaptive rates: {result['statistics_ms']:.2f} ms every {result['log_every_steps']} "
            "steps, "
            f"{100 * result['statistics_share']:.3f} % of a bare step"
        )


def _print_gr(result: dict[str, Any]) -> None:
    _print_table(
        f"{_in_title(result)}, {result['devices']} device(s), r {result['r']:g}, alpha "
        f"{result['alpha']:g}; "
        f"{result['rounds']} rounds",
        ("", "time", "min-max", "CPU time", "FLOP", "memory", "ms/step", "MB", "compile s"),
        [
            (
                row["name"], f"{row['over_plain']:.3f}", f"{row['over_plain_min']:.2f}-{row['over_plain_max']:.2f}",
                _or_dash(row["cpu_over_plain"], ".3f"), _or_dash(row["flops_over_plain"], ".2f"),
                _or_dash(row["memory_over_plain"], ".2f"), f"{row['step_ms']:.1f}",
                _or_dash(row["peak_bytes"], ",.0f", 1e-6), f"{row['compile_s']:.1f}",
            )
            for row in result["measurements"]
        ],
    )  # fmt: skip
    typer.echo("time, CPU time, FLOP and memory as multiples of plain training")


def _print_peer(result: dict[str, Any]) -> None:
    how = "compiled" if result["is_compiled"] else "eager"
    peer = " and ".join(f"{name} {version}" for name, version in result["peer"].items())
    _print_table(
        f"{_in_title(result)}, {result['optimizer']}, beside {peer}, {how}; {result['rounds']} "
        "rounds",
        ("", "img/s", "ms/step", "PyTorch img/s", "ms/step", "times as fast", "min-max", "in CPU time"),
        [
            (
                row["name"], f"{row['images_per_s']:.1f}", f"{row['step_ms']:.1f}",
                f"{row['torch_images_per_s']:.1f}", f"{row['torch_step_ms']:.1f}", f"{row['times_as_fast']:.2f}",
                f"{row['times_as_fast_min']:.2f}-{row['times_as_fast_max']:.2f}",
                _or_dash(row["cpu_times_as_fast"], ".2f"),
            )
            for row in result["measurements"]
        ],
    )  # fmt: skip
    typer.echo(
        f"logits of both with the same weights differ by {result['difference']:.1e} of the largest"
    )
