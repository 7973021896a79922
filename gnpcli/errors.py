"""Every failure a user can cause, as one line that says what is wrong, where, and what to type
instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GnpError(Exception):
    """Base of all user-facing failures: the command line prints the message alone and exits with
    `exit_status`.
    """

    exit_status = 1


class ConfigError(GnpError):
    """A configuration that cannot be trained.

    Args:
        message: What is wrong and what is allowed.
        key: Dotted key the message is about (``optimizer.lr``), from which the command line finds
            file and line.
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


class Interrupted(GnpError):
    """A run stopped by a signal after saving its state; the exit status is the shell's, 128 + the
    signal's number.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_status = 128 + signal_number


def explain(error: BaseException) -> tuple[str | None, int]:
    """Return message and exit status of an error that is the user's to mend; a message of None is a
    bug of ours.
    """
    if isinstance(error, GnpError):
        return " ".join(str(error).split()), error.exit_status
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror, 1
    if "RESOURCE_EXHAUSTED" in str(error):
        return (
            "out of device memory: lower data.batch_size, or spread the batch over more devices",
            1,
        )
    return None, 1


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return `` - did you mean 'x'?`` for the closest of `choices`, or the empty string where
    nothing is close.

    >>> suggest("cifar01", ["cifar10", "digits"])
    " - did you mean 'cifar10'?"
    """
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if not close and len(word) > 2:
        close = [choice for choice in choices if choice.startswith(word)][:1]
    return f" - did you mean '{close[0]}'?" if close else ""
