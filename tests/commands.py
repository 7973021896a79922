"""The command line for tests: each command is a process, forked from one that has all imported.

To import JAX and all else takes two seconds of processor time, which the tests would spend
hundreds of times. The server does it once, before JAX starts a backend, and forks a child for each
command. Variables that are read at import have the server's values in its children. A command
that needs others runs in an interpreter of its own. ``XLA_FLAGS`` is not among them: a backend
reads it when it starts.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

READ_AT_IMPORT = ("JAX_", "PYTHON", "TF_", "OMP_", "OPENBLAS_")
STARTS_WITHIN_S = 120
"""How long the server may take to start a command, which no timeout of a command counts."""
PROGRAM = "from gnpcli.cli import main; main()"
SERVER = f"from tests.commands import serve; import sys; serve(sys.argv[1]); {PROGRAM}"


class Completed(subprocess.CompletedProcess[str]):
    """A command that has ended."""

    peak_bytes = 0
    """The most memory that it held at one time."""
    cpu_s = 0.0
    """Processor time of all its threads."""


class CommandServer:
    """Runs ``gnp ARGS`` as `subprocess.run` would, in children of one process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start the server in `environment`; it ends with this process."""
        self._fixed = read_at_import(environment)
        self._folder = tempfile.TemporaryDirectory()
        self._path = str(Path(self._folder.name) / "socket")
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, self._path],
            stdin=subprocess.PIPE,  # its end tells the server that this process has ended
            stdout=subprocess.PIPE,
            env={**environment},
        )
        assert self._process.stdout is not None
        listens = self._process.stdout.readline()
        assert listens, "the server of commands did not start: its error is on stderr"

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Say whether the variables that are read at import are those of the server."""
        return read_at_import(environment) == self._fixed

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
    ) -> Completed:
        """Run a command to its end.

        Raises:
            subprocess.TimeoutExpired: `timeout` seconds after its start; the command has been
                killed, and nothing of it is left.
        """
        with (
            tempfile.NamedTemporaryFile() as out,
            tempfile.NamedTemporaryFile() as err,
            socket.socket(socket.AF_UNIX) as connection,
        ):
            request = {"arguments": [*arguments], "cwd": str(cwd), "env": {**env}}
            connection.connect(self._path)
            connection.settimeout(STARTS_WITHIN_S)
            with connection.makefile("rw") as channel:
                _send(channel, {**request, "out": out.name, "err": err.name})
                pid = _receive(channel)
                connection.settimeout(max(timeout, 1e-3))  # 0 would not wait, and not time out
                try:
                    status, peak_bytes, cpu_s = _receive(channel)
                except TimeoutError:
                    _kill(pid)
                    raise subprocess.TimeoutExpired([*arguments], timeout) from None
            shown, told = (Path(file.name).read_text() for file in (out, err))
        completed = Completed([*arguments], status, shown, told)
        completed.peak_bytes, completed.cpu_s = peak_bytes, cpu_s
        return completed

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.communicate()
        self._folder.cleanup()


def serve(path: str) -> None:
    """Listen at `path`. Returns in each child that is to run a command, with all set up for it."""
    import_everything()
    # Libraries add handlers where there are none. In a process of `gnp` its own is there before.
    logging.getLogger().handlers.clear()
    gc.freeze()  # what is never freed is never copied
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("listening", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if listener not in ready:
            sys.exit()  # the process that would ask has ended
        connection, _ = listener.accept()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            listener.close()
            return _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Fork the command of one connection, and tell its process and then its status."""
    channel = connection.makefile("rw")
    request = _receive(channel)
    pid = os.fork()
    if pid == 0:
        channel.close()
        connection.close()
        return _become(request)
    _send(channel, pid)
    _, status, used = os.wait4(pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    with suppress(BrokenPipeError):  # nobody waits any more
        cpu_s = used.ru_utime + used.ru_stime
        _send(channel, [os.waitstatus_to_exitcode(status), used.ru_maxrss * unit, cpu_s])
    os._exit(0)


def _kill(pid: int) -> None:
    """Kill a command, and wait until the process that started it has seen its end."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def _become(request: dict[str, Any]) -> None:
    """Give this process the files, the folder, the environment and the arguments of a command."""
    for number, name in enumerate((os.devnull, request["out"], request["err"])):
        opened = os.open(name, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["-c", *request["arguments"]]


def import_everything() -> None:
    """Import the modules of the program, and so all that it depends on."""
    import gnpcli

    for module in pkgutil.walk_packages(gnpcli.__path__, "gnpcli."):
        if not module.name.endswith(("__main__", "worker")):
            importlib.import_module(module.name)


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process must have had when it imported the program."""
    return {key: value for key, value in environment.items() if key.startswith(READ_AT_IMPORT)}


def _send(channel: IO[str], message: Any) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def _receive(channel: IO[str]) -> Any:
    return json.loads(channel.readline())
