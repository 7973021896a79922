"""Where the commands of a campaign run: one warm server, one cache, one folder for all."""

from __future__ import annotations

import itertools
import os
import queue
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.campaigns.faults import Fault, build
from tests.campaigns.many import Many
from tests.commands import CommandServer, Completed

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300
"""No command of a campaign takes a tenth of it."""


class Lab:
    """Runs commands. A context manager.

    Args:
        folder: Gets all that the commands write, and ``cache`` where no GNP_CACHE_DIR is set.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count()
        self.faults = build(self.folder)
        """The library that makes file-system events fail; None where it cannot be had."""
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "GNP_CACHE_DIR": os.environ.get("GNP_CACHE_DIR", str(self.folder / "cache")),
            "GNP_MIRROR": "http://127.0.0.1:9",
            "COLUMNS": "200",
        }
        preloaded = {} if self.faults is None else {"LD_PRELOAD": str(self.faults)}
        self._idle: queue.SimpleQueue[Many] = queue.SimpleQueue()
        self._server = CommandServer({**self.environment, **preloaded})

    def new_folder(self) -> Path:
        """Return a new empty folder."""
        folder = self.folder / f"case{next(self._numbers)}"
        folder.mkdir()
        return folder

    def gnp(
        self,
        *arguments: object,
        cwd: Path | None = None,
        fault: Fault | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> Completed:
        """Run ``gnp ARGS`` to its end. The code of `tests.small`, which a run names, is trusted.

        Raises:
            subprocess.TimeoutExpired: After `timeout` seconds; the command has been killed.
        """
        environment = {**self.environment, "GNP_TRUST_CODE": "1", **(env or {})}
        if fault is not None:
            environment |= fault.environment()
        folder = cwd or self.folder
        return self._server.run(
            [*map(str, arguments)], cwd=folder, env=environment, timeout=timeout
        )

    def quick(
        self, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Completed:
        """Run ``gnp ARGS`` in a process that runs many commands in turn.

        Raises:
            tests.campaigns.many.Hangs: It takes more time or memory than any such command may.
        """
        try:
            many = self._idle.get_nowait()
        except queue.Empty:
            many = Many(self.environment)
        try:
            return many.run([*map(str, arguments)], cwd or self.folder, env or {})
        finally:
            self._idle.put(many)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        while not self._idle.empty():
            self._idle.get().close()
