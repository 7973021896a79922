"""Downloads from servers that misbehave: the published file, or one line."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest

from gnpcli.data.archives import download
from gnpcli.data.archives.download import BrokenConnection, LeastRate
from gnpcli.data.archives.fetch import Archive, Origin, fetch
from gnpcli.errors import DataError
from tests.odd_servers import BEHAVIOURS, BYTES, ENDLESS_BYTES, PUBLISHED, odd_server

SUM = hashlib.sha256(PUBLISHED).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_WINDOW_S", 0.1)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_there_are_many():
    assert len(BEHAVIOURS) >= 45


@pytest.mark.parametrize("is_published", [True, False], ids=["published", "packed anew"])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_the_file_or_one_line(name: str, is_published: bool, tmp_path: Path, monkeypatch):
    """Where the sum is the user's own, the size is not known: a bound holds all the same."""
    monkeypatch.setattr("gnpcli.data.archives.fetch._MOST_BYTES", 0)
    behaviour = BEHAVIOURS[name]
    folder = tmp_path / "downloads"
    if behaviour.has_part:
        folder.mkdir()
        (folder / "a.bin.part").write_bytes(PUBLISHED[:1000])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with odd_server(behaviour) as server:
        archive = Archive(f"{server.url}/a.bin", BYTES, SUM if is_published else "0" * 64)
        origin = Origin() if is_published else Origin(None, {"a.bin": SUM})
        error = None
        try:
            fetch("birds", [archive], str(folder), origin, None)
        except DataError as caught:
            error = str(caught)
    there = {path.name: path.read_bytes() for path in folder.glob("*")}
    if error is None:
        assert there == {"a.bin": PUBLISHED}
    else:
        assert "\n" not in error
        assert len(error) < 900
        assert set(there) <= {"a.bin.part"}
        assert sum(map(len, there.values())) <= BYTES * (1 if is_published else 10)
    may_differ = name in ("length right, body long", "no length, a byte more")
    assert (error is None) == behaviour.gives or (may_differ and not is_published)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < ENDLESS_BYTES // 2, "a body is held in memory"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no length, endless", "it sends more than 204,800 bytes where 204,800 are published"),
        ("chunked, endless", "it sends more than 204,800 bytes"),
        ("no length, closes early", "ended after 100 of 204,800 bytes"),
        ("length abc", "a Content-Length of 'abc'"),
        ("a byte a time", "too slow"),
        ("a byte a time, with a length", "too slow"),
        ("429, come again", "HTTP status 429 Too Many Requests; it asks to come again in 2.0 min"),
        ("503, come again", "HTTP status 503 Service Unavailable. Run"),
        ("a page without a length", "a page of the web"),
        ("no such part, unasked", "HTTP status 416"),
        ("redirect to itself", "redirects"),
    ],
)
def test_what_is_wrong_is_said(name: str, said: str, tmp_path: Path):
    with odd_server(BEHAVIOURS[name]) as server, pytest.raises(DataError) as caught:
        fetch("birds", [Archive(f"{server.url}/a.bin", BYTES, SUM)], str(tmp_path), Origin(), None)
    assert said in str(caught.value)


def rate(monkeypatch: pytest.MonkeyPatch, arrivals: list[tuple[float, int]]) -> None:
    """Let blocks arrive at given seconds, under the limits of a real download."""
    monkeypatch.setattr(download, "_WINDOW_S", 30.0)
    now = 0.0
    least = LeastRate(lambda: now)
    for now, num_bytes in arrivals:  # noqa: B007 - the clock reads it
        least.note(num_bytes)


@pytest.mark.parametrize(
    "arrivals",
    [
        [(float(second), 1_100) for second in range(1, 1_000)],  # as slow as is allowed
        [(1, 1), (29, 40_000), (31, 1), (60, 30_000), (90, 30_000)],  # in bursts
        [(float(second), 1) for second in range(1, 30)],  # too slow, and not for long yet
    ],
)
def test_a_transfer_at_the_least_rate_goes_on(monkeypatch, arrivals):
    rate(monkeypatch, arrivals)


@pytest.mark.parametrize(
    "arrivals",
    [
        [(float(second), 1) for second in range(1, 32)],
        [(float(second), 900) for second in range(1, 32)],
        [(1, 10**9), *((second, 1) for second in range(30, 63))],  # fast at first
    ],
)
def test_a_slower_transfer_ends(monkeypatch, arrivals):
    with pytest.raises(BrokenConnection, match="too slow"):
        rate(monkeypatch, arrivals)
