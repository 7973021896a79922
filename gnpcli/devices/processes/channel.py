"""A connection between two processes: JSON, a message a line. Nothing that arrives is ever run."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds and tries after which a machine that is away is known to be, where the system can."""
_UNHEARD_MS = 60_000
"""The same in milliseconds for one that owes an answer to a message: it is not tried then."""
LONGEST_HELLO = 1 << 16
"""Bytes of a message from somebody of whom nothing is known yet."""


def message_of(line: bytes) -> Message | None:
    """Return the message that a line is; None where it is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


class Channel:
    """One end of a connection. Any thread may send; one thread reads.

    Args:
        connection: Connected. The channel closes it.
    """

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._lock = threading.Lock()
        connection.settimeout(None)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in {**_KEEPALIVE, "TCP_USER_TIMEOUT": _UNHEARD_MS}.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._lines = connection.makefile("rb")

    def send(self, message: Message) -> None:
        """Send a message; one to a process that has gone is dropped."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None = None, most: int = -1) -> Message | None:
        """Return the next message; None where the other end has gone, or speaks another language.

        Args:
            timeout: Seconds to wait for it; None waits.
            most: Bytes of it; -1 has no limit.

        Raises:
            TimeoutError: It did not come in time. The channel is of no use afterwards.
        """
        try:
            self._socket.settimeout(timeout)
            line = self._lines.readline(most)
        except TimeoutError:
            raise
        except (OSError, ValueError):  # this end is closed
            return None
        finally:
            with contextlib.suppress(OSError):
                self._socket.settimeout(None)
        return message_of(line)

    def messages(self) -> Iterator[Message]:
        """Yield messages until the other end has gone."""
        while (message := self.receive()) is not None:
            yield message

    def close(self) -> None:
        """End the connection; a thread that reads finds its end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._lines.close()
        self._socket.close()
