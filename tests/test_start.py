"""How a command starts under odd variables, and what reaches the screen of what libraries say."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from gnpcli.cli import remarks
from gnpcli.devices.start import StartError, check_settings, explain
from tests.commands import command_server, run_gnp
from tests.conftest import Gnp, fails

TRAIN = ("train", "-q", "--set", "model.name=tests.small:small", "--set", "data.batch_size=30")

ONE_LINE = {
    "JAX_PLATFORMS=cuda": "set JAX_PLATFORMS=cpu",
    "JAX_DEFAULT_MATMUL_PRECISION=abc": "unset JAX_DEFAULT_MATMUL_PRECISION=abc",
    "XLA_FLAGS=--xla_nonsense=1": "Unknown flag in XLA_FLAGS: --xla_nonsense=1",
}
MORE_LINES = {
    "JAX_PLATFORMS=gpu": "set JAX_PLATFORMS=cpu",
    "JAX_PLATFORMS=tpu": "set JAX_PLATFORMS=cpu",
    "JAX_PLATFORMS=nonsense": "'tpu'].): set JAX_PLATFORMS=cpu",
    "JAX_PLATFORM_NAME=gpu": "JAX finds no device for JAX_PLATFORM_NAME=gpu",
    "XLA_FLAGS=nonsense": "Could not open file",
    "XLA_FLAGS=--xla_force_host_platform_device_count=abc": "correct or unset XLA_FLAGS",
    "JAX_NUM_CPU_DEVICES=abc": "unset JAX_NUM_CPU_DEVICES=abc",
    "JAX_NUM_CPU_DEVICES=0": "JAX finds no device for JAX_NUM_CPU_DEVICES=0",
    "JAX_ENABLE_X64=maybe": "unset JAX_ENABLE_X64=maybe",
    "JAX_NUMPY_RANK_PROMOTION=abc": "unset JAX_NUMPY_RANK_PROMOTION=abc",
    "JAX_TRACEBACK_FILTERING=xyz": "unset JAX_TRACEBACK_FILTERING=xyz",
    "JAX_NUMPY_DTYPE_PROMOTION=strict": "unset it",
    "JAX_DEFAULT_PRNG_IMPL=rbg": "changes what a seed means: unset it",
    "JAX_THREEFRY_PARTITIONABLE=0": "changes what a seed means: unset it",
    "JAX_RANDOM_SEED_OFFSET=3": "changes what a seed means: unset it",
    "JAX_DEBUG_KEY_REUSE=1": "unset it",
    "JAX_TRANSFER_GUARD=disallow": "unset it",
}


@pytest.mark.parametrize(
    "assignment",
    [*ONE_LINE, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_LINES)],
)
def test_a_variable_that_cannot_be_is_one_line(gnp: Gnp, tmp_path: Path, assignment: str):
    variable, _, value = assignment.partition("=")
    done = gnp(*TRAIN, "--run-dir", "run", env={variable: value})
    line = fails(done, (ONE_LINE | MORE_LINES)[assignment])
    assert done.stderr == line + "\n"
    assert done.stdout == ""
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("assignment", ONE_LINE)
@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "show", "vit-nano"],
        ["data", "preview"],
        ["bench", "--rounds", "1", "--steps", "1"],
        ["resume", "nowhere"],
        ["eval", "nowhere"],
    ],
    ids=" ".join,
)
def test_every_command_that_starts_jax_says_so(gnp: Gnp, assignment: str, arguments: list[str]):
    variable, _, value = assignment.partition("=")
    done = gnp(*arguments, env={variable: value})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")


WORKS = (
    "JAX_ENABLE_X64=1",
    "JAX_DEBUG_NANS=1",
    "JAX_DEBUG_INFS=1",
    "JAX_NUMPY_RANK_PROMOTION=raise",
    "JAX_TRACEBACK_FILTERING=off",
    "JAX_ENABLE_CHECKS=1",
    "JAX_CHECK_TRACER_LEAKS=1",
    "JAX_DISABLE_JIT=1",
)


def evaluated(folder: Path, variables: dict[str, str]) -> dict[str, Any]:
    """Return the evaluation of a run that was trained, resumed and evaluated under variables.

    By SGD: the first steps of Adam divide gradients that are zero up to rounding.
    """
    sgd = ("--set", "optimizer.name=sgd", "--set", "optimizer.lr=0.1")
    for command in (
        (*TRAIN, *sgd, "--max-steps", 2, "--run-dir", "run"),
        ("resume", "run", "-q", "--max-steps", 4),
        ("eval", "run", "--json"),
    ):
        done = run_gnp(command_server(), command, folder, variables)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" or command[0] == "eval"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the evaluation of the run under no setting."""
    return evaluated(tmp_path_factory.mktemp("plain"), {})


@pytest.mark.slow
@pytest.mark.parametrize("assignment", WORKS)
def test_a_run_under_a_setting_of_jax_has_the_same_numbers(
    plain: dict[str, Any], tmp_path: Path, assignment: str
):
    """To rounding, since a program may be compiled otherwise."""
    variable, _, value = assignment.partition("=")
    under = evaluated(tmp_path, {variable: value})
    assert under["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert under["error_rate"] == pytest.approx(plain["error_rate"], abs=2 / 360)


@pytest.mark.slow
def test_lines_that_a_person_asks_for_are_shown(gnp: Gnp):
    done = gnp(*TRAIN, "--max-steps", 1, env={"JAX_LOG_COMPILES": "1"})
    assert done.returncode == 0
    assert "warning: Compiling" in done.stderr or "warning: Finished" in done.stderr


def test_the_settings_of_a_fresh_jax_are_taken():
    """In a process of its own: tests run under strict promotion."""
    code = (
        "import jax; from gnpcli.devices.start import check_settings, _NEEDED; "
        "check_settings(jax.config.values); print(sorted(set(_NEEDED) - set(jax.config.values)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 1),
        ("jax_transfer_guard", "disallow"),
        ("jax_transfer_guard_host_to_device", "disallow_explicit"),
    ],
)
def test_a_setting_that_changes_numbers_is_refused(name: str, value: object):
    with pytest.raises(StartError, match=f"^{name.upper()}={value} .*: unset it$"):
        check_settings({name: value})


@pytest.mark.parametrize("value", ["allow", "log"])
def test_guards_that_stop_nothing_are_taken(value: str):
    check_settings({"jax_transfer_guard": value})


def test_another_error_of_jax_is_a_bug():
    with pytest.raises(TypeError) as caught:
        jax.numpy.ones(3) + jax.numpy.ones((), "int32").astype("complex64").reshape(2)
    assert explain(caught.value) == (None, 1)


# --- what libraries say


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take in remarks as a command does, and undo it."""
    root = logging.getLogger()
    handlers = [*root.handlers]
    monkeypatch.delenv("GNP_DEBUG", raising=False)
    for name in remarks._ASKED_FOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        remarks.listen()
        yield
    root.handlers = handlers


@pytest.mark.parametrize("library", ["PIL.Image", "matplotlib", "jax._src.x", "absl", "orbax", ""])
def test_what_libraries_say_does_not_reach_the_screen(listening, capfd, library: str):
    logging.getLogger(library).warning("raw \x1b[2J line")
    warnings.warn("raw line", UserWarning, stacklevel=1)
    warnings.warn("raw line", RuntimeWarning, stacklevel=1)
    assert capfd.readouterr() == ("", "")


def test_what_matters_is_said_once_in_our_words(listening, capfd):
    for _ in range(2):
        logging.getLogger("jax._src.mlir").warning("Some donated buffers were not usable: ...")
        warnings.warn("Error writing persistent compilation cache entry for 'x'", stacklevel=1)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: a step takes more memory than it should")
    assert lines[1].startswith("warning: compiled programs cannot be kept")


def test_our_own_log_is_a_warning(listening, capfd):
    logging.getLogger("gnpcli").warning("waiting for %s", "another\x1b[2J")
    assert capfd.readouterr().err == "warning: waiting for another\\x1b[2J\n"


def test_debugging_shows_all(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder):
    monkeypatch.setenv("GNP_DEBUG", "1")
    handlers = [*logging.getLogger().handlers]
    remarks.listen()
    assert logging.getLogger().handlers == handlers


def test_a_command_holds_back_the_lines_of_xla_unless_it_debugs():
    code = (
        "import os, sys; from gnpcli.cli import main\n"
        "try: main()\nexcept SystemExit: print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'))"
    )
    environment = {**os.environ}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # jax sets it as well, in this process
    for flags, level in ([], "3"), (["--debug"], "None"):
        arguments = [sys.executable, "-c", code, *flags, "presets", "list", "--json"]
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
        assert done.stdout.splitlines()[-1] == level
