"""A file of a run that cannot be written, told apart from every other error of the system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gnpcli.errors import GnpError


class RunWriteError(GnpError):
    """A file of a run cannot be written: the disk is full, say."""


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into a file of the run into a `RunWriteError`."""
    try:
        yield
    except OSError as error:
        raise RunWriteError(f"cannot write to {run_dir}: {error.strerror or error}") from error
