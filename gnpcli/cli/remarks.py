"""What libraries remark, in our words: their own lines do not reach the screen.

Python's warnings and logs come through here, of all libraries. What a person can act on stands in
`REMARKS`; the rest is dropped. The lines of XLA, which is C++, are held back by a variable of its
own. ``--debug`` (``GNP_DEBUG=1``) shows all of them as they are.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable
from typing import TextIO

from gnpcli.cli.output import warn

REMARKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"(writ|read)ing persistent compilation cache"),
        "compiled programs cannot be kept, so every start compiles anew: set GNP_CACHE_DIR to a "
        "folder that can be written",
    ),
    (
        re.compile(r"donated buffers were not usable"),
        "a step takes more memory than it should: its arrays were not used again",
    ),
)
"""What a remark is recognised by, and what is said in its place, once."""

_OURS = "gnpcli"
_ASKED_FOR = ("JAX_LOG_COMPILES", "JAX_EXPLAIN_CACHE_MISSES", "JAX_LOGGING_LEVEL")
"""Variables by which a person asks for jax's own lines."""


def listen() -> None:
    """Take in what libraries remark from now on, unless all is to be shown as it is."""
    if os.environ.get("GNP_DEBUG"):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA reads it when it is loaded
    told: set[str] = set()

    def hear(text: str) -> None:
        said = in_our_words(text)
        if said is not None and said not in told:
            told.add(said)
            warn(said)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        hear(str(message))

    warnings.showwarning = show
    logging.getLogger().addHandler(Listener(hear))


def in_our_words(text: str) -> str | None:
    """Return what a remark of a library means for a person; None where it means nothing."""
    return next((said for pattern, said in REMARKS if pattern.search(text)), None)


class Listener(logging.Handler):
    """Hands on warnings of libraries; prints those of this package, and those asked for."""

    def __init__(self, hear: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self._hear = hear
        self._is_asked = any(map(os.environ.get, _ASKED_FOR))

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a line of a log."""
        library = record.name.partition(".")[0]
        if library == _OURS or (library == "jax" and self._is_asked):
            warn(record.getMessage())
        else:
            self._hear(record.getMessage())
