"""``gnp bench``, ``gnp bench data`` and ``gnp bench gr``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gnpcli.cli.options import JsonOption, PresetOption, SetOption, resolve_options

app = typer.Typer(invoke_without_command=True)

RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Rounds; the figures are medians over them.")]
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

    `gnp bench data` measures the input pipelines, `gnp bench gr` every form of GR.
    """
    if context.invoked_subcommand is not None:
        return
    from gnpcli.runtime import keep_freed_memory

    config = resolve_options(preset, assignments)
    keep_freed_memory()
    from gnpcli.bench import bench as run

    result = run(config, rounds=rounds, steps=steps, report=lambda text: typer.echo(text, err=True))
    if as_json:
        import json

        typer.echo(json.dumps(result, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['model']}, batch {result['batch_size']}, {result['dtype']}, {result['devices']} device(s)",
        box=None, title_justify="left",
    )  # fmt: skip
    for column in ("", "img/s", "ms/step", "min-max", "compile s", "MB", "GFLOP/step", "of matmul peak"):
        table.add_column(column, justify="right" if column else "left")
    for row in result["measurements"]:
        flops, share = row["flops_per_step"], row["share_of_matmul_peak"]
        table.add_row(
            row["name"], f"{row['images_per_s']:.1f}", f"{row['step_ms']:.1f}",
            f"{row['step_ms_min']:.0f}-{row['step_ms_max']:.0f}", f"{row['compile_s']:.1f}",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
            "-" if flops is None else f"{flops / 1e9:.1f}", "-" if share is None else f"{100 * share:.0f} %",
        )  # fmt: skip
    Console(highlight=False).print(table)
    typer.echo(f"GNP / plain: {result['measurements'][0]['gnp_over_plain']:.3f} (median of {rounds} rounds)")


@app.command("data")
def data(
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    variants: Annotated[
        str, typer.Option("--variants", help="What to compare in memory: augmentations, joined by commas.")
    ] = "none,basic,autoaugment,mixup",
    images: Annotated[
        Path | None, typer.Option("--images", help="Measure streaming instead, on the image files below this folder.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="With --images: images that the feed decodes.")] = 2000,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure what feeding a preset costs: in memory beside its training step, or decoding the files of a folder."""
    config = resolve_options(preset, assignments)
    from gnpcli.runtime import keep_freed_memory

    keep_freed_memory()
    from gnpcli import bench_data

    def report(text: str) -> None:
        typer.echo(text, err=True)

    if images is None:
        names = [name.strip() for name in variants.split(",")]
        result = bench_data.bench_in_memory(config, variants=names, rounds=rounds, steps=steps, report=report)
    else:
        result = bench_data.bench_streamed(config, images, count=count, rounds=rounds, report=report)
    if as_json:
        import json

        typer.echo(json.dumps(result, indent=2))
    elif images is None:
        _print_in_memory(result)
    else:
        _print_streamed(result)


def _print_in_memory(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['model']}, batch {result['batch_size']}, {result['image_size']} px, {result['dtype']}, "
        f"{result['devices']} device(s)",
        box=None, title_justify="left",
    )  # fmt: skip
    for column in ("", "empty model img/s", "training img/s", "feed / step", "of the first"):
        table.add_column(column, justify="right" if column else "left")
    for row in result["measurements"]:
        table.add_row(
            row["name"], f"{row['feed_images_per_s']:,.0f}", f"{row['images_per_s']:,.1f}",
            f"{100 * row['feed_share']:.1f} %", f"{100 * row['relative_rate']:.1f} %",
        )  # fmt: skip
    Console(highlight=False).print(table)


def _print_streamed(result: dict[str, Any]) -> None:
    typer.echo(f"{result['images']} files to {result['image_size']} px, cropped, flipped, normalised, in one thread:")
    for row in result["measurements"]:
        typer.echo(f"  {row['name']:<12}{row['images_per_s']:6,.0f} img/s  {row['over_pillow']:.2f} times pillow")
    feed = result["feed"]
    workers = "one worker per core" if feed["workers"] is None else f"{feed['workers']} worker(s)"
    typer.echo(f"feed, {workers}: {feed['images_per_s']:,.0f} img/s")
    if feed["memory"][0][1] is not None:
        told = ", ".join(f"{megabytes:,.0f} MB after {images:,}" for images, megabytes in feed["memory"])
        typer.echo(f"memory: {told}")


@app.command("telemetry")
def telemetry(
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    rounds: RoundsOption = 7,
    steps: StepsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure what a step's metrics, its guard and the statistics of its optimizer cost, over a bare plain step."""
    config = resolve_options(preset, assignments)
    from gnpcli.runtime import keep_freed_memory

    keep_freed_memory()
    from gnpcli.bench_telemetry import bench_telemetry

    result = bench_telemetry(config, rounds=rounds, steps=steps, report=lambda text: typer.echo(text, err=True))
    if as_json:
        import json

        typer.echo(json.dumps(result, indent=2))
        return
    cpu = result["cpu_step_over_bare"]
    typer.echo(f"{result['model']}, batch {result['batch_size']}, {result['dtype']}: {result['step_ms']:.1f} ms bare")
    typer.echo(
        f"metrics and guard: {result['step_over_bare']:.4f} times a bare step"
        + ("" if cpu is None else f", {cpu:.4f} in processor time")
    )
    if result["statistics_ms"] is not None:
        typer.echo(
            f"adaptive rates: {result['statistics_ms']:.2f} ms every {result['log_every_steps']} steps, "
            f"{100 * result['statistics_share']:.3f} % of a bare step"
        )


@app.command("gr")
def gr(
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    variants: Annotated[
        str | None, typer.Option("--variants", help="Forms of GR, joined by commas. [default: every one]")
    ] = None,
    rounds: RoundsOption = 5,
    steps: StepsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure every form of GR as time and memory over plain training, interleaved, on random images."""
    config = resolve_options(preset, assignments)
    from gnpcli.runtime import keep_freed_memory

    keep_freed_memory()
    from gnpcli.bench_gr import VARIANTS, bench_gr

    names = list(VARIANTS) if variants is None else [name.strip() for name in variants.split(",")]
    result = bench_gr(
        config, variants=names, rounds=rounds, steps=steps, report=lambda text: typer.echo(text, err=True)
    )
    if as_json:
        import json

        typer.echo(json.dumps(result, indent=2))
    else:
        _print_gr(result)


def _print_gr(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['model']}, batch {result['batch_size']}, {result['dtype']}, {result['devices']} device(s), "
        f"r {result['r']:g}, alpha {result['alpha']:g}; {result['rounds']} rounds",
        box=None, title_justify="left",
    )  # fmt: skip
    for column in ("", "time", "min-max", "CPU time", "FLOP", "memory", "ms/step", "MB", "compile s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in result["measurements"]:
        cpu, flops, memory = row["cpu_over_plain"], row["flops_over_plain"], row["memory_over_plain"]
        table.add_row(
            row["name"], f"{row['over_plain']:.3f}", f"{row['over_plain_min']:.2f}-{row['over_plain_max']:.2f}",
            "-" if cpu is None else f"{cpu:.3f}", "-" if flops is None else f"{flops:.2f}",
            "-" if memory is None else f"{memory:.2f}", f"{row['step_ms']:.1f}",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['compile_s']:.1f}",
        )  # fmt: skip
    Console(highlight=False).print(table)
    typer.echo("time, CPU time, FLOP and memory as multiples of plain training")
