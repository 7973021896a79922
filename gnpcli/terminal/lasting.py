"""Output that goes away ends nothing: what is written from then on is dropped."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer

_GONE = {errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET}
"""The reader has ended, or the terminal is closed."""
_STDERR = 2


def keep_output() -> None:
    """Make stdout and stderr of this process `lasting`, and open those that are closed."""
    _open_what_is_closed()
    sys.stdout = lasting(sys.stdout) if sys.stdout is not None else _stream(1)
    sys.stderr = lasting(sys.stderr) if sys.stderr is not None else _stream(_STDERR)


_errors: TextIO | None = None


def mute() -> None:
    """Drop what this process writes on stdout and stderr from now on, but for `errors`."""
    global _errors
    _errors = errors()
    sys.stdout.flush()
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    os.dup2(nowhere.fileno(), 1)  # for code that is not Python's as well
    sys.stdout = sys.stderr = nowhere


def errors() -> TextIO:
    """Return where a process says why it ends."""
    return _errors or sys.stderr


def lasting(stream: TextIO) -> TextIO:
    """Return a stream to the same place that goes silent where nobody reads it any more.

    Whoever writes goes on as though it had been read. Another error of stdout, such as a full disk,
    is raised once: a result is lost then. Stderr goes silent at any error. A stream of Python's
    own, without a file of the system, is returned as it is.
    """
    try:
        number = stream.fileno()
        raw = stream.buffer.raw if isinstance(stream.buffer, io.BufferedWriter) else None
    except (OSError, ValueError, AttributeError):  # it has none, or is closed
        return stream
    if isinstance(raw, _Lasting):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return _stream(number, stream.encoding, stream.errors)


def _stream(number: int, encoding: str | None = None, errors: str | None = None) -> TextIO:
    is_by_line = number == _STDERR or os.isatty(number)
    buffer = io.BufferedWriter(_Lasting(number, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, errors, line_buffering=is_by_line)


class _Lasting(io.FileIO):
    """A file of the system that becomes ``/dev/null`` at its first error."""

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data)
        except OSError as error:
            number = self.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)  # for code that is not Python's as well
            os.close(nowhere)
            if number != _STDERR and error.errno not in _GONE:
                raise
            return memoryview(data).nbytes


def _open_what_is_closed() -> None:
    """Open ``/dev/null`` in the place of a standard stream that is closed.

    Else the next file that is opened, of a run say, takes its number, and what goes to the stream
    goes into the file.
    """
    number = 0
    while number <= _STDERR:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
