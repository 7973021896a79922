"""A URL in the place of a path: one line wherever a path is taken, and nothing is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from gnpcli.config.paths import expanded, is_url, user_path
from gnpcli.data.archives.places import data_dirs
from gnpcli.devices.process import cache_dir
from gnpcli.engine.train import resume, train
from gnpcli.errors import ConfigError
from gnpcli.recipes.presets import resolve
from gnpcli.runs.location import locate
from tests.conftest import Gnp, fails
from tests.schema import every_key
from tests.test_cli_help import walk

URL = "gs://bucket/x"
INSTEAD = "is a URL, not a path: copy what is there to this machine, or mount it"


@pytest.mark.parametrize(
    "url",
    ["gs://b/x", "gs:/b/x", "s3://b", "hf://org/name", "HTTPS://h/x", "a+b.c-d://x", "file:///x"],
)
def test_a_scheme_makes_a_url_and_a_drive_or_a_colon_does_not(url: str):
    assert is_url(url)
    assert not any(map(is_url, [f"./{url}", f"/{url}", "C:/x", "a:b", "2024:/x", "~/x", ""]))
    with pytest.raises(ConfigError, match="is a URL, not a path") as caught:
        expanded(url, "data.dir")
    assert caught.value.key == "data.dir"


@pytest.mark.parametrize("url", ["file:///data/x", "file:/data/x", "FILE://data/x"])
def test_the_url_of_a_file_is_to_be_written_as_a_path(url: str):
    with pytest.raises(ConfigError, match=r"write /data/x$"):
        expanded(url)


def parameters() -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield words, command and what typer knows of a parameter, for every one of all commands."""
    for words, command in walk():
        hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
        for hint in hints.values():
            yield from ((words, command, info) for info in getattr(hint, "__metadata__", ()))


def path_parameters() -> Iterator[Any]:
    """Yield the command and the words that give a URL to each parameter that takes a path."""
    for words, command, info in parameters():
        if info.parser is user_path:
            # Of an annotation the first name stands where typer has the default.
            named = [name for name in (info.default, *(info.param_decls or ())) if name != ...]
            given = [*named[:1], URL]
            yield pytest.param(command, given, id=" ".join((*words, *given)))


@pytest.mark.parametrize(("command", "given"), [*path_parameters()])
def test_every_option_and_argument_that_is_a_path_refuses_a_url(command: Any, given: list[str]):
    with pytest.raises(ConfigError, match=f"^{URL} {INSTEAD}"):
        command.make_context("gnp", given)


def test_what_is_shown_as_a_file_or_a_folder_is_read_as_a_path():
    shown = [each for each in parameters() if each[2].metavar in ("FILE", "FOLDER", "RUN")]
    assert len(shown) > 10
    assert [words for words, _, info in shown if info.parser is not user_path] == []


TEXTS = [f"{key.section}.{key.name}" for key in every_key() if key.types & {str}]
"""Every key that takes text, whether or not it is a path."""
PATHS = ("data.dir", "data.val_labels", "train.init_from")


@pytest.mark.slow
@pytest.mark.parametrize("key", [*dict.fromkeys(TEXTS)])
def test_no_text_of_a_configuration_makes_a_folder_of_a_url(gnp: Gnp, tmp_path: Path, key: str):
    demo = ("train", "--set", "model.name=tests.small:small", "--max-steps", 1, "--run-dir", "run")
    done = gnp(*demo, "--set", f"{key}={URL}")
    line = fails(done)
    if key == "train.init_from":
        assert f"{URL} {INSTEAD}" in line
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--preset", "vit-s-cifar10", "--data-dir", URL),
        ("train", "--dataset", f"folder:{URL}"),
        ("train", "--init-from", URL, "--dry-run"),
        ("train", "--preset", f"{URL}.yaml"),
        ("train", "--set", f"model.name={URL}/net.py:x"),
        ("check", URL),
        ("reproduce-table", f"{URL}.yaml"),
        ("reproduce-table", "adam-vs-gr", "--out", URL, "--dry-run"),
        ("data", "prepare", "cifar10", "--data-dir", URL),
    ],
    ids=" ".join,
)
def test_a_text_that_is_a_path_refuses_a_url(gnp: Gnp, tmp_path: Path, arguments: tuple[str, ...]):
    fails(gnp(*arguments), INSTEAD)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "name", ["GNP_CACHE_DIR", "XDG_CACHE_HOME", "GNP_DATA_DIR", "TFDS_DATA_DIR"]
)
def test_a_url_in_a_variable_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.delenv("GNP_CACHE_DIR")
    monkeypatch.setenv(name, URL)
    asks = cache_dir if "CACHE" in name else lambda: data_dirs(None)
    with pytest.raises(ConfigError, match=f"^{name}: {URL} {INSTEAD}"):
        asks()


def test_a_program_that_gives_a_path_of_a_url_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config, given = resolve(None), Path(URL)
    assert str(given) == "gs:/bucket/x"
    for call in (
        lambda: train(config, given, quiet=True),
        lambda: resume(given),
        lambda: locate(given),
    ):
        with pytest.raises(ConfigError, match=f"^gs:/bucket/x {INSTEAD}"):
            call()
    assert [*tmp_path.iterdir()] == []
