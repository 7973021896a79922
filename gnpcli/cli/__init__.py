"""The command line: thin commands that import what is heavy only when they run."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from gnpcli import __version__
from gnpcli.cli import (
    bench,
    check,
    compare,
    data,
    evaluate,
    import_weights,
    inspect,
    models,
    presets,
    report,
    tables,
    train,
)
from gnpcli.errors import explain

app = typer.Typer(
    name="gnp",
    help="Train image classifiers with gradient regularization: L + lambda ||grad L||.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("resume")(train.resume)
app.command("eval")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)
app.command("plot")(report.plot)
app.command("report")(report.report)
app.command("check")(check.check)
app.command("compare")(compare.compare)
app.command("reproduce-table")(tables.reproduce_table)
app.command("import-weights")(import_weights.import_weights)
app.add_typer(bench.app, name="bench")
app.add_typer(presets.app, name="presets")
app.add_typer(models.app, name="models")
app.add_typer(tables.app, name="tables")
app.add_typer(data.app, name="data")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"gnp {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (also GNP_DEBUG=1).")
    ] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["GNP_DEBUG"] = "1"


def main() -> None:
    """Run the command line; a failure that a user can cause ends in one line on stderr and exit
    status 1.
    """
    try:
        app()
    except Exception as error:
        message, status = explain(error)
        if message is None or os.environ.get("GNP_DEBUG"):
            raise
        typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
        sys.exit(status)
