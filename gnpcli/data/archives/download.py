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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnpcli.data.progress import ProgressListener
from gnpcli.terminal import words

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
_WINDOW_S, _LEAST_BYTES = 30.0, 30_000
"""A transfer is given up where it brings less than so many bytes in so many seconds."""
_LONGEST_REASON = 200
"""Characters of what a server or a library says."""
_NUMBER = r"\d{1,18}"
"""No file has more bytes, and Python refuses to read numbers of thousands of digits."""


class BrokenConnection(Exception):
    """A connection that could not be made, or ended early. The message is the reason."""


@dataclass(frozen=True)
class Size:
    """What is known of the size of a file, in bytes."""

    exact: int | None
    """None where it is not known."""
    most: int
    """Nothing beyond is written."""


def complete(url: str, part: Path, size: Size, progress: ProgressListener | None) -> None:
    """Download what is missing of `part`.

    Where a connection breaks after it brought something, the next one goes on at once.

    Args:
        url: Address of the file.
        part: Where it is written; its folder is created where it does not exist.
        size: Of the file.
        progress: Told of the bytes.

    Raises:
        BrokenConnection: If the last connection could not be made, ended early, was too slow or
            brought nothing; if the server sends another file, an error or a page.
        OSError: If the disk is full or cannot be written.
    """
    for attempt in range(_ATTEMPTS):
        start = length(part)
        if start > 0 and start == size.exact:
            return
        try:
            _transfer(url, part, start, size, progress)
        except BrokenConnection:
            if attempt == _ATTEMPTS - 1 or length(part) <= start:
                raise
        else:
            return


def length(path: Path) -> int:
    """Return the size of a file in bytes; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _transfer(
    url: str, part: Path, start: int, size: Size, progress: ProgressListener | None
) -> None:
    """Append to `part` the bytes of a file from `start` on.

    All bytes are written anew where the server cannot resume, or where `part` is not the beginning
    of its file.
    """
    with _open(url, start) as response:
        status = response.status_code
        is_other = status == 416 or (status == 206 and not _continues(response, start, size))
        if not (start and is_other):
            _check_answer(response)
            _receive(response, url, part, start if status == 206 else 0, size, progress)
            return
    part.unlink()
    _transfer(url, part, 0, size, progress)


def _check_answer(response: Response) -> None:
    """Refuse an answer that is an error, or a page such as one to sign in."""
    if response.status_code not in (200, 206):
        reason = f"HTTP status {response.status_code} {response.reason}"[:_LONGEST_REASON]
        wait = response.headers.get("Retry-After", "")
        if re.fullmatch(_NUMBER, wait):
            reason += f"; it asks to come again in {words.duration(int(wait))}"
        raise BrokenConnection(reason)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise BrokenConnection("it answers with a page of the web: an error, or one to sign in")


def _receive(
    response: Response,
    url: str,
    part: Path,
    start: int,
    size: Size,
    progress: ProgressListener | None,
) -> None:
    """Write the body of an answer to `part`, from byte `start` of the file on.

    A body that goes on beyond the file's size is cut off there, and nothing of it is kept.
    """
    announced = _announced(response)
    total = size.exact if announced is None else start + announced
    if size.exact is not None and total != size.exact:
        raise _other_size(f"{total:,}", size)
    if total is not None and total > size.most:
        raise _other_size(f"{total:,}", size)
    part.parent.mkdir(parents=True, exist_ok=True)
    _check_space(part, (total or 0) - length(part))
    done = start
    with open(part, "ab" if start else "wb") as file:
        for block in _blocks(response):
            if done + len(block) > size.most:
                break
            file.write(block)
            done += len(block)
            if progress is not None:
                progress(done, total or 0, f"downloading {url.rpartition('/')[2]}", "bytes")
        else:
            _check_whole(done, total)
            return
    part.unlink()
    raise _other_size(f"more than {size.most:,}", size)


def _announced(response: Response) -> int | None:
    """Return how many bytes the body has by its header; None where it does not say."""
    text = response.headers.get("Content-Length")
    if text is None:
        return None
    values = {value.strip() for value in text.split(",")}  # of several headers
    value = values.pop()
    if values or not re.fullmatch(_NUMBER, value, re.ASCII):
        raise BrokenConnection(f"it sends a Content-Length of '{text[:40]}'")
    return int(value)


def _check_whole(done: int, total: int | None) -> None:
    if total is not None and done != total:
        raise BrokenConnection(f"the connection ended after {done:,} of {total:,} bytes")


def _other_size(sent: str, size: Size) -> BrokenConnection:
    most = f"{size.most:,}"
    published = f"{most} are published" if size.exact is not None else f"at most {most} are taken"
    return BrokenConnection(
        f"it sends {sent} bytes where {published}: an error page, or another file"
    )


class LeastRate:
    """Ends a transfer that is too slow to come to an end.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._since, self._bytes = clock(), 0

    def note(self, num_bytes: int) -> None:
        """Count bytes that have come.

        Raises:
            BrokenConnection: If a window of `_WINDOW_S` has brought less than `_LEAST_BYTES`.
        """
        self._bytes += num_bytes
        passed = self._clock() - self._since
        if passed < _WINDOW_S:
            return
        if self._bytes < _LEAST_BYTES:
            raise BrokenConnection(f"it sent {self._bytes:,} bytes in {passed:.0f} s: too slow")
        self._since, self._bytes = self._clock(), 0


def _blocks(response: Response) -> Iterator[bytes]:
    """Yield the body of an answer in blocks, as they come.

    Raises:
        BrokenConnection: If it ends early, or is too slow.
    """
    from urllib3.exceptions import HTTPError

    rate = LeastRate()
    while True:
        try:
            block: bytes = response.raw.read1(_BLOCK_BYTES, decode_content=False)
        except (HTTPError, OSError) as error:
            raise BrokenConnection(f"the connection broke ({_reason(error)})") from error
        if not block:
            return
        rate.note(len(block))
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
            hooks = {"response": _leave_redirect}
            answer = requests.get(url, headers=headers, stream=True, timeout=timeouts, hooks=hooks)
            answers.put(answer)
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


def _leave_redirect(response: Response, **options: Any) -> None:
    """Drop the body of a redirect, which `requests` would read to its end, however long."""
    if response.is_redirect:
        response.raw.close()


def _continues(response: Response, start: int, size: Size) -> bool:
    """Return whether a partial answer (206) begins at byte `start` of a file of this size."""
    text = response.headers.get("Content-Range", "")
    found = re.fullmatch(rf"bytes ({_NUMBER})-{_NUMBER}/({_NUMBER}|\*)", text)
    if found is None or int(found[1]) != start:
        return False
    return size.exact is None or found[2] in ("*", str(size.exact))


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{words.size(needed)} needed, {words.size(free)} free")


def _reason(error: BaseException) -> str:
    """Return the operating system's word on an error of `requests`, or the error's own.

    `requests` wraps the system's error several times over.
    """
    said = " ".join(str(error).split())
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            said = inner.strerror
        inner = inner.__cause__ or inner.__context__ or _wrapped(inner)
    return said[:_LONGEST_REASON]


def _wrapped(error: BaseException) -> BaseException | None:
    """Return the error that an error of urllib3 holds as an argument or as its reason."""
    for value in (*error.args, getattr(error, "reason", None)):
        if isinstance(value, BaseException):
            return value
    return None
