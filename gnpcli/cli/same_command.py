"""Several processes are one command: what else they were started with is told before they begin.

A process that takes other steps, or reads where the others write, would leave them waiting.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence

from gnpcli.devices.processes import peers
from gnpcli.devices.start import settings_of_programs
from gnpcli.errors import ConfigError
from gnpcli.terminal.words import few

_OF_ONE = ("--processes", "--process-id", "--coordinator")
"""Options with a value that says which process it is."""
_FLAGS_OF_ONE = ("--json", "--quiet", "-q", "--debug", "--no-cache", "--trust-code")
"""Flags of what a process prints, trusts or keeps: the others need not have them."""


def check_same_command() -> None:
    """Refuse processes whose commands, or settings of JAX, are not those of process 0.

    Raises:
        ConfigError: In all processes, with what differs.
    """
    own = [asked_for(sys.argv[1:]), settings_of_programs()]
    first, *others = peers.gathered("command", own)
    for index, (command, settings) in enumerate(others, start=1):
        for what, found, wanted in (
            ("another command", command, first[0]),
            ("other settings of JAX", settings, first[1]),
        ):
            if found != wanted:
                raise ConfigError(
                    f"process {index} was started with {what} than process 0 "
                    f"({_difference(found, wanted, index)}): all processes are the same command"
                )


def asked_for(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that have to be the same, an option with its value.

    >>> asked_for(["train", "--process-id=1", "--set", "a.b=c", "--coordinator", "h:1", "--json"])
    ['train', '--set a.b=c']
    """
    found: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in _FLAGS_OF_ONE:
            continue
        takes_next = word.startswith("-") and not equals and words and not words[0].startswith("-")
        if takes_next:
            value = words.pop(0)
        if name not in _OF_ONE:
            found.append(f"{name} {shlex.quote(value)}" if takes_next or equals else word)
    return found


def _difference(found: Sequence[str], wanted: Sequence[str], index: int) -> str:
    wants = [(0, Counter(wanted) - Counter(found)), (index, Counter(found) - Counter(wanted))]
    told = [f"{few(list(words))} in process {place}" for place, words in wants if words]
    return "; ".join(told) or "in another order"
