"""Where process 0 listens: who comes is asked who it is, and keeps nobody else out. No JAX."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from gnpcli.devices.processes.channel import LONGEST_HELLO, Message, message_of

HELLO_S = 10.0
"""Seconds within which somebody who has come must say who it is."""


class Visit(NamedTuple):
    """Something that happens at the door."""

    connection: socket.socket
    said: Message | None
    """Who came; None where one that came before has ended."""


class Door:
    """Waits for processes, and sees when one that has come ends before all have.

    A context manager. At its end nobody is listened to any more, and what came and was no process
    of `gnp` is sent away. The connections of the others stay open.

    Args:
        listener: Listens. The door closes it.
    """

    def __init__(self, listener: socket.socket):
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._asked: dict[socket.socket, tuple[bytes, float]] = {}
        """What each has said so far, and when it must have said all."""
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def visits(self, within_s: float) -> Iterator[Visit]:
        """Yield what happens at the door now, or else first within some seconds."""
        for key, _ in self._selector.select(within_s):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is self._listener:
                self._let_in()
            elif connection in self._asked:
                said = self._hear(connection)
                if said is not None:
                    yield Visit(connection, said)
            else:
                self._selector.unregister(connection)
                yield Visit(connection, None)
        now = time.monotonic()
        for connection, (_, limit) in list(self._asked.items()):
            if now > limit:
                self._send_away(connection)

    def _let_in(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):  # it has gone again
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._asked[connection] = (b"", time.monotonic() + HELLO_S)
            self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> Message | None:
        """Return what a process says of itself, once it has said all."""
        text, limit = self._asked[connection]
        try:
            block = connection.recv(LONGEST_HELLO)
        except BlockingIOError:
            return None
        except OSError:
            block = b""
        text += block
        if block and b"\n" not in text and len(text) < LONGEST_HELLO:
            self._asked[connection] = (text, limit)
            return None
        said = message_of(text)
        if said is None or said.get("hello") != "gnp":
            self._send_away(connection)
            return None
        del self._asked[connection]  # from now on it is watched
        return said

    def _send_away(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._asked[connection]
        connection.close()

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in list(self._asked):
            self._send_away(connection)
        self._selector.close()
        self._listener.close()
