"""The manifest of a save: which run and step it is of, and a digest of each of its arrays.

Each array is bound to the manifest by its digest. The manifest is bound to its run and step by what
it says. The file has two lines: JSON is the second, and the digest of the JSON the first.
"""

from __future__ import annotations

from typing import Any

import xxhash
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from gnpcli.runs.contents import reason


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Manifest:
    """What a save says of itself."""

    run: str | None
    """From `gnpcli.runs.identity`; None where it is of no run, as imported weights are."""
    step: int
    error_rate: float | None
    """What "best" is judged by, in [0, 1]; None where it was not measured."""
    meta: dict[str, Any]
    """Configuration and data set, see `gnpcli.runs.description`."""
    digests: dict[str, dict[str, str]]
    """Of each array by its path, for each item of the save."""

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        text = _MANIFEST.dump_json(self)
        return xxhash.xxh3_128_hexdigest(text).encode() + b"\n" + text


_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def parse_manifest(content: bytes) -> Manifest:
    """Return what the content of a file says.

    Raises:
        ValueError: It is damaged; the message says how.
    """
    digest, _, text = content.partition(b"\n")
    if digest.decode("ascii", "replace") != xxhash.xxh3_128_hexdigest(text):
        raise ValueError("its manifest is not what was written")
    try:
        return _MANIFEST.validate_json(text)
    except ValidationError as error:
        raise ValueError(f"its manifest is of another version: {reason(error)}") from error
