"""Odd inputs: values, YAML texts, logs, files of weights, made from random numbers."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
VALUES = (
    *(_HERE / "values.txt").read_text(encoding="utf-8").splitlines(),
    *("", ": ", "1" + 20 * "0", "9" * 400, "9" * 5000, "0." + 400 * "3", "a" * 300),
    *("\tx", "x\ny", "|\n x", "\ufeff1", "1\u00a0", "\u202e", "\x1b[31mred"),
    *("/" + 3000 * "a/", 3000 * "[", 500 * "{a: "),
)
"""What somebody may type for any key, by accident or not."""


def _bomb() -> str:
    """Return a text whose aliases stand for 9 ** 12 scalars."""
    levels = [f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12)]
    return "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(levels)


TEXTS = (
    *(_HERE / "presets.txt").read_text(encoding="utf-8").split("=====\n"),
    *("", "\n", 20_000 * "[", 20_000 * "{a: ", 3_000 * "- ", 3_000 * "a: "),
    "".join(f"{' ' * depth}a:\n" for depth in range(400)),
    _bomb(),
    "".join(f"k{number}: {number}\n" for number in range(20_000)),
    "model: {name: vit-nano}\n" * 2_000,
    f"x: {'9' * 200_000}\n",
    f"x: '{'a' * 1_000_000}'\n",
)
"""Whole files that are no configuration."""

BYTES = (
    b"\0",
    b"\xff\xfe",
    b"\xff\xfem\0o\0d\0e\0l\0:\0",
    b"\xfe\xff\0m\0o\0d\0e\0l",
    b"\xef\xbb\xbfmodel: {name: vit-nano}\n",
    b"\x80\x81",
    b"a: \xe9\n",
    bytes(range(256)),
    b"PK\x03\x04",
    b"\x7fELF",
    b"\r\n\r\n",
    b"a: b\rc: d\r",
    b"a: \x00\n",
    b"a: \x1b[2J\n",
    b"a: \xf4\x90\x80\x80\n",
)


def tree(text: str, numbers: random.Random) -> str:
    """Return a YAML mapping with one to three of its nodes changed."""
    values = yaml.safe_load(text)
    for _ in range(numbers.choice((1, 1, 1, 2, 3))):
        _change(values, numbers)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return the container and the key of every node below a value."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *_places(value[key])]
    return found


def _change(values: Any, numbers: random.Random) -> None:
    places = _places(values)
    if not places:
        return
    parent, key = numbers.choice(places)
    match numbers.randrange(7):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[_scalar(numbers)] = parent.pop(key)
        case 2:
            other, name = numbers.choice(places)
            parent[key] = (
                json.loads(json.dumps(other[name], default=str)) if name in _keys(other) else None
            )
        case 3 if isinstance(parent, dict):
            parent[f"{key}{numbers.choice(('s', '_', ' ', '.x', '/..'))}"] = parent[key]
        case 4:
            parent[key] = [parent[key]] * numbers.choice((1, 2, 50))
        case 5:
            parent[key] = {str(_scalar(numbers)): parent[key]}
        case _:
            parent[key] = _scalar(numbers)


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


def _scalar(numbers: random.Random) -> Any:
    """Return a value of any type that YAML can write."""
    plain = (None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, 5e-324)
    texts = ("", " ", "x", "..", "../x", "a/b", "/", "\0", "\x1b[31m", "name", "set", "0", "1e5")
    odd = ("null", "~", "a" * 300, "é" * 100, "\u202e", float("inf"), float("-inf"), float("nan"))
    return numbers.choice((*plain, *texts, *odd, numbers.choice(VALUES)))


def scramble(content: bytes, numbers: random.Random) -> bytes:
    """Return bytes with some of them changed, lost, doubled or moved."""
    mutable = bytearray(content)
    for _ in range(numbers.choice((1, 1, 2, 8, 40))):
        if not mutable:
            break
        at = numbers.randrange(len(mutable))
        length = numbers.choice((1, 1, 2, 7, 64, 4096))
        match numbers.randrange(6):
            case 0:
                mutable[at] ^= 1 << numbers.randrange(8)
            case 1:
                del mutable[at : at + length]
            case 2:
                mutable[at:at] = mutable[at : at + length]
            case 3:
                mutable[at:at] = numbers.randbytes(length)
            case 4:
                mutable[at : at + length] = bytes(length)
            case _:
                odd = numbers.choice(
                    (b"{", b"}", b"[", b'"', b":", b"\n", b"-", b"&a ", b"*a", b"\t")
                )
                mutable[at:at] = odd
    if numbers.randrange(8) == 0:
        del mutable[numbers.randrange(len(mutable) + 1) :]
    return bytes(mutable)


ODD_JSON = (
    *(
        "null",
        "true",
        "-1",
        "0",
        "-0",
        "0.0",
        "-0.0",
        "1e400",
        "-1e400",
        "1" + 400 * "0",
        "1e-400",
        "NaN",
    ),
    *(
        "Infinity",
        "-Infinity",
        "5e-324",
        "1.7976931348623157e308",
        "9223372036854775808",
        "0.1",
        "1e300",
    ),
    *(
        '""',
        '"x"',
        '"\\u0000"',
        '"\\ud800"',
        '"\\u001b[31m"',
        "[]",
        "[[]]",
        "{}",
        '{"a": {}}',
        "[1, 2]",
    ),
    *(
        '"train"',
        '"test"',
        '"val"',
        '"<script>alert(1)</script>"',
        "[null]",
        5000 * "[" + 5000 * "]",
    ),
    *(
        '"' + "a" * 10_000 + '"',
        "9" * 5000,
        "1.5",
        '"1"',
        "[true]",
        '["loss"]',
        "16777217",
        "2147483648",
    ),
)


def jsonl(lines: list[dict[str, Any]], numbers: random.Random) -> bytes:
    """Return a log, or another JSON file of one line, in which some values are odd."""
    texts = [json.dumps(line) for line in lines]
    for _ in range(numbers.choice((1, 1, 2, 5))):
        at = numbers.randrange(len(texts))
        try:
            values = json.loads(texts[at])
            parent, key = numbers.choice(_places(values))
        except (ValueError, IndexError, RecursionError):
            continue
        if numbers.randrange(4) == 0:
            del parent[key]
            texts[at] = json.dumps(values)
            continue
        parent[key] = "@odd@"
        texts[at] = json.dumps(values).replace('"@odd@"', numbers.choice(ODD_JSON))
    match numbers.randrange(8):
        case 0:
            numbers.shuffle(texts)
        case 1:
            texts *= 3
        case 2:
            return scramble("\n".join(texts).encode("utf-8", "surrogatepass"), numbers)
        case 3:
            texts.insert(numbers.randrange(len(texts) + 1), numbers.choice(ODD_JSON))
    return ("\n".join(texts) + "\n").encode("utf-8", "surrogatepass")


def safetensors_header(change: Callable[[dict[str, Any]], Any], content: bytes) -> bytes:
    """Return a safetensors file whose header is changed and whose data are the old ones."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
