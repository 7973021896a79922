"""Files of a run folder that a crash or another program damaged: one line, never a traceback."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from gnpcli.cli import main
from gnpcli.config.resolved import settle
from gnpcli.engine.train import train
from gnpcli.recipes.presets import resolve
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import to_lines
from gnpcli.tables.cells import run_dir
from tests.tables import NO_CHANGES, write

Run = Callable[..., tuple[int, str, str]]
Damage = Callable[[Path], object]

SUMMARY = {"status": "finished", "step": 704, "epoch": 16.0, "total_steps": 704, "elapsed_s": 8.0}
SUMMARY["test"] = {"step": 704, "error_rate": 0.04, "loss": 0.1, "num_examples": 360}
SESSION = {"start_step": 0, "python": "3.11", "devices": ["cpu"], "versions": {"jax": "0.10.2"}}
RECORDS = [
    {"step": 352, "epoch": 8.0, "split": "train", "loss": 0.5, "elapsed_s": 5.0},
    {"step": 352, "epoch": 8.0, "split": "test", "error_rate": 0.08, "loss": 0.3},
    {"step": 704, "epoch": 16.0, "split": "test", "error_rate": 0.04, "loss": 0.1},
]


def make_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


EVERYWHERE: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "mapping": lambda path: path.write_text("{}\n"),
    "list": lambda path: path.write_text("[]\n"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "junk": lambda path: path.write_bytes(bytes(range(256)) * 3),
    "folder": make_folder,
}
"""What may happen to any file."""

WRONG_TYPES: dict[str, list[str]] = {
    "summary.json": [
        '{"status": 3}',
        '{"status": "finished", "step": "x"}',
        '{"status": "finished", "epoch": NaN}',
        '{"status": "finished", "test": []}',
        '{"status": "finished", "test": {"error_rate": [1]}}',
    ],
    "environment.json": [
        '{"sessions": 3}',
        '{"sessions": [3]}',
        '{"sessions": [{"devices": {}}]}',
        '{"sessions": [{"versions": [1]}]}',
    ],
    "metrics.jsonl": [
        '{"step": "x", "split": "train"}\n',
        '{"step": -1, "split": "train"}\n',
        '{"step": 1, "split": 2}\n',
        '{"step": 1, "split": "train", "epoch": []}\n',
        '{"step": 1, "split": "train", "elapsed_s": [1]}\n',
        '{"step": 1, "split": "test", "error_rate": "x"}\n',
        '{"step": 1, "split": "test", "error_rate": 1e999}\n',
        '{"step": 1, "split": "train", "non_finite": 3}\n',
    ],
}
CASES = [
    *((file, name, damage) for file in WRONG_TYPES for name, damage in EVERYWHERE.items()),
    *(
        (file, text, lambda path, text=text: path.write_text(text))
        for file, texts in WRONG_TYPES.items()
        for text in texts
    ),
]
DAMAGED = pytest.mark.parametrize(
    ("file", "damage"),
    [pytest.param(file, damage, id=f"{file}-{name.strip()}") for file, name, damage in CASES],
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: status, standard output and error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gnp", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "400")
        with pytest.raises(SystemExit) as caught:
            main()
        told = capsys.readouterr()
        return int(caught.value.code or 0), told.out, told.err

    return call


def fill(folder: Path) -> Path:
    """Write the files of a run that has finished, all but its configuration."""
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "environment.json").write_text(json.dumps({"sessions": [SESSION]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in RECORDS))
    return folder


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the first of two runs of a table, which differ in their seed."""
    monkeypatch.chdir(tmp_path)
    table = write(tmp_path)
    for seed in (0, 1):
        folder = run_dir(tmp_path / "out", "nano", "adam", seed)
        config = table.resolve("nano", "adam", seed, NO_CHANGES)
        RunFolder(folder).create(settle(config, lambda: 1))
        fill(folder)
    return run_dir(tmp_path / "out", "nano", "adam", 0)


def one_line(status: int, error: str) -> str:
    """Return the message of a command that failed."""
    assert status == 1
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    return line


@DAMAGED
def test_commands_that_read_several_runs_say_what_they_left_out(pair, run, file, damage):
    other = pair.with_name("seed1")
    damage(pair / file)
    before = {path: path.is_dir() or path.read_bytes() for path in pair.iterdir()}
    status, _, error = run("compare", pair, other)
    assert status == 0, error
    is_cut = file == "metrics.jsonl" and (pair / file).is_file() and not (pair / file).read_bytes()
    assert is_cut or f"{pair / file}" in error
    status, _, error = run("plot", pair, other, "--out", pair.parent / "p.png")
    if file == "metrics.jsonl" and not RunFolder(pair).records():
        assert f"{pair} has no metrics yet" in one_line(status, error)
    else:
        assert status == 0, error
    assert {path: path.is_dir() or path.read_bytes() for path in pair.iterdir()} == before


@DAMAGED
def test_the_page_of_a_run_says_what_it_left_out(pair, run, file, damage):
    damage(pair / file)
    status, out, error = run("report", pair)
    if file == "metrics.jsonl" and not RunFolder(pair).records():
        assert f"{pair} has no metrics yet" in one_line(status, error)
        return
    assert status == 0, error
    assert f"{file} is" in Path(out.strip()).read_text()


@DAMAGED
def test_a_table_says_what_it_left_out(pair, run, tmp_path, file, damage):
    damage(pair / file)
    (tmp_path / "out" / "seed").touch()  # a stray file beside the cells
    status, _, error = run(
        "reproduce-table", tmp_path / "small.yaml", "--render", "--out", tmp_path / "out"
    )
    assert status == 0, error
    text = (tmp_path / "out" / "table.md").read_text()
    is_empty = (pair / file).is_file() and not (pair / file).read_bytes()
    assert (file == "metrics.jsonl" and is_empty) or f"{file} is" in text


@pytest.mark.parametrize("more", ["", ', "epoch": null', ', "epoch": 1e-300', ', "epoch": -1'])
def test_a_record_may_say_no_more_than_its_step_and_its_error(pair, run, tmp_path, more):
    text = f'{{"step": 1, "split": "test", "error_rate": 0.5{more}}}\n'
    (pair / "metrics.jsonl").write_text(text)
    for arguments in (
        ("compare", pair, pair.with_name("seed1")),
        ("plot", pair, "--x", "step", "--out", tmp_path / "plot.png"),
        ("report", pair),
        ("reproduce-table", tmp_path / "small.yaml", "--render", "--out", tmp_path / "out"),
    ):
        status, _, error = run(*arguments)
        assert status == 0, error


@pytest.mark.parametrize("damage", EVERYWHERE.values(), ids=EVERYWHERE)
@pytest.mark.parametrize(
    "command", ["resume", "eval", "inspect", "compare", "plot", "report", "reproduce-table"]
)
def test_a_damaged_configuration_is_an_error_that_names_it(pair, run, tmp_path, command, damage):
    damage(pair / "config.yaml")
    arguments = {
        "compare": (pair, pair.with_name("seed1")),
        "reproduce-table": (tmp_path / "small.yaml", "--render", "--out", tmp_path / "out"),
    }
    status, _, error = run(command, *arguments.get(command, (pair,)))
    if command == "reproduce-table" and (pair / "config.yaml").is_dir():
        assert status == 0  # it is no run folder, so it is no run of the table
        return
    line = one_line(status, error)
    assert str(pair) in line
    assert "config.yaml" in line


@pytest.fixture(scope="module", autouse=True)
def standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a few steps that stopped before its end."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = ("model.name=tests.small:small", "train.log_every_steps=1", "train.epochs=4")
    train(resolve(None, [*settings, "mesh.devices=1"]), folder, max_steps=3, quiet=True)
    return folder


@pytest.mark.parametrize("damage", EVERYWHERE.values(), ids=EVERYWHERE)
def test_resume_sets_damaged_files_aside_and_goes_on(trained, tmp_path, run, damage):
    folder = shutil.copytree(trained, tmp_path / "run")
    whole = json.loads((trained / "summary.json").read_text())
    for file in WRONG_TYPES:
        damage(folder / file)
    status, out, error = run("resume", folder, "--max-steps", 4, "--json", "--quiet")
    assert status == 0, error
    assert json.loads(out)["step"] == whole["step"] + 1
    for file in ("summary.json", "environment.json"):
        assert (folder / f"{file}.damaged").exists()
        assert f"{file} is damaged" in error
        assert f"moved to {file}.damaged" in error
    fine = RunFolder(folder, pytest.fail)
    assert fine.summary()["step"] == 4
    assert [session["start_step"] for session in fine.sessions()] == [3]
    assert fine.records()[-1]["step"] == 4


def test_evaluating_reads_nothing_that_may_be_damaged(trained, tmp_path, run):
    folder = shutil.copytree(trained, tmp_path / "run")
    status, wanted, _ = run("eval", folder, "--json")
    assert status == 0
    for file in WRONG_TYPES:
        (folder / file).write_bytes(b"\0")
    assert run("eval", folder, "--json")[:2] == (0, wanted)


def test_a_second_damage_keeps_the_first(tmp_path):
    run = RunFolder(tmp_path, lambda text: None)
    for number in ("", "2", "3"):
        (tmp_path / "summary.json").write_text("[]")
        run.set_aside_damaged()
        assert (tmp_path / f"summary.json.damaged{number}").exists()


def test_a_log_is_set_aside_where_more_than_its_last_line_is_damaged(tmp_path):
    said: list[str] = []
    run, log = RunFolder(tmp_path, said.append), tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(line) + "\n" for line in RECORDS)
    log.write_text(whole + '{"step"')
    run.set_aside_damaged()
    assert said == []
    assert run.records() == RECORDS
    log.write_text(whole + "junk\n" + whole)
    run.set_aside_damaged()
    assert log.read_text() == to_lines(RECORDS)
    assert RunFolder(tmp_path, said.append).records() == RECORDS
    assert (tmp_path / "metrics.jsonl.damaged").exists()
