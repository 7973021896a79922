"""How processes meet: process 0 listens, the others come, and each says who it is. No JAX.

Whatever keeps them from meeting is one line here, and is found before JAX starts: its own service
ends a process that waits in vain, with a stack of C++.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import time
from collections.abc import Callable
from typing import Any

from gnpcli import __version__
from gnpcli.devices.processes.channel import Channel
from gnpcli.devices.processes.layout import Layout, is_loopback, split_address
from gnpcli.errors import GnpError

Tell = Callable[[str], None]

DEFAULT_TIMEOUT_S = 1800
"""Seconds for which processes wait for each other: machines of a cluster may start far apart."""
_TRY_EVERY_S = 0.2
_TELL_AFTER_S = 3.0
_HELLO_S = 10.0


class MeetingError(GnpError):
    """Processes that are to compute together and do not find each other."""


def timeout_s() -> float:
    """Return ``GNP_CONNECT_TIMEOUT_S``, else `DEFAULT_TIMEOUT_S`."""
    return seconds("GNP_CONNECT_TIMEOUT_S", DEFAULT_TIMEOUT_S)


def seconds(name: str, default: float) -> float:
    """Return the seconds that a variable holds.

    Raises:
        MeetingError: It holds something else.
    """
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise MeetingError(f"{name} is '{text}', which is no number of seconds above 0")
    return value


class _Patience:
    """How long a process still waits, and whether a person was told that it does."""

    def __init__(self, tell: Tell):
        self._tell, self._begun = tell, time.monotonic()
        self._limit_s, self._is_told = timeout_s(), False

    def left_s(self) -> float:
        return self._begun + self._limit_s - time.monotonic()

    def tell(self, text: str) -> None:
        """Tell once what is waited for, after a while."""
        if not self._is_told and time.monotonic() - self._begun > _TELL_AFTER_S:
            self._is_told = True
            self._tell(text)


def who(layout: Layout) -> dict[str, Any]:
    """Return what a process says of itself when it comes."""
    return {
        "hello": "gnp",
        "index": layout.index,
        "count": layout.count,
        "version": __version__,
        "host": platform.node(),
    }


def receive_all(layout: Layout, tell: Tell) -> tuple[str, dict[int, Channel], dict[int, str]]:
    """Wait, as process 0, until all others have come.

    Returns:
        The address at which this process listened, a channel to each of the others, and their
        machines.

    Raises:
        MeetingError: This process cannot listen there, not all have come, or one says what does not
            fit.
    """
    assert layout.coordinator is not None
    host, port = split_address(layout.bind or layout.coordinator)
    address = _resolved(host, layout)
    listener = _listen(address, port, layout)
    channels: dict[int, Channel] = {}
    machines: dict[int, str] = {}
    patience = _Patience(tell)
    with listener, contextlib.ExitStack() as failing:
        failing.callback(_close, channels)
        while len(channels) < layout.count - 1:
            missing = layout.count - 1 - len(channels)
            patience.tell(
                f"waiting for {missing} of {layout.count} processes at {layout.coordinator}"
            )
            if patience.left_s() <= 0:
                raise MeetingError(_who_is_missing(layout, channels))
            came = _accept(listener)
            if came is None:
                continue
            channel, said = came
            problem = _problem(said, layout, machines)
            if problem is not None:
                for other in (channel, *channels.values()):
                    other.send({"refused": problem})
                channel.close()
                raise MeetingError(problem)
            channels[said["index"]] = channel
            machines[said["index"]] = str(said["host"])
        failing.pop_all()
    return address, channels, machines


def come(layout: Layout, tell: Tell) -> tuple[Channel, str, int]:
    """Come to process 0, as one of the others, and wait until all have come.

    Returns:
        A channel to it, the address under which it was reached, and the port of JAX's own service.

    Raises:
        MeetingError: It cannot be reached, or refuses this process.
    """
    assert layout.coordinator is not None
    host, port = split_address(layout.coordinator)
    patience = _Patience(tell)
    why = "it does not answer"
    while (left := patience.left_s()) > 0:
        try:
            address = _resolved(host, layout)
            connection = socket.create_connection((address, port), timeout=min(left, _HELLO_S))
        except OSError as error:
            why = error.strerror or str(error)
        else:
            channel = Channel(connection)
            channel.send(who(layout))
            with contextlib.ExitStack() as failing:
                failing.callback(channel.close)
                welcome = _welcome(channel, patience.left_s())
                if welcome is not None:
                    failing.pop_all()
                    return channel, address, welcome
            why = "something else listens there, or it has ended"
        patience.tell(f"waiting for process 0 at {layout.coordinator} ({why})")
        time.sleep(_TRY_EVERY_S)
    raise MeetingError(
        f"process {layout.index} of {layout.count} cannot reach process 0 at {layout.coordinator} "
        f"within {timeout_s():g} s ({why}): start it, or correct the coordinator"
    )


def free_port(address: str) -> int:
    """Return a port of an address at which nobody listens now."""
    with socket.socket(_family(address)) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _resolved(host: str, layout: Layout) -> str:
    """Return the address of a host.

    Raises:
        OSError: It has none.
        MeetingError: It is one that no other machine can reach, and there are several.
    """
    address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    if (layout.nodes or 1) > 1 and is_loopback(address):
        raise MeetingError(
            f"{host} is {address} on {platform.node()}, which no other node can reach: correct "
            "/etc/hosts, or give --coordinator HOST:PORT"
        )
    return address


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _listen(address: str, port: int, layout: Layout) -> socket.socket:
    try:
        listener = socket.create_server((address, port), family=_family(address), backlog=1024)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise MeetingError(
            f"process 0 cannot listen at {address}:{port} ({why}): give a --coordinator that is a "
            "free port of its machine"
        ) from error
    listener.settimeout(_TRY_EVERY_S)
    return listener


def _accept(listener: socket.socket) -> tuple[Channel, dict[str, Any]] | None:
    """Return who comes; None where nobody does for a while, or something else than a process."""
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    channel = Channel(connection)
    with contextlib.suppress(TimeoutError):
        said = channel.receive(_HELLO_S)
        if said is not None and said.get("hello") == "gnp":
            return channel, said
    channel.close()
    return None


def _problem(said: dict[str, Any], layout: Layout, machines: dict[int, str]) -> str | None:
    """Return what is wrong with a process that has come."""
    index, count, host = said.get("index"), said.get("count"), said.get("host")
    if said.get("version") != __version__:
        return f"process {index} on {host} is gnp {said.get('version')}, process 0 {__version__}"
    if count != layout.count:
        return f"process {index} on {host} counts {count} processes, process 0 {layout.count}"
    if index in machines or index == 0:
        first = machines.get(0 if index is None else index, platform.node())
        return f"two processes say that they are process {index}: on {first} and on {host}"
    return None


def _who_is_missing(layout: Layout, channels: dict[int, Channel]) -> str:
    missing = [str(i) for i in range(1, layout.count) if i not in channels]
    which = "process" if len(missing) == 1 else "processes"
    named = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
    return (
        f"{which} {named} of {layout.count} did not come to {layout.coordinator} within "
        f"{timeout_s():g} s: start all of them with the same coordinator"
    )


def _close(channels: dict[int, Channel]) -> None:
    for channel in channels.values():
        channel.close()


def _welcome(channel: Channel, timeout: float) -> int | None:
    """Return the port of JAX's service; None where process 0 is not what answers."""
    try:
        answer = channel.receive(max(timeout, 0.1))
    except TimeoutError:
        return None
    if answer is None:
        return None
    if "refused" in answer:
        raise MeetingError(str(answer["refused"]))
    port = answer.get("welcome")
    return port if isinstance(port, int) else None
