"""What commands print, and how a process that computes starts. Heavy imports come when called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

from gnpcli.strict_json import to_json
from gnpcli.terminal.lasting import errors
from gnpcli.terminal.words import readable

if TYPE_CHECKING:
    from gnpcli.terminal.grid import Cell, Grid


def start_process() -> None:
    """Set up a process that trains or measures: freed memory and compiled programs are kept."""
    from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory
    from gnpcli.devices.start import start_jax

    keep_freed_memory()
    start_jax()
    keep_compiled_programs()
    tell_of_unused_accelerator()


@cache
def tell_of_unused_accelerator(has_started: bool = True) -> None:
    """Say once what accelerator of this machine JAX does not use, and the command that mends it.

    Args:
        has_started: Whether JAX has, in this process.
    """
    from gnpcli.devices.start import platform
    from gnpcli.devices.unused import unused_accelerator

    problem = unused_accelerator(platform() if has_started else None)
    if problem is not None:
        warn(problem)


def join_processes() -> None:
    """Meet the other processes where this is one of several; after that it prints only errors.

    Everything that a command does from then on, all processes do. To be called first: they have to
    agree on whatever goes wrong.

    Raises:
        ConfigError: They were started with different commands.
    """
    from gnpcli.devices.processes.detect import detect

    layout = detect(os.environ)
    if layout.count == 1:
        return
    from gnpcli.cli.same_command import check_same_command
    from gnpcli.devices.processes.peers import connect
    from gnpcli.terminal.lasting import mute

    connect(layout, fail, tell)
    if layout.index > 0:
        mute()
    start_process()
    check_same_command()


def start_measuring() -> None:
    """Set up a process that times steps: freed memory is kept, every program is compiled anew."""
    from gnpcli.devices.process import keep_freed_memory
    from gnpcli.devices.start import start_jax

    keep_freed_memory()
    start_jax()
    tell_of_unused_accelerator()


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; a number that is not finite is null."""
    typer.echo(to_json(value, indent=2))


def print_grid(grid: Grid) -> None:
    """Print a grid on stdout; without a terminal, each row is one line."""
    from gnpcli.terminal.console import results
    from gnpcli.terminal.grid import show

    show(grid, results())


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    numbers: Sequence[str] = (),
    title: str = "",
    has_notes: bool = False,
) -> None:
    """Print rows and columns on stdout.

    Args:
        header: Names of the columns.
        rows: As many cells each.
        numbers: Names of the columns that are set to the right.
        title: A line above.
        has_notes: Whether the last column may stand below its row on a narrow terminal.
    """
    from gnpcli.terminal.grid import Grid

    right = {index for index, name in enumerate(header) if name in numbers}
    print_grid(Grid(header, rows, title=title, numbers=right, has_notes=has_notes))


def say(*texts: str) -> None:
    """Print each text as a line of a result, on stdout."""
    for text in texts:
        typer.echo(readable(text))


def print_heading(text: str) -> None:
    """Print a line that stands out on a terminal."""
    typer.secho(readable(text), bold=True)


def tell(text: str) -> None:
    """Print a line about what goes on, on stderr."""
    typer.echo(readable(text), err=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    typer.secho(f"warning: {readable(text)}", fg=typer.colors.YELLOW, err=True)


def fail(text: str) -> None:
    """Print what went wrong on stderr."""
    typer.secho(f"error: {readable(text)}", fg=typer.colors.RED, file=errors())
