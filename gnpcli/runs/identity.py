"""The name of a run, which its saves bear. It holds wherever the folder of the run is."""

from __future__ import annotations

import secrets
import zlib


def new_run_id() -> str:
    """Return a random name: 16 hex digits, and 8 that check them."""
    number = secrets.token_hex(8)
    return number + _check_digits(number)


def checked_run_id(text: str) -> str:
    """Return `text`.

    Raises:
        ValueError: It does not come from `new_run_id`. One whose bits are flipped does not.
    """
    if len(text) != 24 or text[16:] != _check_digits(text[:16]):
        raise ValueError("it is no name of a run")
    return text


def _check_digits(number: str) -> str:
    return f"{zlib.crc32(number.encode()):08x}"
