"""The processes that compute together, once they have met: what they tell each other.

Process 0 is connected to every other one, for as long as they live. So each of them knows at once
when another fails or has gone, also while it waits for it in code that is not Python's. All then
end with the same line and the same status.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, Protocol

from gnpcli.devices.processes.channel import Channel, Message
from gnpcli.errors import GnpError

GRACE_S = 5.0
"""Seconds for which process 0 may still end by itself when another process has failed."""
_GOODBYE_S = 10.0
"""Seconds for which process 0 waits for the others to have heard of a failure."""


class PeerError(GnpError):
    """Another process failed, or has gone.

    Args:
        text: What it said, or what is said of it.
        status: The exit status of all.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.exit_status = status


Say = Callable[[str], None]


class Team(Protocol):
    """What a process and the others do together. All make the same calls in the same order."""

    def told(self, key: str, value: Any) -> Any:
        """Return the value of process 0, JSON-able. Those of the others are not looked at."""

    def gathered(self, key: str, value: Any) -> list[Any]:
        """Return the values of all processes, JSON-able, in their order."""

    def ask(self, key: str) -> None:
        """Ask process 0 to announce something, at any time; it learns it soon."""

    def is_asked(self, key: str) -> bool:
        """Return whether a process has asked. Process 0 alone knows it."""

    def announce(self, key: str, value: Any) -> None:
        """Tell all of a value, JSON-able, and wait until each of them has it. For process 0."""

    def announced(self, key: str) -> Any:
        """Return what was announced; None before that. It does not wait."""

    def has_failed(self, within_s: float) -> bool:
        """Return whether a process has failed, or does so soon."""

    def fail(self, text: str, status: int) -> NoReturn:
        """End all processes with a line, or with that of the first failure."""

    def leave(self) -> None:
        """Wait until all are done. Who goes afterwards is not missed."""


class _Inbox:
    """What has arrived, for one thread that waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._found: dict[str, Any] = {}
        self.failure: PeerError | None = None

    def put(self, key: str, value: Any) -> None:
        with self._changed:
            self._found[key] = value
            self._changed.notify_all()

    def seen(self, key: str) -> Any:
        """Return a value that stays, or None where it has not arrived."""
        with self._changed:
            return self._found.get(key)

    def fail(self, failure: PeerError) -> bool:
        """Note a failure; return whether it is the first."""
        with self._changed:
            if self.failure is not None:
                return False
            self.failure = failure
            self._changed.notify_all()
            return True

    def has_failed(self, within_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.failure is not None, within_s)

    def take(self, key: str) -> Any:
        """Wait for a value.

        Raises:
            PeerError: A process has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: key in self._found or self.failure is not None)
            if key not in self._found:
                assert self.failure is not None
                raise PeerError(str(self.failure), self.failure.exit_status)
            return self._found.pop(key)


class _Calls:
    """What each numbered call of `gnpcli.devices.processes.peers` is about, the same everywhere."""

    _KEPT = 1000

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def other(self, key: str) -> str | None:
        """Return what another process calls by the number of `key`; None where it is the same."""
        number, _, name = key.partition(" ")
        if not number.isdecimal():
            return None
        known = self._names.setdefault(int(number), name)
        self._names.pop(int(number) - self._KEPT, None)
        return None if known == name else known


class First:
    """Process 0 of several.

    Args:
        channels: To each of the others.
        machines: Where they are.
        say: Prints an error.
    """

    def __init__(self, channels: Mapping[int, Channel], machines: Mapping[int, str], say: Say):
        self._channels, self._machines, self._say = channels, machines, say
        self._inbox = _Inbox()
        self._lock = threading.Lock()
        self._shares: dict[str, dict[int, Any]] = {}
        self._calls = _Calls()
        self._has_left: set[int] = set()
        self._is_ending = threading.Event()
        self._end_once = threading.Lock()
        self._readers = [self._reader(index) for index in channels]

    def _reader(self, index: int) -> threading.Thread:
        reader = threading.Thread(
            target=self._read, args=(index,), name=f"gnp-process-{index}", daemon=True
        )
        reader.start()
        return reader

    def told(self, key: str, value: Any) -> Any:
        self._compare(key, 0)
        self._send({"told": key, "value": value})
        return value

    def gathered(self, key: str, value: Any) -> list[Any]:
        self._share(key, 0, value)
        values: list[Any] = self._inbox.take(key)
        return values

    def ask(self, key: str) -> None:
        self._inbox.put(_asked(key), True)

    def is_asked(self, key: str) -> bool:
        return self._inbox.seen(_asked(key)) is not None

    def announce(self, key: str, value: Any) -> None:
        self._inbox.put(key, value)
        self._send({"announced": key, "value": value})
        self.gathered(_heard(key), None)

    def announced(self, key: str) -> Any:
        return self._inbox.seen(key)

    def has_failed(self, within_s: float) -> bool:
        return self._inbox.has_failed(within_s)

    def fail(self, text: str, status: int) -> NoReturn:
        self._is_ending.set()
        self._note(PeerError(text, status))
        self._end()

    def leave(self) -> None:
        self.gathered("leave", None)
        for channel in self._channels.values():
            channel.close()

    def _send(self, message: Message) -> None:
        for channel in self._channels.values():
            channel.send(message)

    def _compare(self, key: str, index: int) -> None:
        """End all where processes make different calls: each would wait for the others for ever."""
        with self._lock:
            other = self._calls.other(key)
        if other is not None:
            places = f"process {index} is at {key.partition(' ')[2]!r}, another one at {other!r}"
            text = f"the processes do not run the same program: {places}"
            self._on_failure(PeerError(text, 1))

    def _share(self, key: str, index: int, value: Any) -> None:
        self._compare(key, index)
        with self._lock:
            shares = self._shares.setdefault(key, {})
            shares[index] = value
            if len(shares) <= len(self._channels):
                return
            del self._shares[key]
        values = [shares[place] for place in range(len(shares))]
        if key == "leave":
            self._has_left.update(self._channels)
        self._send({"gathered": key, "values": values})
        self._inbox.put(key, values)

    def _read(self, index: int) -> None:
        for message in self._channels[index].messages():
            if "share" in message:
                self._share(str(message["share"]), index, message.get("value"))
            elif "at" in message:
                self._compare(str(message["at"]), index)
            elif "ask" in message:
                self.ask(str(message["ask"]))
            elif "failure" in message:
                self._on_failure(PeerError(str(message["failure"]), int(message["status"])))
        if index not in self._has_left:
            self._on_failure(_gone(index, self._machines[index]))

    def _on_failure(self, failure: PeerError) -> None:
        """End this process as well, unless it is about to: it may have something to write."""
        if self._note(failure):
            ender = threading.Thread(target=self._end_soon, name="gnp-end", daemon=True)
            ender.start()

    def _note(self, failure: PeerError) -> bool:
        is_first = self._inbox.fail(failure)
        if is_first:
            self._send({"failure": str(failure), "status": failure.exit_status})
        return is_first

    def _end_soon(self) -> None:
        if not self._is_ending.wait(GRACE_S):
            self._end()

    def _end(self) -> NoReturn:
        failure = self._inbox.failure
        assert failure is not None
        self._end_once.acquire()  # for good: another thread may be about to end as well
        self._say(str(failure))
        limit = time.monotonic() + _GOODBYE_S
        for reader in self._readers:  # which end when their process has
            if reader is not threading.current_thread():
                reader.join(max(0.0, limit - time.monotonic()))
        end_process(failure.exit_status)


class Other:
    """One of several processes that is not process 0.

    Args:
        channel: To process 0.
        say: Prints an error.
    """

    def __init__(self, channel: Channel, say: Say):
        self._channel, self._say = channel, say
        self._inbox = _Inbox()
        self._has_left = False
        self._end_once = threading.Lock()
        threading.Thread(target=self._read, name="gnp-process-0", daemon=True).start()

    def told(self, key: str, value: Any) -> Any:
        self._channel.send({"at": key})
        return self._inbox.take(key)

    def gathered(self, key: str, value: Any) -> list[Any]:
        self._channel.send({"share": key, "value": value})
        values: list[Any] = self._inbox.take(key)
        return values

    def ask(self, key: str) -> None:
        self._channel.send({"ask": key})

    def is_asked(self, key: str) -> bool:
        return False

    def announce(self, key: str, value: Any) -> None:
        raise AssertionError("process 0 announces")

    def announced(self, key: str) -> Any:
        return self._inbox.seen(key)

    def has_failed(self, within_s: float) -> bool:
        return self._inbox.has_failed(within_s)  # which ends this process on the way

    def fail(self, text: str, status: int) -> NoReturn:
        self._channel.send({"failure": text, "status": status})
        time.sleep(_GOODBYE_S)  # the answer says which failure was the first, and ends this process
        self._end(text, status)

    def leave(self) -> None:
        self.gathered("leave", None)
        self._channel.close()

    def _read(self) -> None:
        for message in self._channel.messages():
            if "told" in message:
                self._inbox.put(str(message["told"]), message.get("value"))
            elif "announced" in message:
                key = str(message["announced"])
                self._inbox.put(key, message["value"])
                self._channel.send({"share": _heard(key), "value": None})
            elif "gathered" in message:
                self._has_left |= message["gathered"] == "leave"
                self._inbox.put(str(message["gathered"]), message["values"])
            elif "failure" in message:
                self._end(str(message["failure"]), int(message["status"]))
        if not self._has_left:
            failure = _gone(0, "its machine")
            self._end(str(failure), failure.exit_status)

    def _end(self, text: str, status: int) -> NoReturn:
        self._end_once.acquire()  # as that of process 0
        self._say(text)
        end_process(status)


def _asked(key: str) -> str:
    return f"{key}: asked"


def _heard(key: str) -> str:
    return f"{key}: heard"


def _gone(index: int, machine: str) -> PeerError:
    text = (
        f"process {index} on {machine} has ended without a word, as after kill -9: the last "
        "checkpoint is what is left; start all processes again"
    )
    return PeerError(text, 1)


def end_process(status: int) -> NoReturn:
    """End this process at once: JAX would wait for the others before it ends."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # it is full, or closed
            stream.flush()
    os._exit(status)
