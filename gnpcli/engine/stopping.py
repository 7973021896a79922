"""When a run stops before its last step, and why."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from gnpcli.engine.time_limit import TimeLimit, Work
from gnpcli.errors import TRY_AGAIN
from gnpcli.terminal.words import listing


@dataclass(frozen=True, order=True)
class Reason:
    """Why a run stops. Of several reasons the greatest counts."""

    code: int
    """A small number: what processes can tell each other."""

    @classmethod
    def of_signal(cls, number: int) -> Reason:
        """Return the reason that a signal is."""
        return cls(_SIGNALS + number)

    @property
    def is_interruption(self) -> bool:
        """Whether the run is saved and not evaluated, and the command fails."""
        return self > HOOK

    @property
    def exit_status(self) -> int:
        """That of a command which stops for it: a script may run the command again."""
        if not self.is_interruption:
            return 0
        return TRY_AGAIN if self == TIME_LIMIT else 128 + self.code - _SIGNALS

    def __str__(self) -> str:
        if self == HOOK:
            return "a hook"
        if self == TIME_LIMIT:
            return "its time limit"
        return signal.Signals(self.code - _SIGNALS).name


HOOK = Reason(1)
TIME_LIMIT = Reason(2)
_SIGNALS = 64
"""Added to the number of a signal: one that a person sends counts more than all else."""


class Stop:
    """Says whether it is time to stop. Signals, the time limit and hooks report to it.

    Args:
        received: Signals that have come; others append to it.
        limit: The time limit; None has none.
    """

    def __init__(self, received: Sequence[signal.Signals] = (), limit: TimeLimit | None = None):
        self.limit = limit or TimeLimit(None)
        self._received = received
        self._reported: Reason | None = None
        self._processes: list[int] = []
        self._is_settled = False

    @property
    def cause(self) -> str:
        """Return in words why the run stops, once that is settled.

        A signal that did not come to all processes is told with those that it came to, as in
        ``SIGTERM to process 1``.
        """
        if not self._processes:
            return str(self._reported)
        return f"{self._reported} to {_named(self._processes)}"

    @property
    def is_from_elsewhere(self) -> bool:
        """Whether a signal came, and not to process 0, which a person sees."""
        return bool(self._processes) and 0 not in self._processes

    def report(self, reason: Reason) -> None:
        """Take in a reason; a lesser one than before changes nothing."""
        if not self._is_settled:
            self._reported = max(self._reported or reason, reason)

    def reason(self, ahead: Collection[Work] = ()) -> Reason | None:
        """Return why to stop before the work `ahead`; None goes on.

        Where work is ahead, the time limit is looked at. A reason that was found stays.
        """
        if self._is_settled:
            return self._reported
        if ahead and self.limit.is_near(ahead):
            self.report(TIME_LIMIT)
        if self._received:
            self.report(Reason.of_signal(self._received[0]))
        return self._reported

    def settle(self, gather: Callable[[int], Sequence[int]]) -> None:
        """Take one reason for good: what comes later changes nothing.

        Args:
            gather: Gives the codes of all processes, in their order, by that of this one; 0 is no
                reason. The greatest counts.
        """
        found = self.reason()
        codes = gather(0 if found is None else found.code)
        code = max(codes)
        self._reported = Reason(code) if code else None
        having = [index for index, own in enumerate(codes) if own == code]
        if code > _SIGNALS and len(having) < len(codes):
            self._processes = having
        self._is_settled = True


def _named(processes: Sequence[int]) -> str:
    """Return the numbers of some processes in words."""
    numbers = listing(list(map(str, processes)))
    return f"process {numbers}" if len(processes) == 1 else f"processes {numbers}"
