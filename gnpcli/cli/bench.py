"""``gnp bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from gnpcli.cli.options import JsonOption, PresetOption, SetOption, resolve_options


def bench(
    preset: PresetOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; the figures are medians over them.")] = 5,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of each kind in a round.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure plain and GNP training steps of a preset, interleaved, on random images of its shape."""
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
