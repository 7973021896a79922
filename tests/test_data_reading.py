"""The processes that decode: the same chunks as threads, no accelerator, and an end whatever
happens.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnpcli.data.feeds import workers
from gnpcli.data.feeds.chunks import ChunkSource, FileOrder, PackedPaths, ShuffledOrder
from gnpcli.data.feeds.reading import ChunkReader
from gnpcli.data.images.crops import Transform
from gnpcli.errors import DataError

COUNT = 30


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Return images of noise."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"bild é {index:02d}.png") for index in range(COUNT)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


def chunks(paths: list[str], rows: int = 8, *, skip: bool = False, size: int = 16) -> ChunkSource:
    return ChunkSource(
        paths=PackedPaths(paths),
        transform=Transform(size, min_area=0.3, flip=True),
        order=ShuffledOrder(len(paths), rows, (1, 2)),
        seed=(1, 2),
        rows=range(rows),
        unreadable="replace" if skip else "error",
    )


# --- chunks


def test_paths_come_back_as_they_were_whatever_their_bytes() -> None:
    for names in (
        ["a"],
        ["/x/a", "/x/b", "/x/ab"],
        ["/x/Ämeise 蟻", "/x/Ä", "/x/é 1"],
        [os.fsdecode(b"/x/\xff\xfe.png"), os.fsdecode(b"/x/\xff\xff"), "/x/plain"],
    ):
        packed = pickle.loads(pickle.dumps(PackedPaths(names)))
        assert len(packed) == len(names)
        assert [packed[index] for index in range(len(names))] == names


def test_an_order_is_a_permutation_of_its_own_for_each_seed_and_epoch() -> None:
    orders = {}
    for seed in ((1, 2), (1, 3), (2, 2)):
        order = ShuffledOrder(10, 3, seed)
        for epoch in range(3):
            files = np.concatenate([order(3 * epoch + step) for step in range(3)])
            assert len(set(files.tolist())) == 9
            orders[seed, epoch] = tuple(files)
    assert len(set(orders.values())) == 9
    # 4 places, 24 orders, 6,000 epochs: 250 +- 16 of each.
    seen = [tuple(ShuffledOrder(4, 4, (7,))(epoch).tolist()) for epoch in range(6000)]
    counts = [seen.count(order) for order in set(seen)]
    assert len(counts) == 24
    assert 180 < min(counts) < max(counts) < 320


def test_file_order_ends_with_what_is_left_and_then_nothing() -> None:
    order = FileOrder(5, 2)
    assert [order(step).tolist() for step in range(5)] == [[0, 1], [2, 3], [4], [], []]


def test_a_row_does_not_depend_on_its_chunk_or_host(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = chunks(paths)
    assert whole.per_batch == 1
    monkeypatch.setattr("gnpcli.data.feeds.chunks._CHUNK_BYTES", 3 * 3 * 16 * 16)
    parts = chunks(paths)
    assert (parts.chunk_rows, parts.per_batch) == (3, 3)
    for step in (0, 4):
        monkeypatch.undo()
        want = whole[step]
        monkeypatch.setattr("gnpcli.data.feeds.chunks._CHUNK_BYTES", 3 * 3 * 16 * 16)
        got = [parts[3 * step + part] for part in range(3)]
        assert [len(chunk["files"]) for chunk in got] == [3, 3, 2]
        np.testing.assert_array_equal(
            np.concatenate([chunk["images"] for chunk in got]), want["images"]
        )
        np.testing.assert_array_equal(
            np.concatenate([chunk["files"] for chunk in got]), want["files"]
        )


def test_an_image_is_cropped_anew_in_every_step_and_row(paths: list[str]) -> None:
    same = [paths[0]] * 8
    images = [row.tobytes() for step in range(3) for row in chunks(same)[step]["images"]]
    assert len(set(images)) == len(images)


def test_the_next_file_takes_the_place_of_one_that_cannot_be_read(paths: list[str]) -> None:
    bad = [3, 4, COUNT - 1]
    for index in bad:
        Path(paths[index]).write_text("no image")
    instead = {3: 5, 4: 5, COUNT - 1: 0}
    skipping, whole = chunks(paths, COUNT, skip=True), ShuffledOrder(COUNT, COUNT, (1, 2))
    chunk = skipping[1]
    assert chunk["files"].tolist() == [instead.get(file, file) for file in whole(1).tolist()]
    assert sorted(chunk["skipped"].tolist()) == [
        3,
        4,
        4,
        COUNT - 1,
    ]  # the third leads to the fourth
    for path in paths:
        Path(path).write_text("no image")
    with pytest.raises(
        DataError,
        match=rf"none of the {COUNT} training images could be read, the first is .*é 00\.png",
    ):
        skipping[0]


# --- how many processes


def test_too_little_shared_memory_means_fewer_processes_or_an_error(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = chunks(paths, size=64)

    def shared(num_chunks: int) -> None:
        place = os.statvfs_result((1, 1, 0, 0, num_chunks * source.chunk_bytes, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda path: place)

    monkeypatch.setattr(workers, "usable_cores", lambda: 8)
    shared(1000)
    assert workers.number_of_processes(source, None, None) == 8
    assert workers.number_of_processes(source, None, 3) == 3
    assert workers.number_of_processes(source, 100, None) == 100
    shared(2 + 5 * 3)
    assert caplog.text == ""
    assert workers.number_of_processes(source, None, None) == 3
    assert "/dev/shm has room for 3 of 8 processes that decode images" in caplog.text
    assert "--shm-size" in caplog.text
    with pytest.raises(
        DataError, match=r"/dev/shm has room for 3 of 4 processes .*, or set data\.workers lower"
    ):
        ChunkReader(source, 0, 4)
    shared(1)
    assert workers.number_of_processes(source, None, None) == 0
    assert workers.number_of_processes(source, 0, None) == 0


# --- processes, as a program has them

PROGRAM = """
import multiprocessing, os, signal, subprocess, sys, time
import numpy as np
from gnpcli.data.images.crops import Transform
from gnpcli.data.feeds.chunks import ChunkSource, PackedPaths, ShuffledOrder
from gnpcli.data.feeds.reading import ChunkReader
from gnpcli.errors import DataError
from gnpcli.devices.signals import stop_signals


def policy(image, rng):
    '''Tell, in the pixels, whether this process has started JAX on a device.'''
    from jax._src import xla_bridge
    from PIL import Image
    has_started = xla_bridge.backends_are_initialized()
    return Image.new("RGB", image.size, (has_started, os.getpid() % 251, 0))


def chunks(paths, **transform):
    return ChunkSource(
        paths=PackedPaths(paths), transform=Transform(48, min_area=0.3, **transform), seed=(1,),
        order=ShuffledOrder(len(paths), 8, (1,)), rows=range(8), unreadable="error",
    )


def read(reader, count):
    chunks = []
    for _ in range(count):
        images = np.empty((8, 48, 48, 3), np.uint8)
        files, _ = reader.read(images)
        chunks.append((images.tobytes(), files.tolist()))
    return chunks


def text(path):
    try:
        return open(path, "rb").read()
    except (FileNotFoundError, ProcessLookupError):  # a thread or process that has just ended
        return b""


def children():
    own = f"/proc/{os.getpid()}/task"
    found = [int(pid) for task in os.listdir(own) for pid in text(f"{own}/{task}/children").split()]
    return [pid for pid in found if b"spawn_main" in text(f"/proc/{pid}/cmdline")]


if __name__ == "__main__":
    paths = sys.argv[2:]
    if sys.argv[1] == "all":
        threads, processes = ChunkReader(chunks(paths), 5, 0), ChunkReader(chunks(paths), 5, 2)
        assert read(threads, 9) == read(processes, 9)
        assert len(children()) == 2
        processes.close()
        processes.close()
        threads.close()
        assert children() == []

        reader = ChunkReader(chunks(paths, policy=policy), 0, 2)
        seen = {image[:2] for image, _ in read(reader, 4)}
        assert len(seen) == 2 and all(start[0] == 0 for start in seen), seen
        reader.close()

        open(paths[7], "w").write("no image")
        reader = ChunkReader(chunks(paths), 0, 2)
        try:
            read(reader, 4)
        except DataError as error:
            print(error)
        assert children() == []
    elif sys.argv[1] == "killed":
        reader = ChunkReader(chunks(paths), 0, 2)
        read(reader, 4)
        os.kill(children()[0], signal.SIGKILL)
        try:
            read(reader, 1000)
        except DataError as error:
            print(error)
        assert children() == []
    else:
        with stop_signals() as received:  # as training does
            reader = ChunkReader(chunks(paths), 0, 2)
            read(reader, 4)
            print(*children(), flush=True)
            while not received:
                read(reader, 1)
            reader.close()
            print("stopped", children())
"""


def start(tmp_path: Path, what: str, paths: list[str]) -> subprocess.Popen[str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), what, *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_processes_read_as_threads_do_and_a_bad_file_ends_them_in_one_line(
    tmp_path: Path, paths: list[str]
) -> None:
    program = start(tmp_path, "all", paths)
    out, err = program.communicate(timeout=120)
    assert (program.returncode, err) == (0, "")
    assert (
        out
        == f"{paths[7]} is not a JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM image: delete or replace it\n"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_process_that_is_killed_is_an_error_in_one_line(tmp_path: Path, paths: list[str]) -> None:
    program = start(tmp_path, "killed", paths)
    out, err = program.communicate(timeout=120)
    assert (program.returncode, err) == (0, "")
    assert out.startswith(
        "a process that decodes images ended by itself (exit status -9): if memory or processes ran"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "sent",
    [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)],
)
def test_processes_end_with_the_program(
    tmp_path: Path, paths: list[str], sent: signal.Signals
) -> None:
    program = start(tmp_path, "run", paths)
    assert program.stdout is not None
    workers = program.stdout.readline().split()
    assert len(workers) == 2
    if sent == signal.SIGKILL:
        program.kill()
    else:
        os.killpg(program.pid, sent)  # as a terminal does, to all of them
    out, err = program.communicate(timeout=60)
    if sent != signal.SIGKILL:
        assert (program.returncode, out, err) == (0, "stopped []\n", "")
    deadline = time.monotonic() + 30
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_running(pid) for pid in workers)


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
