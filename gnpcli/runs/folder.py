"""A run folder: made once, never overwritten, and the only code that opens a file of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gnpcli.config.loader import dump, read_yaml
from gnpcli.config.paths import checkpoint_path
from gnpcli.config.resolved import Resolved
from gnpcli.config.same_run import another_run
from gnpcli.config.schema import CheckpointConfig
from gnpcli.errors import ConfigError
from gnpcli.files import leftovers, set_aside, write_atomically
from gnpcli.locks import LOCK_FILES, FolderExists, FolderInUse, FolderLock, Making
from gnpcli.recipes.presets import read_resolved
from gnpcli.runs.contents import ENVIRONMENT, IDENTITY, SUMMARY, Record, Session, Summary, reason
from gnpcli.runs.identity import new_run_id
from gnpcli.runs.log import METRICS_FILE, MetricsLog, parse_records, to_lines
from gnpcli.runs.names import default_run_dirs
from gnpcli.runs.reading import read_bytes
from gnpcli.runs.stamped import WrongStamp, stamp, unstamp
from gnpcli.runs.tensorboard import TensorBoardEvents
from gnpcli.runs.writing import writing
from gnpcli.strict_json import to_json

if TYPE_CHECKING:
    from gnpcli.runs.checkpoint import Checkpoints
    from gnpcli.runs.saves import Saves

Content = TypeVar("Content")

_CONFIG = "config.yaml"
_SUMMARY = "summary.json"
_ENVIRONMENT = "environment.json"
_IDENTITY = "run.json"
_CHECKPOINTS = "checkpoints"
_WRITTEN = (_CONFIG, _IDENTITY, _SUMMARY, _ENVIRONMENT, METRICS_FILE)
"""The files that are written whole."""


class RunFolder:
    """The folder of one run.

    Damage has one behaviour. ``config.yaml`` is needed: an error names it and the reason. The
    summary, the sessions and the log are not: what of them is damaged is left out, and `warn` is
    told so, once for each file. Reading changes nothing; `set_aside_damaged` does.

    A file that the system cannot read is not damaged. Whatever reads it raises a `RunReadError`.

    Who writes into a run has the folder to itself (`claimed`). Who reads it need not ask.

    Args:
        path: The folder, which may not be there yet.
        warn: Told in a sentence which file is damaged; None tells nobody.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] | None = None):
        self.path = path
        self._warn = warn
        self._warned: set[str] = set()
        self._lock: FolderLock | None = None

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Return whether a run has been started here."""
        return (self.path / _CONFIG).is_file()

    def config(self) -> Resolved:
        """Return the configuration of the run.

        Raises:
            ConfigError: This is not a run folder, or ``config.yaml`` holds no configuration.
        """
        if not self.exists():
            raise ConfigError(f"{self.path} is not a run folder (it has no {_CONFIG})")
        path = self.path / _CONFIG
        try:
            return read_resolved([read_yaml(path)])
        except ConfigError as error:
            if str(path) in str(error):
                raise
            raise ConfigError(f"{path}: {error}", error.key) from error

    @contextmanager
    def claimed(self, making: Making = "never") -> Iterator[None]:
        """Hold the folder for this process alone, and clear away what killed writers left in it.

        Args:
            making: As of `FolderLock`.

        Raises:
            ConfigError: It is a file.
            FolderInUse: Another process holds it, and is named.
            FolderExists: `making` is ``always``, and it is there.
            RunWriteError: It cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file, not a folder")
        with ExitStack() as stack:
            with writing(self.path):
                lock = stack.enter_context(FolderLock(self.path, making=making))
                for path in self._leftovers():
                    path.unlink(missing_ok=True)
            self._lock = lock
            stack.callback(setattr, self, "_lock", None)
            yield

    def check_claim(self) -> None:
        """Do nothing as long as the folder is `claimed`.

        Raises:
            LockLost: Another process has taken it over.
        """
        if self._lock is not None:
            self._lock.check()

    def _leftovers(self) -> list[Path]:
        """Return what killed writers left; only a process that has the folder to itself knows."""
        return [found for name in _WRITTEN for found in leftovers(self.path / name)]

    def check_free(self, config: Resolved) -> None:
        """Refuse a folder that a new run of `config` must not be written into.

        Raises:
            ConfigError: The folder holds a run already (with the keys that differ, where any do) or
                other files.
        """
        path = self.path
        if self.exists():
            self.check_same(config)
            raise ConfigError(
                f"{path} holds this very run already: continue it with `gnp resume {path}` or "
                "--resume, or take another --run-dir"
            )
        ours = {*self._leftovers(), *(path / name for name in LOCK_FILES)}
        if path.exists() and not ours.issuperset(path.iterdir()):
            raise ConfigError(
                f"{path} is not empty and is not a run folder: take another --run-dir"
            )

    def check_same(self, config: Resolved) -> Resolved:
        """Return the configuration that the run began with; refuse where `config` is of another.

        Raises:
            ConfigError: With the keys that differ.
        """
        begun = self.config()
        different = another_run(begun, config)
        if different:
            raise ConfigError(
                f"{self.path} holds a run with another configuration ({'; '.join(different)}): "
                "take another --run-dir"
            )
        return begun

    def create(self, config: Resolved) -> None:
        """Make the folder, which `check_free` has allowed, and write its ``config.yaml``.

        Raises:
            OSError: It cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / _CONFIG, dump(config))
        self.identify(new_run_id())

    def run_id(self) -> str | None:
        """Return the name that the saves of the run bear; None where ``run.json`` is missing."""
        found = self._read(_IDENTITY, IDENTITY)
        return found["id"] if found is not None else None

    def identify(self, run_id: str) -> None:
        """Give the run its name, which its saves will bear. One that has a name keeps it.

        Raises:
            OSError: It cannot be written.
        """
        if self.run_id() is None:
            write_atomically(self.path / _IDENTITY, json.dumps({"id": run_id}) + "\n")

    def summary(self) -> Summary:
        """Return where the run ended; its status is ``unfinished`` where no summary can be read."""
        found = self._read(_SUMMARY, SUMMARY)
        return found if found is not None else {"status": "unfinished"}

    def write_summary(self, summary: Summary) -> Summary:
        """Write ``summary.json`` and return what it holds.

        Raises:
            OSError: It cannot be written.
        """
        written: Summary = {"run_dir": str(self.path), **summary}
        self._write(_SUMMARY, written)
        return written

    def sessions(self) -> list[Session]:
        """Return what the run ran on, a session for its start and for each resume."""
        found = self._read(_ENVIRONMENT, ENVIRONMENT)
        return found["sessions"] if found is not None else []

    def note_session(self, environment: Mapping[str, Any], start_step: int) -> None:
        """Append what the run runs on from `start_step` on to ``environment.json``.

        Raises:
            OSError: It cannot be written.
        """
        sessions = [*self.sessions(), {"start_step": start_step, **environment}]
        self._write(_ENVIRONMENT, {"sessions": sessions})

    def _write(self, name: str, content: Mapping[str, object]) -> None:
        write_atomically(self.path / name, stamp(to_json(content, indent=2)) + "\n")

    def records(self) -> list[Record]:
        """Return what the run has logged up to the first damaged line, in the order of the file."""
        try:
            records, damage = parse_records(self.path / METRICS_FILE)
        except OSError as error:
            self._tell_damaged(METRICS_FILE, error)
            return []
        if damage is not None:
            self._tell(METRICS_FILE, str(damage))
        return records

    def log_size(self) -> int:
        """Return the bytes that the log has grown to; 0 where there is none."""
        try:
            return (self.path / METRICS_FILE).stat().st_size
        except OSError:
            return 0

    def open_log(
        self, start_step: int, *, evaluates_start: bool = False, every: int = 1
    ) -> MetricsLog:
        """Open the log to go on after `start_step`; see `MetricsLog`."""
        return MetricsLog(
            self.path, start_step, self._warn, evaluates_start=evaluates_start, every=every
        )

    def open_events(self, first_step: int) -> TensorBoardEvents:
        """Open TensorBoard events to go on with `first_step`; see `TensorBoardEvents`."""
        return TensorBoardEvents(self.path, first_step)

    @property
    def checkpoint_dir(self) -> Path:
        """The folder of all checkpoints."""
        return self.path / _CHECKPOINTS

    def saves(self) -> Saves:
        """Return the saves of the run, to be read."""
        from gnpcli.runs.saves import Saves  # loads jax; reading the rest does not

        return Saves(self.checkpoint_dir, self.run_id())

    def checkpoints(self, config: CheckpointConfig) -> Checkpoints:
        """Open the saves of the run to be written; arguments and errors as of `Checkpoints`."""
        from gnpcli.runs.checkpoint import Checkpoints

        return Checkpoints(self.checkpoint_dir, config, self.run_id())

    def checkpoint_sizes(self) -> dict[int, int]:
        """Return the bytes on disk of each saved step, rising."""
        folder = self.checkpoint_dir
        if not folder.is_dir():
            return {}
        steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
        return {step: _size(folder / str(step)) for step in steps}

    def set_aside_damaged(self) -> None:
        """Rename what is damaged to ``NAME.damaged`` and tell `warn`, so that the run can go on.

        A log is kept up to its first damaged line. One whose last line alone is cut short, as a
        kill leaves it, stays where it is.

        Raises:
            RunReadError: One of the files cannot be read; all are as they were.
            OSError: The folder cannot be written.
        """
        for name in (_IDENTITY, _SUMMARY, _ENVIRONMENT, METRICS_FILE):
            with suppress(OSError):  # it is missing or damaged
                read_bytes(self.path / name)
        self._set_aside_damaged(_IDENTITY, IDENTITY)
        self._set_aside_damaged(_SUMMARY, SUMMARY)
        self._set_aside_damaged(_ENVIRONMENT, ENVIRONMENT)
        self._set_aside_damaged_log()

    def _set_aside_damaged(self, name: str, content: TypeAdapter[Content]) -> None:
        try:
            _parse(self.path / name, content)
        except (OSError, ValueError) as error:
            self._set_aside(name, error)

    def _set_aside_damaged_log(self) -> None:
        path = self.path / METRICS_FILE
        try:
            records, damage = parse_records(path)
        except OSError as error:
            self._set_aside(METRICS_FILE, error)
            return
        if damage is None or damage.is_cut:
            return
        target = set_aside(self.path / METRICS_FILE)
        write_atomically(path, to_lines(records))
        self._tell(METRICS_FILE, f"{damage}; the damaged file is kept as {target.name}")

    def _set_aside(self, name: str, error: OSError | ValueError) -> None:
        if isinstance(error, FileNotFoundError):
            return
        target = set_aside(self.path / name)
        self._tell(name, f"{self.path / name} is damaged ({_why(error)}): moved to {target.name}")

    def _read(self, name: str, content: TypeAdapter[Content]) -> Content | None:
        """Return what a JSON file holds; None where it is missing or damaged."""
        try:
            return _parse(self.path / name, content)
        except (OSError, ValueError) as error:
            self._tell_damaged(name, error)
            return None

    def _tell_damaged(self, name: str, error: OSError | ValueError) -> None:
        if not isinstance(error, FileNotFoundError):
            self._tell(name, f"{self.path / name} is damaged ({_why(error)}): it is left out")

    def _tell(self, name: str, text: str) -> None:
        if self._warn is not None and name not in self._warned:
            self._warned.add(name)
            self._warn(text)


@contextmanager
def claimed_run(
    config: Resolved, path: Path | None, warn: Callable[[str], None] | None = None
) -> Iterator[RunFolder]:
    """Hold the folder of a run that is about to start, and make it where it is not there.

    Where nothing is written into a folder that was made, it is removed in the end.

    Args:
        config: Of the run.
        path: The folder; None takes the first of `default_run_dirs` that is free.
        warn: As of `RunFolder`.

    Raises:
        ConfigError: It is a file, or as of `checkpoint_path`.
        FolderInUse: Another process holds it, and is named.
        RunWriteError: It cannot be written.
    """
    with ExitStack() as stack:
        if path is not None:
            run = RunFolder(checkpoint_path(path), warn)
            stack.enter_context(run.claimed("if missing"))
        else:
            run = _claim_default(config, warn, stack)
        yield run


def _claim_default(
    config: Resolved, warn: Callable[[str], None] | None, stack: ExitStack
) -> RunFolder:
    for path in default_run_dirs(config):
        run = RunFolder(checkpoint_path(path), warn)
        with suppress(FolderExists, FolderInUse):
            stack.enter_context(run.claimed("always"))
            return run
    raise AssertionError("there is always another name")


def _parse(path: Path, content: TypeAdapter[Content]) -> Content:
    """Return what a JSON file holds.

    Raises:
        OSError: It is missing, or no file.
        ValueError: It holds something else, or is not what was written.
        RunReadError: It cannot be read.
    """
    return content.validate_json(unstamp(read_bytes(path)))


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        return reason(error)
    if isinstance(error, WrongStamp):
        return str(error)
    return getattr(error, "strerror", None) or type(error).__name__


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
