"""Paths that people write: on the command line, in files and in the environment."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from gnpcli.config.loader import parse_overrides
from gnpcli.config.paths import expanded, resolved_path, user_path
from gnpcli.errors import ConfigError
from gnpcli.recipes.presets import load_preset, resolve
from gnpcli.runs.folder import claimed_run
from gnpcli.runs.location import locate
from gnpcli.tables.spec import Changes, load_table
from tests.conftest import Gnp, fails

PACKAGE = Path(__file__).resolve().parents[1] / "gnpcli"
NOBODY = "~nosuchuser is the home of no user; a folder of that name is ./~nosuchuser"


def test_home_folders_are_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/x") == "/home/me/x"
    assert expanded("a/~/x") == "a/~/x"
    assert expanded("") == ""


@pytest.mark.parametrize("path", ["a\0b", "\0", "~/a\0", "~nosuchuser", "~nosuchuser/x"])
def test_what_no_path_can_be_is_refused_with_its_key(path: str):
    with pytest.raises(ConfigError) as caught:
        expanded(path, "data.dir")
    assert caught.value.key == "data.dir"
    assert "\0" not in str(caught.value)


def test_links_in_a_circle_are_refused(tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="symbolic links"):
        resolved_path(tmp_path / "a" / "x")
    for opens in (locate, claims):
        with pytest.raises(ConfigError, match="symbolic links"):
            opens(tmp_path / "a" / "x")


@pytest.mark.parametrize("name", [b"\xff", b"a\xff/b"])
def test_a_folder_that_cannot_hold_checkpoints_is_refused_before_it_is_made(
    tmp_path: Path, name: bytes
):
    path = tmp_path / os.fsdecode(name)
    for opens in (locate, claims):
        with pytest.raises(ConfigError, match="a name is not UTF-8: take another folder"):
            opens(path)
    assert list(tmp_path.iterdir()) == []


def claims(path: Path) -> None:
    with claimed_run(resolve(None, []), path):
        pass


def test_one_function_expands_paths():
    """Another call would have another behaviour at a home that is not there."""
    callers = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("expanduser", "home")
        if path.name != "paths.py"
    ]
    assert callers == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--data-dir", "~nosuchuser/x", "--dataset", "cifar10"),
        ("train", "--dataset", "folder:~nosuchuser/x"),
        ("train", "--preset", "~nosuchuser/x.yaml"),
        ("train", "--run-dir", "~nosuchuser/x", "--dry-run"),
        ("train", "--init-from", "~nosuchuser/x"),
        ("train", "--set", "model.name=~nosuchuser/net.py:x", "--dry-run"),
        ("resume", "~nosuchuser/x"),
        ("eval", "~nosuchuser/x"),
        ("report", "~nosuchuser/x"),
        ("compare", "~nosuchuser/x"),
        ("plot", "~nosuchuser/x"),
        ("inspect", "~nosuchuser/x"),
        ("check", "~nosuchuser/x"),
        ("reproduce-table", "~nosuchuser/x.yaml"),
        ("reproduce-table", "adam-vs-gr", "--out", "~nosuchuser/x", "--dry-run"),
        ("data", "preview", "--out", "~nosuchuser/x.png"),
        ("bench", "data", "--images", "~nosuchuser/x"),
        ("import-weights", "~nosuchuser/x.pth", "--model", "vit-b", "--out", "x"),
    ],
    ids=" ".join,
)
def test_the_home_of_nobody_is_one_line(gnp: Gnp, arguments: tuple[str, ...]):
    fails(gnp(*arguments), NOBODY)


@pytest.mark.parametrize("variable", ["GNP_CACHE_DIR", "XDG_CACHE_HOME", "GNP_DATA_DIR"])
def test_the_home_of_nobody_in_the_environment_is_one_line(gnp: Gnp, variable: str):
    variables = {"GNP_CACHE_DIR": "", variable: "~nosuchuser/x"}
    fails(gnp("train", "--dataset", "cifar10", "--max-steps", "1", env=variables), NOBODY)


@pytest.mark.parametrize("key", ["data.dir", "data.val_labels", "train.init_from", "data.name"])
def test_a_path_with_a_nul_in_a_file_is_one_line(gnp: Gnp, tmp_path: Path, key: str):
    section, _, name = key.partition(".")
    (tmp_path / "mine.yaml").write_text(f'base: vit-nano-digits\n{section}: {{{name}: "a\\0b"}}\n')
    fails(gnp("train", "--preset", "mine.yaml"), f"mine.yaml:2: {key}: 'a\\x00b' holds a NUL")


def test_a_base_is_looked_for_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.yaml").write_text("base: b.yaml\ntrain: {epochs: 7}\n")
    (tmp_path / "below" / "b.yaml").write_text(
        "model: {name: vit-nano}\ndata: {name: digits}\noptimizer: {name: sgd}\n"
    )
    for folder, name in ((tmp_path, "below/a.yaml"), (tmp_path / "below", "a.yaml"), ("/", None)):
        monkeypatch.chdir(folder)
        config = resolve(name or str(tmp_path / "below" / "a.yaml"))
        assert (config.optimizer.name, config.train.epochs) == ("sgd", 7)
    (tmp_path / "below" / "b.yaml").unlink()
    with pytest.raises(ConfigError, match=r"a\.yaml:1: cannot read .*below/b\.yaml"):
        load_preset(str(tmp_path / "below" / "a.yaml"))


def test_the_preset_of_a_table_is_looked_for_beside_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine.yaml").write_text("base: vit-nano-digits\ntrain: {epochs: 60}\n")
    (tmp_path / "table.yaml").write_text(
        "title: t\npurpose: p\npreset: mine.yaml\nbaseline: c\nrows: {a: {}}\ncolumns: {c: {}}\n"
    )
    monkeypatch.chdir(os.sep)
    table = load_table(str(tmp_path / "table.yaml"))
    assert table.resolve("a", "c", 0, Changes()).train.epochs == 60


def test_flags_are_text_as_typed_and_stay_so(gnp: Gnp, tmp_path: Path):
    (layer,) = parse_overrides([], {"data.dir": ("--data-dir", "25921e05")})
    assert layer.values == {"data": {"dir": "25921e05"}}
    shown = gnp("train", "--preset", "vit-s-cifar10", "--data-dir", "25921e05", "--dry-run").stdout
    assert "dir: '25921e05'" in shown
    (tmp_path / "config.yaml").write_text(shown)
    assert resolve(str(tmp_path / "config.yaml")).data.dir == "25921e05"


def test_a_path_that_is_empty_is_no_path():
    with pytest.raises(ConfigError, match="the path is empty"):
        user_path("")
    assert user_path(".") == user_path(Path("")) == Path()
