"""Prepared TFDS folders: small real ones are written with TFDS's own writer and read back through
`load_dataset`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import records as records_module
from gnpcli.data.archives import tfds as tfds_module
from gnpcli.data.base import Dataset
from gnpcli.data.images.resize import resize
from gnpcli.data.registry import describe_data, load_dataset
from gnpcli.data.sources.cifar10 import CLASS_NAMES, PUBLISHED
from gnpcli.data.validation import validation_counts
from gnpcli.errors import ConfigError, DataError
from tests.archives import Images, check_images, random_images, write_tfds

REPOSITORY = Path(__file__).resolve().parents[1]
COUNTS = {"train": 150, "test": 50}

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def arrays() -> Images:
    return random_images("cifar10", COUNTS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, arrays: Images) -> Path:
    data_dir = tmp_path_factory.mktemp("tfds")
    write_tfds(data_dir, arrays, names={"label": CLASS_NAMES})
    return data_dir


@pytest.fixture
def data_dir(written: Path, tmp_path: Path) -> Path:
    """Return a TFDS data_dir of this test's own, with 150 + 50 images in cifar10/3.0.2."""
    return Path(shutil.copytree(written, tmp_path / "tfds data"))


def newest(data_dir: Path) -> Path:
    return data_dir / "cifar10" / "3.0.2"


def of(place: Path, **values: Any) -> DataConfig:
    return DataConfig(name="cifar10", dir=str(place), **values)


def records(data_dir: Path, split: str) -> Path:
    (path,) = newest(data_dir).glob(f"cifar10-{split}.*-00000-of-00001")
    return path


def change(data_dir: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = newest(data_dir) / "dataset_info.json"
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def to_tfrecord(data_dir: Path) -> None:
    """Rewrite the records as TFDS with TensorFlow does by default; checksums, which are not read,
    are 0.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for split in COUNTS:
        old = records(data_dir, split)
        with ArrayRecordDataSource([str(old)]) as source:
            framed = [
                struct.pack("<QI", len(r), 0) + r + bytes(4)
                for r in source.__getitems__(range(COUNTS[split]))
            ]
        old.with_name(old.name.replace("array_record", "tfrecord")).write_bytes(b"".join(framed))
        old.unlink()
    change(data_dir, lambda info: info.update(fileFormat="tfrecord"))


def equal(a: Dataset, b: Dataset) -> bool:
    assert a.test is not None
    assert b.test is not None
    pairs = ((a.train, b.train), (a.test, b.test))
    return a.spec == b.spec and all(
        np.array_equal(x.images, y.images) and np.array_equal(x.labels, y.labels) for x, y in pairs
    )


@pytest.mark.parametrize("below", ["", "cifar10", "cifar10/3.0.2"])
def test_pixels_and_labels_are_those_written(data_dir: Path, arrays: Images, below: str) -> None:
    calls: list[tuple[int, int]] = []
    data = load_dataset(of(data_dir / below), lambda done, total, *_: calls.append((done, total)))
    check_images(data, arrays)
    assert data.validation is None
    assert calls == [(150, 200), (200, 200)]
    assert (data.spec.name, data.spec.class_names) == ("cifar10", CLASS_NAMES)
    assert (data.spec.mean, data.spec.std) == (PUBLISHED.mean, PUBLISHED.std)
    assert (data.spec.image_size, data.spec.channels) == (32, 3)


def test_blocks_join_without_a_seam(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    whole = load_dataset(of(data_dir))
    shutil.rmtree(cache)
    monkeypatch.setattr(records_module, "_RECORDS_PER_READ", 7)
    assert equal(load_dataset(of(data_dir)), whole)
    to_tfrecord(data_dir)
    assert equal(load_dataset(of(data_dir)), whole)


def test_tfrecord_holds_the_same(data_dir: Path, arrays: Images) -> None:
    want = load_dataset(of(data_dir))
    to_tfrecord(data_dir)
    calls: list[int] = []
    data = load_dataset(of(data_dir), lambda done, total, *_: calls.append(done))
    assert calls[-1] == 200
    assert equal(data, want)
    check_images(data, arrays)
    # The format's name was left out of dataset_info.json while there was only one.
    change(data_dir, lambda info: info.pop("fileFormat"))
    assert equal(load_dataset(of(data_dir)), want)


def test_second_load_opens_no_record(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    first = load_dataset(of(data_dir))
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("gnpcli.data.archives.records._blocks", None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert equal(load_dataset(of(data_dir), lambda done, total, *_: pytest.fail("decoded")), first)


def test_cache_notices_records_that_were_written_over(data_dir: Path) -> None:
    load_dataset(of(data_dir))
    for split in COUNTS:  # same name, size and time, and nothing in it
        path = records(data_dir, split)
        facts = path.stat()
        path.write_bytes(bytes(facts.st_size))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(DataError, match="is damaged"):
        load_dataset(of(data_dir))


def test_cache_notices_a_changed_file(data_dir: Path, cache: Path) -> None:
    def decodes() -> bool:
        calls: list[int] = []
        load_dataset(of(data_dir), lambda done, total, *_: calls.append(done))
        return bool(calls)

    assert decodes()
    assert not decodes()
    os.utime(records(data_dir, "test"), ns=(1, 1))
    assert decodes()
    change(data_dir, lambda info: info.update(description="other"))
    assert decodes()
    assert len(list(cache.iterdir())) == 1


def test_images_are_resized(data_dir: Path) -> None:
    whole, small = load_dataset(of(data_dir)), load_dataset(of(data_dir, image_size=8))
    np.testing.assert_array_equal(
        small.train.images, np.stack([resize(image, 8) for image in whole.train.images])
    )
    assert small.spec.image_size == 8
    info = describe_data(of(data_dir, image_size=8))
    assert info is not None
    assert info.image_size == 8


def test_images_beyond_memory_are_an_error_not_a_crash(data_dir: Path) -> None:
    with pytest.raises(
        DataError, match=r"GB of memory, more than there is: set a smaller data\.image_size"
    ):
        load_dataset(of(data_dir).model_copy(update={"image_size": 30_000_000}))


def test_described_from_names_alone(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    info = describe_data(of(data_dir))
    assert info is not None
    assert info.present
    assert (info.num_train, info.num_validation, info.num_test) == (150, 0, 50)
    assert (info.image_size, info.channels, info.num_classes) == (32, 3, 10)
    # Of all of CIFAR-10 the classes' sizes are known.
    change(
        data_dir,
        lambda i: [
            s.update(shardLengths=["30000", "20000"]) for s in i["splits"] if s["name"] == "train"
        ],
    )
    info = describe_data(of(data_dir, validation_fraction=0.1))
    assert info is not None
    assert (info.num_train, info.num_validation, info.num_test) == (45_000, 5_000, 50)


def test_validation_of_a_part_is_described_as_loaded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of(data_dir, validation_fraction=0.1)
    data = load_dataset(config)
    assert data.validation is not None
    assert len(data.validation) == sum(validation_counts([15] * 10, 0.1))
    to_tfrecord(data_dir)
    for decode in (
        False,
        True,
    ):  # labels are found without the images, and the count is that of load_dataset
        if not decode:
            monkeypatch.setattr(records_module, "load_arrays", None)
        info = describe_data(config)
        assert info is not None
        assert (info.num_train, info.num_validation) == (len(data.train), len(data.validation))


def test_newest_prepared_version_counts(data_dir: Path) -> None:
    for version in ("3.0.10", "3.0.9", "4.0.0", "incomplete.ABCDEF_5.0.0"):
        (data_dir / "cifar10" / version).mkdir()
    for version in ("3.0.10", "3.0.9"):
        shutil.copytree(newest(data_dir), data_dir / "cifar10" / version, dirs_exist_ok=True)
    assert tfds_module.find(str(data_dir / "cifar10")) == str(data_dir / "cifar10" / "3.0.10")


def test_image_folder_goes_first_and_needs_no_tfds(data_dir: Path) -> None:
    for split in COUNTS:
        for name in CLASS_NAMES:
            path = data_dir / split / name / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(path)
    code = (
        "import sys; from gnpcli.config.schema import DataConfig; from gnpcli.data.registry import "
        "load_dataset\n"
        f"print(len(load_dataset(DataConfig(name='cifar10', dir={str(data_dir)!r})).train))\n"
        "print([m for m in ('tensorflow_datasets', 'array_record', 'jax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stdout.split("\n")[:2] == ["10", "[]"], done.stderr


def test_reading_says_nothing_on_stderr(data_dir: Path) -> None:
    code = (
        "from gnpcli.config.schema import DataConfig; from gnpcli.data.registry import "
        "load_dataset\n"
        f"print(len(load_dataset(DataConfig(name='cifar10', dir={str(data_dir)!r})).train))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (done.stdout, done.stderr) == ("150\n", "")


# --- errors


def only(data_dir: Path, split: str) -> None:
    change(
        data_dir, lambda info: info.update(splits=[s for s in info["splits"] if s["name"] == split])
    )


def unlabelled(data_dir: Path) -> None:
    (newest(data_dir) / "label.labels.txt").write_text("\n".join(reversed(CLASS_NAMES)) + "\n")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x55
    path.write_bytes(content)


def empty(data_dir: Path) -> None:
    shutil.rmtree(newest(data_dir))
    newest(data_dir).mkdir()


FOUND_WITHOUT_RECORDS: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda d: (newest(d) / "dataset_info.json").unlink(),
        r"cifar10/3\.0\.2 looks like a TFDS folder but was not prepared to the end: it has no "
        r"dataset_info\.json",
    ),
    (empty, r"cifar10/3\.0\.2 looks like a TFDS folder but was not prepared"),
    (lambda d: only(d, "train"), r"cifar10/3\.0\.2 has no test split \(its splits: train\)"),
    (lambda d: only(d, "test"), r"cifar10/3\.0\.2 has no train split \(its splits: test\)"),
    (lambda d: only(d, "none"), r"cifar10/3\.0\.2 has no train split \(its splits: none\)"),
    (
        lambda d: change(d, lambda i: i.update(name="cifar100")),
        "holds the TFDS data set 'cifar100', not 'cifar10'",
    ),
    (
        lambda d: change(d, lambda i: i.update(fileFormat="riegeli")),
        "holds riegeli records.*as array_record",
    ),
    (lambda d: (newest(d) / "dataset_info.json").write_text("{"), r"dataset_info\.json is damaged"),
    (
        lambda d: (newest(d) / "dataset_info.json").write_text("[]"),
        r"dataset_info\.json is damaged",
    ),
    (
        lambda d: (newest(d) / "dataset_info.json").write_bytes(b"\xff"),
        r"dataset_info\.json is damaged",
    ),
    (lambda d: change(d, lambda i: i.update(splits=3)), r"dataset_info\.json is damaged"),
]
FOUND_IN_RECORDS: list[tuple[Callable[[Path], object], str]] = [
    (unlabelled, "does not name its classes airplane, automobile"),
    (lambda d: (newest(d) / "label.labels.txt").unlink(), "(does not name its classes|is damaged)"),
    (lambda d: (newest(d) / "features.json").write_text("{"), r"3\.0\.2/features\.json is damaged"),
    (
        lambda d: (newest(d) / "features.json").write_text("{}"),
        r"3\.0\.2 is damaged \(features\.json\)",
    ),
    (
        lambda d: (newest(d) / "features.json").unlink(),
        r"3\.0\.2/features\.json cannot be read: No such file",
    ),
    (
        lambda d: change(d, lambda i: [s.update(filepathTemplate="{X}") for s in i["splits"]]),
        "info.json is damaged",
    ),
    (lambda d: records(d, "test").unlink(), r"3\.0\.2 is damaged"),
    (lambda d: records(d, "train").write_bytes(b""), r"3\.0\.2 is damaged"),
    (lambda d: os.truncate(records(d, "train"), 100_000), r"3\.0\.2 is damaged"),
    (lambda d: flip(records(d, "train"), 200_000), r"3\.0\.2 is damaged \(Corrupted"),
    (
        lambda d: change(d, lambda i: [s.update(shardLengths=["151"]) for s in i["splits"]]),
        r"3\.0\.2 is damaged",
    ),
    (lambda d: (to_tfrecord(d), records(d, "test").unlink()), r"3\.0\.2 is damaged"),
    (
        lambda d: (to_tfrecord(d), os.truncate(records(d, "train"), 100_000)),
        r"3\.0\.2 is damaged \(cifar10-train\.tfrecord-00000-of-00001 is cut off",
    ),
    (lambda d: (to_tfrecord(d), os.truncate(records(d, "train"), 5)), "is cut off"),
    (
        lambda d: (to_tfrecord(d), records(d, "train").write_bytes(b"")),
        "train does not have 150 records",
    ),
    (lambda d: (to_tfrecord(d), flip(records(d, "train"), 6)), "is cut off"),  # a length of 24 TB
    (lambda d: (to_tfrecord(d), flip(records(d, "train"), 12)), r"3\.0\.2 is damaged"),
    (
        lambda d: (
            to_tfrecord(d),
            change(d, lambda i: [s.update(shardLengths=["149"]) for s in i["splits"]]),
        ),
        "train does not have 149 records",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), FOUND_WITHOUT_RECORDS)
def test_bad_folder_is_refused_before_records_are_read(
    data_dir: Path, spoil: Callable[[Path], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(data_dir)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for function in (describe_data, load_dataset):
        with pytest.raises(DataError, match=message) as caught:
            function(of(data_dir))
        assert "\n" not in str(caught.value)
        assert str(data_dir) in str(caught.value)


@pytest.mark.parametrize(("spoil", "message"), FOUND_IN_RECORDS)
def test_bad_records_end_in_one_line_with_the_folder(
    data_dir: Path, spoil: Callable[[Path], object], message: str, cache: Path
) -> None:
    spoil(data_dir)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(of(data_dir))
    assert "\n" not in str(caught.value)
    assert str(newest(data_dir)) in str(caught.value)
    assert not cache.exists()


def test_version_folder_without_its_description_is_not_prepared(data_dir: Path) -> None:
    (newest(data_dir) / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="not prepared"):
        load_dataset(of(newest(data_dir)))


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record"])
def test_missing_packages_are_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        DataError, match=f"holds array_record records.*needs {package}: pip install {package}"
    ):
        load_dataset(of(data_dir))


def test_an_error_of_the_progress_display_is_not_taken_for_damage(data_dir: Path) -> None:
    def closed(done: int, total: int, what: str = "", unit: str = "") -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        load_dataset(of(data_dir), closed)


def test_images_of_another_shape_are_refused(data_dir: Path, arrays: Images) -> None:
    features = newest(data_dir) / "features.json"
    features.write_text(features.read_text().replace('"32"', '"28"'))
    with pytest.raises(DataError, match="holds images that are not 32x32x3 pixels"):
        load_dataset(of(data_dir))


def test_where_neither_layout_is_the_archives_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "cifar10" / "incomplete.ABCDEF_3.0.2").mkdir(
        parents=True
    )  # of a TFDS that was interrupted
    with pytest.raises(
        DataError, match=r"cifar-10-binary\.tar\.gz cannot be fetched from http://127\.0\.0\.1:9/"
    ):
        load_dataset(of(tmp_path))
    info = describe_data(of(tmp_path))
    assert info is not None
    assert not info.present


def test_records_are_those_that_tfds_itself_reads(data_dir: Path) -> None:
    import tensorflow_datasets

    logging.getLogger("absl").setLevel(logging.ERROR)
    data = load_dataset(of(data_dir))
    source = tensorflow_datasets.builder_from_directory(newest(data_dir)).as_data_source("train")
    for index in range(0, COUNTS["train"], 10):
        np.testing.assert_array_equal(data.train.images[index], source[index]["image"])
        assert data.train.labels[index] == source[index]["label"]


@pytest.mark.parametrize(
    "place", ["given", "GNP_DATA_DIR", "working directory", "TFDS_DATA_DIR", "home"]
)
def test_default_places(
    data_dir: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {
        "working directory": tmp_path / "data",
        "home": tmp_path / "home" / "tensorflow_datasets",
    }.get(place)
    if where is not None:
        where.parent.mkdir(exist_ok=True)
        data_dir.rename(where)
    elif place != "given":
        monkeypatch.setenv(place, str(data_dir))
    info = describe_data(
        DataConfig(name="cifar10", dir=str(data_dir) if place == "given" else None)
    )
    assert info is not None
    assert info.present
    assert (info.num_train, info.num_test) == (150, 50)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_split": "trian"}, r"has no split 'trian' \(its splits: train, test"),
        ({"train_split": "train+train"}, "should name splits once each"),
        ({"train_split": "train+"}, "should name splits once each"),
        ({"test_split": "train"}, "'train' would be trained on and tested on"),
        ({"train_split": "train+test"}, "has no held-out split"),
    ],
)
@pytest.mark.parametrize("name", ["tfds:cifar10", "cifar10"])
def test_splits_that_make_no_sense(
    data_dir: Path, name: str, values: dict[str, str], message: str
) -> None:
    config = DataConfig(name=name, dir=str(data_dir), **values)  # type: ignore[arg-type]
    if name == "cifar10":
        message = message.replace(
            "has no held-out split", "'test' would be trained on and tested on"
        )
    for function in (describe_data, load_dataset):
        with pytest.raises((ConfigError, DataError), match=message):
            function(config)
