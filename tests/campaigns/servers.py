"""Servers that misbehave: 127.0.0.1 answers a download with bytes of its own choice."""

from __future__ import annotations

import contextlib
import gzip
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.archives import random_images, write_archives, write_sums
from tests.campaigns.campaign import Campaign, Case, Failed, show, sound
from tests.campaigns.lab import Lab

DATASET = "fashion_mnist"
PUBLISHED_BYTES = 31_000_000
"""A little more than all archives of the data set together."""
ENDS_S = 240
"""Seconds within which every download ends, that of a server which says nothing too."""

Answer = Callable[[socket.socket, bytes], None]
"""Answers one request on a connection, given the whole file that was asked for."""


def head(*lines: str, status: str = "200 OK") -> bytes:
    """Return the head of an answer."""
    return "\r\n".join((f"HTTP/1.1 {status}", *lines, "", "")).encode("latin-1")


def says(*parts: bytes, body: bool = False) -> Answer:
    """Return what sends these bytes, and the whole file where `body` says so."""

    def answer(connection: socket.socket, content: bytes) -> None:
        for part in parts:
            connection.sendall(part)
        if body:
            connection.sendall(content)

    return answer


def of_length(change: Callable[[int], object], *, sent: float = 1.0) -> Answer:
    """Return what sends a share of the file under another Content-Length."""

    def answer(connection: socket.socket, content: bytes) -> None:
        connection.sendall(head(f"Content-Length: {change(len(content))}"))
        connection.sendall(content[: int(sent * len(content))])

    return answer


def endless(start: bytes, block: bytes, pause_s: float = 0.0) -> Answer:
    """Return what sends `block` again and again."""

    def answer(connection: socket.socket, content: bytes) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(block)
            time.sleep(pause_s)

    return answer


def silent(start: bytes, share: float = 0.0) -> Answer:
    """Return what sends a part of the file and then says nothing more."""

    def answer(connection: socket.socket, content: bytes) -> None:
        connection.sendall(start + content[: int(share * len(content))])
        time.sleep(ENDS_S)

    return answer


def encoded(connection: socket.socket, content: bytes) -> None:
    """Send the file packed, and say so."""
    packed = gzip.compress(content)
    connection.sendall(head("Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed)


def chunked(connection: socket.socket, content: bytes) -> None:
    """Send the file in chunks."""
    connection.sendall(head("Transfer-Encoding: chunked"))
    for start in range(0, len(content), 1000):
        block = content[start : start + 1000]
        connection.sendall(f"{len(block):x}\r\n".encode() + block + b"\r\n")
    connection.sendall(b"0\r\n\r\n")


def partial_content(text: str) -> Answer:
    """Return what sends the whole file as if it were a part of it."""

    def answer(connection: socket.socket, content: bytes) -> None:
        length = f"Content-Length: {len(content)}"
        connection.sendall(head(length, f"Content-Range: {text}", status="206 Partial") + content)

    return answer


def reset(connection: socket.socket, content: bytes) -> None:
    """Break the connection so that the other side sees an error, after a part of the file."""
    connection.sendall(head(f"Content-Length: {len(content)}") + content[: len(content) // 2])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


CHUNKED = head("Transfer-Encoding: chunked")
BEHAVIOURS: dict[str, Answer] = {
    "sound": of_length(lambda length: length),
    "in chunks": chunked,
    "no length": says(head("Connection: close"), body=True),
    "no length, endless": endless(head("Connection: close"), bytes(1 << 20)),
    "length, endless": endless(head("Content-Length: 100"), bytes(1 << 20)),
    "length of a word": of_length(lambda length: "abc"),
    "length of nothing": of_length(lambda length: ""),
    "negative length": of_length(lambda length: -1),
    "length in hex": of_length(hex),
    "length with a plus": of_length(lambda length: f"+{length}"),
    "length as a fraction": of_length(lambda length: f"{length}.0"),
    "length of other digits": of_length(lambda length: "\u00b2\u00b3"),
    "length of 5,000 digits": of_length(lambda length: "9" * 5000),
    "two lengths": of_length(lambda length: f"{length}\r\nContent-Length: {length + 1}"),
    "lengths in a list": of_length(lambda length: f"{length}, {length}"),
    "length too large": of_length(lambda length: length + 10),
    "length too small": of_length(lambda length: length - 10),
    "length 0": of_length(lambda length: 0),
    "half of it": of_length(lambda length: length, sent=0.5),
    "nothing of it": of_length(lambda length: length, sent=0.0),
    "other bytes": says(head("Content-Length: 1000"), bytes(1000)),
    "a page": says(head("Content-Type: text/html"), b"<!DOCTYPE html><html>log in</html>"),
    "packed": encoded,
    "said to be packed": says(head("Content-Encoding: gzip"), body=True),
    "not found": says(head("Content-Length: 0", status="404 Not Found")),
    "an error of the server": says(head("Content-Length: 0", status="500 \x1b[31mOh")),
    "try later": says(head("Retry-After: 99999", "Content-Length: 0", status="503 Busy")),
    "no content": says(head(status="204 No Content")),
    "status 999": says(head("Content-Length: 0", status="999 Odd")),
    "status of a word": says(head(status="abc def")),
    "an old answer": says(b"", body=True),
    "garbage": says(bytes(range(256)) * 40),
    "closes": says(b""),
    "resets": reset,
    "redirected to itself": says(head("Location: /again", "Content-Length: 0", status="302 Found")),
    "redirected nowhere": says(head("Content-Length: 0", status="302 Found")),
    "redirected to a file": says(head("Location: file:///etc/passwd", status="302 Found")),
    "redirected to a dead port": says(head("Location: http://127.0.0.1:9/x", status="301 Moved")),
    "redirected to junk": says(head("Location: http://[::1\x1b/%zz", status="302 Found")),
    "a part unasked": partial_content("bytes 0-9/10"),
    "a part of junk": partial_content("bytes x-y/z"),
    "a part of a negative range": partial_content("bytes -5--1/4"),
    "a chunk of a bad size": says(CHUNKED, b"zz\r\nabc\r\n"),
    "a chunk that ends early": says(CHUNKED, b"ffff\r\nabc"),
    "a chunk of a huge size": says(CHUNKED, b"f" * 300 + b"\r\nabc\r\n"),
    "chunks, endless": endless(CHUNKED, b"100000\r\n" + bytes(1 << 20) + b"\r\n"),
    "a long header": says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", body=True),
    "10,000 headers": says(head(*(f"X{number}: 1" for number in range(10_000))), body=True),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"X: " + b"a" * 1000 + b"\r\n"),
    "continue, endless": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of other letters": says(
        b"HTTP/1.1 200 \xff\xfe\r\nX\xe9: \x80\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "a byte a second": endless(head("Connection: close"), b"x", 1.0),
    "a header a second": endless(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n", 1.0),
    "silent": silent(b""),
    "silent after the head": silent(head("Content-Length: 100000")),
    "silent after a half": silent(head("Connection: close"), 0.5),
}


@contextlib.contextmanager
def misbehaving(answer: Answer, folder: Path) -> Iterator[str]:
    """Answer every request so, inside the block; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(
                    target=_answer, args=(connection, answer, folder), daemon=True
                ).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _answer(connection: socket.socket, answer: Answer, folder: Path) -> None:
    """Answer the first request of a connection, and close it."""
    with contextlib.suppress(OSError), connection:
        connection.settimeout(ENDS_S)
        request = b""
        while b"\r\n\r\n" not in request:
            received = connection.recv(1 << 16)
            if not received:
                return
            request += received
        file = folder / request.split(b" ")[1].decode("latin-1").rpartition("/")[2]
        answer(connection, file.read_bytes() if file.is_file() else b"")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):  # a close with unread bytes would be a reset
            pass


def cases(lab: Lab, numbers: random.Random) -> list[Case]:
    """Every behaviour, for archives as published and for those of a file of sums."""
    served = lab.new_folder()
    write_archives(DATASET, random_images(DATASET, {"train": 20, "test": 10}), served)
    sums = write_sums(served, lab.new_folder() / "sums.txt")
    return [
        Case(f"{name}, {which}", partial(_prepare, lab, answer, served, checksums))
        for name, answer in BEHAVIOURS.items()
        for which, checksums in (("published", None), ("own sums", sums))
    ]


def _prepare(lab: Lab, answer: Answer, served: Path, sums: Path | None, folder: Path) -> str:
    more = () if sums is None else ("--checksums", sums)
    with misbehaving(answer, served) as url:
        done = lab.gnp(
            *("data", "prepare", DATASET, "--data-dir", "data", "--mirror", url, *more),
            cwd=folder,
            timeout=ENDS_S,
        )
    sound(done)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if written > PUBLISHED_BYTES:
        raise Failed(f"{show(done)} has written {written:,} bytes")
    return "refused" if done.returncode else "accepted"


CAMPAIGNS = (
    Campaign(
        "fuzz-servers",
        f"The download succeeds, or one line says why it does not, within {ENDS_S} s; no more is "
        "written than is published.",
        cases,
        small=12,
    ),
)
