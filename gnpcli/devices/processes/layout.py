"""What a layout of processes is, and the words that describe one. No JAX."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from gnpcli.errors import GnpError

MOST_PROCESSES = 1_000_000
"""More are a slip of a hand, and would be waited for."""
_DIGITS = 18
"""Of a number that is taken for one."""
_SHOWN = 60


class LayoutError(GnpError):
    """Variables or options that describe no group of processes."""


@dataclass(frozen=True)
class Layout:
    """Which processes compute together, and which of them this one is."""

    count: int
    """All of them, at least 1."""
    index: int
    """This one, from 0."""
    coordinator: str | None = None
    """``HOST:PORT`` where process 0 is reached; None for one process."""
    bind: str | None = None
    """``HOST:PORT`` where process 0 listens; None listens at `coordinator`."""
    local_devices: tuple[int, ...] | None = None
    """Which accelerators of its machine this process takes; None takes all that it sees."""
    nodes: int | None = None
    """Machines, where the launcher says so."""
    source: str = ""
    """Where it was found, for messages."""


def whole_number(name: str, text: str) -> int:
    """Return a number that a variable holds.

    Raises:
        LayoutError: It holds something else.
    """
    digits = text.strip()
    if not digits.isdecimal() or len(digits) > _DIGITS:
        raise LayoutError(f"{name} is '{cut(text)}', which is no whole number from 0 on")
    return int(digits)


def cut(text: str) -> str:
    """Return a value as a message shows it, of bounded length."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def is_loopback(host: str) -> bool:
    """Return whether an address, or ``localhost``, is one that only its own machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises:
        LayoutError: It is neither.
    """
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    if ":" in host and not is_bracketed:
        raise LayoutError(
            f"'{cut(text)}' is not HOST:PORT: write an IPv6 address as [{cut(host)}]:{cut(port)}"
        )
    if not colon or not host or not _is_port(port):
        raise LayoutError(f"'{cut(text)}' is not HOST:PORT, for example 10.0.0.1:4000")
    return host, int(port)


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= _DIGITS and 0 < int(text) < 1 << 16
