"""The order of the slow tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.order import widest_first


def ordered(*names: str) -> list[str]:
    """Return the names of tests in order. Those of slow ones begin with ``slow``."""
    items: list[Any] = [
        SimpleNamespace(
            nodeid=name.removeprefix("slow "),
            get_closest_marker=lambda mark, name=name: mark if name.startswith(mark) else None,
        )
        for name in names
    ]
    return [item.nodeid for item in widest_first(items)]


def test_slow_tests_come_last_and_one_of_each_file_before_another():
    found = ordered(
        "slow a.py::one[1]",
        "slow a.py::one[2]",
        "a.py::quick",
        "slow a.py::two[1]",
        "slow a.py::two[2]",
        "slow b.py::one[1]",
        "slow b.py::one[2]",
        "b.py::quick",
    )
    assert found == [
        *("a.py::quick", "b.py::quick"),
        *("a.py::one[1]", "b.py::one[1]"),
        "a.py::two[1]",
        *("a.py::one[2]", "a.py::two[2]", "b.py::one[2]"),
    ]


def test_a_name_may_hold_what_ends_others():
    assert ordered("slow a.py::one[x::y]", "slow a.py::one[a[b]", "slow b.py::one[b.py::c]") == [
        "a.py::one[x::y]",
        "b.py::one[b.py::c]",
        "a.py::one[a[b]",
    ]
