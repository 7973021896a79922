"""The commands, a line each, and how they are loaded: a module is imported when its command runs.

``gnp --help`` imports none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from gnpcli.terminal.words import readable


class Command(NamedTuple):
    """A line of the table."""

    name: str
    """As it is typed."""
    place: str
    """``module:name`` below `gnpcli.cli`: a function, or a `typer.Typer` with its own commands."""
    help: str
    """Its line of ``gnp --help``."""


COMMANDS = (
    Command("train", "train:train", "Train a preset, or the demo on the bundled digits."),
    Command("resume", "train:resume", "Continue a run from its last good checkpoint."),
    Command("eval", "evaluate:evaluate", "Print the error and loss of a trained model."),
    Command("compare", "compare:compare", "Show runs side by side: settings, errors and cost."),
    Command("plot", "report:plot", "Draw the curves of runs."),
    Command("report", "report:report", "Write an HTML page about a run."),
    Command("inspect", "inspect:inspect", "Measure how flat the minimum of a run is."),
    Command("check", "check:check", "Tell for which r the penalty's gradient is accurate."),
    Command("bench", "bench:app", "Measure the speed and memory of training steps."),
    Command("reproduce-table", "reproduce:reproduce_table", "Run a table of the papers."),
    Command("plan", "plan:plan", "Tell what a run or a table costs on a machine not here."),
    Command("launch", "launch:app", "Run a command on a cluster."),
    Command("tables", "tables:app", "List and show the tables."),
    Command("presets", "presets:app", "List and show the presets."),
    Command("models", "models:app", "List and show the models."),
    Command("data", "data:app", "List, prepare and preview the data sets."),
    Command("doctor", "doctor:doctor", "Check this machine, and test a step on each device."),
    Command("import-weights", "import_weights:import_weights", "Import published weights."),
)


class _LazyCommand(TyperCommand):
    """Stands for a command in the list of all; the command itself takes over when it is called."""

    def __init__(self, command: Command):
        super().__init__(name=command.name, help=command.help)
        self._command = command

    def make_context(self, *args: Any, **options: Any) -> Any:
        return load(self._command).make_context(*args, **options)


_USAGE_ERROR = typer.BadParameter.__bases__
"""`UsageError` of click, or of the copy of it that typer brings."""


class CommandGroup(TyperGroup):
    """The group of all commands. What it says of wrong usage shows no control characters."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the options of every command."""
        with _readable_usage():
            return super().make_context(*args, **options)

    def invoke(self, *args: Any, **options: Any) -> Any:
        """Run a command, which reads its own options first."""
        with _readable_usage():
            return super().invoke(*args, **options)


@contextmanager
def _readable_usage() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, _USAGE_ERROR) and hasattr(error, "message"):
            error.message = readable(error.message)
        raise


def load(command: Command) -> Any:
    """Import a command; what comes back is one of click, in whichever copy typer brings."""
    module, _, name = command.place.partition(":")
    found = getattr(import_module(f"gnpcli.cli.{module}"), name)
    if isinstance(found, typer.Typer):
        group = get_group(found)
        group.help = group.help or command.help
        for inner in (group, *group.commands.values()):
            inner.help = _unwrap(inner.help)
        return group
    app = typer.Typer(add_completion=False)
    app.command(command.name)(found)
    single = get_command(app)
    single.help = _unwrap(single.help)
    return single


def _unwrap(text: str | None) -> str:
    """Return a docstring with each paragraph on one line, for the terminal to break."""
    paragraphs = (text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def add_commands(app: typer.Typer) -> TyperGroup:
    """Return an app with all commands added."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for command in COMMANDS:
        group.add_command(_LazyCommand(command))
    return group
