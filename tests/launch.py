"""Several real `gnp` processes on this machine, as a person starts them on several."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.commands import FINDS_SMALL, PROGRAM, Started, command_server

DEVICES = 2
"""Of each process, unless a test says otherwise."""
ENDS_WITHIN_S = 180


def free_port() -> int:
    """Return a port of this machine at which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(devices: int = DEVICES, **variables: str) -> dict[str, str]:
    """Return that of a process with so many devices of its own."""
    return {
        **os.environ,
        **FINDS_SMALL,
        "COLUMNS": "200",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "GNP_CONNECT_TIMEOUT_S": "60",
        "GNP_HEARTBEAT_TIMEOUT_S": "20",
        **variables,
    }


class Launched:
    """N processes of one command. A context manager, which kills what still runs at its end.

    Args:
        arguments: Of ``gnp``.
        folder: Where they run; their output goes there, too.
        processes: How many.
        devices: Of each.
        variables: Of their environment.
        programs: What process i runs in the place of ``gnp``, where it is given.
        own: Arguments of process i alone.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        folder: Path,
        *,
        processes: int = 2,
        devices: int = DEVICES,
        variables: Mapping[str, str] | None = None,
        programs: Mapping[int, str] | None = None,
        own: Mapping[int, Sequence[object]] | None = None,
    ):
        self.folder = folder
        coordinator = f"127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen[bytes] | Started] = []
        for index in range(processes):
            command = [*arguments, *(own or {}).get(index, ())]
            if processes > 1:
                command += ["--processes", processes, "--process-id", index]
                command += ["--coordinator", coordinator]
            program = (programs or {}).get(index, PROGRAM)
            self.start(index, command, program, environment(devices, **(variables or {})))

    def start(
        self, index: int, command: Sequence[object], program: str, variables: dict[str, str]
    ) -> None:
        """Start a process in an environment."""
        server, words = command_server(), [*map(str, command)]
        if server.suits(variables):
            out_file, err_file = self._file(index, "out"), self._file(index, "err")
            for path in (out_file, err_file):
                path.write_bytes(b"")
            files = {"out": out_file, "err": err_file}
            started = server.start(words, cwd=self.folder, env=variables, program=program, **files)
            self.processes.append(started)
            return
        with (
            self._file(index, "out").open("wb") as out,
            self._file(index, "err").open("wb") as err,
        ):
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, *words],
                    cwd=self.folder,
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                )
            )

    def _file(self, index: int, stream: str) -> Path:
        return self.folder / f"process-{index}.{stream}"

    def out(self, index: int) -> str:
        """Return what a process has printed on stdout."""
        return self._file(index, "out").read_text(errors="replace")

    def err(self, index: int) -> str:
        """Return what a process has printed on stderr."""
        return self._file(index, "err").read_text(errors="replace")

    def wait(self, timeout: float = ENDS_WITHIN_S) -> list[int]:
        """Wait for the end of all; return their statuses, that of a signal as -N."""
        limit = time.monotonic() + timeout
        for process in self.processes:
            process.wait(max(0.1, limit - time.monotonic()))
        return [int(process.wait(0.1)) for process in self.processes]

    def succeed(self) -> Launched:
        """Wait for the end of all, which must be a good one."""
        statuses = self.wait()
        assert set(statuses) == {0}, (statuses, *(self.err(i) for i in range(len(statuses))))
        return self

    def error(self, index: int) -> str:
        """Return the one line that says why a process failed."""
        told = self.err(index)
        assert "Traceback" not in told, told
        lines = [line for line in told.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, told
        return lines[0]

    def __enter__(self) -> Launched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(ENDS_WITHIN_S)


def wait_until(is_so: Callable[[], bool], within: float = 120) -> None:
    """Wait for something that a process does."""
    limit = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < limit, "it does not come"
        time.sleep(0.02)


def launch(arguments: Sequence[object], folder: Path, **options: Any) -> Launched:
    """Run the processes of a command to their good end."""
    folder.mkdir(parents=True, exist_ok=True)
    with Launched(arguments, folder, **options) as launched:
        return launched.succeed()
