"""``gnp tables``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from gnpcli.cli.options import JsonOption, TableArgument
from gnpcli.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnpcli.tables.spec import Table

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_tables(as_json: JsonOption = False) -> None:
    """List the tables: what question each answers, and how many runs it takes."""
    from gnpcli.tables.spec import table_names

    rows = [_facts(name) for name in table_names()]
    if as_json:
        print_json(rows)
        return
    texts = [[str(value) for value in row.values()] for row in rows]
    print_table(list(rows[0]), texts, numbers=("rows", "columns", "seeds", "runs"), has_notes=True)


def _facts(name: str) -> dict[str, Any]:
    from gnpcli.tables.spec import load_table

    spec = load_table(name).spec
    rows, columns, seeds = len(spec.rows), len(spec.columns), len(spec.seeds)
    return {
        "name": name,
        "rows": rows,
        "columns": columns,
        "seeds": seeds,
        "runs": rows * columns * seeds,
        "purpose": spec.purpose,
    }


@app.command("show")
def show_table(name: TableArgument, as_json: JsonOption = False) -> None:
    """Print a table: its cells with recipes and published values, its variants and its claims."""
    from gnpcli.tables.spec import load_table

    table = load_table(name)
    if as_json:
        print_json(table.spec.model_dump(mode="json"))
        return
    for part in (_head, _rows, _variants, _notes):
        say(*part(table))


def _head(table: Table) -> Iterator[str]:
    spec = table.spec
    yield spec.title
    yield spec.purpose
    yield ""
    yield f"metric     {spec.metric.split} {spec.metric.name}, {spec.metric.at}"
    yield f"seeds      {', '.join(map(str, spec.seeds))}"
    yield f"baseline   {spec.baseline}"


def _rows(table: Table) -> Iterator[str]:
    for row in table.spec.rows:
        yield ""
        yield f"{row} ({table.label('rows', row)})"
        for column in table.spec.columns:
            value = table.published_value(row, column)
            published = "" if value is None else f", published {value:.2f}"
            label = table.label("columns", column)
            yield f"  {column} ({label}): preset {table.preset(row, column)}{published}"
            if column != table.spec.baseline:
                yield from _indented(_over_baseline(table, row, column))


def _variants(table: Table) -> Iterator[str]:
    row = next(iter(table.spec.rows))
    for name, variant in table.spec.variants.items():
        yield ""
        yield f"variant {name}: {variant.about}"
        yield from _indented(_over_first_variant(table, row, name))


def _notes(table: Table) -> Iterator[str]:
    spec = table.spec
    if spec.published is not None:
        yield ""
        yield f"published by {spec.published.source}"
        for text in spec.published.unknown:
            yield f"  not known: {text}"
    for claim in spec.claims:
        better, than = (table.label("columns", name) for name in (claim.better, claim.than))
        yield f"claim: {better} is better than {than} ({claim.source})"
    for note in spec.notes:
        yield f"note: {note}"


def _indented(lines: list[str]) -> list[str]:
    return [f"      {line}" for line in lines]


def _over_baseline(table: Table, row: str, column: str) -> list[str]:
    """Return what a column changes in the configuration of the baseline, in one row."""
    from gnpcli.config.loader import differences
    from gnpcli.tables.spec import Changes

    seed = table.spec.seeds[0]
    baseline = table.resolve(row, table.spec.baseline, seed, Changes())
    return differences(baseline, table.resolve(row, column, seed, Changes()))


def _over_first_variant(table: Table, row: str, variant: str) -> list[str]:
    """Return what a variant changes in the first one, over all columns of a row."""
    from gnpcli.config.loader import differences
    from gnpcli.tables.spec import Changes

    first, seed = next(iter(table.spec.variants)), table.spec.seeds[0]
    lines: dict[str, None] = {}
    for column in table.spec.columns:
        before = table.resolve(row, column, seed, Changes(first))
        after = table.resolve(row, column, seed, Changes(variant))
        lines |= dict.fromkeys(differences(before, after))
    return list(lines)
