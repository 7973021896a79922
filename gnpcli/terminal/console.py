"""The two streams that a person reads: results on stdout, progress and warnings on stderr.

A console shows texts as they are: brackets and colons in them are no markup of rich.
"""

from __future__ import annotations

import sys

from rich.console import Console

from gnpcli.terminal.lasting import lasting

PIPED_WIDTH = 10_000
"""Columns of a result that goes to a file or a pipe: another program reads a row as one line."""


def results() -> Console:
    """Return a console for results, on stdout."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def messages() -> Console:
    """Return a console for progress and warnings, on stderr: silent where nobody reads it."""
    return Console(
        file=lasting(sys.stderr),
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=not sys.stderr.isatty(),
    )
