"""A file of a run that cannot be written, told apart from every other error of the system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gnpcli.errors import GnpError

_SYSTEM_REASONS = (
    "No space left on device",
    "Permission denied",
    "Read-only file system",
    "File too large",
    "Disk quota exceeded",
)
_MAX_REASON = 160
"""Characters of a reason; of a longer one the start is shown."""


class RunWriteError(GnpError):
    """A file of a run cannot be written: the disk is full, say."""


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into a file of the run into a `RunWriteError`."""
    try:
        yield
    except OSError as error:
        raise RunWriteError(f"cannot write to {run_dir}: {error.strerror or error}") from error


def short_reason(error: BaseException) -> str:
    """Return why a library failed, in at most `_MAX_REASON` characters."""
    text = " ".join(str(error).split())
    for known in _SYSTEM_REASONS:
        if known.lower() in text.lower():
            return known
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not text:
        return type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
