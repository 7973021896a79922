"""How the loading of data tells how far it is. Who listens shows it, or does not."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called every now and then while data is fetched, prepared or decoded, and at the end of each
    of these.
    """

    def __call__(self, done: int, total: int, what: str = "reading", unit: str = "images") -> None:
        """Take note of where a piece of work stands.

        Args:
            done: Units done so far. Starts above 0 where earlier work is taken up, and may start
                over.
            total: Units in all; 0 where nobody knows.
            what: The piece of work, such as ``downloading train_32x32.mat``; one follows the other.
            unit: ``images`` or ``bytes``.
        """
