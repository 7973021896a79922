"""The help of every command, and how commands are found: adding one edits no test."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
import typer
from rich.console import Console
from typer.models import OptionInfo

from gnpcli.cli import commands
from gnpcli.cli.app import app
from gnpcli.cli.commands import COMMANDS, Command, add_commands, load
from gnpcli.terminal.grid import Grid, Styled, show
from tests.conftest import Gnp
from tests.test_layout import HEAVY, MODULES, imports_at_import_time

EVERY_HELP = """
import contextlib, io, json, os, sys
from gnpcli.cli import main
os.environ["COLUMNS"] = "80"
found = {}
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["gnp", *arguments, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
    found[" ".join(arguments)] = (status, out.getvalue())
loaded = sorted({name.partition(".")[0] for name in sys.modules})
ours = sorted(name for name in sys.modules if name.startswith("gnpcli"))
print(json.dumps({"found": found, "loaded": loaded, "ours": ours}))
"""
"""Prints the help of all commands in one process, and what it has loaded then."""


def walk() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and every command below it, with the words that call it."""
    for command in COMMANDS:
        loaded = load(command)
        yield (command.name,), loaded
        for name, inner in getattr(loaded, "commands", {}).items():
            yield (command.name, name), inner


EVERY = {" ".join(words): command for words, command in walk()}


def options(command: Any) -> list[Any]:
    return [each for each in command.params if each.param_type_name == "option"]


def show_help(*commands: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def helps() -> dict[str, Any]:
    return show_help(*(name.split() for name in EVERY))


@pytest.mark.parametrize("name", EVERY)
def test_help_names_every_option_and_fits_80_columns(helps: dict[str, Any], name: str):
    status, text = helps["found"][name]
    assert status == 0
    for option in options(EVERY[name]):
        assert any(word in text for word in option.opts), option.opts
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("name", EVERY)
def test_every_command_and_option_says_what_it_is(name: str):
    command = EVERY[name]
    first, *_ = command.help.split("\n\n")
    assert first.endswith((".", ".\n")), first
    for option in options(command):
        assert option.help, option.opts
        assert "[default" not in option.help, "markup to rich: give show_default"


def numbers() -> dict[str, OptionInfo]:
    """Return the options that take a number, by command and parameter."""
    found = {}
    for words, command in walk():
        hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
        for name, hint in hints.items():
            kind, *infos = get_args(hint) or (hint,)
            if {int, float} & {kind, *get_args(kind)} and infos:
                found[" ".join((*words, name))] = infos[0]
    return found


CHECKED_ELSEWHERE = ("epochs", " seed", " r_min", " r_max", " threshold")
"""The first two are keys of a configuration."""


def test_every_number_has_bounds():
    bounds = {name: (info.min, info.max) for name, info in numbers().items()}
    assert bounds["inspect seed"] == (0, 2**32 - 1)
    assert len(bounds) > 30
    free = [name for name, both in bounds.items() if None in both]
    assert [name for name in free if not name.endswith(CHECKED_ELSEWHERE)] == []


def test_help_loads_nothing_heavy(helps: dict[str, Any]):
    assert HEAVY & set(helps["loaded"]) == set()


def test_help_needs_no_configuration(helps: dict[str, Any]):
    """Newer versions of typer load pydantic themselves, so that what we load is told apart."""
    needs = {"pydantic", "yaml"}
    assert "yaml" not in helps["loaded"]
    assert [name for name in helps["ours"] if needs & imports_at_import_time(MODULES[name])] == []


def test_the_help_of_all_lists_every_command_and_loads_none():
    shown = show_help([])
    _, text = shown["found"][""]
    for command in COMMANDS:
        assert command.name in text
        assert len(command.help) <= 60
    assert {"pydantic", "yaml"} & set(shown["loaded"]) == set()


def test_names_of_commands_are_told_apart():
    names = [command.name for command in COMMANDS]
    assert len(set(names)) == len(names)


def test_a_command_from_outside_is_a_module_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def hello(name: str) -> None:
        """Greet."""
        typer.echo(f"hello {name}")

    module = ModuleType("gnpcli.cli.hello")
    monkeypatch.setattr(module, "hello", hello, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    line = Command("hello", "hello:hello", "Greet.")
    monkeypatch.setattr(commands, "COMMANDS", (*COMMANDS, line))
    with pytest.raises(SystemExit) as stop:
        add_commands(app)(["hello", "there"], prog_name="gnp")
    assert stop.value.code == 0
    assert capsys.readouterr().out == "hello there\n"


def test_a_command_that_is_nearly_named_is_suggested(gnp: Gnp):
    done = gnp("trian")
    assert done.returncode == 2
    assert "No such command 'trian'" in done.stderr


@pytest.mark.parametrize("arguments", [["models", "list"], ["tables", "show", "adam-vs-gr"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]):
    process = subprocess.Popen(
        [sys.executable, "-c", "from gnpcli.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, told = process.communicate(timeout=60)
    assert told == ""


# --- grids


NOTED = Grid(
    ("name", "count", "note"),
    [("first", "1,000", "one two three four five six seven"), ("second", "", "folder/of/it")],
    numbers={1},
    has_notes=True,
)


def drawn(grid: Grid, width: int, *, is_terminal: bool = True) -> list[str]:
    file = io.StringIO()
    show(grid, Console(file=file, width=width, force_terminal=is_terminal, color_system=None))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_row_is_a_line_where_a_program_reads_it():
    assert drawn(NOTED, 10, is_terminal=False) == [
        "name    count  note",
        "first   1,000  one two three four five six seven",
        "second         folder/of/it",
    ]


def test_a_note_stands_beside_its_row_where_there_is_room():
    assert drawn(NOTED, 60)[1] == "first   1,000  one two three four five six seven"
    assert drawn(NOTED, 45)[1:3] == [
        "first   1,000  one two three four five six",
        "               seven",
    ]


def test_a_note_stands_below_its_row_where_there_is_none():
    assert drawn(NOTED, 30) == [
        "name    count",
        "first   1,000",
        "    one two three four five",
        "    six seven",
        "second",
        "    folder/of/it",
    ]


def test_cells_stand_below_the_name_where_the_row_has_no_room():
    assert drawn(NOTED, 11)[:5] == ["name", "    count", "first", "    1,000", "    one two"]
    assert drawn(NOTED, 11)[-2:] == ["    -", "    folder/of/it"]


def test_numbers_keep_to_one_line_and_texts_break():
    grid = Grid(("", "a long name", "text"), [("row", "123,456", "one two three")], numbers={1})
    assert drawn(grid, 22) == [
        "      a long",
        "        name  text",
        "row  123,456  one two",
        "              three",
    ]


def test_several_texts_of_a_cell_stand_below_each_other():
    cell = [Styled("above", "bold"), Styled("below", "red")]
    assert drawn(Grid(("", "value"), [("row", cell)]), 40) == [
        "     value",
        "row  above",
        "     below",
    ]
