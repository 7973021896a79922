"""Records of a prepared TFDS folder to arrays, without TensorFlow.

A record is a ``tf.train.Example`` in both formats. The package array_record reads files of that
name. The framing of tfrecord files takes a few lines, which are here. Reading them and decoding
with Pillow takes half the time of TFDS's own data source. Arrays are cached.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageFile

from gnpcli.data.archives.tfds import Features, Prepared
from gnpcli.data.base import Images, Labels
from gnpcli.data.images.cache import cache_key, cached
from gnpcli.data.images.decode import allocate
from gnpcli.data.images.opening import open_image, quiet_pillow
from gnpcli.data.images.pixels import Decoding, read_square
from gnpcli.data.progress import ProgressListener
from gnpcli.data.statistics import channel_statistics
from gnpcli.errors import DataError
from gnpcli.git_lfs import first_advice

_RECORDS_PER_READ = 1000
"""One at a time takes twice as long."""

Record = tuple[bytes, int]
"""An encoded image and its label."""
Size = tuple[int, int]
"""Width and height in pixels."""


def load_arrays(
    prepared: Prepared,
    features: Features,
    *,
    groups: Mapping[str, Sequence[str]],
    image_size: int | None,
    decoding: Decoding,
    progress: ProgressListener | None,
) -> dict[str, npt.NDArray[Any]]:
    """Read images and labels of some splits from the cache, or decode and cache them.

    The checksums of array_record files are verified. Those of tfrecord files are not, since the
    standard library has no CRC-32C; their framing, images and range of labels are.

    Args:
        prepared: The folder.
        features: Of it.
        groups: Splits of the folder that are put together under a name of the caller's, ``train``
            among them.
        image_size: Side to resize to, after a cut to the centred square; None keeps the images as
            they are, and all have to be squares of one size.
        decoding: What transparency and orientation mean.
        progress: Called with (done, total) over all splits after every block of records.

    Returns:
        For every group ``<group>``, uint8 ``[N, S, S, C]``, and ``<group>_labels``, int32 ``[N]``,
        in the order of its splits and of their records; and under ``statistics`` float64 ``[2,
        C]``, mean and standard deviation of the images of ``train``.

    Raises:
        DataError: If a package is missing, an image is not as expected, or a record file is missing
            or damaged.
    """
    # All splits of a group stand in the key: another choice of splits is another entry.
    parts = " ".join(f"{group}={'+'.join(splits)}" for group, splits in groups.items())
    paths = {f"tfds {parts}": prepared.paths}
    make_key = partial(cache_key, prepared.root, paths, image_size, decoding.name)
    lengths: dict[str, int] = {}
    for group, splits in groups.items():
        lengths[group] = sum(prepared.counts[split] for split in splits)
        lengths[f"{group}_labels"] = lengths[group]

    def decode() -> dict[str, npt.NDArray[Any]]:
        decoder = _Decoder(prepared, features, groups, image_size, decoding, progress)
        arrays = decoder.decode_all()
        return {**arrays, "statistics": np.asarray(channel_statistics(arrays["train"]))}

    return cached(make_key, lengths, decode)


def read_labels(prepared: Prepared, features: Features, splits: Sequence[str]) -> Labels:
    """Return the labels of some splits, int32 ``[N]``, without decoding images.

    Raises:
        DataError: As `load_arrays`, but for the images.
    """
    found: list[int] = []
    for split in splits:
        for block in _blocks(prepared, split):
            found += [label for _, label in block]
    labels = np.asarray(found, dtype=np.int32)
    _check_labels(prepared, labels, len(features.class_names))
    return labels


def first_size(prepared: Prepared, split: str) -> Size:
    """Return the size of the first image of a split.

    Raises:
        DataError: As `load_arrays`.
    """
    (encoded, _), *_ = next(_blocks(prepared, split))
    with _reading(prepared), _opened(encoded) as image:
        return image.size


class _Decoder:
    """Decodes groups of splits into arrays of images of one size.

    Arguments and errors are those of `load_arrays`.
    """

    def __init__(
        self,
        prepared: Prepared,
        features: Features,
        groups: Mapping[str, Sequence[str]],
        image_size: int | None,
        decoding: Decoding,
        progress: ProgressListener | None,
    ) -> None:
        width, height = features.shape[1], features.shape[0]
        self._prepared = prepared
        self._features = features
        self._groups = groups
        self._image_size = image_size
        self._decoding = decoding
        self._progress = progress
        self._is_fixed = width is not None and height is not None
        if width is not None and height is not None:
            self._own_size = (width, height)
        else:
            self._own_size = first_size(prepared, groups["train"][0])
        if image_size is None and self._own_size[0] != self._own_size[1]:
            raise DataError(
                f"{prepared.root} holds images of {_pixels(self._own_size)} pixels, not square; "
                "set data.image_size to crop and resize all images"
            )
        self._done = 0
        self._total = sum(self._count(group) for group in groups)

    def decode_all(self) -> dict[str, npt.NDArray[Any]]:
        """Return images and labels of all groups by name."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for group in self._groups:
            images, labels = self._decode_group(group)
            arrays[group] = images
            arrays[f"{group}_labels"] = labels
        return arrays

    def _count(self, group: str) -> int:
        return sum(self._prepared.counts[split] for split in self._groups[group])

    def _decode_group(self, group: str) -> tuple[Images, Labels]:
        count = self._count(group)
        side = self._image_size or self._own_size[0]
        images = allocate(count, side, self._features.shape[2])
        labels: Labels = np.empty(count, dtype=np.int32)
        start = 0
        for split in self._groups[group]:
            for block in _blocks(self._prepared, split):
                end = start + len(block)
                self._decode_block(block, images[start:end], labels[start:end])
                start = end
        _check_labels(self._prepared, labels, len(self._features.class_names))
        return images, labels

    def _decode_block(self, block: Sequence[Record], images: Images, labels: Labels) -> None:
        """Decode records into `images` and `labels`, which are as many."""
        _, side, _, channels = images.shape
        with _reading(self._prepared):
            for index, (encoded, label) in enumerate(block):
                with _opened(encoded) as image:
                    if self._image_size is None and image.size != self._own_size:
                        raise self._differs(image.size)
                    images[index] = read_square(image, side, channels, self._decoding)
                labels[index] = label
        self._done += len(block)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _differs(self, found: Size) -> DataError:
        root = self._prepared.root
        if self._is_fixed:
            return DataError(
                f"{root} holds an image of {_pixels(found)} pixels among "
                f"{_pixels(self._own_size)}: prepare the data set anew"
            )
        return DataError(
            f"images of {root} differ in size: {_pixels(self._own_size)} and {_pixels(found)}; set "
            "data.image_size to crop and resize all of them"
        )


def _pixels(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _check_labels(prepared: Prepared, labels: Labels, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"{prepared.root} has labels outside 0 to {num_classes - 1}: choose labelled splits "
            "(data.train_split, data.test_split), or prepare the data set anew"
        )


def _blocks(prepared: Prepared, split: str) -> Iterator[list[Record]]:
    """Yield a split's records in order, in blocks, as many as dataset_info.json promises.

    Raises:
        DataError: On whatever goes wrong in here. What the caller does with a block is not caught.
    """
    with _reading(prepared):
        from tensorflow_datasets.proto import tf_example_pb2

        done, count = 0, prepared.counts[split]
        read = _array_records if prepared.format == "array_record" else _tfrecord_blocks
        for records in read(prepared.shards[split]):
            done += len(records)
            if done > count:
                break
            block = []
            for record in records:
                feature = tf_example_pb2.Example.FromString(record).features.feature
                image = feature["image"].bytes_list.value[0]
                label = feature["label"].int64_list.value[0]
                block.append((image, label))
            yield block
        if done != count:
            raise ValueError(f"{split} does not have {count} records")


def _opened(encoded: bytes) -> ImageFile.ImageFile:
    return open_image(io.BytesIO(encoded))


def _array_records(paths: Sequence[str]) -> Iterator[list[bytes]]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource(paths) as source:
        for start in range(0, len(source), _RECORDS_PER_READ):
            end = min(start + _RECORDS_PER_READ, len(source))
            yield source.__getitems__(range(start, end))


def _tfrecord_blocks(paths: Sequence[str]) -> Iterator[list[bytes]]:
    records = chain.from_iterable(_tfrecords(path) for path in paths)
    while block := list(islice(records, _RECORDS_PER_READ)):
        yield block


def _tfrecords(path: str) -> Iterator[bytes]:
    """Yield the records of a file.

    Each is framed by its length (8 bytes, little-endian), the length's CRC (4) before it, and its
    own CRC (4) after it.
    """
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        while head := file.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else left
            left -= 16 + length
            if left < 0:
                raise ValueError(f"{os.path.basename(path)} is cut off")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)


@contextmanager
def _reading(prepared: Prepared) -> Iterator[None]:
    """Turn what the readers raise, which is nearly anything, into a `DataError` with the folder."""
    try:
        with quiet_pillow():
            yield
    except (DataError, MemoryError):
        raise
    except ImportError as error:
        package = (error.name or "array_record").partition(".")[0]
        raise DataError(
            f"{prepared.root} holds {prepared.format} records and reading them needs {package}: "
            f"pip install {package}"
        ) from error
    except Exception as error:
        advice = first_advice(prepared.paths)
        if advice is not None:
            raise DataError(advice) from error
        # Up to the first detail: what follows are checksums and addresses.
        reason = " ".join(str(error).split()).partition(" (")[0][:200] or type(error).__name__
        raise DataError(
            f"{prepared.root} is damaged ({reason}): prepare the data set anew"
        ) from error
