"""Text that others wrote: a terminal shows it, and never obeys it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gnpcli.cli import output
from gnpcli.terminal.grid import Grid, Styled, draw
from gnpcli.terminal.loading import LoadingDisplay
from gnpcli.terminal.screen import Screen
from gnpcli.terminal.words import readable
from tests.conftest import Gnp
from tests.test_layout import FILES, PACKAGE

ACTING = {
    "clears the screen": "\x1b[2J",
    "sets the title": "\x1b]0;owned\x07",
    "C1 introducer": "\x9b31m",
    "goes back": "\rerror: all is well",
    "rubs out": "\b\b\b",
    "forges a line": "\nerror: all is well",
    "next line": "\x85",
    "line separator": "\u2028",
    "tabulator": "\t",
    "null": "\x00",
    "delete": "\x7f",
    "turns text": "\u202egnp.exe",
    "isolates text": "\u2066x\u2069",
    "arabic mark": "\u061c",
    "bytes of a file name": "\udcff\udc1b",
    "half a pair": "\ud83d",
}
SHOWN = ["plain", "猫 und Öl", "naïve", "👩\u200d🔬", "[bold]no markup[/bold]", ":smile:", "a\\b"]


@pytest.mark.parametrize("text", ACTING.values(), ids=ACTING)
def test_what_acts_on_a_terminal_becomes_an_escape(text):
    told = readable(f"a{text}b")
    assert told != f"a{text}b"
    assert not set(told) & set(text) - set(map(chr, range(0x20, 0x7F)))
    told.encode("utf-8")  # a lone surrogate would raise
    assert readable(told) == told
    assert told.encode("ascii").decode("unicode_escape") == f"a{text}b"


@pytest.mark.parametrize("text", SHOWN)
def test_what_a_terminal_shows_stays_as_it_is(text):
    assert readable(text) == text


def on_screen(write) -> str:
    """Return what a function of a console writes to a terminal."""
    shown = io.StringIO()
    write(Console(file=shown, force_terminal=True, color_system=None, width=200))
    return shown.getvalue()


CONSOLES = {
    "line": lambda console, text: Screen(console=console).line(text),
    "grid": lambda console, text: console.print(
        draw(Grid([text], [[text], [Styled(text, "bold")], [[Styled(text, "dim")]]], title=text))
    ),
}
LINES = {
    "say": lambda text: output.say(text),
    "heading": lambda text: output.print_heading(text),
    "tell": lambda text: output.tell(text),
    "warn": lambda text: output.warn(text),
    "fail": lambda text: output.fail(text),
    "table": lambda text: output.print_table([text], [[text]], title=text),
    "json": lambda text: output.print_json({text: text}),
}


@pytest.mark.parametrize("text", ACTING.values(), ids=ACTING)
@pytest.mark.parametrize("door", CONSOLES)
def test_nothing_that_acts_reaches_a_console(door, text):
    shown = on_screen(lambda console: CONSOLES[door](console, f"a{text}b"))
    assert f"a{text}b" not in shown
    assert readable(f"a{text}b") in shown


@pytest.mark.parametrize("text", ACTING.values(), ids=ACTING)
@pytest.mark.parametrize("door", LINES)
def test_nothing_that_acts_is_printed(door, text, capsys):
    LINES[door](f"a{text}b")
    shown = "".join(capsys.readouterr())
    assert shown
    assert f"a{text}b" not in shown


USAGE = {
    "value": ["train", "--set", "={}"],
    "value of a choice": ["bench", "step", "--mode", "{}"],
    "command": ["{}"],
    "inner command": ["data", "{}"],
    "option": ["--{}"],
    "option of a command": ["train", "--{}"],
    "extra word": ["train", "{}"],
    "number": ["train", "--epochs", "{}"],
}


@pytest.mark.parametrize("words", USAGE.values(), ids=USAGE)
def test_wrong_usage_is_told_without_control_characters(gnp: Gnp, words):
    done = gnp(*(word.format("a\x1b[31mb\x9bc") for word in words))
    assert done.returncode == 2
    assert "Error" in done.stderr
    assert not {"\x1b", "\x9b"} & set(done.stderr)


@pytest.mark.parametrize("door", ["screen", "loading"])
def test_a_bar_shows_names_as_they_are(door):
    name = "[red]x[/red]\x1b[2J"

    def draw_bar(console: Console) -> None:
        if door == "loading":
            with LoadingDisplay(name, console, console.print) as display:
                display(1, 2)
            return
        screen = Screen(console=console)
        with screen.progress(2, 0):
            screen.status(name)

    shown = on_screen(draw_bar)
    assert "[red]x[/red]\\x1b[2J" in shown
    assert "\x1b[2J" not in shown


def test_commands_print_through_their_one_door():
    others = [path for path in FILES if path != PACKAGE / "cli" / "output.py"]
    assert [path.name for path in others if "typer.echo" in path.read_text()] == []
    assert [path.name for path in others if "typer.secho" in path.read_text()] == []
