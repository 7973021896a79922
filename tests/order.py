"""The order of the slow tests: where time ends, it leaves out repetitions and no file."""

from __future__ import annotations

from collections.abc import Sequence

import pytest


def widest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests with the slow ones last, and of these what covers most first.

    One test of each file comes first, then the first case of each other test, then all other
    cases. Otherwise they stand as they did.
    """
    files, functions, turns = set[str](), set[str](), dict[str, int]()
    for item in items:
        if item.get_closest_marker("slow") is None:
            turns[item.nodeid] = 0
            continue
        file, function = item.nodeid.partition("::")[0], item.nodeid.partition("[")[0]
        turns[item.nodeid] = 1 if file not in files else 2 if function not in functions else 3
        files.add(file)
        functions.add(function)
    return sorted(items, key=lambda item: turns[item.nodeid])
