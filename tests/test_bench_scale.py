"""Growth: its measurement, and that no kind of work does more than in proportion to its size."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from gnpcli.bench.scale import KINDS, LINEAR, exponent
from tests.conftest import Gnp, fails


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
def test_the_exponent_is_that_of_the_growth(power: float) -> None:
    costs = {size: 3 + 1e-6 * size**power for size in (1_000, 10_000, 100_000, 1_000_000)}
    found = exponent(costs, 0.0)
    assert found is not None
    assert found == pytest.approx(power, abs=0.0001 if power == 1 else 0.1)
    assert (found > LINEAR) == (power > 1)


def test_what_grows_by_less_than_noise_has_no_exponent() -> None:
    assert exponent({10: 1.0, 100: 1.01, 1000: 1.02}, 0.05) is None
    assert exponent({10: 1.0, 100: 1.01, 1000: 9.0}, 0.05) is None
    assert exponent({10: 5.0}, 0.05) is None
    assert exponent({10: 5.0, 20: 4.0, 30: 3.0}, 0.0) is None


def calls(name: str, size: int, folder: Path) -> int:
    """Return how many functions a kind of work calls, in all of its threads."""
    kind = KINDS[name]
    folder.mkdir()
    kind.prepare(folder, size)
    kind.work(folder)  # what is imported and kept on the way
    count = [0]

    def note(frame: object, event: str, argument: object) -> None:
        count[0] += event in ("call", "c_call")

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        kind.work(folder)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return count[0]


SIZES = {"images": 400, "classes": 40, "lines": 400, "runs": 4}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_four_times_as_much_is_at_most_about_four_times_the_work(name: str, tmp_path: Path) -> None:
    size = SIZES[KINDS[name].of]
    one, two, four = (calls(name, times * size, tmp_path / str(times)) for times in (1, 2, 4))
    assert one < two < four or name in ("plot", "report")  # curves are thinned out
    assert four - two <= 2.3 * max(two - one, 50)  # 2 where it is linear, 4 where it is quadratic


@pytest.mark.parametrize("name", list(KINDS))
def test_sizes_rise_by_enough_to_fit_an_exponent(name: str) -> None:
    sizes = KINDS[name].sizes
    assert len(sizes) >= 3
    assert sorted(set(sizes)) == list(sizes)
    assert sizes[-1] >= 100 * sizes[0]


@pytest.mark.slow
def test_the_command_measures_each_size_in_a_process_of_its_own(gnp: Gnp) -> None:
    done = gnp("bench", "scale", "--kinds", "classes,shuffling", "--most", "10000", "--json")
    assert done.returncode == 0, done.stderr
    classes, shuffling = json.loads(done.stdout)["measurements"]
    assert [cost["size"] for cost in classes["costs"]] == [10, 500, 5000]
    assert [cost["size"] for cost in shuffling["costs"]] == [10_000]
    for cost in classes["costs"]:
        assert cost["seconds"] > 0
        assert cost["peak_bytes"] > 1 << 20
    assert shuffling["time_exponent"] is shuffling["memory_exponent"] is None


def test_an_unknown_kind_and_a_size_below_all_are_one_line(gnp: Gnp) -> None:
    fails(gnp("bench", "scale", "--kinds", "clases"), "unknown kind 'clases'", "classes")
    done = gnp("bench", "scale", "--kinds", "report", "--most", "9")
    fails(done, "the smallest size of report is 1,000 lines")
