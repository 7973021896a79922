"""How the loading of data tells how far it is. Who listens shows it, or does not."""

from __future__ import annotations

from typing import Protocol


class ProgressListener(Protocol):
    """Called now and then while data is fetched, prepared or decoded, and at the end of each."""

    def __call__(self, done: int, total: int, what: str = "reading", unit: str = "images") -> None:
        """Take note of how far a task is.

        Args:
            done: Units done so far. It starts above 0 where earlier work is taken up, and may start
                over.
            total: Units in all; 0 where nobody knows.
            what: The task, such as ``downloading train_32x32.mat``. One task follows the other.
            unit: ``images`` or ``bytes``.
        """
