"""A run folder of several processes: process 0 alone opens its files, and tells the others.

So whatever is read, is read once, and whatever is wrong with it is known to all.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from gnpcli.config.resolved import Resolved
from gnpcli.devices.processes import peers
from gnpcli.devices.processes.peers import decided
from gnpcli.errors import CheckpointError
from gnpcli.locks import Making, read_holder
from gnpcli.runs import folder
from gnpcli.runs.contents import Record, Summary
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import MetricsLog
from gnpcli.runs.tensorboard import TensorBoardEvents

Warn = Callable[[str], None]

SEEN_WITHIN_S = 60.0
"""Seconds within which a file of one process shows to the others."""
_LOOK_EVERY_S = 0.2


def run_folder(path: Path, warn: Warn | None = None) -> RunFolder:
    """Return the folder of a run that this process, or several, are about to write."""
    return RunFolder(path, warn) if peers.count() == 1 else SharedRunFolder(path, warn)


@contextmanager
def claimed_run(config: Resolved, path: Path | None, warn: Warn) -> Iterator[RunFolder]:
    """Hold the folder of a run that is about to start, as `gnpcli.runs.folder.claimed_run` does.

    Process 0 holds it for all.
    """
    with ExitStack() as stack:
        held: list[RunFolder] = []

        def claim() -> str:
            held.append(stack.enter_context(folder.claimed_run(config, path, warn)))
            return str(held[0].path)

        if peers.count() == 1:
            claim()
            yield held[0]
            return
        place = Path(decided("claim", claim))
        check_seen(place)
        yield SharedRunFolder(place, warn, held[0] if held else None)


def check_seen(path: Path) -> None:
    """Refuse a folder that process 0 holds where others do not see that: theirs is another one.

    A file system of the network may show it late (`SEEN_WITHIN_S`).

    Raises:
        CheckpointError: In all processes.
    """
    token = decided("holder", lambda: _token(path))
    limit = time.monotonic() + SEEN_WITHIN_S

    def look() -> None:
        while token is not None and _token(path) != token:
            if time.monotonic() > limit:
                raise CheckpointError(
                    f"process {peers.index()} on {platform.node()} does not see {path} as process "
                    "0 has it: put the run on a file system that all of them share, at one path"
                )
            time.sleep(_LOOK_EVERY_S)

    peers.agreed("seen", look, CheckpointError)


def _token(path: Path) -> str | None:
    holder = read_holder(path)
    return None if holder is None else holder.token


class SharedRunFolder(RunFolder):
    """The folder of a run of several processes. All of them make the same calls of it.

    Of what is not here, each process reads what it needs.

    Args:
        path, warn: As of `RunFolder`.
        held: What holds the folder in process 0, where `claimed` is not called.
    """

    def __init__(self, path: Path, warn: Warn | None = None, held: RunFolder | None = None):
        super().__init__(path, warn)
        self._held = held

    def check_claim(self) -> None:
        if self._held is not None:
            self._held.check_claim()
        else:
            super().check_claim()

    def exists(self) -> bool:
        return decided("exists", super().exists)

    @contextmanager
    def claimed(self, making: Making = "never") -> Iterator[None]:
        with ExitStack() as stack:
            claimed = super().claimed
            decided("claim", lambda: stack.enter_context(claimed(making)))
            check_seen(self.path)
            yield

    def check_free(self, config: Resolved) -> None:
        check_free = super().check_free
        decided("check free", lambda: check_free(config))

    def create(self, config: Resolved) -> None:
        create = super().create
        decided("create", lambda: create(config))

    def run_id(self) -> str | None:
        return decided("run id", super().run_id)

    def identify(self, run_id: str) -> None:
        identify = super().identify
        decided("identify", lambda: identify(run_id))

    def summary(self) -> Summary:
        return decided("summary", super().summary)

    def write_summary(self, summary: Summary) -> Summary:
        write = super().write_summary
        return decided("write summary", lambda: write(summary))

    def note_session(self, environment: Mapping[str, Any], start_step: int) -> None:
        note = super().note_session
        decided("note session", lambda: note(environment, start_step))

    def set_aside_damaged(self) -> None:
        decided("set aside", super().set_aside_damaged)

    def open_log(
        self, start_step: int, *, evaluates_start: bool = False, every: int = 1
    ) -> MetricsLog:
        if peers.is_first():
            return super().open_log(start_step, evaluates_start=evaluates_start, every=every)
        return _NoLog()

    def open_events(self, first_step: int) -> TensorBoardEvents:
        return super().open_events(first_step) if peers.is_first() else _NoEvents()


class _Unwritten:
    """What a log or the events are in a process that writes none."""

    def write(self, record: Mapping[str, Any]) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class _NoLog(_Unwritten, MetricsLog):
    def __init__(self) -> None:
        self.of_start: list[Record] = []


class _NoEvents(_Unwritten, TensorBoardEvents):
    def __init__(self) -> None:
        pass
