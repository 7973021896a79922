"""Published data sets into TFDS's own folders, in array_record, without TensorFlow.

TFDS's builder of the data set does the work: its features, version, keys, order and files. Only
the source of the examples is ours, since TFDS's own way of unpacking and encoding needs TensorFlow.
`gnpcli.data.archives.fetch` verifies the archives, and images are given as Pillow's, which TFDS
encodes itself.

    DATA_DIR/downloads/manual/<archive>
    DATA_DIR/<name>/<version>/
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from gnpcli.data.archives import tfds
from gnpcli.data.archives.facts import Example, PublishedFacts
from gnpcli.data.archives.fetch import Origin, fetch
from gnpcli.data.progress import ProgressListener
from gnpcli.errors import DataError
from gnpcli.locks import FolderInUse, FolderLock

_log = logging.getLogger("gnpcli")
_TEMPORARY = "incomplete.gnp"
_EVERY = 500
"""Images between two reports of progress."""


def prepare(
    published: PublishedFacts,
    data_dir: str,
    splits: Sequence[str],
    origin: Origin,
    progress: ProgressListener | None,
) -> tfds.Prepared:
    """Prepare splits of a data set in ``data_dir/<name>/<version>``, unless they are there.

    The result appears in one step when it is complete. Until then a folder that was there with
    fewer splits stays as it is; what an earlier attempt left behind is cleared away. Processes that
    prepare the same data set wait for each other.

    Args:
        published: The data set.
        data_dir: Created where it does not exist, and gone again if nothing could be put there.
        splits: Splits that must be there at the end; others that are there already stay.
        origin: Where archives come from.
        progress: Told of downloads and of the images written.

    Raises:
        DataError: As `gnpcli.data.archives.fetch.fetch`; if an archive cannot be unpacked, or the
            folder cannot be written.
    """
    home = os.path.join(data_dir, published.name)
    temporary = os.path.join(home, _TEMPORARY)
    with _locked(home):
        _clear(home, temporary)
        root = tfds.find(home)
        there = None if root is None else tfds.examine(root, name=published.name)
        if there is not None and there.holds(splits):
            return there  # another process was faster
        kept = [] if there is None else [s for s in published.class_counts if there.holds([s])]
        wanted = [split for split in published.class_counts if split in {*splits, *kept}]
        downloads = os.path.join(data_dir, "downloads", "manual")
        archives = published.archives_of(wanted)
        paths = fetch(published.name, archives, downloads, origin, progress)
        try:
            _write(published, temporary, wanted, paths, progress)
            root = _replace(home, temporary, published.name)
        except BrokenPipeError:  # of who listens to the progress
            raise
        except (OSError, RuntimeError) as error:
            # array_record raises RuntimeError, with the system's word in its text.
            raise _disk_error(error, home) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return tfds.examine(root, name=published.name, splits=wanted)


def _write(
    published: PublishedFacts,
    folder: str,
    splits: Sequence[str],
    paths: Mapping[str, str],
    progress: ProgressListener | None,
) -> None:
    """Let TFDS prepare `splits` with `folder` as its data_dir."""
    try:
        import tensorflow_datasets
        from tensorflow_datasets.core import shuffle
    except ImportError as error:
        raise DataError(
            f"preparing {published.name} needs tensorflow_datasets: pip install tensorflow_datasets"
        ) from error

    def split_generators(self: Any, manager: object) -> dict[str, Iterator[tuple[int, Example]]]:
        del manager
        class_names = {"label": published.class_names, **published.more_names}
        for feature, names in class_names.items():
            if tuple(self.info.features[feature].names) != names:
                self.info.features[feature].names = list(names)
        return {split: _examples(published, split, paths, progress) for split in splits}

    base = tensorflow_datasets.builder_cls(published.name)
    members = {
        "name": published.name,
        "__module__": base.__module__,
        "_split_generators": split_generators,
    }
    with tensorflow_datasets.core.registered.skip_registration():
        own_builder = type(base)(base.__name__, (base,), members)
        builder = own_builder(data_dir=folder, file_format="array_record")
    tensorflow_datasets.disable_progress_bar()
    # A split beyond 1 GB, SVHN's extra, would be sorted in files that only TensorFlow can write. It
    # fits into memory.
    shuffle.MAX_MEM_BUFFER_SIZE = 1 << 62
    _run_silently(builder)


def _run_silently(builder: Any) -> None:
    """Let a builder prepare its data set without printing what it is about to do."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    finally:
        log.setLevel(level)


def _examples(
    published: PublishedFacts,
    split: str,
    paths: Mapping[str, str],
    progress: ProgressListener | None,
) -> Iterator[tuple[int, Example]]:
    """Yield (key, example). The key is the number of the image, as in TFDS's own builders."""
    task = f"preparing {published.name} {split}"
    total = sum(published.class_counts[split])
    count = 0
    for example in _unpacked(published, split, paths):
        image = example["image"]
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        yield count, {**example, "image": Image.fromarray(pixels)}
        count += 1
        if progress is not None and count % _EVERY == 0:
            progress(count, max(total, count), task)
    if progress is not None:
        progress(count, count, task)


def _unpacked(published: PublishedFacts, split: str, paths: Mapping[str, str]) -> Iterator[Example]:
    """Yield the examples of a split from its archives.

    Raises:
        DataError: On a damaged archive. What the caller does with an example is not caught.
    """
    own = {archive.filename: paths[archive.filename] for archive in published.archives[split]}
    examples = published.examples(split, own)
    while (example := _next(examples, own)) is not None:
        yield example


def _next(examples: Iterator[Example], paths: Mapping[str, str]) -> Example | None:
    try:
        return next(examples, None)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # tarfile, gzip, zlib and scipy raise all kinds on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{' or '.join(paths.values())} cannot be unpacked ({reason}): delete it, and it is "
            "fetched again"
        ) from error


def _clear(home: str, temporary: str) -> None:
    """Remove what a killed preparation left.

    A folder that it was about to replace is put back first.
    """
    kept = os.path.join(temporary, "replaced")
    try:
        versions = os.listdir(kept) if os.path.isdir(kept) else []
        for version in versions:
            if not os.path.exists(os.path.join(home, version)):
                os.rename(os.path.join(kept, version), os.path.join(home, version))
        if os.path.isdir(temporary):
            shutil.rmtree(temporary)
    except OSError as error:
        raise _disk_error(error, home) from error


def _replace(home: str, temporary: str, name: str) -> str:
    """Move the finished version to its place; return that."""
    new = tfds.find(os.path.join(temporary, name))
    assert new is not None
    version = os.path.basename(new)
    place, kept = os.path.join(home, version), os.path.join(temporary, "replaced")
    if os.path.exists(place):
        os.makedirs(kept)
        os.rename(place, os.path.join(kept, version))
    os.rename(new, place)
    return place


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep other processes out of `folder` inside the block: wait for the one that is there.

    The folder and its parents are made, and removed again where they are left empty.
    """

    def on_busy(error: FolderInUse) -> None:
        _log.warning("waiting for another process to prepare %s: %s", folder, error.holder)

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FolderLock(Path(folder), making="if missing", on_busy=on_busy))
        except OSError as error:
            raise _disk_error(error, folder) from error
        yield


def _disk_error(error: OSError | RuntimeError, folder: str) -> DataError:
    where = os.path.abspath(folder)
    text = " ".join(str(error).split())
    reason = getattr(error, "strerror", None) or text[:200]
    parts = {reason, *re.split(r"[:;] ", text)}
    if parts & {os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)}:
        return DataError(
            f"no space left in {where}: make some, or choose another folder with --data-dir; the "
            "archives are kept"
        )
    return DataError(f"{where} cannot be written: {reason}; choose another folder with --data-dir")
