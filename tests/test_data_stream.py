"""Streamed folders: order, hosts, resuming, decoding, evaluation, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataSpec, FileSplit
from gnpcli.data.feeds.chunks import HostShare
from gnpcli.data.feeds.streamed import StreamedEvalFeed, StreamedFeed
from gnpcli.data.images.crops import centre_box, random_box
from gnpcli.data.registry import describe_data, load_dataset
from gnpcli.errors import ConfigError, DataError
from tests.conftest import SHARED_DATA, Gnp, fails

SIZE, COUNT = 8, 22
SPEC = DataSpec(
    name="folder",
    class_names=("a", "b"),
    image_size=SIZE,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.2, 0.2, 0.2),
)


@pytest.fixture
def split(tmp_path: Path) -> FileSplit:
    """Return one-coloured images whose red value says which they are: ten times the position."""
    paths = []
    for index in range(COUNT):
        paths.append(str(tmp_path / f"{index:02d}.png"))
        Image.new("RGB", (20 + index, 30), (10 * index, 0, 0)).save(paths[-1])
    return FileSplit(paths, (np.arange(COUNT) % 2).astype(np.int32))


def config(**values: object) -> DataConfig:
    return DataConfig(**{"name": "folder:x", "batch_size": 6, "workers": 0, **values})  # type: ignore[arg-type]


def train_feed(
    split: FileSplit, seed: int = 0, process: tuple[int, int] = (0, 1), **values: object
) -> StreamedFeed:
    return StreamedFeed(
        split,
        SPEC,
        config(**values),
        key=jax.random.key(seed),
        place=jax.device_put,
        host=HostShare(*process),
    )


def shown(feed: StreamedFeed, step: int) -> list[int]:
    """Return which images a step holds, in order."""
    return (np.asarray(feed.source(step)["images"])[:, 0, 0, 0] // 10).tolist()


def test_an_epoch_reads_each_file_at_most_once_with_its_label_and_drops_another_remainder_each_time(
    split,
):
    feed = train_feed(split)
    assert feed.steps_per_epoch == 3
    epochs = []
    for epoch in range(3):
        sources = [feed.source(3 * epoch + step) for step in range(3)]
        files = np.concatenate(
            [np.asarray(source["images"])[:, 0, 0, 0] // 10 for source in sources]
        )
        assert len(set(files.tolist())) == 18
        np.testing.assert_array_equal(
            np.concatenate([source["labels"] for source in sources]), files % 2
        )
        epochs.append(files.tolist())
    feed.close()
    assert len({tuple(order) for order in epochs}) == 3
    assert len({frozenset(range(COUNT)) - frozenset(order) for order in epochs}) > 1


def test_a_batch_is_a_function_of_seed_and_step_wherever_reading_starts(split):
    whole = train_feed(split, augment="randaugment")
    in_order = [np.asarray(whole.source(step)["images"]) for step in range(7)]
    for step in (5, 2, 6):
        np.testing.assert_array_equal(whole.source(step)["images"], in_order[step])
        np.testing.assert_array_equal(
            train_feed(split, augment="randaugment").source(step)["images"], in_order[step]
        )
    assert shown(train_feed(split, seed=1), 0) != shown(train_feed(split), 0)
    whole.close()
    whole.close()


def test_processes_read_what_threads_read(split):
    threads, processes = (train_feed(split, augment="basic", workers=workers) for workers in (0, 2))
    try:
        for step in (0, 1, 4):
            np.testing.assert_array_equal(
                processes.source(step)["images"], threads.source(step)["images"]
            )
    finally:
        processes.close()
        threads.close()


def test_hosts_read_disjoint_rows_of_the_same_batch(split):
    whole = train_feed(split, augment="basic")
    hosts = [train_feed(split, process=(index, 3), augment="basic") for index in range(3)]
    for step in (0, 3):
        rows = np.concatenate([host.source(step)["images"] for host in hosts])
        np.testing.assert_array_equal(rows, whole.source(step)["images"])
    with pytest.raises(ConfigError, match="batch size 6 is not divisible by 4 hosts"):
        train_feed(split, process=(0, 4))


@pytest.mark.parametrize("batch_size", [1, 7, 22, 30])
def test_evaluation_covers_each_file_exactly_once_in_order(split, batch_size):
    feed = StreamedEvalFeed(split, SPEC, config(eval_batch_size=batch_size), place=jax.device_put)
    for _ in range(2):
        files, labels = [], []
        for index, source in enumerate(feed.sources()):
            images, label, mask = feed.batch(source, index)
            assert images.shape == (feed.batches.size, SIZE, SIZE, 3)
            files += (np.asarray(source["images"])[np.asarray(mask), 0, 0, 0] // 10).tolist()
            labels += np.asarray(label)[np.asarray(mask)].tolist()
        assert files == list(range(COUNT))
        assert labels == split.labels.tolist()


@pytest.mark.parametrize("kind", ["not an image", "cut off"])
def test_an_unreadable_file_is_named_or_replaced_in_training_and_masked_in_evaluation(split, kind):
    bad = Path(split.paths[4])
    bad.write_bytes(b"nothing" if kind == "not an image" else bad.read_bytes()[:40])
    with pytest.raises(DataError, match=r"04\.png"):
        [train_feed(split).source(step) for step in range(4)]
    feed = train_feed(split, unreadable="skip")
    files = [file for step in range(6) for file in shown(feed, step)]
    feed.close()
    assert 4 not in files
    assert feed.skipped == [str(bad)]
    evaluation = StreamedEvalFeed(split, SPEC, config(unreadable="skip"), place=jax.device_put)
    masks = [np.asarray(evaluation.batch(source, 0)[2]) for source in evaluation.sources()]
    assert np.concatenate(masks)[:COUNT].tolist() == [index != 4 for index in range(COUNT)]
    assert evaluation.skipped == [str(bad)]


def test_every_kind_of_file_decodes_by_its_content(tmp_path):
    colours: dict[str, int | tuple[int, ...]] = {
        "RGB": (200, 100, 50),
        "L": 90,
        "RGBA": (10, 20, 30, 0),
        "CMYK": (55, 155, 205, 0),
        "P": 7,
    }
    paths: list[str] = []
    for mode, colour in colours.items():
        paths.append(
            str(tmp_path / f"{mode}.JPEG")
        )  # whatever they are, as ImageNet names its files
        Image.new(mode, (16, 16), colour).save(
            paths[-1], format="JPEG" if mode == "CMYK" else "PNG"
        )
    split = FileSplit(paths, np.zeros(len(paths), np.int32))
    feed = StreamedEvalFeed(split, SPEC, config(eval_batch_size=len(paths)), place=jax.device_put)
    (source,) = feed.sources()
    pixels = np.asarray(source["images"])[:, 4, 4].tolist()
    with Image.open(paths[4]) as palette:
        expected = [
            (200, 100, 50),
            (90, 90, 90),
            (255, 255, 255),  # transparent, in front of white
            (200, 100, 50),
            palette.convert("RGB").getpixel((0, 0)),
        ]
    assert np.abs(np.array(pixels) - np.array(expected)).max() <= 2  # CMYK is a JPEG


def test_random_boxes_keep_area_and_aspect_and_the_fallback_is_the_centre():
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = random_box(rng, 500, 375, 0.08)
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 375
        width, height = right - left, bottom - top
        assert 0.078 < width * height / (500 * 375) <= 1
        assert 0.74 < width / height < 1.35
    # Nothing of this aspect fits into a strip: the centre, as wide as 4/3 of its height.
    assert random_box(rng, 1000, 30, 0.9) == (480, 0, 520, 30)


def test_the_centre_box_is_224_of_256():
    left, top, right, bottom = centre_box(512, 512, 224)
    np.testing.assert_allclose((left, top, right, bottom), (32, 32, 480, 480))


@pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="needs ../shared/data/imagenet-samples-120.tar"
)
def test_real_photographs_decode_at_a_share_of_their_size_to_nearly_the_same(tmp_path):
    import tarfile

    with tarfile.open(SHARED_DATA / "imagenet-samples-120.tar") as archive:
        members = [member for member in archive.getmembers() if member.isfile()][:12]
        archive.extractall(tmp_path, members=members, filter="data")
    paths = sorted(str(path) for path in tmp_path.rglob("*.JPEG"))
    split = FileSplit(paths, np.zeros(len(paths), np.int32))
    spec = DataSpec(**{**SPEC.__dict__, "image_size": 64})
    feed = StreamedEvalFeed(split, spec, config(eval_batch_size=len(paths)), place=jax.device_put)
    (source,) = feed.sources()
    for path, pixels in zip(paths, np.asarray(source["images"]), strict=True):
        with Image.open(path) as file:
            image = file.convert("RGB")
        short = 73  # 64 / 0.875
        width, height = image.size
        size = (
            (short, int(short * height / width))
            if width <= height
            else (int(short * width / height), short)
        )
        left, top = (round((side - 64) / 2) for side in size)
        reference = image.resize(size, Image.Resampling.BILINEAR).crop(
            (left, top, left + 64, top + 64)
        )
        assert np.abs(pixels.astype(int) - np.asarray(reference, int)).mean() < 1.5, path


def tree(root: Path, *, flat: bool = False, side: int = 120) -> Path:
    for name in ("a", "b"):
        for split, count in (("train", 4), ("val", 2)):
            folder = root / split if split == "val" and flat else root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                Image.new("RGB", (side, side), (index, 0, 0)).save(
                    folder / f"{name}_{index}.JPEG", format="JPEG"
                )
    return root


def test_large_images_are_streamed_small_ones_are_not_and_the_key_decides(tmp_path):
    large, small = tree(tmp_path / "large"), tree(tmp_path / "small", side=16)
    for root, stream, expected in (
        (large, None, True),
        (small, None, False),
        (large, False, False),
        (small, True, True),
    ):
        data = DataConfig(name=f"folder:{root}", stream=stream)
        info, dataset = describe_data(data), load_dataset(data)
        assert info is not None
        assert info.is_streamed == expected == isinstance(dataset.train, FileSplit)
        assert (info.num_train, info.num_test, info.num_classes) == (8, 4, 2)
        assert (
            info.image_size
            == dataset.spec.image_size
            == (224 if expected else 120 if root == large else 16)
        )
    carved = load_dataset(DataConfig(name=f"folder:{large}", validation_fraction=0.25))
    assert carved.validation is not None
    assert (len(carved.train), len(carved.validation)) == (6, 2)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("val/LABEL", "a_0.JPEG a\na_1.JPEG a\nb_0.JPEG b\nb_1.JPEG b\n"),
        (
            "val/val_annotations.txt",
            "".join(f"{c}_{i}.JPEG\t{c}\t0\t0\t9\t9\n" for c in "ab" for i in (0, 1)),
        ),
        (
            "LOC_val_solution.csv",
            ("ImageId,PredictionString\nb_0,b 1 2\nb_1,b 1 2\na_0,a 1 2\na_1,a 1 2\n"),
        ),
        ("imagenet_2012_validation_synset_labels.txt", "a\na\nb\nb\n"),
    ],
)
def test_a_flat_validation_folder_takes_its_classes_from_a_file(tmp_path, file, text):
    root = tree(tmp_path, flat=True)
    (root / file).write_text(text)
    dataset = load_dataset(DataConfig(name=f"folder:{root}"))
    assert isinstance(dataset.test, FileSplit)
    found = {
        Path(path).name: int(label)
        for path, label in zip(dataset.test.paths, dataset.test.labels, strict=True)
    }
    assert found == {"a_0.JPEG": 0, "a_1.JPEG": 0, "b_0.JPEG": 1, "b_1.JPEG": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "images without classes"),
        ("a_0.JPEG a\na_1.JPEG a\nb_0.JPEG b\n", "b_1.JPEG"),
        ("a_0.JPEG a\na_1.JPEG a\nb_0.JPEG b\nb_1.JPEG zebra\n", "zebra"),
        ("a_0.JPEG a\na_1.JPEG a\nb_0.JPEG b\nb_1.JPEG b\nb_2.JPEG b\n", "b_2.JPEG"),
        ("a\nb\n", "2 classes for the 4 images"),
    ],
)
def test_a_file_of_classes_that_does_not_fit_is_refused(tmp_path, text, message):
    root = tree(tmp_path, flat=True)
    if text is not None:
        (root / "val" / "LABEL").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(DataConfig(name=f"folder:{root}"))


def test_classes_one_folder_deeper_and_a_path_with_spaces_and_accents(tmp_path):
    root = tree(tmp_path / "mes données é")
    for folder in (root / "train").iterdir():
        (folder / "images").mkdir()
        for file in folder.glob("*.JPEG"):
            file.rename(folder / "images" / file.name)
    dataset = load_dataset(DataConfig(name=f"folder:{root}"))
    assert len(dataset.train) == 8
    assert dataset.spec.class_names == ("a", "b")


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    root = tree(tmp_path)
    (root / "train" / "a" / "loop").symlink_to(
        root / "train"
    )  # a folder among the images is no image
    assert len(load_dataset(DataConfig(name=f"folder:{root}")).train) == 8
    (root / "train" / "c").symlink_to(root / "train" / "c")
    with pytest.raises(DataError, match="train/c"):
        load_dataset(DataConfig(name=f"folder:{root}"))


@pytest.mark.slow
def test_a_streamed_folder_trains_resumes_to_the_same_bits_and_refuses_imagenet(gnp: Gnp, tmp_path):
    tree(tmp_path / "data")
    keys = [
        "data.image_size=112",
        "model.name=tests.small:small",
        "data.batch_size=4",
        "data.augment=basic",
    ]
    keys += [
        "data.mix=mixup",
        "schedule.warmup_epochs=0",
        "gr.warmup_epochs=1",
        "checkpoint.every_steps=1",
        "data.workers=0",
    ]
    common = [
        "--dataset",
        "folder:data",
        "--epochs",
        2,
        *(word for key in keys for word in ("--set", key)),
    ]
    assert gnp("train", *common, "--run-dir", "whole").returncode == 0
    assert gnp("train", *common, "--run-dir", "parts", "--max-steps", 3).returncode == 0
    assert gnp("resume", "parts").returncode == 0
    results = [gnp("eval", run, "--json").stdout for run in ("whole", "parts")]
    assert results[0] == results[1] != ""
    fails(gnp("eval", "whole", "--dataset", "imagenet"), "1000 classes", "trained with 2")
