"""Servers on 127.0.0.1 that misbehave: what each sends, and whether the file can still be had.

Campaigns take them from `BEHAVIOURS`. A behaviour is a function of a `Request`, which has the
socket; when it returns, the connection is closed.
"""

from __future__ import annotations

import gzip
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

PUBLISHED = bytes(range(256)) * 800
"""What a client asks for: 204,800 bytes."""
BYTES = len(PUBLISHED)
ENDLESS_BYTES = 64 << 20
"""After so much even an endless body ends, for a client that takes it all."""
PAGE = b"<!DOCTYPE html><html><title>Sign in</title><form>Sign in</form></html>"


@dataclass
class Request:
    """One request: what it asks for, and how to answer."""

    connection: socket.socket
    start: int
    """First byte that is asked for."""
    number: int
    """How many came before."""
    url: str
    """Of the server."""

    def send(self, content: bytes) -> None:
        self.connection.sendall(content)

    def head(self, status: str, *headers: str) -> None:
        """Send a status and headers."""
        self.send("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1"))

    def answer(self, content: bytes, *headers: str, status: str = "200 OK") -> None:
        """Send a whole answer."""
        self.head(status, f"Content-Length: {len(content)}", *headers)
        self.send(content)

    def go_on(self, content: bytes = PUBLISHED) -> None:
        """Answer as a good server does, a request for a part with a part."""
        if not self.start:
            self.answer(content)
            return
        place = f"Content-Range: bytes {self.start}-{len(content) - 1}/{len(content)}"
        self.answer(content[self.start :], place, status="206 Partial Content")

    def reset(self) -> None:
        """Break the connection, as a router does that lost it."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


class Behaviour(NamedTuple):
    """What a server does."""

    answer: Callable[[Request], object]
    gives: bool = False
    """Whether the file can be had from it all the same."""
    has_part: bool = False
    """Whether the client has the first 1,000 bytes already."""


def endless(request: Request, *headers: str, block: bytes = bytes(1 << 16)) -> None:
    request.head("200 OK", *headers)
    for _ in range(ENDLESS_BYTES // len(block)):
        request.send(block)


def chunked(request: Request, *chunks: bytes, is_ended: bool = True) -> None:
    request.head("200 OK", "Transfer-Encoding: chunked")
    for chunk in chunks:
        request.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    if is_ended:
        request.send(b"0\r\n\r\n")


def endless_chunks(request: Request) -> None:
    chunked(request, *[bytes(1 << 16)] * (ENDLESS_BYTES >> 16), is_ended=False)


def drip(request: Request, *, headers: tuple[str, ...] = (), every_s: float = 0.01) -> None:
    """Send a byte at a time."""
    request.head("200 OK", *headers)
    for number in range(5_000):
        request.send(PUBLISHED[number : number + 1])
        time.sleep(every_s)


def breaks_at(at: int, *, how: str = "close") -> Callable[[Request], None]:
    """Return a behaviour that breaks the first connection after `at` bytes, and resumes then."""

    def answer(request: Request) -> None:
        if request.number:
            request.go_on()
            return
        request.head("200 OK", f"Content-Length: {BYTES}")
        request.send(PUBLISHED[:at])
        if how == "reset":
            time.sleep(0.05)  # what was sent arrives before the reset
            request.reset()

    return answer


def redirect(place: Callable[[Request], str], body: bytes = b"") -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        request.answer(body, f"Location: {place(request)}", status="302 Found")

    return answer


def redirect_with_endless_body(request: Request) -> None:
    request.head("302 Found", f"Location: {request.url}/other")
    for _ in range(ENDLESS_BYTES >> 16):
        request.send(bytes(1 << 16))


def redirect_once(request: Request) -> None:
    if request.number:
        request.go_on()
    else:
        request.answer(PAGE, f"Location: {request.url}/elsewhere", status="301 Moved Permanently")


def with_length(*lengths: str) -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        request.head("200 OK", *(f"Content-Length: {length}" for length in lengths))
        request.send(PUBLISHED)

    return answer


def with_range(place: str, content: bytes = PUBLISHED[1000:]) -> Callable[[Request], None]:
    """Return a behaviour that answers with a part that is not the one asked for."""

    def answer(request: Request) -> None:
        if request.start:
            request.answer(content, f"Content-Range: {place}", status="206 Partial Content")
        else:
            request.go_on()

    return answer


def status(text: str, *headers: str, body: bytes = b"no") -> Callable[[Request], None]:
    return lambda request: request.answer(body, *headers, status=text)


def raw(content: bytes) -> Callable[[Request], None]:
    return lambda request: request.send(content)


BOMB = gzip.compress(bytes(10_000_000))
BEHAVIOURS: dict[str, Behaviour] = {
    "good": Behaviour(Request.go_on, gives=True),
    "good, with a part": Behaviour(Request.go_on, gives=True, has_part=True),
    "no length, then closes": Behaviour(
        lambda request: (request.head("200 OK"), request.send(PUBLISHED)), gives=True
    ),
    "no length, closes early": Behaviour(
        lambda request: (request.head("200 OK"), request.send(PUBLISHED[:100]))
    ),
    "no length, endless": Behaviour(endless),
    "no length, a byte more": Behaviour(
        lambda request: (request.head("200 OK"), request.send(PUBLISHED + b"x"))
    ),
    "chunked": Behaviour(
        lambda request: chunked(request, PUBLISHED[:1000], PUBLISHED[1000:]), gives=True
    ),
    "chunked, endless": Behaviour(endless_chunks),
    "chunked, no end": Behaviour(lambda request: chunked(request, PUBLISHED[:9], is_ended=False)),
    "chunked, a byte more": Behaviour(lambda request: chunked(request, PUBLISHED, b"x")),
    "chunked, broken sizes": Behaviour(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n")
    ),
    "chunked, size negative": Behaviour(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n")
    ),
    "chunked, size huge": Behaviour(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 60 + b"\r\nabc\r\n")
    ),
    "length abc": Behaviour(with_length("abc")),
    "length empty": Behaviour(with_length("")),
    "length negative": Behaviour(with_length("-5")),
    "length a fraction": Behaviour(with_length("1e6")),
    "length 0": Behaviour(with_length("0")),
    "length of 10**30": Behaviour(with_length("1" + "0" * 30)),
    "length of 5,000 digits": Behaviour(with_length("9" * 5000)),
    "length of other digits": Behaviour(with_length("\xb2\xb3")),
    "lengths that differ": Behaviour(with_length("5", str(BYTES))),
    "lengths that agree": Behaviour(with_length(str(BYTES), str(BYTES)), gives=True),
    "length too large": Behaviour(with_length(str(BYTES + 1))),
    "length too small": Behaviour(with_length(str(BYTES - 1))),
    "length right, body short": Behaviour(
        lambda request: (
            request.head("200 OK", f"Content-Length: {BYTES}"),
            request.send(PUBLISHED[:100]),
        )
    ),
    "length right, body long": Behaviour(
        lambda request: (
            request.head("200 OK", f"Content-Length: {BYTES}"),
            request.send(PUBLISHED + bytes(1000)),
        ),
        gives=True,
    ),
    "another file of the same size": Behaviour(lambda request: request.answer(bytes(BYTES))),
    "another file": Behaviour(lambda request: request.answer(bytes(10))),
    "a byte a time": Behaviour(drip),
    "a byte a time, with a length": Behaviour(
        lambda request: drip(request, headers=(f"Content-Length: {BYTES}",))
    ),
    "breaks at once": Behaviour(lambda request: request.reset()),
    "breaks in the head": Behaviour(raw(b"HTTP/1.1 200 OK\r\nContent-Le")),
    "breaks in the middle, resumes": Behaviour(breaks_at(100_000), gives=True),
    "reset in the middle, resumes": Behaviour(breaks_at(100_000, how="reset"), gives=True),
    "no part but the whole": Behaviour(
        lambda request: request.answer(PUBLISHED), gives=True, has_part=True
    ),
    "a part of another start": Behaviour(
        with_range(f"bytes 500-{BYTES - 1}/{BYTES}"), gives=True, has_part=True
    ),
    "a part of another file": Behaviour(
        with_range("bytes 1000-1999/2000"), gives=True, has_part=True
    ),
    "a part without its place": Behaviour(with_range(""), gives=True, has_part=True),
    "a part at 5,000 digits": Behaviour(
        with_range(f"bytes {'9' * 5000}-1/2"), gives=True, has_part=True
    ),
    "a part with another content": Behaviour(
        with_range(f"bytes 1000-{BYTES - 1}/{BYTES}", bytes(BYTES - 1000)),
        gives=True,
        has_part=True,
    ),
    "a part unasked": Behaviour(
        lambda request: request.answer(
            PUBLISHED[:100], "Content-Range: bytes 0-99/100", status="206 Partial Content"
        )
    ),
    "no such part": Behaviour(
        lambda request: request.answer(b"", status="416 No") if request.start else request.go_on(),
        gives=True,
        has_part=True,
    ),
    "no such part, unasked": Behaviour(status("416 Range Not Satisfiable")),
    "404": Behaviour(status("404 Not Found", body=PAGE)),
    "403": Behaviour(status("403 Forbidden")),
    "401": Behaviour(status("401 Unauthorized", "WWW-Authenticate: Basic realm=x")),
    "429, come again": Behaviour(status("429 Too Many Requests", "Retry-After: 120")),
    "503, come again": Behaviour(status("503 Service Unavailable", "Retry-After: 9" + "9" * 5000)),
    "500": Behaviour(status("500 \x1b[31mred\x1b[0m")),
    "204": Behaviour(status("204 No Content", body=b"")),
    "304": Behaviour(status("304 Not Modified", body=b"")),
    "a status of 999": Behaviour(status("999 What")),
    "a status that is none": Behaviour(raw(b"HTTP/1.1 abc def\r\n\r\n")),
    "not HTTP": Behaviour(raw(b"220 ftp ready\r\n")),
    "nothing": Behaviour(lambda request: None),
    "nulls": Behaviour(raw(bytes(10_000))),
    "headers without end": Behaviour(raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000)),
    "a header of 1 MB": Behaviour(raw(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 1_000_000)),
    "a page of the web": Behaviour(lambda request: request.answer(PAGE, "Content-Type: text/html")),
    "a page without a length": Behaviour(
        lambda request: (
            request.head("200 OK", "Content-Type: text/html; charset=utf-8"),
            request.send(PAGE),
        )
    ),
    "gzip, bomb": Behaviour(lambda request: request.answer(BOMB, "Content-Encoding: gzip")),
    "gzip, bomb without a length": Behaviour(
        lambda request: (request.head("200 OK", "Content-Encoding: gzip"), request.send(BOMB))
    ),
    "gzip, endless": Behaviour(lambda request: endless(request, "Content-Encoding: gzip")),
    "the file itself, called gzip": Behaviour(
        lambda request: request.answer(PUBLISHED, "Content-Encoding: gzip"), gives=True
    ),
    "redirect": Behaviour(redirect_once, gives=True),
    "redirect to itself": Behaviour(redirect(lambda request: request.url + "/a.bin")),
    "redirect on and on": Behaviour(redirect(lambda request: f"{request.url}/{request.number}")),
    "redirect to a file": Behaviour(redirect(lambda request: "file:///etc/passwd")),
    "redirect to FTP": Behaviour(redirect(lambda request: "ftp://127.0.0.1/a.bin")),
    "redirect to nothing": Behaviour(redirect(lambda request: "")),
    "redirect to nonsense": Behaviour(redirect(lambda request: "http://[::bad")),
    "redirect to a closed port": Behaviour(redirect(lambda request: "http://127.0.0.1:9/a.bin")),
    "redirect with an endless body": Behaviour(redirect_with_endless_body),
    "redirect with a bomb": Behaviour(
        lambda request: request.answer(
            BOMB, f"Location: {request.url}/x", "Content-Encoding: gzip", status="302 Found"
        )
    ),
}
"""What servers do, by name."""


class OddServer:
    """Answers every connection as one behaviour says.

    Attributes:
        url: Of the server.
        requests: How many came.
    """

    def __init__(self, behaviour: Behaviour):
        self._behaviour = behaviour
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has gone
            connection.settimeout(20)
            head = b""
            while b"\r\n\r\n" not in head:
                received = connection.recv(1 << 16)
                if not received:
                    return
                head += received
            asked = re.search(rb"\r\nRange: bytes=(\d+)-", head)
            number, self.requests = self.requests, self.requests + 1
            start = int(asked[1]) if asked else 0
            self._behaviour.answer(Request(connection, start, number, self.url))


@contextmanager
def odd_server(behaviour: Behaviour) -> Iterator[OddServer]:
    """Run a server inside the block."""
    server = OddServer(behaviour)
    try:
        yield server
    finally:
        server.close()
