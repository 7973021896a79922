"""What a process asks of the others. In one process every answer is its own, and costs nothing.

This module alone knows `jax.distributed`. All processes run the same program, and make the calls of
this module in the same order, but for `ask` and `announced`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from gnpcli import errors
from gnpcli.devices.processes.layout import Layout
from gnpcli.devices.processes.meeting import (
    come,
    free_port,
    receive_all,
    seconds,
    timeout_s,
)
from gnpcli.devices.processes.team import First, Other, Say, Team, end_process
from gnpcli.errors import GnpError

T = TypeVar("T")

HEARTBEAT_TIMEOUT_S = 100
"""Seconds without a sign of life after which JAX takes a process for dead."""
_SHUTDOWN_TIMEOUT_S = 60
_LATE_S = 3.0

_team: Team | None = None
_layout = Layout(1, 0)
_numbers = itertools.count()
_is_deciding = False


class ToldError(GnpError):
    """An error of process 0, as another process raises it.

    Args:
        text: Its message.
        status: Its exit status.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.exit_status = status


def connect(layout: Layout, say: Say, tell: Say) -> None:
    """Meet the other processes of a layout, and make their devices JAX's. One process does nothing.

    To be called before JAX looks for devices.

    Args:
        layout: From `gnpcli.devices.processes.detect.detect`.
        say: Prints an error as the end of this process.
        tell: Told for what this process waits.

    Raises:
        MeetingError: They do not find each other.
    """
    global _team, _layout
    if layout.count == 1 or _team is not None:
        return
    assert layout.coordinator is not None
    if layout.index > 0:
        channel, address, port = come(layout, tell)
        _team, _layout = Other(channel, say), layout
        _start_jax(layout, address, port)
        return
    address, channels, machines = receive_all(layout, tell)
    with free_port(address) as port:
        for channel in channels.values():
            channel.send({"welcome": port})
        _team, _layout = First(channels, machines, say), layout
        _start_jax(layout, address, port)


def _start_jax(layout: Layout, address: str, port: int) -> None:
    import jax

    # SIGTERM is ours: this service would swallow it.
    if "jax_enable_preemption_service" in jax.config.values:
        jax.config.update("jax_enable_preemption_service", False)
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    jax.distributed.initialize(
        coordinator_address=place,
        num_processes=layout.count,
        process_id=layout.index,
        local_device_ids=layout.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_s()) + 1,
        heartbeat_timeout_seconds=int(seconds("GNP_HEARTBEAT_TIMEOUT_S", HEARTBEAT_TIMEOUT_S)),
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
        coordinator_bind_address=place,
    )


def count() -> int:
    """Return how many processes compute together."""
    return _layout.count


def index() -> int:
    """Return which of them this one is."""
    return _layout.index


def is_first() -> bool:
    """Return whether this is process 0, which alone writes what exists once."""
    return _layout.index == 0


def decided(what: str, make: Callable[[], T]) -> T:
    """Return what process 0 makes; the others do not make it.

    Args:
        what: Names the call, the same in all processes.
        make: Returns a JSON-able value.

    Raises:
        ToldError: In the others: process 0 raised an error.
        Exception: In process 0: what `make` raises.
    """
    global _is_deciding
    if _team is None or _is_deciding:
        return make()
    key = new_key(what)
    if not is_first():
        answer = _team.told(key, None)
        if "error" in answer:
            raise ToldError(answer["error"], answer["status"])
        value: T = answer["value"]
        return value
    _is_deciding = True  # what is decided on the way is told with the whole
    try:
        value = make()
    except Exception as error:
        text, status = _explained(error)
        _team.told(key, {"error": text, "status": status})
        raise
    finally:
        _is_deciding = False
    _team.told(key, {"value": value})
    return value


def gathered(what: str, value: T) -> list[T]:
    """Return the JSON-able values of all processes, in their order."""
    if _team is None:
        return [value]
    return _team.gathered(new_key(what), value)


def barrier(what: str) -> None:
    """Wait until all processes have come here."""
    gathered(what, None)


def new_key(what: str) -> str:
    """Return a name that no call had before, the same in all processes."""
    return f"{next(_numbers)} {what}"


def ask(key: str) -> None:
    """Ask process 0 to announce something under a key, and do not wait for it."""
    if _team is not None:
        _team.ask(key)


def is_asked(key: str) -> bool:
    """Return whether any process has asked, as far as it is known here: in process 0 alone."""
    return _team is not None and _team.is_asked(key)


def announce(key: str, value: Any) -> None:
    """Tell all processes a value, in process 0. It returns when each of them has it."""
    if _team is not None:
        _team.announce(key, value)


def announced(key: str) -> Any:
    """Return what process 0 has announced; None as long as that is nothing."""
    return None if _team is None else _team.announced(key)


def united(what: str, names: list[str]) -> list[str]:
    """Return the names that any process has, each once, in the order of the processes."""
    if _team is None:
        return names
    return list(dict.fromkeys(name for own in gathered(what, names) for name in own))


def agreed(what: str, make: Callable[[], T], *raised: type[Exception]) -> T:
    """Return what each process makes for itself, where all of them can.

    Args:
        what: As of `decided`.
        make: Must not wait for other processes.
        raised: Errors that are told. Where processes raise different ones, the first of `raised`
            counts, and then the first process.

    Raises:
        Exception: One of `raised`, of the same class and with the same message in all processes.
    """
    if _team is None:
        return make()
    failure: Exception | None = None
    try:
        value = make()
    except raised as error:
        failure = error
    kinds = [kind.__name__ for kind in raised]
    own = None if failure is None else [_kind(failure, raised), str(failure)]
    found = [error for error in gathered(what, own) if error is not None]
    if not found:
        return value
    kind, text = min(found, key=lambda error: kinds.index(error[0]))
    if failure is not None and own == [kind, text]:
        raise failure
    chosen = raised[kinds.index(kind)]
    told = chosen.__new__(chosen)
    Exception.__init__(told, text)
    raise told from failure


def _kind(error: Exception, raised: tuple[type[Exception], ...]) -> str:
    return next(kind.__name__ for kind in raised if isinstance(error, kind))


def is_consequence() -> bool:
    """Return whether an error that came up just now may be due to another process.

    A program that waits for a process that has gone fails before it is known who has gone.
    """
    return _team is not None and _team.has_failed(_LATE_S)


def fail(text: str, status: int) -> None:
    """End all processes with a line. In one process do nothing: it ends by itself."""
    if _team is not None:
        _team.fail(text, status)


def stop(text: str, status: int) -> None:
    """End all processes, which all have stopped with this line. In one do nothing, as `fail`.

    Who has something to write still is waited for. So none ends long before another: a launcher may
    kill those that are left.
    """
    if _team is not None:
        barrier("stopped")
        _team.fail(text, status)


def leave() -> None:
    """Wait until all processes are done, where there are several."""
    if _team is not None:
        _team.leave()


def end(status: int) -> NoReturn:
    """End this process at once."""
    end_process(status)


def _explained(error: Exception) -> tuple[str, int]:
    text, status = errors.explain(error)
    return text or f"{type(error).__name__}: {error}", status
