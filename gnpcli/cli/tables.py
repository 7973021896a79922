"""``gnp reproduce-table`` and ``gnp tables``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli.options import DataDirOption, DatasetOption, JsonOption, QuietOption, SetOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnpcli.tables.cells import Cell, CellState
    from gnpcli.tables.results import TableResult
    from gnpcli.tables.runner import CellProgress
    from gnpcli.tables.spec import Table

app = typer.Typer(help="The shipped tables.", no_args_is_help=True)


def _words(text: str | None) -> list[str] | None:
    words = None if text is None else [word.strip() for word in text.split(",") if word.strip()]
    if words == []:
        raise typer.BadParameter("names none")
    return words


def _seeds(text: str | None) -> list[int] | None:
    """Read ``0,1,2`` and ``0-4``."""
    seeds: list[int] = []
    for word in _words(text) or ():
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(
                f"'{word}' is not a seed: write 0,1,2 or 0-4", param_hint="--seeds"
            )
        seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    if text is not None and (len(set(seeds)) < len(seeds) or not seeds):
        raise typer.BadParameter(f"'{text}' names a seed twice, or none", param_hint="--seeds")
    return seeds or None


def reproduce_table(
    name: Annotated[
        str, typer.Argument(metavar="TABLE", help="Name of gnp tables list, or a YAML file.")
    ],
    models: Annotated[
        str | None,
        typer.Option("--models", "--rows", metavar="ROW,...", help="Rows to run. [default: all]"),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="COLUMN,...", help="Columns to run. [default: all]"),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="SEED,...", help="0,1,2 or 0-4. [default: the table's]"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs", help="Passes over the training data; warmups keep their share of them."
        ),
    ] = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant", help="A variant of the table, see gnp tables show. [default: the first]"
        ),
    ] = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of cells and results. [default: tables/TABLE[-VARIANT]]"
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", min=1, help="Cells at a time; GPUs, else cores, are divided among them."
        ),
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what there is to do and how long it would take, and exit."
        ),
    ] = False,
    render: Annotated[
        bool,
        typer.Option(
            "--render",
            help="Run nothing: tell the result of the cells in --out, or of those chosen.",
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a table of the papers, rows x columns x seeds, and tell what it shows with error bars and
    verdicts.

    The same command goes on where it was stopped, by Ctrl-C or otherwise: finished cells are kept.
    """
    from gnpcli.tables.spec import Changes, choose, load_table

    if render and dry_run:
        raise typer.BadParameter("there is nothing to run with --render", param_hint="--dry-run")
    table = load_table(name)
    row_names = choose(table, "rows", "--models", _words(models))
    column_names = choose(table, "columns", "--columns", _words(columns))
    chosen = _seeds(seeds)
    changes = Changes(table.variant(variant), epochs, dataset, data_dir, tuple(assignments))
    folder = out if out is not None else _default_out(table, changes.variant)
    if render:
        _finish(table, row_names, column_names, chosen, folder, as_json)
        return
    from gnpcli.tables.cells import check_folders, find_runs, make_cells

    cells = make_cells(table, row_names, column_names, chosen or table.spec.seeds, changes, folder)
    states = check_folders(cells)
    if dry_run:
        _dry_run(table, cells, states, folder, as_json)
        return
    from gnpcli.errors import Interrupted

    stopped = None
    try:
        progress = _run(table, cells, states, jobs, folder, quiet)
    except Interrupted as error:
        stopped, progress = error, []
    if there := find_runs(
        folder
    ):  # what was run last, and what the folder held already: its files tell all of it
        rows = [row for row in table.spec.rows if row in {*row_names, *(run[0] for run in there)}]
        names = [
            column
            for column in table.spec.columns
            if column in {*column_names, *(run[1] for run in there)}
        ]
        _finish(table, rows, names, None, folder, as_json)
    if stopped is not None:
        raise stopped
    _complain(progress)


def _default_out(table: Table, variant: str | None) -> Path:
    is_first = variant is None or variant == next(iter(table.spec.variants))
    return Path("tables") / (table.name if is_first else f"{table.name}-{variant}")


def _run(
    table: Table,
    cells: Sequence[Cell],
    states: dict[str, CellState],
    jobs: int,
    folder: Path,
    quiet: bool,
) -> Sequence[CellProgress]:
    import sys

    from rich.console import Console

    from gnpcli.tables.display import TableDisplay
    from gnpcli.tables.runner import run_cells
    from gnpcli.tables.shares import shares

    divided = shares(jobs)
    console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
    if not quiet:
        typer.echo(f"{table.name}: {len(cells)} cells in {folder}", err=True)
    with TableDisplay(table, console, quiet=quiet) as display:
        return run_cells(cells, states, table.spec.metric, divided, display)


def _complain(progress: Sequence[CellProgress]) -> None:
    from gnpcli.errors import GnpError

    failed = [item for item in progress if item.status == "failed"]
    if failed:
        raise GnpError(
            f"{len(failed)} of {len(progress)} cells failed, the first is {failed[0].cell.name}: "
            f"{failed[0].problem}; "
            "the same command tries them again"
        )


def _finish(
    table: Table,
    rows: Sequence[str],
    columns: Sequence[str],
    seeds: Sequence[int] | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Tell the result of the cells in a folder, and write its files, if there is any."""
    from gnpcli.errors import ConfigError
    from gnpcli.tables.results import collect

    result = collect(table, rows, columns, seeds, folder)
    if not any(cell.runs for cell in result.cells.values()):
        raise ConfigError(f"{folder} holds no cell of table {table.name} yet")
    from gnpcli.tables.outputs import write_outputs

    paths = write_outputs(result, folder)
    if as_json:
        import json

        from gnpcli.tables.formats import to_dict

        typer.echo(json.dumps(to_dict(result), indent=2))
        return
    _print(result)
    typer.echo(f"\nwritten: {folder}/{{{','.join(path.name for path in paths)}}}")


def _print(result: TableResult) -> None:
    from rich.console import Console

    from gnpcli.tables.formats import to_rich
    from gnpcli.tables.report import make_report

    report = make_report(result)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400
    console.print(report.title, style="bold", markup=False)
    console.print(report.about, markup=False)
    for grid in (report.values, report.differences):
        if grid.rows:
            console.print()
            console.print(to_rich(grid))
    for heading, lines in report.lists:
        console.print(f"\n{heading}", style="bold", markup=False)
        for line in lines:
            console.print(f"  {line}", markup=False)


def _dry_run(
    table: Table, cells: Sequence[Cell], states: dict[str, CellState], folder: Path, as_json: bool
) -> None:
    from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory

    keep_freed_memory()
    keep_compiled_programs()
    from gnpcli.tables.estimate import estimate
    from gnpcli.terminal.words import duration

    found, left_s = estimate(cells, states, lambda text: typer.echo(text, err=True))
    if as_json:
        import json

        rows = [
            {
                "row": each.cell.row, "column": each.cell.column, "seed": each.cell.seed, "state": each.state,
                "run_dir": str(each.cell.run_dir), "plain_steps": each.plain_steps, "gnp_steps": each.gnp_steps,
                "whole_s": each.whole_s, "left_s": each.left_s,
            }
            for each in found
        ]  # fmt: skip
        typer.echo(
            json.dumps(
                {"table": table.name, "out": str(folder), "left_s": left_s, "cells": rows}, indent=2
            )
        )
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    grid = RichTable(box=None, pad_edge=False, header_style="bold")
    for name in (
        "row",
        "column",
        "seeds",
        "plain steps",
        "GNP steps",
        "a cell",
        "finished",
        "left",
    ):
        grid.add_column(name, justify="left" if name in ("row", "column") else "right")
    for place in dict.fromkeys((each.cell.row, each.cell.column) for each in found):
        own = [each for each in found if (each.cell.row, each.cell.column) == place]
        finished = sum(each.state == "finished" for each in own)
        grid.add_row(
            *place, ",".join(str(each.cell.seed) for each in own), f"{own[0].plain_steps:,}", f"{own[0].gnp_steps:,}",
            duration(own[0].whole_s), str(finished), duration(sum(each.left_s for each in own)),
        )  # fmt: skip
    Console(highlight=False).print(grid)
    typer.echo(
        f"{len(found)} cells in {folder}, about {duration(left_s)} left on this machine, from a "
        "few steps on random "
        "images; nothing was run"
    )


@app.command("list")
def list_tables(as_json: JsonOption = False) -> None:
    """List the tables: what question each answers, and how many runs it takes."""
    from gnpcli.tables.spec import load_table, table_names

    rows: list[dict[str, Any]] = []
    for name in table_names():
        spec = load_table(name).spec
        sizes = {"rows": len(spec.rows), "columns": len(spec.columns), "seeds": len(spec.seeds)}
        runs = len(spec.rows) * len(spec.columns) * len(spec.seeds)
        rows.append({"name": name, **sizes, "runs": runs, "purpose": spec.purpose})
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    grid = RichTable(box=None, pad_edge=False, header_style="bold")
    for key in rows[0]:
        grid.add_column(
            key, justify="left" if key in ("name", "purpose") else "right", no_wrap=key != "purpose"
        )
    for row in rows:
        grid.add_row(*map(str, row.values()))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400
    console.print(grid)


@app.command("show")
def show_table(
    name: Annotated[
        str, typer.Argument(metavar="TABLE", help="Name of gnp tables list, or a YAML file.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Print a table: its cells with their recipes and published values, and what its variants
    change.
    """
    from gnpcli.config.loader import differences
    from gnpcli.tables.spec import Changes, load_table

    table = load_table(name)
    spec = table.spec
    if as_json:
        typer.echo(spec.model_dump_json(indent=2))
        return
    typer.echo(f"{spec.title}\n{spec.purpose}\n")
    typer.echo(f"metric     {spec.metric.split} {spec.metric.name}, {spec.metric.at}")
    typer.echo(f"seeds      {', '.join(map(str, spec.seeds))}")
    typer.echo(f"baseline   {spec.baseline}")
    for row in spec.rows:
        typer.echo(f"\n{row} ({table.label('rows', row)})")
        first = table.resolve(row, spec.baseline, spec.seeds[0], Changes())
        for column in spec.columns:
            value = table.published_value(row, column)
            published = "" if value is None else f", published {value:.2f}"
            typer.echo(
                f"  {column} ({table.label('columns', column)}): preset "
                f"{table.preset(row, column)}{published}"
            )
            if column != spec.baseline:
                for line in differences(
                    first, table.resolve(row, column, spec.seeds[0], Changes())
                ):
                    typer.echo(f"      {line}")
    row = next(iter(spec.rows))
    names = list(spec.variants)
    for variant in names:
        typer.echo(f"\nvariant {variant}: {spec.variants[variant].about}")
        for line in _variant_differences(table, row, names[0], variant):
            typer.echo(f"      {line}")
    if spec.published is not None:
        typer.echo(f"\npublished by {spec.published.source}")
        for text in spec.published.unknown:
            typer.echo(f"  not known: {text}")
    for claim in spec.claims:
        better, than = (table.label("columns", column) for column in (claim.better, claim.than))
        typer.echo(f"claim: {better} is better than {than} ({claim.source})")
    for note in spec.notes:
        typer.echo(f"note: {note}")


def _variant_differences(table: Table, row: str, first: str, variant: str) -> list[str]:
    """Return the knobs that differ between two variants, over all columns of a row."""
    from gnpcli.config.loader import differences
    from gnpcli.tables.spec import Changes

    seed, lines = table.spec.seeds[0], dict[str, None]()
    for column in table.spec.columns:
        lines |= dict.fromkeys(
            differences(
                table.resolve(row, column, seed, Changes(first)),
                table.resolve(row, column, seed, Changes(variant)),
            )
        )
    return list(lines)
