"""The command line for tests: each command is a process, forked from one that has all imported.

To import JAX and all else takes two seconds of processor time, which the tests would spend
hundreds of times. The server does it once, before JAX starts a backend, and forks a child for each
command. Variables that are read at import have the server's values in its children. A command
that needs others runs in an interpreter of its own. ``XLA_FLAGS`` is not among them: a backend
reads it when it starts.
"""

from __future__ import annotations

import atexit
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
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parents[1]
FINDS_SMALL = {"PYTHONPATH": str(REPOSITORY), "GNP_TRUST_CODE": "1"}
"""The environment in which a command finds ``model.name=tests.small:small``, also in a run."""
READ_AT_IMPORT = ("JAX_", "PYTHON", "TF_", "OMP_", "OPENBLAS_")
STARTS_WITHIN_S = 120
"""How long the server may take to start a command, which no timeout of a command counts."""
PROGRAM = "from gnpcli.cli import main; main()"
SERVER = "from tests.commands import execute, serve; import sys; execute(serve(sys.argv[1]))"


class Completed(subprocess.CompletedProcess[str]):
    """A command that has ended."""

    peak_bytes = 0
    """The most memory that it held at one time."""
    cpu_s = 0.0
    """Processor time of all its threads."""


class Started:
    """A command that runs: what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, connection: socket.socket):
        """Belongs to a server, which tells the end of the command by `connection`."""
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """Return the status, that of a signal as -N, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It still runs after so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            with self._connection, self._connection.makefile() as channel:
                self.returncode = int(_receive(channel)[0])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


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
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        timeout: float,
        program: str = PROGRAM,
    ) -> Completed:
        """Run a command, or another program in its place, to its end.

        Raises:
            subprocess.TimeoutExpired: `timeout` seconds after its start; the command has been
                killed, and nothing of it is left.
        """
        with (
            tempfile.NamedTemporaryFile() as out,
            tempfile.NamedTemporaryFile() as err,
            socket.socket(socket.AF_UNIX) as connection,
        ):
            request = _request(arguments, cwd, env, program)
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

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        out: Path,
        err: Path,
        program: str = PROGRAM,
    ) -> Started:
        """Start a program that runs beside this process.

        Args:
            arguments: Of the program.
            cwd: Where it runs.
            env: All variables that it has.
            out: A file that gets what it prints on stdout.
            err: A file that gets what it prints on stderr.
            program: What is executed in the place of ``gnp``.
        """
        request = _request(arguments, cwd, env, program)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        connection.settimeout(STARTS_WITHIN_S)
        with connection.makefile("rw") as channel:
            _send(channel, {**request, "out": str(out), "err": str(err)})
            pid = int(_receive(channel))
        connection.settimeout(None)
        return Started(pid, connection)

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.communicate()
        self._folder.cleanup()


_server: CommandServer | None = None


def command_server() -> CommandServer:
    """Return the server of this process, which starts with the first use."""
    global _server
    if _server is None:
        _server = CommandServer({**os.environ, **FINDS_SMALL})
    return _server


def close_server() -> None:
    """End the server of this process, if there is one."""
    global _server
    if _server is not None:
        _server.close()
    _server = None


def run_gnp(
    server: CommandServer,
    arguments: Sequence[object],
    folder: Path,
    variables: Mapping[str, str],
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run ``gnp ARGS`` in a folder to its end, by the server where the variables are its own.

    ``model.name=tests.small:small`` is found.
    """
    words = [*map(str, arguments)]
    environment = {**os.environ, **FINDS_SMALL, "COLUMNS": "200", **variables}
    if server.suits(environment):
        return server.run(words, cwd=folder, env=environment, timeout=timeout)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def serve(path: str) -> str:
    """Listen at `path`. Returns in each child that is to run a command, with all set up for it.

    What it returns is to be executed then.
    """
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


def execute(program: str) -> None:
    """Run a program to its end, as ``python -c`` does, but for the last of it.

    Python takes apart all that was imported before it ends, which takes longer than most commands.
    Here it ends when threads have ended, what was registered has been called, and output is out.
    """
    try:
        exec(program, vars(sys.modules["__main__"]))
        status = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise  # with something to print
        status = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(status)  # which may make it another one
    os._exit(status)


def _answer(connection: socket.socket) -> str:
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


def _become(request: dict[str, Any]) -> str:
    """Give this process the files, the folder, the environment and the arguments of a command.

    Returns its program.
    """
    for number, name in enumerate((os.devnull, request["out"], request["err"])):
        opened = os.open(name, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["-c", *request["arguments"]]
    program: str = request["program"]
    return program


def import_everything() -> None:
    """Import the modules of the program, and so all that it depends on."""
    import gnpcli

    for module in pkgutil.walk_packages(gnpcli.__path__, "gnpcli."):
        if not module.name.endswith(("__main__", "worker")):
            importlib.import_module(module.name)


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a process must have had when it imported the program."""
    return {key: value for key, value in environment.items() if key.startswith(READ_AT_IMPORT)}


def _request(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], program: str
) -> dict[str, Any]:
    return {"arguments": [*arguments], "cwd": str(cwd), "env": {**env}, "program": program}


def _send(channel: IO[str], message: Any) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def _receive(channel: IO[str]) -> Any:
    return json.loads(channel.readline())
