"""Downloads from a real server on 127.0.0.1 that breaks off, lies, or cannot resume; and what is on
disk afterwards.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gnpcli.data.archives import download
from gnpcli.data.archives.fetch import Archive, Origin, fetch
from gnpcli.errors import DataError
from gnpcli.terminal.words import size
from tests.archives import Server, serve, write_sums

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SUM = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(CONTENT)
    with serve(tmp_path / "served") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "downloads"


def archive(server: Server, *, sha256: str = SUM, num_bytes: int = len(CONTENT)) -> Archive:
    return Archive(f"{server.url}/a.bin", num_bytes, sha256)


def get(server: Server, folder: Path, origin: Origin | None = None, **values: object) -> Path:
    wanted = archive(server, **values)  # type: ignore[arg-type]
    return Path(fetch("birds", [wanted], str(folder), origin or Origin(), None)["a.bin"])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_a_file_is_fetched_once(server: Server, folder: Path) -> None:
    calls: list[tuple[int, int, str, str]] = []
    fetch("birds", [archive(server)], str(folder), Origin(), lambda *call: calls.append(call))
    assert content(folder) == {"a.bin": CONTENT}
    assert [done for done, *_ in calls] == sorted(done for done, *_ in calls)
    assert calls[-1] == (len(CONTENT), len(CONTENT), "downloading a.bin", "bytes")
    get(server, folder)
    assert server.requests == [("a.bin", 0)]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: Server, folder: Path) -> None:
    server.cut = [300_000, 200_000]
    assert get(server, folder).read_bytes() == CONTENT
    assert server.requests == [("a.bin", 0), ("a.bin", 300_000), ("a.bin", 500_000)]
    assert server.sent == len(CONTENT)


def test_a_later_run_goes_on_with_what_is_there(server: Server, folder: Path) -> None:
    server.cut = [300_000, 0]
    with pytest.raises(
        DataError, match=r"a\.bin cannot be fetched .*the connection broke.*Run this again"
    ):
        get(server, folder)
    assert content(folder) == {"a.bin.part": CONTENT[:300_000]}
    server.requests.clear()
    get(server, folder)
    assert content(folder) == {"a.bin": CONTENT}
    assert server.requests == [("a.bin", 300_000)]
    assert server.sent == len(CONTENT)


def test_a_server_without_ranges_is_asked_from_the_start(server: Server, folder: Path) -> None:
    server.ranges = False
    folder.mkdir(parents=True)
    (folder / "a.bin.part").write_bytes(CONTENT[:300_000])
    get(server, folder)
    assert content(folder) == {"a.bin": CONTENT}
    assert server.requests == [("a.bin", 300_000)]
    server.cut = [300_000] * 9
    (folder / "a.bin").unlink()
    with pytest.raises(DataError, match="the connection broke"):
        get(server, folder)
    assert len(server.requests) == 3  # no further the second time: it would never end


@pytest.mark.parametrize(
    "part",
    [b"x" * 300_000, CONTENT[1:], b"x" * len(CONTENT), CONTENT + b"x", b"x" * 3_000_000, b""],
    ids=len,
)
def test_a_part_of_another_file_is_fetched_anew(server: Server, folder: Path, part: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "a.bin.part").write_bytes(part)
    get(server, folder)
    assert content(folder) == {"a.bin": CONTENT}
    assert server.requests[-1] == ("a.bin", 0)


def test_a_complete_part_needs_no_server(server: Server, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.bin.part").write_bytes(CONTENT)
    get(server, folder)
    assert content(folder) == {"a.bin": CONTENT}
    assert server.requests == []


def test_a_file_that_grew_on_the_server_is_fetched_anew(server: Server, folder: Path) -> None:
    grown = CONTENT + b"more"
    (server.folder / "a.bin").write_bytes(grown)
    folder.mkdir(parents=True)
    (folder / "a.bin.part").write_bytes(b"x" * 10)
    get(server, folder, num_bytes=len(grown), sha256=hashlib.sha256(grown).hexdigest())
    assert content(folder) == {"a.bin": grown}


def test_a_wrong_sum_names_both_and_leaves_nothing(server: Server, folder: Path) -> None:
    with pytest.raises(DataError, match=f"{server.url}/a.bin has the SHA-256 {SUM}, not {OTHER}"):
        get(server, folder, sha256=OTHER)
    assert content(folder) == {}


def test_another_size_is_refused_before_anything_is_written(server: Server, folder: Path) -> None:
    with pytest.raises(DataError, match="it sends 1,000,000 bytes where 2,000,000 are published"):
        get(server, folder, num_bytes=2_000_000)
    assert not folder.exists()


def test_a_file_put_there_by_hand_is_verified_and_never_touched(
    server: Server, folder: Path
) -> None:
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(CONTENT)
    get(server, folder)
    (folder / "a.bin").write_bytes(CONTENT[:-1])
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()
    with pytest.raises(
        DataError, match=f"downloads/a.bin has the SHA-256 {found}, not {SUM}: replace or delete it"
    ):
        get(server, folder)
    assert content(folder) == {"a.bin": CONTENT[:-1]}
    assert server.requests == []


def test_a_mirror_and_its_own_sums(server: Server, folder: Path, tmp_path: Path) -> None:
    wanted = Archive("http://127.0.0.1:9/official/a.bin", 7, OTHER)
    sums = write_sums(server.folder, tmp_path / "SHA256SUMS")
    fetch("birds", [wanted], str(folder), Origin.of(server.url + "/", str(sums)), None)
    assert content(folder) == {"a.bin": CONTENT}
    with pytest.raises(DataError, match=f"a.bin has the SHA-256 {SUM}, not {OTHER}"):
        fetch("birds", [wanted], str(folder), Origin(), None)  # the published sum counts again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "sums cannot be read: No such file"),
        (
            "abc  a.bin\n",
            r"sums:1 is not a line of sha256sum",
        ),
        (f"{OTHER}  a.bin\n\n{OTHER}\n", r"sums:3 is not a line"),
        (b"\xff\n", "sums cannot be read"),
    ],
)
def test_sums_that_cannot_be_read(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "sums"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        Origin.of(None, str(path))


def test_lines_of_sha256sum_in_both_modes(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text(f"{SUM}  a.bin\n{OTHER.upper()} *some dir/b c.bin\n")
    assert Origin.of("", str(tmp_path / "sums")).sums == {"a.bin": SUM, "b c.bin": OTHER}


def test_the_environment_names_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sums").write_text(f"{SUM}  a.bin\n")
    monkeypatch.setenv("GNP_MIRROR", "http://here")
    monkeypatch.setenv("GNP_CHECKSUMS", "sums")
    assert Origin.from_environment() == Origin("http://here", {"a.bin": SUM})


# --- no connection


def check_offline(error: DataError, url: str, folder: Path) -> None:
    message = str(error)
    assert "\n" not in message
    for part in (
        f"birds is not here, and a.bin cannot be fetched from {url}/a.bin",
        f"put into {folder} by hand: ",
        "(1.0 MB, ",
        SUM,
        "b.bin",
        "--data-dir",
    ):
        assert part in message, message
    assert not folder.parent.exists()


def missing(url: str) -> list[Archive]:
    return [Archive(f"{url}/a.bin", len(CONTENT), SUM), Archive(f"{url}/b.bin", 10, OTHER)]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("https://127.0.0.1:9", "Connection refused"),
        (
            "http://nowhere.invalid",
            r"(Name or service not known|No address|name resolution|nodename|[Nn]ot known)",
        ),
        ("nowhere", "No scheme supplied"),
    ],
)
def test_offline_says_what_to_put_where(url: str, reason: str, folder: Path) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        fetch("birds", missing(url), str(folder), Origin(), None)
    check_offline(caught.value, url, folder)


def test_a_host_that_never_answers_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match="no answer within") as caught:
            fetch("birds", missing(url), str(folder), Origin(), None)
    check_offline(caught.value, url, folder)


def test_the_deadline_is_within_ten_seconds() -> None:
    assert download._ANSWER_S < 10


def test_http_errors_are_named(server: Server, folder: Path) -> None:
    (server.folder / "a.bin").unlink()
    with pytest.raises(
        DataError, match=r"cannot be fetched from http\S+a\.bin: HTTP status 404 Not Found"
    ):
        get(server, folder)


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk]).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_known_beforehand(server: Server, small_disk: Path) -> None:
    folder = small_disk / "downloads"
    with pytest.raises(
        DataError, match=rf"no space left in {folder} \(1\.0 MB needed, \d+ kB free\): make some"
    ):
        get(server, folder)
    assert content(folder) == {}
    (folder / "a.bin.part").write_bytes(
        CONTENT[:500_000]
    )  # of which there is more than of what is missing
    with pytest.raises(DataError, match=r"\(500 kB needed, \d+ kB free\)"):
        get(server, folder)
    assert content(folder) == {"a.bin.part": CONTENT[:500_000]}


def test_a_disk_that_fills_up_meanwhile_keeps_what_came(server: Server, small_disk: Path) -> None:
    folder = small_disk / "downloads"

    def fill(done: int, total: int, what: str = "", unit: str = "") -> None:
        with (small_disk / "other").open("ab") as file:
            file.write(bytes(200_000))
            file.flush()

    (server.folder / "a.bin").write_bytes(CONTENT[:500_000])
    wanted = Archive(f"{server.url}/a.bin", 500_000, hashlib.sha256(CONTENT[:500_000]).hexdigest())
    with pytest.raises(DataError, match="no space left in"):
        fetch("birds", [wanted], str(folder), Origin(), fill)
    (part,) = content(folder).items()
    assert part[0] == "a.bin.part"
    assert part[1]
    assert CONTENT.startswith(part[1])
    (small_disk / "other").unlink()
    fetch("birds", [wanted], str(folder), Origin(), None)
    assert content(folder) == {"a.bin": CONTENT[:500_000]}
    assert server.requests[-1] == ("a.bin", len(part[1]))


def test_a_place_that_is_no_folder_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"file/downloads cannot be written: (Not a directory|File exists)"
    ):
        get(server, tmp_path / "file" / "downloads")


def test_an_interrupt_leaves_the_part(server: Server, folder: Path) -> None:
    def interrupt(done: int, total: int, what: str = "", unit: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("birds", [archive(server)], str(folder), Origin(), interrupt)
    (part,) = content(folder).items()
    assert part[0] == "a.bin.part"
    assert CONTENT.startswith(part[1])
    get(server, folder)
    assert content(folder) == {"a.bin": CONTENT}
    assert server.requests[1] == ("a.bin", len(part[1]))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (170_052_171, "170 MB"),
        (1_329_278_602, "1.3 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_sizes_as_people_write_them(count: int, text: str) -> None:
    assert size(count) == text
