"""Archives from their published addresses, verified before they count.

A download goes to ``<file>.part`` and gets its name only when its SHA-256 is right. What lies under
the name already is verified and used, whoever put it there, and never changed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gnpcli.config.paths import expanded
from gnpcli.data.archives.download import BrokenConnection, Size, complete, length
from gnpcli.data.progress import ProgressListener
from gnpcli.errors import DataError
from gnpcli.git_lfs import pointer_advice
from gnpcli.terminal import words

_TIMES_LARGER, _MOST_BYTES = 10, 1_000_000_000
"""A download that was packed anew is taken up to so many times its published size, or so large."""
_SUM = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(.+)")


@dataclass(frozen=True)
class Archive:
    """A published file."""

    url: str
    num_bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Origin:
    """Where archives come from, and which are accepted, where that is not what is published."""

    mirror: str | None = None
    """Address under which the files are looked for by name, in place of their own ones."""
    sums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by file name, in place of the published ones.

    They are for archives that were packed anew, or reduced.
    """

    @classmethod
    def of(cls, mirror: str | None, checksums: str | None) -> Origin:
        """Return the origin for a mirror and a file of sums as ``sha256sum`` writes it.

        Either may be None or empty.

        Raises:
            DataError: If the file cannot be read or is something else.
        """
        sums = _read_sums(expanded(checksums)) if checksums else {}
        return cls(mirror or None, sums)

    @classmethod
    def from_environment(cls) -> Origin:
        """Return the origin that ``$GNP_MIRROR`` and ``$GNP_CHECKSUMS`` give.

        Raises:
            DataError: As `of`.
        """
        return cls.of(os.environ.get("GNP_MIRROR"), os.environ.get("GNP_CHECKSUMS"))

    def url(self, archive: Archive) -> str:
        """Return the address of an archive."""
        if self.mirror is None:
            return archive.url
        return f"{self.mirror.rstrip('/')}/{archive.filename}"

    def sha256(self, archive: Archive) -> str:
        """Return the sum that an archive must have."""
        return self.sums.get(archive.filename, archive.sha256)

    def num_bytes(self, archive: Archive) -> int | None:
        """Return the size that an archive must have; None where its sum is not as published."""
        return archive.num_bytes if self.sha256(archive) == archive.sha256 else None

    def size(self, archive: Archive) -> Size:
        """Return how large a download is, and may be."""
        exact = self.num_bytes(archive)
        if exact is not None:
            return Size(exact, most=exact)
        return Size(None, most=max(_TIMES_LARGER * archive.num_bytes, _MOST_BYTES))


def fetch(
    name: str,
    archives: Sequence[Archive],
    folder: str,
    origin: Origin,
    progress: ProgressListener | None,
) -> dict[str, str]:
    """Make sure that `archives` lie in `folder`, downloading those that do not.

    Args:
        name: The data set.
        archives: With different file names.
        folder: Created where it does not exist.
        origin: Where they come from.
        progress: Told of the bytes of each download.

    Returns:
        Paths by file name.

    Raises:
        DataError: If a file cannot be fetched, with what to put where by hand; if its SHA-256 is a
            wrong one, with both (a download is then removed, a file that was there is left); if the
            disk is full or cannot be written.
    """
    paths = {archive.filename: os.path.join(folder, archive.filename) for archive in archives}
    missing = [
        archive for archive in archives if not _is_there(paths[archive.filename], archive, origin)
    ]
    for index, archive in enumerate(missing):
        try:
            _download(archive, Path(paths[archive.filename]), origin, progress)
        except BrokenConnection as error:
            raise _by_hand(name, missing[index:], folder, origin, str(error)) from error
        except BrokenPipeError:  # of who listens to the progress
            raise
        except OSError as error:
            raise _disk_error(error, folder) from error
    return paths


def _is_there(path: str, archive: Archive, origin: Origin) -> bool:
    """Return whether a file is there, which has to be the archive then."""
    if not os.path.exists(path):
        return False
    found, wanted = _sha256(path), origin.sha256(archive)
    if found != wanted:
        advice = pointer_advice(path)
        if advice is not None:
            raise DataError(advice)
        raise DataError(f"{path} has the SHA-256 {found}, not {wanted}: replace or delete it")
    return True


def _download(
    archive: Archive, path: Path, origin: Origin, progress: ProgressListener | None
) -> None:
    url, wanted = origin.url(archive), origin.sha256(archive)
    part = path.with_name(path.name + ".part")
    is_inherited = length(part) > 0
    size = origin.size(archive)
    complete(url, part, size, progress)
    if is_inherited and _sha256(part) != wanted:  # the rest of another file than its beginning
        part.unlink()
        complete(url, part, size, progress)
    found = _sha256(part)
    if found != wanted:
        part.unlink()
        raise DataError(
            f"{url} has the SHA-256 {found}, not {wanted}: it is another file, or was changed on "
            "the way; nothing of it is kept"
        )
    os.replace(part, path)


def _by_hand(
    name: str, missing: Sequence[Archive], folder: str, origin: Origin, reason: str
) -> DataError:
    """Return the error that says what to put where by hand; the first of `missing` has failed."""
    failed = missing[0]
    wanted = "; ".join(_wanted(archive, origin) for archive in missing)
    return DataError(
        f"{name} is not here, and {failed.filename} cannot be fetched from {origin.url(failed)}: "
        f"{reason}. Run this again with a connection, or put into {os.path.abspath(folder)} by "
        f"hand: {wanted}; or give the folder where {name} lies with --data-dir (data.dir)"
    )


def _wanted(archive: Archive, origin: Origin) -> str:
    num_bytes = origin.num_bytes(archive)
    facts = f"SHA-256 {origin.sha256(archive)}"
    if num_bytes is not None:
        facts = f"{words.size(num_bytes)}, {facts}"
    return f"{origin.url(archive)} ({facts})"


def _disk_error(error: OSError, folder: str) -> DataError:
    where = os.path.abspath(folder)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"no space left in {where} ({error.strerror}): make some, or choose another folder "
            "with --data-dir; what has been fetched is kept"
        )
    return DataError(
        f"{where} cannot be written: {error.strerror}; choose another folder with --data-dir"
    )


def _sha256(path: str | Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _read_sums(path: str) -> dict[str, str]:
    """Return the sums of a file of ``sha256sum`` by file name."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _SUM.fullmatch(line)
        if found is None:
            raise DataError(
                f"{path}:{number} is not a line of sha256sum: it should be a sum and a file name"
            )
        sums[os.path.basename(found[2])] = found[1].lower()
    return sums
