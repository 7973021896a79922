"""``gnp reproduce-table``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli.options import (
    NOTHING_SET,
    AcceptChangedDataOption,
    DataDirOption,
    DatasetOption,
    DryRunOption,
    JsonOption,
    NoCacheOption,
    QuietOption,
    SetOption,
    TableArgument,
    TrustOption,
)
from gnpcli.cli.output import (
    print_grid,
    print_heading,
    print_json,
    print_table,
    say,
    start_process,
    tell,
    tell_of_unused_accelerator,
)
from gnpcli.cli.table_part import (
    ColumnsOption,
    EpochsOption,
    OutOption,
    Part,
    RowsOption,
    SeedsOption,
    VariantOption,
    chosen_part,
)
from gnpcli.terminal import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gnpcli.tables.cells import Cell, CellState
    from gnpcli.tables.estimate import CellEstimate
    from gnpcli.tables.results import TableResult
    from gnpcli.tables.runner import CellProgress

COUNTED_ERROR = "steps on a CPU took 1.5 to 3.2 times as long, tiny ones more (docs/planning.md)"

JobsOption = Annotated[
    int,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        max=1000,
        help="Cells at a time. They share the GPUs, or else the cores.",
    ),
]
JoinOption = Annotated[
    bool,
    typer.Option(
        "--join",
        help="Divide the cells with the same command elsewhere, on any machine that has --out.",
    ),
]
RenderOption = Annotated[
    bool,
    typer.Option(
        "--render", help="Run nothing. Print the result of the cells in --out, or of those chosen."
    ),
]
MeasureOption = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="With --dry-run: time a few steps of each model, which takes minutes; else they are "
        "counted.",
    ),
]


def reproduce_table(
    name: TableArgument,
    models: RowsOption = None,
    columns: ColumnsOption = None,
    seeds: SeedsOption = None,
    epochs: EpochsOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    variant: VariantOption = None,
    assignments: SetOption = NOTHING_SET,
    out: OutOption = None,
    jobs: JobsOption = 1,
    join: JoinOption = False,
    trust_code: TrustOption = False,
    dry_run: DryRunOption = False,
    measure: MeasureOption = False,
    render: RenderOption = False,
    accept_changed_data: AcceptChangedDataOption = False,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a table of the papers: rows x columns x seeds.

    The result has error bars and verdicts. The same command goes on where it was stopped, by Ctrl-C
    or otherwise: finished cells are kept.
    """
    for hint, is_given in (("--dry-run", dry_run), ("--join", join)):
        if render and is_given:
            raise typer.BadParameter("there is nothing to run with --render", param_hint=hint)
    if measure and not dry_run:
        raise typer.BadParameter("it is for --dry-run", param_hint="--measure")
    part = chosen_part(
        name, models, columns, seeds, epochs, dataset, data_dir, variant, assignments, out
    )
    if render:
        _finish(part, part.seeds, as_json)
        return
    from gnpcli.tables.cells import check_folders
    from gnpcli.tables.joining import at_work

    cells = part.cells()
    states = check_folders(cells)
    if dry_run:
        _dry_run(part, cells, states, measure, as_json)
    else:
        with at_work(part.folder, cells, join=join):
            _run_all(part, cells, states, jobs, as_json, quiet, accept_changed_data)


def _run_all(
    part: Part,
    cells: Sequence[Cell],
    states: dict[str, CellState],
    jobs: int,
    as_json: bool,
    quiet: bool,
    accept_changed_data: bool,
) -> None:
    from gnpcli.errors import Interrupted
    from gnpcli.tables.cells import find_runs

    stopped: Interrupted | None = None
    progress: Sequence[CellProgress] = ()
    try:
        progress = _run(part, cells, states, jobs, quiet, accept_changed_data)
    except Interrupted as error:
        stopped = error
    if there := find_runs(part.folder):
        _finish(_with_runs(part, there), None, as_json)
    if stopped is not None:
        raise stopped
    _complain(progress)


def _with_runs(part: Part, runs: Sequence[tuple[str, str, int]]) -> Part:
    """Return what was asked for and what the folder holds already: its files tell all of it."""
    rows = {*part.rows, *(row for row, _, _ in runs)}
    columns = {*part.columns, *(column for _, column, _ in runs)}
    spec = part.table.spec
    return replace(
        part,
        rows=[row for row in spec.rows if row in rows],
        columns=[column for column in spec.columns if column in columns],
    )


def _run(
    part: Part,
    cells: Sequence[Cell],
    states: dict[str, CellState],
    jobs: int,
    quiet: bool,
    accept_changed_data: bool,
) -> Sequence[CellProgress]:
    from gnpcli.tables.display import TableDisplay
    from gnpcli.tables.runner import run_cells
    from gnpcli.tables.same_data import check_same_data
    from gnpcli.tables.shares import shares
    from gnpcli.terminal.screen import Screen

    divided = shares(jobs)
    tell_of_unused_accelerator(has_started=False)  # what the cells say goes to their logs
    if not quiet:
        tell(f"{part.table.name}: {words.plural(len(cells), 'cell')} in {part.folder}")
    screen = Screen(quiet=quiet)
    check_same_data(cells, states, accept=accept_changed_data, screen=screen)
    with TableDisplay(part.table, screen) as display:
        return run_cells(
            cells,
            states,
            part.table.spec.metric,
            divided,
            display,
            partial(screen.line, style="yellow"),
            accept_changed_data=accept_changed_data,
        )


def _complain(progress: Sequence[CellProgress]) -> None:
    from gnpcli.errors import TRY_AGAIN, GnpError, Interrupted

    failed = [item for item in progress if item.status == "failed"]
    stopped = [item for item in progress if item.status == "stopped"]
    if stopped:
        left = [item.cell.name for item in progress if item.is_open]
        more = f", not finished: {words.few(left)}" if left else ""
        more += f", failed: {words.few([item.cell.name for item in failed])}" if failed else ""
        raise Interrupted(
            f"{len(stopped)} of {len(progress)} cells stopped at their time limit or by a signal, "
            f"saved{more}; the same command goes on",
            TRY_AGAIN,
        )
    if failed:
        raise GnpError(
            f"{len(failed)} of {len(progress)} cells failed, the first is {failed[0].cell.name}: "
            f"{failed[0].problem}; the same command tries them again"
        )


def _finish(part: Part, seeds: Sequence[int] | None, as_json: bool) -> None:
    """Tell the result of the cells in a folder, and write its files, if there is any."""
    from gnpcli.tables.joining import alone
    from gnpcli.tables.outputs import write_outputs

    # Who comes later has read later: the files tell all that has ended.
    with alone(part.folder):
        result = _collect(part, seeds)
        paths = write_outputs(result, part.folder)
    if as_json:
        from gnpcli.tables.formats import to_dict

        print_json(to_dict(result))
        return
    _print(result)
    say("", f"written: {part.folder}/{{{','.join(path.name for path in paths)}}}")


def _collect(part: Part, seeds: Sequence[int] | None) -> TableResult:
    from gnpcli.errors import ConfigError
    from gnpcli.tables.results import collect

    result = collect(part.table, part.rows, part.columns, seeds, part.folder)
    if not any(cell.runs for cell in result.cells.values()):
        raise ConfigError(f"{part.folder} holds no cell of table {part.table.name} yet")
    return result


def _print(result: TableResult) -> None:
    from gnpcli.tables.report import make_report
    from gnpcli.terminal.grid import Grid

    report = make_report(result)
    print_heading(report.title)
    say(report.about)
    for grid in (report.values, report.differences):
        if grid.rows:
            say("")
            print_grid(Grid(grid.header, grid.rows, title=grid.title, numbers=grid.numbers))
    for heading, lines in report.lists:
        say("")
        print_heading(heading)
        say(*(f"  {line}" for line in lines))


def _dry_run(
    part: Part,
    cells: Sequence[Cell],
    states: dict[str, CellState],
    measure: bool,
    as_json: bool,
) -> None:
    start_process()
    from gnpcli.cluster.speeds import SpeedsHere
    from gnpcli.tables.estimate import estimate

    speeds = SpeedsHere(tell, measure=measure)
    found = estimate(cells, states, speeds)
    left_s = sum(each.left_s for each in found)
    left_s += speeds.compile_s if left_s else 0.0
    if as_json:
        facts = {"table": part.table.name, "out": str(part.folder), "left_s": left_s}
        rates = {"flops_per_s": speeds.rates}
        print_json({**facts, **rates, "cells": [_facts(each) for each in found]})
        return
    _print_estimates(found)
    count = words.plural(len(found), "cell")
    say(
        f"{count} in {part.folder}, about {words.duration(left_s)} left on this machine; nothing "
        "was run",
        *_sources(found, speeds.rates),
    )


def _sources(found: Sequence[CellEstimate], rates: Mapping[str, float]) -> Iterator[str]:
    """Yield what the times rest on, and how far they are off."""
    of: dict[str, list[str]] = {}
    for each in found:
        rows = of.setdefault(each.speed.source, [])
        if each.cell.row not in rows:
            rows.append(each.cell.row)
    for source, rows in of.items():
        which = "" if len(of) == 1 else f" of {words.listing(rows)}"
        if source == "counted":
            at = words.listing(
                [f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items()]
            )
            yield f"times{which}: FLOP as counted, at the rate of a product of matrices here ({at})"
            yield f"{COUNTED_ERROR}; compilation comes on top; --measure times steps"
        else:
            yield f"times{which}: a few steps on random images, {source}"


def _facts(each: CellEstimate) -> dict[str, Any]:
    return {
        "row": each.cell.row,
        "column": each.cell.column,
        "seed": each.cell.seed,
        "state": each.state,
        "run_dir": str(each.cell.run_dir),
        "plain_steps": each.work.single,
        "gnp_steps": each.work.double,
        "whole_s": each.whole_s,
        "left_s": each.left_s,
        "from": each.speed.source,
    }


def _print_estimates(found: Sequence[CellEstimate]) -> None:
    places: dict[tuple[str, str], list[CellEstimate]] = {}
    for each in found:
        places.setdefault((each.cell.row, each.cell.column), []).append(each)
    rows = []
    for place, seeds in places.items():
        finished = sum(each.state == "finished" for each in seeds)
        rows.append(
            [
                *place,
                ",".join(str(each.cell.seed) for each in seeds),
                words.number(seeds[0].work.single),
                words.number(seeds[0].work.double),
                words.duration(seeds[0].whole_s),
                str(finished),
                words.duration(sum(each.left_s for each in seeds)),
            ]
        )
    header = ["row", "column", "seeds", "plain steps", "GNP steps", "a cell", "finished", "left"]
    print_table(header, rows, numbers=header[2:])
