"""Records of a prepared TFDS folder to arrays: no TensorFlow, decoded once and cached.

A record is a ``tf.train.Example``. Both formats hold the same: array_record files are read with the
package of that name, tfrecord files with the few lines that their framing takes. Reading them and
decoding with Pillow directly takes half the time of TFDS's own data source.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from gnpcli.data.archives.tfds import Features, Prepared
from gnpcli.data.base import Labels
from gnpcli.data.images.cache import cache_key, read_cache, write_cache
from gnpcli.data.images.decode import FORMATS, allocate, read_square
from gnpcli.data.progress import ProgressListener
from gnpcli.data.statistics import channel_statistics
from gnpcli.errors import DataError

_BLOCK = 1000  # records per read: one at a time takes twice as long


def load_arrays(
    prepared: Prepared,
    features: Features,
    *,
    groups: Mapping[str, Sequence[str]],
    image_size: int | None,
    progress: ProgressListener | None,
) -> dict[str, npt.NDArray[Any]]:
    """Read images and labels of some splits from the cache, or decode and cache them.

    The record files' own checksums are verified for array_record; of tfrecord files only the
    framing, the images and the range of the labels are, since the standard library has no CRC-32C.

    Args:
        prepared: The folder.
        features: Of it.
        groups: Splits of the folder that are put together under a name of the caller's, ``train``
            among them.
        image_size: Side to resize to, after a cut to the centred square; None keeps the images as
            they are, and all have to be squares of one size.
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
    key = cache_key(prepared.root, {f"tfds {parts}": prepared}, image_size)
    lengths = {
        group: sum(prepared.counts[split] for split in splits) for group, splits in groups.items()
    }
    arrays = read_cache(
        key, lengths | {f"{group}_labels": length for group, length in lengths.items()}
    )
    if arrays is None:
        arrays = _decode(prepared, features, groups, lengths, image_size, progress)
        arrays["statistics"] = np.asarray(channel_statistics(arrays["train"]))
        write_cache(key, arrays)
    return arrays


def read_labels(prepared: Prepared, features: Features, splits: Sequence[str]) -> Labels:
    """Return the labels of some splits, int32 ``[N]``, without decoding images.

    Raises:
        DataError: As `load_arrays`, but for the images.
    """
    found = [label for split in splits for block in _blocks(prepared, split) for _, label in block]
    labels = np.asarray(found, dtype=np.int32)
    _check_labels(prepared, labels, len(features.class_names))
    return labels


def first_size(prepared: Prepared, split: str) -> tuple[int, int]:
    """Return (width, height) of the first image of a split.

    Raises:
        DataError: As `load_arrays`.
    """
    (encoded, _), *_ = next(_blocks(prepared, split))
    with _reading(prepared), _opened(encoded) as image:
        return image.size


def _decode(
    prepared: Prepared,
    features: Features,
    groups: Mapping[str, Sequence[str]],
    lengths: Mapping[str, int],
    image_size: int | None,
    progress: ProgressListener | None,
) -> dict[str, npt.NDArray[Any]]:
    height, width, channels = features.shape
    own = (
        (width, height)
        if width is not None and height is not None
        else first_size(prepared, groups["train"][0])
    )
    if image_size is None and own[0] != own[1]:
        raise DataError(
            f"{prepared.root} holds images of {own[0]}x{own[1]} pixels, not square; set "
            "data.image_size to crop and "
            "resize all images"
        )
    side = image_size or own[0]
    arrays: dict[str, npt.NDArray[Any]] = {}
    done = 0
    for group, splits in groups.items():
        images = allocate(lengths[group], side, channels)
        labels: Labels = np.empty(lengths[group], dtype=np.int32)
        index = 0
        for split in splits:
            for block in _blocks(prepared, split):
                with _reading(prepared):
                    for encoded, label in block:
                        with _opened(encoded) as image:
                            if image_size is None and image.size != own:
                                raise _differs(prepared, own, image.size, fixed=width is not None)
                            images[index] = read_square(image, side, channels)
                        labels[index] = label
                        index += 1
                done += len(block)
                if progress is not None:
                    progress(done, sum(lengths.values()))
        _check_labels(prepared, labels, len(features.class_names))
        arrays |= {group: images, f"{group}_labels": labels}
    return arrays


def _differs(
    prepared: Prepared, own: tuple[int, int], found: tuple[int, int], *, fixed: bool
) -> DataError:
    if fixed:
        return DataError(
            f"{prepared.root} holds an image of {found[0]}x{found[1]} pixels among "
            f"{own[0]}x{own[1]}: prepare the data "
            "set anew"
        )
    return DataError(
        f"images of {prepared.root} differ in size: {own[0]}x{own[1]} and {found[0]}x{found[1]}; "
        "set data.image_size "
        "to crop and resize all of them"
    )


def _check_labels(prepared: Prepared, labels: Labels, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"{prepared.root} has labels outside 0 to {num_classes - 1}: choose labelled splits "
            "(data.train_split, "
            "data.test_split), or prepare the data set anew"
        )


def _blocks(prepared: Prepared, split: str) -> Iterator[list[tuple[bytes, int]]]:
    """Yield (encoded image, label) of a split's records in order, in blocks, as many as
    dataset_info.json promises.

    Raises:
        DataError: On whatever goes wrong in here; what the caller does with a block is not caught.
    """
    with _reading(prepared):
        from tensorflow_datasets.proto import tf_example_pb2

        done, count = 0, prepared.counts[split]
        read = _array_records if prepared.format == "array_record" else _tfrecord_blocks
        for records in read(prepared.shards[split]):
            found = [
                tf_example_pb2.Example.FromString(record).features.feature for record in records
            ]
            done += len(found)
            if done > count:
                break
            yield [(f["image"].bytes_list.value[0], f["label"].int64_list.value[0]) for f in found]
        if done != count:
            raise ValueError(f"{split} does not have {count} records")


def _opened(encoded: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def _array_records(paths: Sequence[str]) -> Iterator[list[bytes]]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource(paths) as source:
        for start in range(0, len(source), _BLOCK):
            yield source.__getitems__(range(start, min(start + _BLOCK, len(source))))


def _tfrecord_blocks(paths: Sequence[str]) -> Iterator[list[bytes]]:
    records = (record for path in paths for record in _tfrecords(path))
    while block := list(islice(records, _BLOCK)):
        yield block


def _tfrecords(path: str) -> Iterator[bytes]:
    """Yield the records of a file: length (8 bytes, little-endian), its CRC (4), the record, its
    CRC (4).
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
    """Turn what the readers raise, which is nearly anything, into one line that names the folder."""
    try:
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
        # Up to the first detail: what follows are checksums and addresses.
        reason = " ".join(str(error).split()).partition(" (")[0][:200] or type(error).__name__
        raise DataError(
            f"{prepared.root} is damaged ({reason}): prepare the data set anew"
        ) from error
