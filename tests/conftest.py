"""Strict JAX for every test, an isolated environment, and the real command line in a subprocess."""

from __future__ import annotations

import logging
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, KeysView, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

CHECKED: list[str] = [
    "gnpcli.data.augment",
    "gnpcli.data.feeds",
    "gnpcli.devices.convolution",
    "gnpcli.devices.cpu",
    "gnpcli.gnp.ascent",
    "gnpcli.gnp.passes",
    "gnpcli.gnp.reuse",
    "gnpcli.gnp.slices",
    "gnpcli.gnp.trees",
    "gnpcli.measure.directions",
    "gnpcli.measure.fidelity",
    "gnpcli.measure.hessian",
    "gnpcli.measure.landscape",
    "gnpcli.models.families",
    "gnpcli.models.layers",
    "gnpcli.models.torch",
    "gnpcli.step.averaging",
    "gnpcli.step.guard",
    "gnpcli.step.losses",
    "gnpcli.step.objective",
    "gnpcli.step.optimizer",
    "gnpcli.step.perturbation",
    "gnpcli.step.precision",
    "gnpcli.step.telemetry",
]
"""The modules whose signatures are checked at each call in every test: shapes, dtypes, types.

Not `gnpcli.gnp.penalty`: it refuses a wrong option with a ValueError, which a test expects, and the
check of its type would come first. Its shapes are those of `gnpcli.gnp.passes`.
Not `gnpcli.models.base`: it declares protocols, which cannot be checked at run time. The calls of
Flax modules are checked like functions.
"""

BEARTYPE = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
"""A whole number counts as a float, as it does for mypy."""

install_import_hook(CHECKED, BEARTYPE)  # before any of them is imported

# Programs that tests start would ignore a signal that is ignored here, as in a shell's background.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

from gnpcli.cli.remarks import Listener  # noqa: E402
from tests import commands  # noqa: E402
from tests.commands import (  # noqa: E402
    PROGRAM,
    REPOSITORY,
    CommandServer,
    read_at_import,
    run_gnp,
)
from tests.folders import put  # noqa: E402
from tests.once import Programs  # noqa: E402
from tests.order import widest_first  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED_DATA = REPOSITORY.parent / "shared" / "data"

KEPT_FROM_S = 0.2
"""How long a program of this process compiles that is kept for the next one that needs it."""

Gnp = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign-size",
        default="small",
        help="Cases of each campaign: small, full, all or a number. See tests/campaigns.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Refuse cases in an order that differs from process to process: xdist compares the lists."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        has_order = not isinstance(mark.args[1], Set) or isinstance(mark.args[1], KeysView)
        assert has_order, f"{metafunc.definition.nodeid} takes its cases from a set: sort them"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = widest_first(items)


@pytest.fixture(scope="session", autouse=True)
def _isolated_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # One folder for all workers and all subprocesses: the commands are real, compiling the same
    # step fifty times is not what they are about.
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "gnp-cache"
    os.environ["GNP_CACHE_DIR"] = str(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    # The step of a small network compiles in less than the second from which JAX keeps a program.
    # A command compiles what the one before it did, down to the smallest program.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_FROM_S)
    for name in ("GNP_DEBUG", "XLA_FLAGS", "TFDS_DATA_DIR", "GNP_DATA_DIR", "GNP_CHECKSUMS"):
        os.environ.pop(name, None)
    os.environ.pop("GNP_TRUST_CODE", None)
    os.environ["GNP_MIRROR"] = (
        "http://127.0.0.1:9"  # what is absent is not fetched: nobody listens there
    )
    yield
    commands.close_server()


UNOPTIMISED = re.compile(
    r"test_(models(_(convolution|resnet|shake|swin|cait|vgg))?"
    r"|augment_(device|mixing|pipeline)|averaging|check|losses)"
)
"""Tests of what a network or an augmentation computes, not of what the compiler makes of it.

Most of their time is the compiler's, which takes half of it without its optimizations. What is
compared bit for bit, or by the memory or the text of a program, is compiled as users have it.
"""


@pytest.fixture(scope="module", autouse=True)
def _compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    name = request.module.__name__.rpartition(".")[2]
    jax.config.update("jax_disable_most_optimizations", bool(UNOPTIMISED.fullmatch(name)))
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def programs() -> Programs:
    """What the runs of this process are made of, where they share it."""
    return Programs()


@pytest.fixture
def shared_programs(programs: Programs) -> Iterator[None]:
    """Let the runs of a test share their programs with those before them."""
    with programs.shared():
        yield


@pytest.fixture(scope="session")
def command_server(_isolated_caches: None) -> CommandServer:
    """What runs the commands of all tests of this process."""
    return commands.command_server()


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    """Undo what a command that ran in this process leaves there.

    With a variable that the server does not have, every command of the tests that follow would be
    an interpreter of its own. A listener to the logs of libraries would go on to listen.
    """
    before = read_at_import(os.environ)
    yield
    for name in read_at_import(os.environ).keys() - before:
        del os.environ[name]
    os.environ.update(before)
    root = logging.getLogger()
    for handler in [*root.handlers]:
        if isinstance(handler, Listener):
            root.removeHandler(handler)


@pytest.fixture
def gnp(tmp_path: Path, command_server: CommandServer) -> Gnp:
    """Run ``gnp ARGS`` in `tmp_path` as a user would; returns exit status, stdout and stderr.

    ``model.name=tests.small:small`` is found, a network that compiles in a second.
    """

    def run(
        *args: object, env: dict[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        return run_gnp(command_server, args, tmp_path, env or {}, timeout)

    return run


@pytest.fixture
def record_error(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Assert that logits agree with those of a reference to 1e-4, and write the largest relative
    error to the report.

    The error is the largest difference over the largest logit; ``pytest --junitxml FILE`` has it
    for every test.
    """

    def record(family: str, reference: str, logits: Any, wanted: Any) -> None:
        error = float(np.abs(np.asarray(logits) - wanted).max() / np.abs(wanted).max())
        record_property(f"{family} / {reference}", error)
        assert error < 1e-4

    return record


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a test a cache of its own, a working directory, no data from outside and no network."""
    monkeypatch.setenv("GNP_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("GNP_DATA_DIR", "TFDS_DATA_DIR", "GNP_CHECKSUMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GNP_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of two classes with 3 training and 2 test images each."""
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count):
                put(tmp_path / "data set" / split / name / f"{index}.png", seed=100 * label + index)
    return tmp_path / "data set"


def fails(done: subprocess.CompletedProcess[str], *parts: str, status: int = 1) -> str:
    """Assert that a command failed with one line on stderr holding all `parts`, and no traceback;
    return the line.
    """
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Run ``gnp ARGS`` on a terminal of 80 columns; return exit status and all that it showed."""
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
    )
    os.close(inner)
    shown = b""
    with suppress(OSError):  # how Linux says that nobody holds the other end any more
        while block := os.read(outer, 1 << 16):
            shown += block
    os.close(outer)
    return process.wait(), shown.decode()
