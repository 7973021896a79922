"""JSON objects that bear a digest of themselves: one wrong bit in one of their numbers is damage.

A flipped bit makes another digit of a digit, and what is read then looks sound.
"""

from __future__ import annotations

import re

import xxhash

_STAMP = re.compile(rb',\s*"check": "([0-9a-f]{16})"\s*\}\s*$')
_LONGEST = 100
"""Bytes at the end of an object among which its stamp is."""


class WrongStamp(ValueError):
    """What was read is not what was written."""


def stamp(text: str) -> str:
    """Return the text of a JSON object with ``"check"`` as one more member, the last one.

    Args:
        text: Of an object that has a member, and no ``"check"``.

    >>> stamp('{"step": 3}')
    '{"step": 3, "check": "9dd875c7545a5bc0"}'
    """
    body = text.rstrip()[:-1].rstrip()
    return f'{body}, "check": "{_digest(body.encode())}"}}'


def unstamp(content: bytes) -> bytes:
    """Return a JSON object without its ``"check"``.

    An object that has none is returned as it is: older versions, and other programs, wrote it.

    Raises:
        WrongStamp: It has one that does not fit.
    """
    start = max(0, len(content) - _LONGEST)
    found = _STAMP.search(content, start)
    if found is None:
        return content
    body = content[: found.start()]
    if _digest(body).encode() != found.group(1):
        raise WrongStamp("it is not what was written")
    return body + b"}"


def _digest(body: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(body)
