"""``gnp plot`` and ``gnp report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gnpcli.cli.options import PictureOption, RunArgument, RunsArgument, split_names
from gnpcli.cli.output import say, warn
from gnpcli.config.paths import user_path


def _names(texts: list[str]) -> list[str]:
    return [name for text in texts for name in split_names(text)]


MetricsOption = Annotated[
    list[str],
    typer.Option(
        "--metrics",
        "-m",
        callback=_names,
        help="Panels (loss, error, norms, cosine, lr, ...) or keys of metrics.jsonl, joined by "
        "commas.",
        show_default="what the runs have logged",
    ),
]
AxisOption = Annotated[
    Literal["step", "epoch", "time"], typer.Option("--x", help="The horizontal axis.")
]
BandOption = Annotated[
    Literal["range", "std"],
    typer.Option("--band", help="Band over seeds: lowest to highest, or one standard deviation."),
]
ColumnsOption = Annotated[
    int, typer.Option("--columns", min=1, max=100, help="Panels side by side.")
]
PageOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=user_path,
        metavar="FILE",
        help="The page.",
        show_default="report.html in the run folder",
    ),
]
EVERY_PANEL: list[str] = []


def plot(
    runs: RunsArgument,
    out: PictureOption = Path("plot.png"),
    metrics: MetricsOption = EVERY_PANEL,
    axis: AxisOption = "epoch",
    spread: BandOption = "range",
    columns: ColumnsOption = 3,
) -> None:
    """Draw the curves of runs: loss, error, gradient norms, cosine and schedules.

    Runs that differ only in their seed become one curve with a band.
    """
    from gnpcli.report.plot import plot as run

    for line in run(
        runs, out, metrics=metrics, axis=axis, spread=spread, columns=columns, warn=warn
    ):
        say(line)


def report(run: RunArgument, out: PageOption = None) -> None:
    """Write one self-contained HTML page about a run.

    It shows figures, objective, curves, configuration, and where the run ran.
    """
    from gnpcli.report.run_page import write_report

    say(str(write_report(run, out)))
