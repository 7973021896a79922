"""Code that a file names runs only where a person trusts it; what is displayed runs none at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gnpcli.cli import main
from gnpcli.cli.commands import COMMANDS
from gnpcli.config.loader import Layer, flatten
from gnpcli.config.section import UnloadedModel
from gnpcli.errors import ConfigError
from gnpcli.recipes.presets import compose, read_resolved, resolve, with_code
from gnpcli.tables.cells import make_cells
from gnpcli.tables.spec import Changes, load_table
from tests.commands import FINDS_SMALL, CommandServer
from tests.conftest import fails

SPY = """\
from pathlib import Path

Path(__file__).with_name("RAN").touch()
from tests.small import small
"""
"""A model of one's own that leaves a trace where its code has run."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run_in(command_server: CommandServer) -> Run:
    """Run ``gnp ARGS`` in a folder; nothing is trusted."""

    def run(folder: Path, *args: str, trust: str = "") -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, **FINDS_SMALL, "GNP_TRUST_CODE": trust, "COLUMNS": "200"}
        return command_server.run(args, cwd=folder, env=variables, timeout=300)

    return run


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, run_in: Run) -> Path:
    """Return a run folder with the code of its model beside its files."""
    folder = tmp_path_factory.mktemp("sent")
    (folder / "spy.py").write_text(SPY)
    typed = ("--set", "model.name=spy:small", "--set", "data.batch_size=256")
    done = run_in(folder, "train", "-q", *typed, "--max-steps", "1", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert (folder / "RAN").exists(), "what is typed needs no trust"
    shutil.copy(folder / "spy.py", folder / "run" / "spy.py")
    return folder / "run"


@pytest.fixture
def theirs(sent: Path, tmp_path: Path) -> Path:
    """Return a copy of the run folder, beside another one."""
    shutil.copytree(sent, tmp_path / "theirs")
    shutil.copytree(sent, tmp_path / "other")
    return tmp_path / "theirs"


TABLE = """\
title: A table
purpose: a test
preset: ./config.yaml
rows: {only: {}}
columns: {plain: {set: {gr: {strategy: none}}}, sam: {set: {gr: {strategy: sam, r: 0.1}}}}
baseline: plain
seeds: [0]
"""

DISPLAYS = (
    "report .",
    "plot .",
    "compare . ../other",
    "presets list",
    "presets show ./config.yaml",
    "tables list",
    "models list",
    "data list",
    "doctor --no-test",
    "data preview -p ./config.yaml",
)
"""Commands that run no model, whatever is trusted."""

COMPUTES = (
    "train --preset ./config.yaml --run-dir ../new",
    "train --preset ./config.yaml --set model.dropout=0.2 --run-dir ../new",
    "train --init-from . --set model.name=tests.small:small --run-dir ../new",
    "launch slurm -- train --preset ./config.yaml --run-dir ../new",
    "resume . --max-steps 2",
    "eval .",
    "eval ./checkpoints/1",
    "inspect .",
    "check .",
    "check ./config.yaml",
    "plan ./config.yaml --on h100:1",
    "bench --preset ./config.yaml",
    "bench gr --preset ./config.yaml",
    "bench data --preset ./config.yaml",
    "bench telemetry --preset ./config.yaml",
    "bench peer --preset ./config.yaml",
    "bench start --preset ./config.yaml",
)
"""Commands that refuse code which only a file names."""

OTHERS = {"reproduce-table", "import-weights"}
"""Commands whose code is tried by other tests here, or is named on the command line alone."""


def test_every_command_is_tried():
    tried = {command.split()[0] for command in (*DISPLAYS, *COMPUTES)}
    assert tried | OTHERS == {command.name for command in COMMANDS}


@pytest.mark.parametrize(
    ("command", "trust"), [*((command, "1") for command in DISPLAYS), ("report .", "")]
)
def test_what_is_displayed_runs_no_model(theirs: Path, run_in: Run, command: str, trust: str):
    done = run_in(theirs, *command.split(), trust=trust)
    assert done.returncode == 0, done.stderr
    assert not (theirs / "RAN").exists()


@pytest.mark.parametrize("command", COMPUTES)
def test_code_that_a_file_names_is_refused_with_the_module(theirs: Path, run_in: Run, command: str):
    done = run_in(theirs, *command.split())
    line = fails(done, "model 'spy:small'", str(theirs / "spy.py"), "--trust-code")
    assert "config.yaml" in line or "checkpoint of step 1" in line
    assert not (theirs / "RAN").exists()
    assert not (theirs.parent / "new").exists()


def test_the_description_of_a_checkpoint_is_a_file_too(theirs: Path, run_in: Run):
    (theirs / "config.yaml").unlink()
    done = run_in(theirs, "eval", "checkpoints")
    fails(done, "the checkpoint of step 1 in", "model 'spy:small'", "--trust-code")
    assert not (theirs / "RAN").exists()


def test_a_dry_run_says_all_that_needs_no_code(theirs: Path, run_in: Run):
    done = run_in(theirs, "train", "--preset", "./config.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "  name: spy:small\n  dropout: 0.1\n" in done.stdout
    assert "# parameters   unknown: the code of spy:small has not run (see --trust-code)" in (
        done.stdout
    )
    assert "# steps        " in done.stdout
    assert not (theirs / "RAN").exists()


@pytest.mark.parametrize(("words", "trust"), [(["--trust-code"], ""), ([], "1")])
def test_trusted_code_runs(theirs: Path, run_in: Run, words: list[str], trust: str):
    done = run_in(theirs, "resume", ".", "-q", "--max-steps", "2", *words, trust=trust)
    assert done.returncode == 0, done.stderr
    assert (theirs / "RAN").exists()
    done = run_in(theirs, "eval", ".", "-q", *words, trust=trust)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("trust", ["0", "true", "yes", " 1"])
def test_only_1_is_trust(theirs: Path, run_in: Run, trust: str):
    fails(run_in(theirs, "eval", ".", trust=trust), "--trust-code")


def test_options_of_trusted_code_are_checked_with_their_place(theirs: Path, run_in: Run):
    path = theirs / "config.yaml"
    path.write_text(path.read_text().replace("dropout: 0.1", "dropout: much", 1))
    fails(run_in(theirs, "eval", ".", trust="1"), "config.yaml: model.dropout: expected a number")
    assert run_in(theirs, "compare", ".", "../other").returncode == 0


# Which source names a model, and whether its code runs: in this process, without a backend.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the current folder, which has the module ``spy`` that nothing has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GNP_TRUST_CODE", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "spy.py").write_text(SPY)
    (tmp_path / "named.yaml").write_text("base: vit-nano-digits\nmodel: {name: spy:small}\n")
    (tmp_path / "above.yaml").write_text("base: ./named.yaml\nmodel: {name: spy:small}\n")
    (tmp_path / "by-file.yaml").write_text(
        "base: vit-nano-digits\nmodel: {name: './spy.py:small'}\n"
    )
    yield tmp_path
    sys.modules.pop("spy", None)


def ran(here: Path) -> bool:
    return (here / "RAN").exists()


@pytest.mark.parametrize(
    ("preset", "line"),
    [("./named.yaml", "named.yaml:2"), ("./by-file.yaml", "by-file.yaml:2")],
)
@pytest.mark.parametrize("assignments", [[], ["model.dropout=0.2"], ["optimizer.lr=0.1"]])
def test_a_file_names_code(here: Path, preset: str, line: str, assignments: list[str]):
    with pytest.raises(ConfigError, match="--trust-code") as caught:
        resolve(preset, assignments)
    assert str(caught.value).startswith(line)
    assert str(here / "spy.py") in str(caught.value)
    config = resolve(preset, assignments, code="allowed")
    assert isinstance(config.model, UnloadedModel)
    assert isinstance(compose(preset, assignments).model, UnloadedModel)
    assert not ran(here)


def test_a_person_names_code(here: Path):
    assert type(resolve(None, ["model.name=spy:small"]).model).__name__ == "SmallOptions"
    assert ran(here)


def test_a_person_names_the_code_that_a_file_names(here: Path):
    assert resolve("./named.yaml", ["model.name=spy:small"]).model.name == "spy:small"
    assert ran(here)


@pytest.mark.parametrize("name", ["vit-nano", "tests.small:small"])
def test_a_person_names_another_model_than_the_file(here: Path, name: str):
    assert resolve("./named.yaml", [f"model.name={name}"]).model.name == name
    assert not ran(here)


def test_code_that_the_program_has_imported_needs_no_trust(here: Path):
    sys.path.append(str(here))
    __import__("spy")
    assert resolve("./named.yaml").model.name == "spy:small"


def test_an_installed_module_is_run_by_no_file_either(here: Path):
    (here / "named.yaml").write_text("base: vit-nano-digits\nmodel: {name: 'antigravity:x'}\n")
    with pytest.raises(ConfigError, match=r"module antigravity \(.*antigravity\.py\) would run"):
        resolve("./named.yaml")
    assert "antigravity" not in sys.modules


def test_no_package_around_a_module_runs_to_find_it(here: Path):
    package = here / "their"
    package.mkdir()
    (package / "__init__.py").write_text("from pathlib import Path\nPath('RAN').touch()\n")
    (package / "net.py").write_text(SPY)
    (here / "named.yaml").write_text("base: vit-nano-digits\nmodel: {name: 'their.net:small'}\n")
    with pytest.raises(ConfigError, match=str(package / "net.py")):
        resolve("./named.yaml")
    assert not ran(here)


def test_the_options_of_code_that_has_not_run_are_as_written(here: Path):
    values = {"name": "spy:small", "dropout": 0.3, "deep": {"a": [1, None, "x"]}}
    config = read_resolved(
        [
            Layer({"optimizer": {"name": "sgd"}, "data": {"name": "digits"}}),
            Layer({"model": values, "train": {"epochs": 1}}),
        ]
    )
    assert config.model.model_dump(mode="json") == values
    assert flatten(config)["model.dropout"] == 0.3
    with pytest.raises(ConfigError, match=r"^RUN: model 'spy:small'"):
        with_code(config, "RUN")
    assert not ran(here)


def test_a_table_names_code(here: Path):
    (here / "table.yaml").write_text(TABLE.replace("./config.yaml", "./named.yaml"))
    table = load_table("./table.yaml")
    assert table.resolve("only", "sam", 0, Changes()).model.name == "spy:small"
    assert not ran(here)
    with pytest.raises(ConfigError, match="--trust-code"):
        make_cells(table, ["only"], ["plain", "sam"], [0], Changes(), here / "out")
    assert not ran(here)
    changes = Changes(assignments=("model.name=spy:small",))
    make_cells(table, ["only"], ["plain", "sam"], [0], changes, here / "out")
    assert ran(here)


# What other programs read from the current folder.


def test_settings_of_matplotlib_in_the_folder_are_not_obeyed(theirs: Path):
    (theirs / "matplotlibrc").write_text("text.usetex: true\naxes.prop_cycle: cycler('color', x)\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from gnpcli.cli import main; main()", "plot", "."],
        cwd=theirs,
        env={**os.environ, **FINDS_SMALL},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_processes_of_workers_do_not_search_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # restored afterwards, also where it was not set
    monkeypatch.delenv("PYTHONSAFEPATH")
    monkeypatch.setattr(sys, "argv", ["gnp", "--version"])
    with pytest.raises(SystemExit):
        main()
    (tmp_path / "multiprocessing.py").write_text("raise SystemExit('ran')")
    done = subprocess.run(
        [sys.executable, "-c", "import multiprocessing.spawn"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
