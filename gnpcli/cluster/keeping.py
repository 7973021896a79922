"""What took long to find out, kept under the cache folder by all that it depends on.

A file that is damaged, or cannot be written, costs the time again, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gnpcli.devices.process import cache_dir
from gnpcli.files import write_atomically

Value = TypeVar("Value")


def kept(folder: str, parts: object) -> dict[str, Any]:
    """Return what `keep` was given for the same parts; nothing where there is nothing.

    Args:
        folder: Of the cache folder.
        parts: What it depends on, as JSON types.
    """
    try:
        found = json.loads(_place(folder, parts).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def kept_as(read: Callable[[dict[str, Any]], Value], folder: str, parts: object) -> Value | None:
    """Return what `read` makes of `kept`; None where there is nothing that it can read."""
    try:
        return read(kept(folder, parts))
    except (AttributeError, KeyError, TypeError):
        return None


def keep(folder: str, parts: object, values: dict[str, Any]) -> None:
    """Keep `values`, JSON types, for `parts`."""
    place = _place(folder, parts)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(values))


def _place(folder: str, parts: object) -> Path:
    text = json.dumps(parts, sort_keys=True)
    return cache_dir() / folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
