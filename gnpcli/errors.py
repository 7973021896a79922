"""Every failure that a user can cause, as one line: what is wrong, where, and what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GnpError(Exception):
    """Base of all failures that a user can cause.

    The command line prints the message alone, and exits with `exit_status`.
    """

    exit_status = 1


class ConfigError(GnpError):
    """A configuration that cannot be trained.

    Args:
        message: What is wrong, and what is allowed.
        key: Dotted key that the message is about, such as ``optimizer.lr``. The command line finds
            the file and the line of it.
    """

    def __init__(self, message: str, key: str | None = None):
        super().__init__(message)
        self.key = key


class DataError(GnpError):
    """A data set that is missing, unreadable, or does not fit the model or the batch."""


class CheckpointError(GnpError):
    """A run folder or a checkpoint that cannot be written, read, or used for what was asked."""


class DivergenceError(GnpError):
    """A loss or a gradient that is not finite."""


TRY_AGAIN = 75
"""Exit status of a command that stopped at its time limit: ``EX_TEMPFAIL`` of sysexits.h."""


class Interrupted(GnpError):
    """A signal or the time limit stopped a run, which has saved its state.

    Args:
        message: What stopped it, and how to go on.
        exit_status: 128 plus the number of the signal, as in a shell, or `TRY_AGAIN`.
    """

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


OUT_OF_MEMORY = "out of device memory: lower data.batch_size, or spread the batch over more devices"

OUT_OF_HOST_MEMORY = (
    "out of memory: the data, the model or a file is larger than what this machine has left"
)


def explain(error: BaseException) -> tuple[str | None, int]:
    """Return the message of an error for a user, and the exit status.

    The message is None for an error that is a bug of ours.
    """
    if isinstance(error, GnpError):
        return " ".join(str(error).split()), error.exit_status
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}", 1
    if isinstance(error, MemoryError):
        return OUT_OF_HOST_MEMORY, 1
    if "RESOURCE_EXHAUSTED" in str(error):
        return OUT_OF_MEMORY, 1
    return None, 1


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return `` - did you mean 'x'?`` for the closest choice, or nothing where none is close.

    A choice that begins with `word` is close as well.

    >>> suggest("cifar01", ["cifar10", "digits"])
    " - did you mean 'cifar10'?"
    """
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close and len(word) > 2:
        close = [choice for choice in known if choice.startswith(word)]
    return f" - did you mean '{close[0]}'?" if close else ""
