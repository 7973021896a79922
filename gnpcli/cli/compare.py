"""``gnp compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gnpcli.cli.options import JsonOption


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders made by gnp train.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show several runs side by side: what differs in their configuration, final and best errors,
    and cost.
    """
    from gnpcli.runs.compare import compare as run

    result = run(
        runs, lambda text: typer.secho(f"warning: {text}", fg=typer.colors.YELLOW, err=True)
    )
    if as_json:
        import json

        typer.echo(json.dumps(result, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False)
    for name in ("", *(one["label"] for one in result["runs"])):
        grid.add_column(Text(name, style="bold"), overflow="fold")
    for key, values in result["differences"].items():
        grid.add_row(
            Text(key, style="cyan"),
            *(Text("-" if value is None else str(value)) for value in values),
        )
    grid.add_section()
    for name, texts in _measurements(result["runs"]):
        grid.add_row(name, *texts)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400
    console.print(grid)


def _measurements(runs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the lines below the configuration: a name, and a text for each run."""
    lines = [("status", [f"{one['status']}, epoch {one['epoch']:g}" for one in runs])]
    for split in ("val", "test"):
        if any(split in one["final"] for one in runs):
            lines += [
                (f"{split} error", [_percent(one["final"].get(split)) for one in runs]),
                (
                    f"best {split} error",
                    [_percent(one["best"].get(split), with_epoch=True) for one in runs],
                ),
                (
                    f"{split} loss",
                    [_number(one["final"].get(split, {}).get("loss"), ".4f") for one in runs],
                ),
            ]
    costs = [one["cost"] for one in runs]
    return [
        *lines,
        ("parameters", [_number(cost["num_parameters"], ",") for cost in costs]),
        (
            "steps, plain + GNP",
            [f"{cost['plain_steps']:,} + {cost['gnp_steps']:,}" for cost in costs],
        ),
        ("gradients", [f"{cost['gradients']:,}" for cost in costs]),
        ("training time", [f"{cost['training_time_s']:,.0f} s" for cost in costs]),
        ("images/s", [_number(cost["images_per_s"], ",.0f") for cost in costs]),
        ("devices", [", ".join(cost["devices"]) or "-" for cost in costs]),
    ]


def _percent(measured: dict[str, Any] | None, *, with_epoch: bool = False) -> str:
    if measured is None or measured["error_rate"] is None:
        return "-"
    epoch = f" (epoch {measured['epoch']:g})" if with_epoch else ""
    return f"{100 * measured['error_rate']:.2f} %{epoch}"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
