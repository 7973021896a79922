"""What of the golden values holds on any machine: the keys of every JSON output, and exact repeats.

`tests/golden.py` compares trained bits and the types of JSON values between two revisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gnpcli.cli.commands import COMMANDS, load
from tests import golden
from tests.commands import CommandServer, run_gnp
from tests.conftest import Gnp

KEYS = json.loads((Path(__file__).parent / "golden.json").read_text())
"""The keys of each output, by its name in `golden.COMMANDS`."""

NEEDS_NO_RUN = (
    "presets list",
    "models list",
    "models show",
    "data list",
    "tables list",
    "tables show",
)
"""Outputs that take no training; the others are compared by the slow tests."""

WITHOUT = {"bench peer"}  # it measures another program, which must be installed


def commands_with_json(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the commands that take ``--json``, as one types them."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_with_json(inner, (*path, name))
    if any("--json" in parameter.opts for parameter in command.params):
        yield " ".join(path)


def test_every_command_with_json_has_golden_keys():
    commands = {
        name for command in COMMANDS for name in commands_with_json(load(command), (command.name,))
    }
    covered = {
        command
        for command in commands
        if any(f"{line} ".startswith(f"{command} ") for line in golden.COMMANDS.values())
    }
    assert commands - covered == WITHOUT
    assert KEYS.keys() == golden.COMMANDS.keys()


@pytest.mark.parametrize("name", NEEDS_NO_RUN)
def test_keys_of_what_needs_no_run(gnp: Gnp, name: str):
    done = gnp(*golden.COMMANDS[name].split(), "--json")
    assert done.returncode == 0, done.stderr
    assert golden.outline(json.loads(done.stdout)) == KEYS[name]


@pytest.mark.slow
def test_keys_of_every_output(command_server: CommandServer):
    def run(_: Path, folder: Path, arguments: list[str]) -> str:
        done = run_gnp(command_server, arguments, folder, {}, timeout=900)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    found = golden.collect(golden.REPOSITORY, "json ", run=run)
    outlines = {name.removeprefix("json "): golden.outline(value) for name, value in found.items()}
    assert outlines == KEYS


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_bits_and_another_seed_others(tmp_path):
    def train(name: str, *options: str) -> dict[str, str]:
        command = f"train --quiet {golden.SMALL} --max-steps 3 --run-dir {name}".split()
        golden.run_gnp(golden.REPOSITORY, tmp_path, [*command, *options])
        return golden.hash_arrays(tmp_path / name / "checkpoints" / "3")

    one = train("one")
    assert {*one} == {"model", "optimizer"}
    assert golden.differing(one, train("again")) == []
    assert golden.differing(one, train("other", "--seed", "1")) == ["model", "optimizer"]


def test_an_outline_is_the_keys_whatever_the_values_are():
    value: Any = {"a": 1, "b": [{"c": None}, {"c": {"d": 2}, "e": []}], "f": [1, 2]}
    wanted: Any = {"a": {}, "b": {"c": {"d": {}}, "e": {}}, "f": {}}
    assert golden.outline(value) == golden.outline(golden.structure(value)) == wanted
    assert golden.differing({"a": 1, "b": 2}, {"b": 3, "c": 4}) == ["a", "b", "c"]
