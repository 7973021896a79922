"""What ``--json`` prints and what we write as JSON: every parser reads it."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest

from gnpcli import strict_json
from gnpcli.cli import output
from gnpcli.strict_json import to_json
from tests.conftest import Gnp
from tests.test_cli_help import EVERY, options
from tests.test_layout import FILES, PACKAGE

JSON_COMMANDS = [
    name
    for name, command in EVERY.items()
    if any("--json" in option.opts for option in options(command))
]
WITHOUT_ARGUMENTS = {"presets list", "models list", "data list", "tables list"}


def strict(text: str) -> object:
    """Return what JSON holds; Python's parser takes more than JSON otherwise."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(strict_json)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float64("nan")])
@pytest.mark.parametrize(
    "place", [lambda x: x, lambda x: [x], lambda x: (x, 1), lambda x: {"a": [{"b": x}]}]
)
def test_a_number_that_is_not_finite_is_null(number, place, capsys):
    assert strict(to_json(place(number))) == json.loads(json.dumps(place(None)))
    output.print_json(place(number))
    assert strict(capsys.readouterr().out) == json.loads(json.dumps(place(None)))


@pytest.mark.parametrize("value", [1e308, 5e-324, -0.0, 2**80, True, None, "NaN", {"NaN": []}])
def test_all_else_is_kept(value):
    assert strict(to_json(value)) == value


def test_json_of_commands_and_files_is_made_in_one_place():
    """The rest are the lines of a log, whose floats are finite already, and texts that we compare.

    What `json.dumps` writes is JSON where `allow_nan` is false, or where no float is in it.
    """
    makers = {
        path.relative_to(PACKAGE).as_posix() for path in FILES if "json.dumps(" in path.read_text()
    }
    assert not {path for path in makers if path.startswith("cli/")}
    assert "tables/outputs.py" not in makers


@pytest.mark.parametrize("name", JSON_COMMANDS)
def test_json_is_one_document_or_nothing(gnp: Gnp, name: str):
    """Where a command fails, its error is on stderr, its status says so, and stdout is empty."""
    arguments = [] if name in WITHOUT_ARGUMENTS else ["--nowhere"]
    done = gnp(*name.split(), *arguments, "--json")
    if name in WITHOUT_ARGUMENTS:
        assert done.returncode == 0
        assert strict(done.stdout)
    else:
        assert done.returncode == 2
        assert done.stdout == ""


FAILING = {
    "train": ["--preset", "nowhere"],
    "resume": ["nowhere"],
    "eval": ["nowhere"],
    "compare": ["nowhere"],
    "inspect": ["nowhere"],
    "check": ["nowhere"],
    "reproduce-table": ["nowhere"],
    "tables show": ["nowhere"],
    "models show": ["nowhere"],
}


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_command_prints_no_json(gnp: Gnp, name: str):
    done = gnp(*name.split(), *FAILING[name], "--json")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("error: ")


def test_a_dry_run_is_json_too(gnp: Gnp):
    done = gnp("train", "--dry-run", "--json", "--run-dir", "here")
    told = strict(done.stdout)
    assert isinstance(told, dict)
    assert told["run_dir"] == "here"
    assert told["config"]["data"]["name"] == "digits"
    assert told["plan"]
