"""What the README prints works: the library script, and the commands, presets, keys and values it
names.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gnpcli.config.loader import parse_overrides
from gnpcli.recipes.presets import preset_names, resolve
from gnpcli.tables.spec import load_table
from tests.commands import REPOSITORY
from tests.conftest import Gnp, fails
from tests.test_layout import FILES

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
README = DOCUMENTS[0].read_text()
TEXT = "\n".join(path.read_text() for path in DOCUMENTS if path.name != "results.md")
"""All that a reader is told to type; docs/results.md names the commands of measurements instead."""


def _commands() -> list[str]:
    """Return every command of the documents, without the comment behind it."""
    found: set[str] = set()
    for indented, inline in re.findall(r"^    (gnp .*)$|`(gnp [^`]*)`", TEXT, re.M):
        command = (indented or inline).split("  #")[0]
        found.add(command.strip())
    return sorted(found)


COMMANDS = _commands()
SCRIPTS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
(OWN_MODEL,) = [script for script in SCRIPTS if script.startswith("# mynet.py")]


def test_the_two_commands_come_first_and_the_three_of_the_mission_follow():
    places = [
        README.index(command)
        for command in (
            "make demo",
            "make test",
            "gnp train --preset vit-s-cifar10 --gr zero-warmup",
            "gnp reproduce-table adam-vs-gr",
            "gnp eval ckpt/ --dataset imagenet",
        )
    ]
    assert places == sorted(places)


def test_the_library_script_runs_and_learns():
    (script,) = re.findall(r"```python\n(.*?)```", README, re.S)
    first = script.replace("range(200)", "range(1)")
    losses = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout
        )
        for code in (first, script)
    ]
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.startswith("gnp train")]
)
def test_training_commands_resolve(gnp: Gnp, tmp_path: Path, command: str):
    (tmp_path / "mynet.py").write_text(OWN_MODEL)
    arguments = [word for word in shlex.split(command)[1:] if word != "--dry-run"]
    arguments = [word.replace("mine.yaml", "vit-s-cifar10") for word in arguments]
    for option in ("--data-dir", "--init-from"):  # a folder and weights of the reader's own
        if option in arguments:
            place = arguments.index(option)
            del arguments[place : place + 2]
    done = gnp(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_model_of_ones_own_trains_and_evaluates(gnp: Gnp, tmp_path: Path):
    (tmp_path / "mynet.py").write_text(OWN_MODEL)
    (command,) = [command for command in COMMANDS if "mynet" in command]
    options = ("--max-steps", "2", "--run-dir", "run", "--quiet", "--set", "mesh.devices=1")
    done = gnp(*shlex.split(command)[1:], *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(gnp("eval", "run", "--json").stdout)
    assert result["num_examples"] == 360
    shown = json.loads(
        gnp("models", "show", "mynet:small", "--image-size", "8", "--classes", "5", "--json").stdout
    )
    assert [layer["name"] for layer in shown["layers"]] == ["Conv_0", "head"]
    assert shown["parameters"] == 16 * (27 + 1) + 5 * (4 * 4 * 16 + 1)
    (tmp_path / "mynet.py").unlink()
    assert fails(
        gnp("eval", "run"),
        "model 'mynet:small': 'mynet' cannot be imported: No module named 'mynet'",
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_presets_exist(gnp: Gnp, command: str):
    words = shlex.split(command)
    has_two = words[1] in ("data", "models") or (
        words[1] == "bench" and not words[2].startswith("-")
    )
    subcommands = 2 if has_two else 1
    assert gnp(*words[1 : 1 + subcommands], "--help").returncode == 0
    if words[1] == "reproduce-table":
        load_table(words[2])
    for option, value in itertools.pairwise(words):
        if option == "--preset" and not value.endswith(".yaml"):
            assert value in preset_names()


def test_every_variable_that_the_code_reads_is_in_the_table_of_variables():
    read = {
        node.value
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch("GNP_[A-Z_]+", node.value)
    }
    runs = (REPOSITORY / "docs" / "runs.md").read_text()
    rows = re.findall(r"^\| (`GNP_.*?) \|", runs, re.M)
    assert sorted(read) == sorted(re.findall("GNP_[A-Z_]+", " ".join(rows)))


def test_keys_and_values_named_in_the_text_are_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mynet.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    named = set(
        re.findall(
            r"`((?:model|data|optimizer|schedule|gr|train|checkpoint|mesh)\.[a-z_0-9]+=[^`]+)`",
            TEXT,
        )
    )
    assert {"gr.gradient=exact", "gr.mix=unit", "model.variant=upstream"} <= named
    # A preset that has the key; every other key has a meaning in the demo.
    presets = {
        "model.variant": "wrn-16-4-cifar10",
        "model.stem": "resnet50-cifar10",
        "model.window_size": "swin-t-cifar10",
        "data.stream": "vit-s-imagenet",
        "gr.between": "vit-s-cifar10-looksam",
        "data.train_split": "wrn-28-10-svhn",
    }
    for assignment in named:
        if re.search(r"=[A-Za-z]$", assignment):  # a letter that stands for a number
            continue
        preset = presets.get(assignment.partition("=")[0])
        assert parse_overrides([assignment])
        resolve(preset, [assignment])


def _links() -> list[tuple[Path, str]]:
    """Return (document, target) of every link to a file of this project."""
    found = []
    for path in [*DOCUMENTS, REPOSITORY / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            if not target.startswith(("http", "#")):
                found.append((path, target))
    return found


@pytest.mark.parametrize(("document", "target"), _links())
def test_links_lead_to_a_file_and_to_a_heading_of_it(document: Path, target: str):
    name, _, anchor = target.partition("#")
    file = document.parent / name
    assert file.exists(), f"{document.name}: {target}"
    if anchor:
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in slugs, f"{document.name}: {target}"
