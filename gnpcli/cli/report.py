"""``gnp plot`` and ``gnp report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gnpcli.cli.options import RunArgument, RunsArgument, warn


def _names(texts: list[str]) -> list[str]:
    return [name for text in texts for part in text.split(",") if (name := part.strip())]


def plot(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.")] = Path("plot.png"),
    metrics: Annotated[
        list[str],
        typer.Option(
            "--metrics", "-m", callback=_names,
            help="Panels (loss, error, norms, cosine, lr, ...) or keys of metrics.jsonl, joined by commas. "
            "[default: what the runs have logged]",
        ),
    ] = [],  # noqa: B006 - typer copies it
    axis: Annotated[Literal["step", "epoch", "time"], typer.Option("--x", help=("What the curves "
        "are over."))] = "epoch",
    spread: Annotated[
        Literal["range", "std"],
        typer.Option("--band", help=("Band over seeds: lowest to highest, or a standard deviation "
            "either way.")),
    ] = "range",
    columns: Annotated[int, typer.Option("--columns", min=1, help="Panels side by side.")] = 3,
) -> None:  # fmt: skip
    """Draw loss, error, gradient norms, cosine and schedules of runs; seeds of one configuration
    become a band.
    """
    from gnpcli.report.plot import plot as run

    typer.echo(
        run(runs, out, metrics=metrics, axis=axis, spread=spread, columns=columns, warn=warn)
    )


def report(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page. [default: report.html in the run folder]"),
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run: figures, objective, curves, configuration,
    where it ran.
    """
    from gnpcli.report.run_page import write_report

    typer.echo(str(write_report(run, out)))
