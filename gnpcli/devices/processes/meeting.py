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
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from gnpcli import __version__
from gnpcli.devices.processes.channel import LONGEST_HELLO, Channel, Message
from gnpcli.devices.processes.door import Door
from gnpcli.devices.processes.layout import Layout, cut, is_loopback, split_address
from gnpcli.errors import GnpError

Tell = Callable[[str], None]

DEFAULT_TIMEOUT_S = 1800
"""Seconds for which processes wait for each other: machines of a cluster may start far apart."""
_TRY_EVERY_S = 0.2
_TELL_AFTER_S = 3.0
_CONNECT_S = 10.0
_ANSWER_S = 60.0
"""Seconds within which a process 0 answers that listens; it may be on a machine that is busy."""
HEARD: Message = {"heard": "gnp"}
"""What process 0 answers at once to a process that fits; later it welcomes it, or refuses it."""


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
        "version": _version(),
        "host": platform.node(),
    }


def _version() -> str:
    """Return the versions that have to be the same: another JAX makes other programs."""
    return f"{__version__} with jax {metadata.version('jax')}"


def receive_all(layout: Layout, tell: Tell) -> tuple[str, dict[int, Channel], dict[int, str]]:
    """Wait, as process 0, until all others have come.

    What ends the meeting is told to those that have come.

    Returns:
        The address at which this process listened, a channel to each of the others, and their
        machines.

    Raises:
        MeetingError: This process cannot listen there, not all have come, one has ended before, or
            one says what does not fit.
    """
    assert layout.coordinator is not None
    host, port = split_address(layout.bind or layout.coordinator)
    address = _own_addresses(host, layout)[0]
    channels: dict[int, Channel] = {}
    machines: dict[int, str] = {}
    try:
        with Door(_listen(address, port)) as door:
            _meet_all(layout, door, tell, _warning(host, address), channels, machines)
    except BaseException as error:
        for channel in channels.values():
            if isinstance(error, MeetingError):
                channel.send({"refused": str(error)})
            channel.close()
        raise
    return address, channels, machines


def _meet_all(
    layout: Layout,
    door: Door,
    tell: Tell,
    warning: str,
    channels: dict[int, Channel],
    machines: dict[int, str],
) -> None:
    """Fill `channels` and `machines` with all the others."""
    patience = _Patience(tell)
    indices: dict[socket.socket, int] = {}
    while len(channels) < layout.count - 1:
        missing = layout.count - 1 - len(channels)
        patience.tell(
            f"waiting for {missing} of {layout.count} processes at {layout.coordinator}{warning}"
        )
        if patience.left_s() <= 0:
            raise MeetingError(_who_is_missing(layout, channels, warning))
        for connection, said in door.visits(_TRY_EVERY_S):
            if said is None:
                index = indices[connection]
                raise MeetingError(_ended_before(f"process {index} on {machines[index]}"))
            channel = Channel(connection)
            problem = _problem(said, layout, machines)
            if problem is not None:
                channel.send({"refused": problem})
                channel.close()
                raise MeetingError(problem)
            channel.send(HEARD)
            index = indices[connection] = said["index"]
            channels[index], machines[index] = channel, str(said["host"])


def come(layout: Layout, tell: Tell) -> tuple[Channel, str, int]:
    """Come to process 0, as one of the others, and wait until all have come.

    Returns:
        A channel to it, the address under which it was reached, and the port of JAX's own service.

    Raises:
        MeetingError: It cannot be reached, refuses this process, or ends before all have come.
    """
    assert layout.coordinator is not None
    host, port = split_address(layout.coordinator)
    patience = _Patience(tell)
    why = "it does not answer"
    while (left := patience.left_s()) > 0:
        try:
            connection, address = _connect(addresses(host, layout), port, min(left, _CONNECT_S))
        except OSError as error:
            why = error.strerror or str(error)
        else:
            channel = Channel(connection)
            with contextlib.ExitStack() as failing:
                failing.callback(channel.close)
                channel.send(who(layout))
                if _answer(channel, min(max(patience.left_s(), 0.1), _ANSWER_S)) == HEARD:
                    found = _welcome(channel, layout)
                    failing.pop_all()
                    return channel, address, found
            why = "something else listens there"
        patience.tell(f"waiting for process 0 at {layout.coordinator} ({why})")
        time.sleep(_TRY_EVERY_S)
    raise MeetingError(
        f"process {layout.index} of {layout.count} cannot reach process 0 at {layout.coordinator} "
        f"within {timeout_s():g} s ({why}): start it, or correct the coordinator"
    )


@contextlib.contextmanager
def free_port(address: str) -> Iterator[int]:
    """Give a port of an address at which nobody listens, and keep it free for a block.

    Where the system can, nobody but this user can take it, and JAX's service does.
    """
    with socket.socket(_family(address)) as holder:
        if hasattr(socket, "SO_REUSEPORT"):
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((address, 0))
        port: int = holder.getsockname()[1]
        if not hasattr(socket, "SO_REUSEPORT"):
            holder.close()
        yield port


def _own_addresses(host: str, layout: Layout) -> list[str]:
    """Return `addresses` of process 0, which are there or never will be.

    Raises:
        MeetingError: It has none.
    """
    try:
        return addresses(host, layout)
    except OSError as error:
        raise MeetingError(
            f"process 0 finds no address of {cut(host)} ({error.strerror or error}): correct the "
            "coordinator"
        ) from error


def addresses(host: str, layout: Layout) -> list[str]:
    """Return the addresses of a host that the processes of a layout can reach, the best first.

    Raises:
        OSError: It has none.
        MeetingError: No machine can have such a name, or no other machine can reach it and there
            are several.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except ValueError as error:  # as UnicodeError is one
        raise MeetingError(f"{cut(host)} is no name of a machine ({error})") from error
    every = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if (layout.nodes or 1) == 1:
        return every
    reached = [address for address in every if not is_loopback(address)]
    if not reached:
        raise MeetingError(
            f"{host} is {every[0]} on {platform.node()}, which no other node can reach: correct "
            "/etc/hosts, or give --coordinator HOST:PORT"
        )
    return reached


def _connect(places: list[str], port: int, timeout: float) -> tuple[socket.socket, str]:
    """Return a connection to the first of some addresses that answers, and which it is.

    Raises:
        OSError: None does; that of the first.
    """
    first: OSError | None = None
    for address in places:
        try:
            return socket.create_connection((address, port), timeout=timeout), address
        except OSError as error:
            first = first or error
    assert first is not None
    raise first


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _listen(address: str, port: int) -> socket.socket:
    """Listen at an address; ``::`` is that of both families, as for JAX's service."""
    both = address == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (address, port), family=_family(address), backlog=1024, dualstack_ipv6=both
        )
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise MeetingError(
            f"process 0 cannot listen at {address}:{port} ({why}): give a --coordinator that is a "
            "free port of its machine"
        ) from error


def _warning(host: str, address: str) -> str:
    """Return a remark on a name that only its own machine can reach, as some systems have it."""
    if not is_loopback(address) or is_loopback(host):
        return ""
    return f" ({host} is {address} here, which no other machine can reach)"


def _problem(said: dict[str, Any], layout: Layout, machines: dict[int, str]) -> str | None:
    """Return what is wrong with a process that has come."""
    index, count, host = said.get("index"), said.get("count"), said.get("host")
    if said.get("version") != _version():
        return f"process {index} on {host} is gnp {said.get('version')}, process 0 {_version()}"
    if count != layout.count:
        return f"process {index} on {host} counts {count} processes, process 0 {layout.count}"
    if not isinstance(index, int) or not 0 <= index < layout.count:
        return f"a process on {host} says that it is process {index} of {count}"
    if index in machines or index == 0:
        first = machines.get(index, platform.node())
        return f"two processes say that they are process {index}: on {first} and on {host}"
    return None


def _who_is_missing(layout: Layout, channels: Mapping[int, Channel], warning: str) -> str:
    missing = [str(i) for i in range(1, layout.count) if i not in channels]
    which = "process" if len(missing) == 1 else "processes"
    named = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
    return (
        f"{which} {named} of {layout.count} did not come to {layout.coordinator}{warning} within "
        f"{timeout_s():g} s: start all of them with the same coordinator"
    )


def _ended_before(process: str) -> str:
    return f"{process} has ended before all had come: start all processes again"


def _answer(channel: Channel, timeout: float) -> Message | None:
    """Return what process 0 says next; None where it is not process 0 that answers, or nobody.

    Raises:
        MeetingError: It refuses this process.
    """
    try:
        answer = channel.receive(timeout, LONGEST_HELLO)
    except TimeoutError:
        return None
    if answer is not None and "refused" in answer:
        raise MeetingError(str(answer["refused"]))
    return answer


def _welcome(channel: Channel, layout: Layout) -> int:
    """Wait until all have come to process 0; return the port of JAX's service.

    Process 0 says when it has waited too long. Who has come does not count by itself: it may have
    begun earlier.

    Raises:
        MeetingError: Process 0 has ended, or says that not all have come.
    """
    answer = _answer(channel, timeout_s() + _ANSWER_S)
    port = None if answer is None else answer.get("welcome")
    if not isinstance(port, int):
        raise MeetingError(_ended_before(f"process 0 at {layout.coordinator}"))
    return port
