"""One file from one address, over HTTP: resumed where a download broke off.

What has come so far lies in ``<file>.part``. Nothing is created before the first byte is on its
way.
"""

from __future__ import annotations

import errno
import queue
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gnpcli.data.progress import ProgressListener
from gnpcli.terminal.words import size

if TYPE_CHECKING:
    from requests import Response

_CONNECT_S, _READ_S = 5.0, 30.0
_ANSWER_S = 8.0
"""Seconds until the headers are here.

Names that resolve slowly, and several addresses in turn, are included.
"""
_ATTEMPTS = 4
"""Connections for one file. Each has to get further than the one before."""
_BLOCK_BYTES = 1 << 18


class BrokenConnection(Exception):
    """A connection that could not be made, or ended early. The message is the reason."""


def complete(
    url: str, part: Path, num_bytes: int | None, progress: ProgressListener | None
) -> None:
    """Download what is missing of `part`.

    Where a connection breaks after it brought something, the next one goes on at once.

    Args:
        url: Address of the file.
        part: Where it is written; its folder is created where it does not exist.
        num_bytes: Size of the file; None where it is not known.
        progress: Told of the bytes.

    Raises:
        BrokenConnection: If the last connection could not be made, ended early or brought nothing.
        OSError: If the disk is full or cannot be written.
    """
    for attempt in range(_ATTEMPTS):
        start = length(part)
        if start > 0 and start == num_bytes:
            return
        try:
            _transfer(url, part, start, num_bytes, progress)
        except BrokenConnection:
            if attempt == _ATTEMPTS - 1 or length(part) <= start:
                raise
        else:
            return


def length(path: Path) -> int:
    """Return the size of a file in bytes; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _transfer(
    url: str, part: Path, start: int, num_bytes: int | None, progress: ProgressListener | None
) -> None:
    """Append to `part` the bytes of a file from `start` on.

    All bytes are written anew where the server cannot resume, or where `part` is not the beginning
    of its file.
    """
    with _open(url, start) as response:
        status = response.status_code
        if status not in (200, 206, 416):
            raise BrokenConnection(f"HTTP status {status} {response.reason}")
        is_other = status == 416 or (status == 206 and not _continues(response, start, num_bytes))
        if not (start and is_other):
            _receive(response, url, part, start if status == 206 else 0, num_bytes, progress)
            return
    part.unlink()
    _transfer(url, part, 0, num_bytes, progress)


def _receive(
    response: Response,
    url: str,
    part: Path,
    start: int,
    num_bytes: int | None,
    progress: ProgressListener | None,
) -> None:
    """Write the body of an answer to `part`, from byte `start` of the file on."""
    announced = int(response.headers.get("Content-Length", 0))
    total = start + announced if announced else num_bytes or 0
    if num_bytes is not None and total != num_bytes:
        raise BrokenConnection(
            f"it sends {total:,} bytes where {num_bytes:,} are published: an error page, or "
            "another file"
        )
    part.parent.mkdir(parents=True, exist_ok=True)
    _check_space(part, total - length(part))
    done = start
    with open(part, "ab" if start else "wb") as file:
        for block in _blocks(response):
            file.write(block)
            done += len(block)
            if progress is not None:
                progress(done, total, f"downloading {url.rpartition('/')[2]}", "bytes")


def _blocks(response: Response) -> Iterator[bytes]:
    """Yield the body of an answer in blocks.

    Raises:
        BrokenConnection: If it ends early.
    """
    from urllib3.exceptions import HTTPError

    blocks: Iterator[bytes] = response.raw.stream(_BLOCK_BYTES, decode_content=False)
    while True:
        try:
            block = next(blocks, b"")
        except HTTPError as error:
            raise BrokenConnection(f"the connection broke ({_reason(error)})") from error
        if not block:
            return
        yield block


def _open(url: str, start: int) -> Response:
    """Return the answer to a request for a file from byte `start` on, once its headers are here.

    The request runs in a thread: looking up a name has no timeout of its own, and each of a host's
    addresses has one.

    Raises:
        BrokenConnection: If there is none within `_ANSWER_S`.
    """
    import requests

    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    answers: queue.SimpleQueue[Response | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            timeouts = (_CONNECT_S, _READ_S)
            answers.put(requests.get(url, headers=headers, stream=True, timeout=timeouts))
        except Exception as error:  # requests and what it stands on raise all kinds
            answers.put(error)

    threading.Thread(target=ask, daemon=True, name="gnp-fetch").start()
    try:
        answer = answers.get(timeout=_ANSWER_S)
    except queue.Empty:
        raise BrokenConnection(f"no answer within {_ANSWER_S:.0f} s") from None
    if isinstance(answer, Exception):
        raise BrokenConnection(_reason(answer)) from answer
    return answer


def _continues(response: Response, start: int, num_bytes: int | None) -> bool:
    """Return whether a partial answer (206) begins at byte `start` of a file of `num_bytes`."""
    text = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text)
    if found is None or int(found[1]) != start:
        return False
    return num_bytes is None or found[2] in ("*", str(num_bytes))


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{size(needed)} needed, {size(free)} free")


def _reason(error: BaseException) -> str:
    """Return the operating system's word on an error of `requests`, or the error's own.

    `requests` wraps the system's error several times over.
    """
    words = " ".join(str(error).split())
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            words = inner.strerror
        inner = inner.__cause__ or inner.__context__ or _wrapped(inner)
    return words[:200]


def _wrapped(error: BaseException) -> BaseException | None:
    """Return the error that an error of urllib3 holds as an argument or as its reason."""
    for value in (*error.args, getattr(error, "reason", None)):
        if isinstance(value, BaseException):
            return value
    return None
