"""Archives from their published addresses: resumed where a download broke off, and verified before
they count.

A download goes to ``<file>.part`` and gets its name only when its SHA-256 is right. What lies under
the name already is verified and used, whoever put it there, and never changed. Nothing is created
before the first byte is on its way.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnpcli.data.progress import ProgressListener
from gnpcli.errors import DataError

if TYPE_CHECKING:
    from requests import Response

_CONNECT_S, _READ_S = 5.0, 30.0
_ANSWER_S = 8.0  # until the headers are here: names that resolve slowly, and several addresses in turn, included
_ATTEMPTS = 4  # connections for one file, of which each has to get further than the one before
_BLOCK = 1 << 18
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
    """SHA-256 by file name, in place of the published ones: archives that were packed anew, or
    reduced.
    """

    @classmethod
    def of(cls, mirror: str | None, checksums: str | None) -> Origin:
        """Return the origin for a mirror and a file of sums as ``sha256sum`` writes it; either may
        be None or empty.

        Raises:
            DataError: If the file cannot be read or is something else.
        """
        return cls(mirror or None, _read_sums(os.path.expanduser(checksums)) if checksums else {})

    @classmethod
    def from_environment(cls) -> Origin:
        """Return the origin that ``$GNP_MIRROR`` and ``$GNP_CHECKSUMS`` give.

        Raises:
            DataError: As `of`.
        """
        return cls.of(os.environ.get("GNP_MIRROR"), os.environ.get("GNP_CHECKSUMS"))

    def url(self, archive: Archive) -> str:
        """Return the address of an archive."""
        return f"{self.mirror.rstrip('/')}/{archive.filename}" if self.mirror else archive.url

    def sha256(self, archive: Archive) -> str:
        """Return the sum that an archive must have."""
        return self.sums.get(archive.filename, archive.sha256)

    def num_bytes(self, archive: Archive) -> int | None:
        """Return the size that an archive must have; None where its sum is not the published one."""
        return archive.num_bytes if self.sha256(archive) == archive.sha256 else None


class _Broken(Exception):
    """A connection that could not be made, or ended early; the message is the reason."""


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
    missing = []
    for archive in archives:
        path, want = paths[archive.filename], origin.sha256(archive)
        if not os.path.exists(path):
            missing.append(archive)
        elif (found := _sha256(path)) != want:
            raise DataError(f"{path} has the SHA-256 {found}, not {want}: replace or delete it")
    for index, archive in enumerate(missing):
        try:
            _download(archive, Path(paths[archive.filename]), origin, progress)
        except _Broken as error:
            wanted = "; ".join(
                f"{origin.url(other)} ({_size(origin.num_bytes(other))}SHA-256 "
                f"{origin.sha256(other)})"
                for other in missing[index:]
            )
            raise DataError(
                f"{name} is not here, and {archive.filename} cannot be fetched from "
                f"{origin.url(archive)}: {error}. "
                f"Run this again with a connection, or put into {os.path.abspath(folder)} by hand: "
                f"{wanted}; or give "
                f"the folder where {name} lies with --data-dir (data.dir)"
            ) from error
        except BrokenPipeError:  # of who listens to the progress
            raise
        except OSError as error:
            raise _disk_error(error, folder) from error
    return paths


def format_bytes(count: int) -> str:
    """Return a size as people write it.

    >>> format_bytes(170_052_171), format_bytes(29_515), format_bytes(999)
    ('170 MB', '29.5 kB', '999 B')
    """
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return (
        f"{size:.0f} {units[0]}" if size >= 99.95 or units[0] == "B" else f"{size:.1f} {units[0]}"
    )


def _download(
    archive: Archive, path: Path, origin: Origin, progress: ProgressListener | None
) -> None:
    url, want = origin.url(archive), origin.sha256(archive)
    part = path.with_name(path.name + ".part")
    inherited = _length(part) > 0
    _complete(url, part, origin.num_bytes(archive), progress)
    if inherited and _sha256(part) != want:  # the rest of another file than its beginning
        part.unlink()
        _complete(url, part, origin.num_bytes(archive), progress)
    if (found := _sha256(part)) != want:
        part.unlink()
        raise DataError(
            f"{url} has the SHA-256 {found}, not {want}: it is another file, or was changed on the "
            "way; nothing of it "
            "is kept"
        )
    os.replace(part, path)


def _complete(url: str, part: Path, size: int | None, progress: ProgressListener | None) -> None:
    """Download what is missing of `part`, going on at once where a connection breaks after it
    brought something.
    """
    for attempt in range(_ATTEMPTS):
        start = _length(part)
        if start and start == size:
            return
        try:
            return _transfer(url, part, start, size, progress)
        except _Broken:
            if attempt == _ATTEMPTS - 1 or _length(part) <= start:
                raise


def _transfer(
    url: str, part: Path, start: int, size: int | None, progress: ProgressListener | None
) -> None:
    """Append to `part` the bytes of a file from `start` on, or write all of them where the server
    cannot do that.
    """
    from urllib3.exceptions import HTTPError

    with _open(url, start) as response:
        status = response.status_code
        if status not in (200, 206, 416):
            raise _Broken(f"HTTP status {status} {response.reason}")
        if start and (status == 416 or (status == 206 and not _continues(response, start, size))):
            part.unlink()  # what is here is not the beginning of what is there
            return _transfer(url, part, 0, size, progress)
        start = start if status == 206 else 0
        length = int(response.headers.get("Content-Length", 0))
        total = start + length if length else size or 0
        if size is not None and total != size:
            raise _Broken(
                f"it sends {total:,} bytes where {size:,} are published: an error page, or another "
                "file"
            )
        part.parent.mkdir(parents=True, exist_ok=True)
        _check_space(part, total - _length(part))
        done, what = start, f"downloading {url.rpartition('/')[2]}"
        with open(part, "ab" if start else "wb") as file:
            blocks = response.raw.stream(_BLOCK, decode_content=False)
            while block := _next(blocks, HTTPError):
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total, what, "bytes")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _open(url: str, start: int) -> Response:
    """Return the answer to a request for a file from byte `start` on, as soon as its headers are
    here.

    The request runs in a thread: looking up a name has no timeout of its own, and each of a host's
        addresses has one.

    Raises:
        _Broken: If there is none within `_ANSWER_S`.
    """
    import requests

    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    answers: queue.SimpleQueue[Response | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(
                requests.get(url, headers=headers, stream=True, timeout=(_CONNECT_S, _READ_S))
            )
        except Exception as error:  # requests and what it stands on raise all kinds
            answers.put(error)

    threading.Thread(target=ask, daemon=True, name="gnp-fetch").start()
    try:
        answer = answers.get(timeout=_ANSWER_S)
    except queue.Empty:
        raise _Broken(f"no answer within {_ANSWER_S:.0f} s") from None
    if isinstance(answer, Exception):
        raise _Broken(_reason(answer)) from answer
    return answer


def _next(blocks: Any, kind: type[Exception]) -> bytes:
    try:
        return next(blocks, b"")
    except kind as error:
        raise _Broken(f"the connection broke ({_reason(error)})") from error


def _continues(response: Response, start: int, size: int | None) -> bool:
    """Return whether a partial answer (206) begins at byte `start` of a file of `size` bytes."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (
        found is not None
        and int(found[1]) == start
        and (size is None or found[2] in ("*", str(size)))
    )


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{format_bytes(needed)} needed, {format_bytes(free)} free")


def _reason(error: BaseException | None) -> str:
    """Return the operating system's word on an error of `requests`, which wraps it several times
    over, or its own.
    """
    own = " ".join(str(error).split())
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            own = error.strerror
        inner = [
            arg
            for arg in (*error.args, getattr(error, "reason", None))
            if isinstance(arg, BaseException)
        ]
        error = error.__cause__ or error.__context__ or next(iter(inner), None)
    return own[:200]


def _disk_error(error: OSError, folder: str) -> DataError:
    where = os.path.abspath(folder)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"no space left in {where} ({error.strerror}): make some, or choose another folder "
            "with --data-dir; what "
            "has been fetched is kept"
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


def _size(num_bytes: int | None) -> str:
    return f"{format_bytes(num_bytes)}, " if num_bytes is not None else ""


def _read_sums(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [
                (number, line.rstrip("\n")) for number, line in enumerate(file, 1) if line.strip()
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    sums = {}
    for number, line in lines:
        found = _SUM.fullmatch(line)
        if found is None:
            raise DataError(
                f"{path}:{number} is not a line of sha256sum: it should be a sum and a file name"
            )
        sums[os.path.basename(found[2])] = found[1].lower()
    return sums
