"""One process that runs many commands, one after another: for thousands that each do little.

``python -m tests.campaigns.many`` reads a line of JSON for each command and answers with one.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.commands import Completed

MAX_CPU_S = 10
"""Processor time that a command which trains nothing may take, compilers and imports aside."""
MAX_GROWTH = 1 << 30
"""Bytes of memory that it may take beyond what the process has had before."""
_HANGS_S = 120
_ADDRESSES = 24 << 30
"""Bytes of address space; what runs away ends in a MemoryError and not with the machine."""


class Hangs(AssertionError):
    """A command that did not end, or took too much of the machine."""


class Many:
    """Runs commands in one process, which is started anew where one hangs."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**environment}
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            text=True,
            bufsize=1,
        )

    def run(self, arguments: list[str], cwd: Path, env: Mapping[str, str]) -> Completed:
        """Run a command to its end.

        Raises:
            Hangs: It takes more than it may.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": arguments, "cwd": str(cwd), "env": {**env}}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _HANGS_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.close()
            ended = self._process.returncode
            self._process = self._start()
            how = f"does not end in {_HANGS_S} s" if not ready else f"ends the process ({ended})"
            raise Hangs(f"gnp {' '.join(arguments)[:300]} {how}")
        answer = json.loads(line)
        done = Completed(arguments, answer["status"], answer["out"], answer["err"])
        done.peak_bytes = answer["growth"]
        if answer["cpu_s"] > MAX_CPU_S or answer["growth"] > MAX_GROWTH:
            took = f"{answer['cpu_s']:.1f} s and {answer['growth'] >> 20} MiB more"
            raise Hangs(f"gnp {' '.join(arguments)[:300]} took {took}")
        return done

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def serve() -> None:
    """Answer requests until there are no more."""
    from tests.commands import import_everything

    import_everything()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    warm = {**os.environ}
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update({**warm, **request["env"]})
        channel.write(json.dumps(_run(request["arguments"])) + "\n")


def _run(arguments: list[str]) -> dict[str, Any]:
    """Run one command with its outputs in files, those of libraries in C too."""
    before, start = _peak(), time.process_time()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        for number, file in ((1, out), (2, err)):
            os.dup2(file.fileno(), number)
        status = _call(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1_000_000).decode(errors="replace"))
    return {
        "status": status,
        "out": texts[0],
        "err": texts[1],
        "cpu_s": time.process_time() - start,
        "growth": _peak() - before,
    }


def _call(arguments: list[str]) -> int:
    """Run a command as the interpreter would; return its exit status."""
    from gnpcli.cli import main

    sys.argv = ["gnp", *arguments]
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    serve()
