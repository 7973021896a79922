"""Processes that meet as threads of this one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gnpcli.devices.processes import meeting
from gnpcli.devices.processes.layout import Layout
from gnpcli.devices.processes.meeting import MeetingError
from tests.launch import free_port


def layouts(count: int, host: str = "127.0.0.1") -> list[Layout]:
    """Return those of processes that meet at a free port."""
    address = f"{host}:{free_port()}"
    return [Layout(count, index, address) for index in range(count)]


def silent(text: str) -> None:
    del text


def meet(*found: Layout, keep: bool = False) -> list[Any]:
    """Let processes meet, in threads; return what each gets, or the error that it raises.

    Unless they are to be kept, the channels are closed.
    """

    def one(layout: Layout) -> Any:
        try:
            if layout.index == 0:
                address, channels, machines = meeting.receive_all(layout, silent)
                for channel in channels.values():
                    channel.send({"welcome": 7})
                return address, channels, machines
            return meeting.come(layout, silent)
        except MeetingError as error:
            return error

    with ThreadPoolExecutor(len(found)) as pool:
        told = list(pool.map(one, found))
    for got in told:
        if not keep and isinstance(got, tuple):
            for channel in got[1].values() if isinstance(got[1], dict) else [got[0]]:
                channel.close()
    return told
