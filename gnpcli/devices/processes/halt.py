"""How all processes stop before the same step, at no cost for the steps before it. No JAX."""

from __future__ import annotations

from gnpcli.devices.processes import peers


class Halt:
    """The step before which all processes stop, once one of them wants to.

    Process 0 decides it, and nothing is computed for it. A process dispatches a step when it has
    read a result of the step `lookahead` before the last. Every device contributes to a result. So
    as long as process 0 has dispatched s steps, no process comes to the end of step
    s + lookahead + 1, before which all of them stop. Process 0 goes on when all of them know it.

    Args:
        lookahead: How many dispatched steps a process leaves unread when it dispatches another.
    """

    def __init__(self, lookahead: int):
        self._lookahead = lookahead
        self._key = peers.new_key("halt")
        self._has_asked = False

    def __call__(self, step: int, wants_to_stop: bool) -> bool:
        """Return whether to stop now. All processes call it before each step.

        Args:
            step: How many steps this process has dispatched.
            wants_to_stop: Whether this process has a reason to stop.

        Raises:
            PeerError: Another process failed.
        """
        if peers.count() == 1:
            return wants_to_stop
        if wants_to_stop and not self._has_asked:
            self._has_asked = True
            peers.ask(self._key)
        if peers.is_asked(self._key) and peers.announced(self._key) is None:
            peers.announce(self._key, step + self._lookahead + 1)
        last = peers.announced(self._key)
        return last is not None and step >= last
