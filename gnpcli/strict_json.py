"""JSON as the standard has it, which knows neither NaN nor infinities: they become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that every parser reads.

    Args:
        value: Of mappings with keys of text, lists, tuples, texts, numbers, bools and None.
        indent: Spaces of each level; None writes it on one line.

    >>> to_json({"loss": float("nan"), "errors": (0.5, float("inf"))})
    '{"loss": null, "errors": [0.5, null]}'
    """
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a value with None for each float in it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
