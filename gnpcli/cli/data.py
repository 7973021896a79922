"""``gnp data``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gnpcli.cli.options import DataDirOption, JsonOption, QuietOption
from gnpcli.cli.preview import preview

if TYPE_CHECKING:
    from gnpcli.data.listing import Listing

app = typer.Typer(help="The data sets: what there is, and preparing it.", no_args_is_help=True)
app.command("preview")(preview)


@app.command("list")
def list_data(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the data sets: images, classes, and what is present, where, in which format and how big."""
    from gnpcli.data.registry import list_sources

    rows = list_sources(data_dir)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = [list(_COLUMNS), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, (*cells, where) in enumerate(table):
        parts = zip(cells, widths, _COLUMNS.values(), strict=False)
        line = "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in parts
        )
        if not sys.stdout.isatty():
            typer.echo(f"{line}  {where}")
            continue
        # On a terminal a folder has a line of its own: it may be as long as that, and is copied
        # whole.
        typer.echo(line.rstrip())
        if number > 0:
            typer.echo(f"    {where}")


_COLUMNS = {
    "name": False, "images": True, "classes": True, "pixels": True, "format": False, "on disk": True, "where": False,
}  # fmt: skip
"""Of the list, and whether it is one of numbers."""


def _cells(row: Listing) -> list[str]:
    from gnpcli.terminal.words import size

    pixels = (
        f"{row.image_size}x{row.image_size}x{row.channels}" if row.image_size is not None else ""
    )
    return [
        row.name,
        " + ".join(f"{count:,}" for count in row.splits.values()) if row.splits else "",
        str(row.num_classes or ""),
        pixels,
        row.format or "",
        size(row.num_bytes) if row.num_bytes is not None else "",
        row.where or row.problem or _how_to_get(row),
    ]


def _how_to_get(row: Listing) -> str:
    from gnpcli.terminal.words import size

    if row.download_bytes is not None:
        return f"absent; gnp data prepare {row.name} downloads {size(row.download_bytes)}"
    return (
        row.about
        if row.format or ":" in row.name
        else f"absent; gnp data prepare {row.name} tells how to get it"
    )


@app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="A data set of gnp data list.")],
    data_dir: DataDirOption = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Splits besides train and test, for example train+extra."),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            "--mirror",
            envvar="GNP_MIRROR",
            help="Address that serves the archives in place of their own.",
        ),
    ] = None,
    checksums: Annotated[
        Path | None,
        typer.Option(
            "--checksums",
            envvar="GNP_CHECKSUMS",
            help="File of sha256sum: sums that are accepted in place of the published ones.",
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Download a data set and prepare it, unless it is there."""
    from rich.console import Console

    from gnpcli.data.archives.fetch import Origin
    from gnpcli.data.registry import prepare_source
    from gnpcli.terminal.loading import LoadingDisplay
    from gnpcli.terminal.words import size

    origin = Origin.of(mirror, str(checksums) if checksums is not None else None)
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def line(text: str) -> None:
        typer.echo(text, err=True)

    with LoadingDisplay(name, console, line, quiet=quiet) as display:
        found, was_there = prepare_source(name, data_dir, split, origin, display)
    counts = ", ".join(f"{count:,} {split}" for split, count in (found.counts or {}).items())
    taken = f", {size(found.num_bytes)}" if found.num_bytes is not None else ""
    what = f"{counts} images" if counts else "images"
    typer.echo(
        f"{name} {'is there already' if was_there else 'is prepared'}: {what} in {found.path} "
        f"({found.format}{taken})"
    )
    typer.echo(f"train on it with `{_next_command(name, data_dir)}`")


def _next_command(name: str, data_dir: str | None) -> str:
    """Return the first preset of the data set as a command, with what it takes to find the data
    again.
    """
    import contextlib
    import shlex

    from gnpcli.errors import GnpError
    from gnpcli.recipes.presets import preset_names, resolve

    choice = f"--dataset {name}"
    for preset in preset_names():
        with contextlib.suppress(GnpError):
            if resolve(preset).data.name == name:
                choice = f"--preset {preset}"
                break
    return f"gnp train {choice}" + (
        f" --data-dir {shlex.quote(data_dir)}" if data_dir is not None else ""
    )
