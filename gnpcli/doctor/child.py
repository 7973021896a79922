"""Follows the process that starts JAX, whatever becomes of it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

DISCOVERY_S = 180.0
"""Seconds in which JAX has to find its devices. On a loaded machine its import alone takes ten."""
STEP_S = 600.0
"""Seconds in which one test has to end."""

Event = dict[str, Any]
Run = Callable[[Sequence[str]], Iterator[Event]]
"""From the types to test in to the events of `gnpcli.doctor.probe`."""


def run_probe(dtypes: Sequence[str]) -> Iterator[Event]:
    """Yield the events of a probe; ``failed`` comes last where it ended before it was done.

    Args:
        dtypes: Its arguments.
    """
    environment = {
        **os.environ,
        # A training beside it needs the memory, and a log of C++ is told where the process dies.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gnpcli.doctor.probe", *dtypes],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
        assert process.stdout is not None
        lines: queue.Queue[bytes] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            yield from _follow(process, lines, log)
        finally:
            process.kill()
            process.wait()
            reader.join(timeout=5)


def _follow(
    process: subprocess.Popen[bytes], lines: queue.Queue[bytes], log: IO[bytes]
) -> Iterator[Event]:
    limit = DISCOVERY_S
    event: Event = {}
    while event.get("event") != "done":
        try:
            line = lines.get(timeout=limit)
        except queue.Empty:
            yield {"event": "failed", "problem": f"no answer within {limit:.0f} s"}
            return
        if not line:
            yield {"event": "failed", "problem": _death(process, log)}
            return
        limit = STEP_S
        event = _parsed(line)
        if event:
            yield event


def _parsed(line: bytes) -> Event:
    """Return an event; nothing of half a line, which a process that died leaves."""
    try:
        event: Event = json.loads(line)
    except ValueError:
        return {}
    return event


def _read(pipe: IO[bytes], lines: queue.Queue[bytes]) -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")


def _death(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """Return how a process ended, and the last that it said."""
    status = process.wait()
    if status < 0:
        how = f"the process was ended by {signal.Signals(-status).name}"
    else:
        how = f"the process ended with status {status}"
    log.seek(0)
    said = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    last = next((line for line in reversed(said) if line), "")
    return f"{how}: {last[:300]}" if last else how
