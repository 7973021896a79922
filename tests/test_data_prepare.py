"""Published data sets from small archives in their official layouts, served on 127.0.0.1, by the
real command.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import prepare as prepare_module
from gnpcli.data.archives.fetch import Origin
from gnpcli.data.archives.published import PublishedDataset
from gnpcli.data.base import numbered
from gnpcli.data.registry import SOURCES, describe_data, load_dataset
from gnpcli.data.statistics import channel_statistics
from gnpcli.errors import DataError
from tests.archives import (
    WRITERS,
    Images,
    Server,
    check_images,
    random_images,
    serve,
    write_archives,
    write_sums,
    write_tfds,
)
from tests.conftest import Gnp, fails, on_a_terminal

COUNTS = {"train": 150, "test": 50}


def published(name: str) -> PublishedDataset:
    import importlib

    found = importlib.import_module(SOURCES[name].module).PUBLISHED
    assert isinstance(found, PublishedDataset)
    return found


NAMES = [name for name, source in SOURCES.items() if source.by_hand is None]


@dataclass
class Site:
    """A server with the archives of one data set, and what is in them."""

    server: Server
    images: Images
    sums: Path

    @property
    def origin(self) -> Origin:
        return Origin.of(self.server.url, str(self.sums))

    @property
    def env(self) -> dict[str, str]:
        return {"GNP_MIRROR": self.server.url, "GNP_CHECKSUMS": str(self.sums)}

    def reduce(self, name: str, counts: dict[str, int]) -> None:
        self.images = random_images(name, counts, seed=1)
        write_archives(name, self.images, self.server.folder)
        write_sums(self.server.folder, self.sums)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data and no network from outside; a cache of the test's own."""
    for name in ("GNP_DATA_DIR", "TFDS_DATA_DIR", "GNP_MIRROR", "GNP_CHECKSUMS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GNP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Serve the archives of a data set; call it with the name and the images of each split."""
    with serve(tmp_path / "served") as server:

        def make(name: str, **counts: int) -> Site:
            made = Site(server, {}, tmp_path / "SHA256SUMS")
            made.reduce(name, counts or COUNTS)
            return made

        yield make


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def contents(folder: Path) -> dict[str, object]:
    """Return the records of a prepared folder, parsed, and the text of its other files."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.proto import tf_example_pb2

    found: dict[str, object] = {}
    for path in folder.iterdir():
        if ".array_record-" in path.name:
            with ArrayRecordDataSource([str(path)]) as source:
                records = source.__getitems__(range(len(source)))
            found[path.name] = [tf_example_pb2.Example.FromString(record) for record in records]
        else:
            found[path.name] = path.read_text()
    return found


def version(data_dir: Path, name: str) -> Path:
    (found,) = (path for path in (data_dir / name).iterdir() if path.is_dir())
    return found


# --- facts


def names_come_with_the_archive(name: str) -> bool:
    """Return whether TFDS registers a data set without names: it numbers the classes then."""
    import tensorflow_datasets

    label = tensorflow_datasets.builder(name, data_dir="none").info.features["label"]
    numbers = numbered(label.num_classes)
    return tuple(label.names) == numbers != published(name).class_names


@pytest.mark.parametrize("name", NAMES)
def test_published_facts_are_those_that_tfds_registers(name: str) -> None:
    import tensorflow_datasets

    facts, builder = published(name), tensorflow_datasets.builder(name, data_dir="none")
    features = builder.info.features
    assert features["image"].shape == (facts.image_size, facts.image_size, facts.channels)
    assert features["label"].num_classes == len(facts.class_names) == len(set(facts.class_names))
    if not names_come_with_the_archive(name):
        assert tuple(features["label"].names) == facts.class_names
    for feature, names in facts.more_names.items():
        assert features[feature].num_classes == len(names) == len(set(names))
    for archive in {archive for archives in facts.archives.values() for archive in archives}:
        info = builder.url_infos[archive.url]
        assert (info.size, info.checksum, info.filename) == (
            archive.num_bytes,
            archive.sha256,
            archive.filename,
        )
    assert {len(counts) for counts in facts.class_counts.values()} == {len(facts.class_names)}
    assert facts.class_counts.keys() == facts.archives.keys()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar10", {"train": 50_000, "test": 10_000}),
        ("cifar100", {"train": 50_000, "test": 10_000}),
        ("svhn_cropped", {"train": 73_257, "test": 26_032, "extra": 531_131}),
        ("fashion_mnist", {"train": 60_000, "test": 10_000}),
    ],
)
def test_published_sizes_are_described_without_data(name: str, counts: dict[str, int]) -> None:
    assert {
        split: sum(numbers) for split, numbers in published(name).class_counts.items()
    } == counts
    info = describe_data(DataConfig(name=name, validation_fraction=0.1))
    assert info is not None
    assert not info.present
    assert info.num_train + info.num_validation == counts["train"]
    assert info.num_validation == pytest.approx(
        0.1 * counts["train"], abs=len(published(name).class_names)
    )
    assert info.num_test == counts["test"]
    if "extra" in counts:
        info = describe_data(DataConfig(name=name, train_split="train+extra", test_split="test"))
        assert info is not None
        assert info.num_train == counts["train"] + counts["extra"]


# --- the whole way


@pytest.mark.parametrize("name", [name for name in NAMES if name in WRITERS])
def test_archives_become_what_tfds_itself_would_prepare(
    name: str, site: Callable[..., Site], gnp: Gnp, tmp_path: Path
) -> None:
    here, facts = site(name), published(name)
    done = gnp("data", "prepare", name, "--data-dir", "my data", env=here.env)
    assert done.returncode == 0, done.stderr
    folder = version(tmp_path / "my data", name)
    assert (
        f"{name} is prepared: 150 train, 50 test images in my data/{name}/{folder.name} "
        "(array_record" in done.stdout
    )
    assert "--data-dir 'my data'" in done.stdout
    lines = done.stderr.splitlines()
    assert all(line.startswith(("downloading ", "preparing ")) for line in lines), done.stderr
    assert f"preparing {name} test: 50/50 images" in lines
    # The same records in the same order, and the same descriptions, as by TFDS alone.
    names = None
    if names_come_with_the_archive(name):
        names = {"label": facts.class_names, **facts.more_names}
    write_tfds(tmp_path / "reference", here.images, name, names)
    assert contents(folder) == contents(version(tmp_path / "reference", name))
    asked = len(here.server.requests)
    archives = {archive.filename for split in COUNTS for archive in facts.archives[split]}
    assert {file for file, _ in here.server.requests} == archives
    assert tree(tmp_path / "my data" / "downloads" / "manual").keys() == archives

    data = load_dataset(DataConfig(name=name, dir="my data"))
    check_images(data, here.images)
    measured = channel_statistics(data.train.images)
    assert (data.spec.mean, data.spec.std) == (facts.mean or measured[0], facts.std or measured[1])
    assert data.spec.class_names == facts.class_names
    assert (data.spec.name, data.spec.image_size, data.spec.channels) == (
        name,
        facts.image_size,
        facts.channels,
    )
    done = gnp("data", "prepare", name, "--data-dir", "my data")  # and no server
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        f"{name} is there already: 150 train, 50 test images in my data/{name}/"
    )
    assert len(here.server.requests) == asked
    assert not list((tmp_path / "my data").rglob("incomplete*"))
    assert not list((tmp_path / "my data").rglob(".*"))


def test_a_command_prepares_what_it_needs_and_a_dry_run_does_not(
    site: Callable[..., Site], gnp: Gnp, tmp_path: Path
) -> None:
    here = site("fashion_mnist")
    arguments = [
        "--dataset",
        "fashion_mnist",
        "--set",
        "data.batch_size=50",
        "--set",
        "model.patch_size=7",
    ]
    done = gnp("train", *arguments, "--dry-run", env=here.env)
    assert done.returncode == 0, done.stderr
    assert here.server.requests == []
    assert list(tmp_path.glob("home/*")) == []
    done = gnp("data", "preview", *arguments, "--out", tmp_path / "sheet.png", env=here.env)
    assert done.returncode == 0, done.stderr
    assert "downloading train-images-idx3-ubyte.gz" in done.stderr
    assert (tmp_path / "sheet.png").is_file()
    assert (
        tmp_path / "home" / "tensorflow_datasets" / "fashion_mnist" / "3.0.1" / "dataset_info.json"
    ).is_file()


@pytest.mark.parametrize("variable", ["GNP_DATA_DIR", "TFDS_DATA_DIR"])
def test_prepared_where_the_variable_says(
    site: Callable[..., Site], tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site("cifar10")
    monkeypatch.setenv(variable, str(tmp_path / "there"))
    for key, value in here.env.items():
        monkeypatch.setenv(key, value)
    check_images(load_dataset(DataConfig(name="cifar10")), here.images)
    assert version(tmp_path / "there", "cifar10").name == "3.0.2"


def test_extra_is_added_to_what_is_there(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site("svhn_cropped", train=30, test=20, extra=40)
    facts = published("svhn_cropped")
    for key, value in here.env.items():
        monkeypatch.setenv(key, value)
    plain = DataConfig(name="svhn_cropped", dir="d")
    both = DataConfig(name="svhn_cropped", dir="d", train_split="train+extra")
    check_images(load_dataset(plain), here.images)
    assert [file for file, _ in here.server.requests] == ["train_32x32.mat", "test_32x32.mat"]
    before = tree(Path("d/svhn_cropped"))
    info = describe_data(both)
    assert info is not None
    assert (info.present, info.num_train) == (False, 604_388)

    (here.server.folder / "extra_32x32.mat").rename("aside")
    with pytest.raises(DataError, match=r"extra_32x32\.mat cannot be fetched"):
        load_dataset(both)
    assert tree(Path("d/svhn_cropped")) == before
    Path("aside").rename(here.server.folder / "extra_32x32.mat")
    data = load_dataset(both)
    check_images(data, here.images, ("train", "extra"))
    assert data.spec.mean == channel_statistics(data.train.images)[0]
    assert [file for file, _ in here.server.requests[-1:]] == ["extra_32x32.mat"]
    info = describe_data(both)
    assert info is not None
    assert (info.present, info.num_train, info.num_test) == (True, 70, 20)
    check_images(load_dataset(plain), here.images)
    check_images(
        load_dataset(plain.model_copy(update={"train_split": "extra"})), here.images, ("extra",)
    )
    found, was_there = facts.prepare("d", ("extra",), Origin(), None)
    assert was_there
    assert found.counts == {"train": 30, "test": 20, "extra": 40}


def test_an_image_folder_counts_as_there(
    site: Callable[..., Site], gnp: Gnp, tmp_path: Path
) -> None:
    here = site("cifar100")
    for split, name in (("train", "worm"), ("train", "apple"), ("test", "apple")):
        folder = tmp_path / "data" / "cifar100" / split / name
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "0.png")
    done = gnp("data", "prepare", "cifar100", env=here.env)
    assert done.returncode == 0, done.stderr
    assert "cifar100 is there already: images in data/cifar100 (image folder)" in done.stdout
    with pytest.raises(
        DataError,
        match=r"train is not CIFAR-100: it lacks aquarium_fish, baby, .*, \.\.\.; for other",
    ):
        describe_data(DataConfig(name="cifar100"))


def test_a_bar_on_a_terminal_shows_each_piece_of_work_and_nothing_else(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    made = site("fashion_mnist", train=1500, test=50)
    status, shown = on_a_terminal(
        "data",
        "prepare",
        "fashion_mnist",
        "--data-dir",
        tmp_path / "d",
        "--mirror",
        made.server.url,
        "--checksums",
        made.sums,
    )
    assert status == 0, shown
    assert "Traceback" not in shown
    for what in (
        "downloading train-images",
        "MB",
        "preparing fashion_mnist train",
        "1,500/",
        "preparing fashion_mnist",
    ):
        assert what in shown
    # The last line of the bar is wiped out before the result.
    assert (
        shown.rpartition("\x1b[2K")[2]
        .lstrip("\r")
        .startswith("fashion_mnist is prepared: 1,500 train, 50 test")
    )


# --- what goes wrong


def damage_cifar(folder: Path) -> str:
    path = folder / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    return r"cifar-10-binary\.tar\.gz cannot be unpacked \(.+\): delete it, and it is fetched again"


def other_cifar(folder: Path) -> str:
    write_archives("cifar100", random_images("cifar100", COUNTS), folder)
    (folder / "cifar-100-binary.tar.gz").rename(folder / "cifar-10-binary.tar.gz")
    return r"cannot be unpacked \(data_batch_1\.bin is missing\)"


def no_archive(folder: Path) -> str:
    (folder / "cifar-10-binary.tar.gz").write_text("<html>log in</html>")
    return r"cifar-10-binary\.tar\.gz cannot be unpacked"


def damage_svhn(folder: Path) -> str:
    path = folder / "test_32x32.mat"
    content = bytearray(path.read_bytes())
    content[3000:3100] = bytes(100)
    path.write_bytes(content)
    return r"test_32x32\.mat cannot be unpacked"


def damage_labels(folder: Path) -> str:
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    return r"t10k-images-idx3-ubyte\.gz or .*t10k-labels-idx1-ubyte\.gz cannot be unpacked"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cifar10", damage_cifar),
        ("cifar10", other_cifar),
        ("cifar10", no_archive),
        ("svhn_cropped", damage_svhn),
        ("fashion_mnist", damage_labels),
    ],
)
def test_a_damaged_archive_leaves_no_data_set(
    name: str, damage: Callable[[Path], str], site: Callable[..., Site], tmp_path: Path
) -> None:
    here = site(name)
    message = damage(here.server.folder)
    write_sums(here.server.folder, here.sums)  # as if it had been published like this
    with pytest.raises(DataError, match=message) as caught:
        published(name).prepare("d", (), here.origin, None)
    assert "\n" not in str(caught.value)
    assert [path.name for path in Path("d").iterdir()] == ["downloads"]
    for path in Path("d/downloads/manual").iterdir():
        path.unlink()
    here.reduce(name, COUNTS)
    found, was_there = published(name).prepare("d", (), here.origin, None)
    assert not was_there
    assert found.counts == COUNTS


@pytest.mark.parametrize("kind", ["downloading", "preparing"])
def test_an_error_of_the_progress_display_is_not_taken_for_the_disks(
    kind: str, site: Callable[..., Site]
) -> None:
    here = site("cifar10")

    def closed(done: int, total: int, what: str = "", unit: str = "") -> None:
        if what.startswith(kind):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        published("cifar10").prepare("d", (), here.origin, closed)
    assert not Path("d/cifar10").exists()


def test_offline_the_command_says_what_to_put_where_and_leaves_nothing(
    gnp: Gnp, tmp_path: Path
) -> None:
    start = time.monotonic()
    done = gnp("data", "prepare", "cifar10", "--data-dir", "d", "--mirror", "http://127.0.0.1:9")
    assert (
        time.monotonic() - start < 60
    )  # of which 10 s are the most that a host which never answers takes
    archive = published("cifar10").archives["train"][0]
    fails(
        done,
        "cifar10 is not here, and cifar-10-binary.tar.gz cannot be fetched from "
        "http://127.0.0.1:9/cifar-10-binary.",
        ": Connection refused. ",
        f"put into {tmp_path}/d/downloads/manual by hand: "
        "http://127.0.0.1:9/cifar-10-binary.tar.gz (170 MB, SHA-256 "
        f"{archive.sha256})",
    )
    assert list(tmp_path.iterdir()) == []


def test_archives_put_there_by_hand_need_no_network(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    here = site("fashion_mnist")
    manual = tmp_path / "d" / "downloads" / "manual"
    write_archives("fashion_mnist", here.images, manual)
    offline = Origin("http://127.0.0.1:9", here.origin.sums)
    found, _ = published("fashion_mnist").prepare("d", (), offline, None)
    assert found.counts == COUNTS
    (manual / "t10k-labels-idx1-ubyte.gz").write_bytes(b"other")
    shutil.rmtree(tmp_path / "d" / "fashion_mnist")
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte\.gz has the SHA-256 \w{64}, not \w{64}: replace"
    ):
        published("fashion_mnist").prepare("d", (), offline, None)


def test_a_read_only_folder_is_named(gnp: Gnp, site: Callable[..., Site], tmp_path: Path) -> None:
    here = site("cifar10")
    (tmp_path / "d").mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path / "d"]).returncode
    ):
        pytest.skip("mounting read-only needs root")
    try:
        fails(
            gnp("data", "prepare", "cifar10", "--data-dir", "d", env=here.env),
            f"{tmp_path}/d/cifar10 cannot be written: Read-only file system; choose another folder "
            "with --data-dir",
        )
    finally:
        subprocess.run(["umount", tmp_path / "d"], check=True)


def test_a_full_disk_keeps_the_archives_and_what_was_there(
    gnp: Gnp, site: Callable[..., Site], tmp_path: Path
) -> None:
    here = site("svhn_cropped", train=30, test=20, extra=150)
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        done = gnp("data", "prepare", "svhn_cropped", "--data-dir", "disk", env=here.env)
        assert done.returncode == 0, done.stderr
        manual = disk / "downloads" / "manual"
        (manual / "extra_32x32.mat").write_bytes(
            (here.server.folder / "extra_32x32.mat").read_bytes()
        )
        before = tree(disk)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(free - 200_000))
        done = gnp(
            "data",
            "prepare",
            "svhn_cropped",
            "--data-dir",
            "disk",
            "--split",
            "extra",
            env=here.env,
        )
        fails(done, f"no space left in {disk}/svhn_cropped: make some")
        (disk / "filler").unlink()
        assert tree(disk) == before
        check_images(load_dataset(DataConfig(name="svhn_cropped", dir="disk")), here.images)
        done = gnp(
            "data",
            "prepare",
            "svhn_cropped",
            "--data-dir",
            "disk",
            "--split",
            "extra",
            env=here.env,
        )
        assert done.returncode == 0, done.stderr
        assert "30 train, 20 test, 150 extra images" in done.stdout
    finally:
        subprocess.run(["umount", disk], check=True)


def start(name: str, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from gnpcli.cli import main; main()",
            "data",
            "prepare",
            name,
            "--data-dir",
            "d",
        ],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_preparation_leaves_nothing_that_counts(
    site: Callable[..., Site], tmp_path: Path, sent: signal.Signals
) -> None:
    here = site("cifar10", train=1500, test=50)
    process = start("cifar10", here.env)
    temporary = tmp_path / "d" / "cifar10" / prepare_module._TEMPORARY
    deadline = time.monotonic() + 60
    while (
        not list(temporary.glob("cifar10/incomplete*"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert temporary.exists() == (sent == signal.SIGKILL)
    info = describe_data(DataConfig(name="cifar10", dir="d"))
    assert info is not None
    assert not info.present
    here.server.requests.clear()
    found, was_there = published("cifar10").prepare("d", (), here.origin, None)
    assert not was_there
    assert here.server.requests == []  # the archive is there
    assert [path.name for path in Path("d/cifar10").iterdir()] == ["3.0.2"]
    assert found.counts == {"train": 1500, "test": 50}


def test_killed_between_the_two_renames_the_old_folder_comes_back(
    site: Callable[..., Site],
) -> None:
    here = site("svhn_cropped", train=30, test=20, extra=40)
    published("svhn_cropped").prepare("d", (), here.origin, None)
    home = Path("d/svhn_cropped")
    before = tree(home)
    kept = home / prepare_module._TEMPORARY / "replaced"
    kept.mkdir(parents=True)
    (home / "3.1.0").rename(kept / "3.1.0")
    (here.server.folder / "extra_32x32.mat").unlink()
    found, _ = published("svhn_cropped").prepare("d", (), Origin("http://127.0.0.1:9"), None)
    assert found.counts == {"train": 30, "test": 20}
    assert tree(home) == before


def test_two_at_once_prepare_once(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site("cifar10", train=1500, test=50)
    processes = [start("cifar10", here.env) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(here.server.requests) == 1
    assert sorted(path.name for path in (tmp_path / "d" / "cifar10").iterdir()) == ["3.0.2"]
    check_images(load_dataset(DataConfig(name="cifar10", dir="d")), here.images)
