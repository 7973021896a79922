"""Which processes compute together, as the environment of each of them says it. No JAX.

The first of these that says anything counts:

1. ``GNP_PROCESSES``, ``GNP_PROCESS_ID`` and ``GNP_COORDINATOR``, which the options set;
2. ``JAX_NUM_PROCESSES``, ``JAX_PROCESS_ID`` and ``JAX_COORDINATOR_ADDRESS``;
3. what a launcher sets (`gnpcli.devices.processes.launchers`).

Else there is one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gnpcli.devices.processes.launchers import LAUNCHERS
from gnpcli.devices.processes.layout import (
    MOST_PROCESSES,
    Layout,
    LayoutError,
    cut,
    is_loopback,
    split_address,
    whole_number,
)

ONE = Layout(1, 0, source="one process")

_OURS = ("GNP_PROCESSES", "GNP_PROCESS_ID", "GNP_COORDINATOR")
_OF_JAX = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS")
_TYPED = {
    "GNP_PROCESSES": "--processes",
    "GNP_PROCESS_ID": "--process-id",
    "GNP_COORDINATOR": "--coordinator",
}
_BIND = ("GNP_COORDINATOR_BIND", "JAX_COORDINATOR_BIND_ADDRESS")
_LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"


def detect(environment: Mapping[str, str]) -> Layout:
    """Return the layout that an environment describes.

    A coordinator that is given by itself is taken for the processes of a launcher.

    Raises:
        LayoutError: The variables contradict each other, or some of them are missing.
    """
    given = {name: value for name, value in environment.items() if value}
    if given.get("GNP_PROCESSES") == "auto":
        del given["GNP_PROCESSES"]
    for names in (_OURS, _OF_JAX):
        count, index, coordinator = (given.get(name) for name in names)
        if count is None and index is None:
            continue
        layout = _typed(names, count, index, coordinator)
        return _checked(_with_details(layout, given))
    found = next((layout for layout in (find(given) for find in LAUNCHERS) if layout), ONE)
    coordinator = given.get("GNP_COORDINATOR") or given.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None:
        if found.count == 1 and "GNP_COORDINATOR" in given:
            raise _missing(_OURS, "GNP_COORDINATOR", "GNP_PROCESSES")
        found = replace(found, coordinator=coordinator, nodes=None)
    return _checked(_with_details(found, given))


def _typed(
    names: tuple[str, str, str], count: str | None, index: str | None, coordinator: str | None
) -> Layout:
    """Return the layout that three variables of one kind give."""
    if count is None:
        raise _missing(names, names[1], names[0])
    number = whole_number(_called(names[0]), count)
    if number == 1 and index is None:
        return ONE
    if index is None:
        raise _missing(names, names[0], names[1])
    if number > 1 and coordinator is None:
        raise _missing(names, names[0], names[2])
    source = "the options" if names is _OURS else "JAX's variables"
    return Layout(number, whole_number(_called(names[1]), index), coordinator, source=source)


def _with_details(layout: Layout, given: Mapping[str, str]) -> Layout:
    bind = next((given[name] for name in _BIND if name in given), None)
    if bind is not None:
        layout = replace(layout, bind=bind)
    if _LOCAL_DEVICES in given:
        numbers = given[_LOCAL_DEVICES].split(",")
        devices = tuple(whole_number(_LOCAL_DEVICES, number) for number in numbers)
        if len({*devices}) < len(devices):
            raise LayoutError(
                f"{_LOCAL_DEVICES} names a device twice: {cut(given[_LOCAL_DEVICES])}"
            )
        layout = replace(layout, local_devices=devices)
    return layout


def _checked(layout: Layout) -> Layout:
    """Return a layout without contradictions."""
    if layout.count < 1:
        raise LayoutError(f"{layout.count} processes cannot train: there is at least 1")
    if layout.count > MOST_PROCESSES:
        raise LayoutError(
            f"{layout.count} processes are too many: at most {MOST_PROCESSES} ({layout.source})"
        )
    if layout.index >= layout.count:
        raise LayoutError(
            f"process {layout.index} of {layout.count}: processes are numbered from 0 to "
            f"{layout.count - 1} ({layout.source})"
        )
    if layout.count == 1:
        return replace(layout, coordinator=None, bind=None)
    if layout.coordinator is None:
        raise LayoutError(
            f"{layout.source} says that there are {layout.count} processes and not where process "
            "0 is: give --coordinator HOST:PORT"
        )
    host, _ = split_address(layout.coordinator)
    if (layout.nodes or 1) > 1 and is_loopback(host):
        raise LayoutError(
            f"{host} is no address that {layout.nodes} nodes can reach: give --coordinator "
            "HOST:PORT with the name of the first one"
        )
    if layout.bind is not None:
        split_address(layout.bind)
    return layout


def _missing(names: tuple[str, str, str], there: str, absent: str) -> LayoutError:
    needed = ", ".join(map(_called, names))
    return LayoutError(
        f"{_called(there)} is given and {_called(absent)} is not: each of several processes needs "
        f"{needed}"
    )


def _called(name: str) -> str:
    """Return a variable as a person may have typed it."""
    return f"{_TYPED[name]} ({name})" if name in _TYPED else name
