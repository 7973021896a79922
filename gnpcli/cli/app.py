"""The app of all commands, and how one that fails ends."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from gnpcli import __version__
from gnpcli.cli.commands import CommandGroup, add_commands
from gnpcli.cli.output import fail, say
from gnpcli.cli.remarks import listen
from gnpcli.devices.processes import peers
from gnpcli.devices.signals import Stopped, is_interrupted, keep_status
from gnpcli.devices.start import expect_no_tpu
from gnpcli.errors import Interrupted
from gnpcli.models.own import explain
from gnpcli.terminal.lasting import errors

app = typer.Typer(
    name="gnp",
    cls=CommandGroup,
    help="Train image classifiers with gradient regularization: L + lambda ||grad L||.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        say(f"gnp {__version__}")
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
        bool,
        typer.Option(
            "--debug", help="Show tracebacks, and all that libraries say (also GNP_DEBUG=1)."
        ),
    ] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["GNP_DEBUG"] = "1"
    listen()


def run() -> None:
    """Run the command line.

    A failure that a user can cause ends in one line on stderr and exit status 1.
    """
    # Else a module of the current folder would come before Python's own in processes of workers.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    expect_no_tpu()
    try:
        add_commands(app)(prog_name="gnp")
    except SystemExit as ended:
        _end_together(ended.code)
        raise
    except Stopped:
        peers.fail("stopped by SIGINT", 128 + signal.SIGINT)
        raise
    except Exception as error:
        if is_interrupted():
            raise
        message, status = explain(error)
        if message is None or os.environ.get("GNP_DEBUG"):
            _tell_of_bug(error)
            raise
        if isinstance(error, Interrupted):
            keep_status()
            peers.stop(message, status)
        peers.fail(message, status)
        fail(message)
        sys.exit(status)


def _end_together(code: str | int | None) -> None:
    """Wait for the other processes where this one has done its work, and else end them too."""
    if code:
        peers.fail(f"a process ended with status {code}", int(code))
    peers.leave()


def _tell_of_bug(error: Exception) -> None:
    """Let the other processes end as well, and show all of it here."""
    if peers.count() > 1:
        if peers.is_consequence():
            peers.fail("another process has failed", 1)
        traceback.print_exception(error, file=errors())
        peers.fail(f"{type(error).__name__} in process {peers.index()}: {error}", 1)
