"""Logs, summaries and sessions as no run writes them: what the commands that read them must bear.

Each case is a file of a run folder, whose other files are sound. Cases come from tables: values
that fit no key, keys that no run has, and files that are no JSON. `gnp` has to end with exit status
0 and warnings, or with one line on what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gnpcli.recipes.presets import resolve
from gnpcli.runs.folder import RunFolder

__all__ = ["Case", "cases", "write_run"]


@dataclass(frozen=True)
class Case:
    """A run folder with one odd file."""

    name: str
    file: str
    """Of the run folder."""
    content: bytes


Raw = str
"""A JSON value as it stands in a file."""

LONG = "x" * 100_000

ODD: dict[str, Raw] = {
    "null": "null",
    "true": "true",
    "false": "false",
    "empty text": '""',
    "text": '"0.5"',
    "markup": '"<script>alert(1)</script>"',
    "formula": '"$\\\\frac{$"',
    "escape": '"\\u001b[31m\\u0000\\u202e"',
    "half a character": '"\\ud800"',
    "beyond fonts": '"\\u732b\\ud83d\\udc08"',
    "long text": f'"{LONG}"',
    "zero": "0",
    "zero float": "0.0",
    "minus zero": "-0.0",
    "minus one": "-1",
    "half": "0.5",
    "whole float": "2.0",
    "smallest": "5e-324",
    "tiny": "1e-300",
    "large": "1e300",
    "largest": "1.7976931348623157e308",
    "most negative": "-1.7976931348623157e308",
    "beyond floats": "1e400",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "2^31": str(2**31),
    "2^53 + 1": str(2**53 + 1),
    "2^62": str(2**62),
    "2^63": str(2**63),
    "-2^63": str(-(2**63)),
    "10^400": "1" + "0" * 400,
    "10^5000": "1" + "0" * 5000,
    "empty list": "[]",
    "list": "[1, 2]",
    "list of all": '[null, "a", 1e400, {}, [[]]]',
    "empty object": "{}",
    "object": '{"a": 1}',
    "deep list": "[" * 200 + "]" * 200,
    "bottomless list": "[" * 100_000,
}
"""JSON values, and what is almost one, by what they are."""

_TRAIN: dict[str, Any] = {
    "step": 44,
    "epoch": 1.0,
    "split": "train",
    "loss": 1.5,
    "cross_entropy": 1.5,
    "error_rate": 0.5,
    "clean_grad_norm": 2.0,
    "lr": 0.001,
    "images_per_s": 900.0,
    "elapsed_s": 2.5,
}
_TEST: dict[str, Any] = {
    "step": 44,
    "epoch": 1.0,
    "split": "test",
    "weights": "raw",
    "error_rate": 0.4,
    "loss": 1.4,
    "num_examples": 360,
    "top5_error_rate": 0.1,
    "non_finite": ["loss"],
}

RECORDS: tuple[dict[str, Any], ...] = (
    _TRAIN,
    _TEST,
    {**_TRAIN, "step": 88, "epoch": 2.0, "elapsed_s": 5.0},
    {**_TEST, "step": 88, "epoch": 2.0, "split": "val"},
    {**_TEST, "step": 88, "epoch": 2.0, "error_rate": 0.3},
)
"""A sound log."""

SUMMARY: dict[str, Any] = {
    "run_dir": "run",
    "status": "stopped",
    "step": 88,
    "epoch": 2.0,
    "total_steps": 352,
    "num_parameters": 2730,
    "skipped_steps": 0,
    "best_step": 88,
    "best_split": "test",
    "elapsed_s": 5.5,
    "images_per_s": 900.0,
    "test": {
        "step": 88,
        "weights": "raw",
        "error_rate": 0.3,
        "loss": 1.4,
        "num_examples": 360,
        "top5_error_rate": 0.1,
    },
}

SESSION: dict[str, Any] = {
    "start_step": 0,
    "python": "3.11.7",
    "platform": "Linux",
    "versions": {"gnpcli": "0.1.0", "jax": "0.10.2"},
    "backend": "cpu",
    "devices": ["cpu"],
    "processor": "one, 2 cores",
    "git_commit": None,
}


def write_run(folder: str | Any) -> None:
    """Write a run folder of sound files, without checkpoints."""
    from pathlib import Path

    run = RunFolder(Path(folder))
    run.create(resolve(None, ["data.validation_fraction=0.1"]))
    for name, content in SOUND.items():
        (run.path / name).write_bytes(content)


def cases() -> Iterator[Case]:
    """Yield every case."""
    yield from _odd_files()
    yield from _odd_records()
    yield from _odd_logs()
    yield from _odd_objects("summary.json", SUMMARY)
    yield from _odd_objects("summary.json", SUMMARY["test"], ("test",))
    yield from _odd_objects("environment.json", SESSION, ("sessions", 0))
    yield from _odd_objects("environment.json", SESSION["versions"], ("sessions", 0, "versions"))
    yield from _odd_objects("environment.json", {"sessions": [SESSION]})


def _log(records: list[Raw]) -> bytes:
    return "".join(f"{record}\n" for record in records).encode("utf-8", "surrogatepass")


def _with(values: dict[str, Any], key: str, raw: Raw) -> Raw:
    """Return an object as JSON in which one key has a raw value."""
    others = {name: json.dumps(value) for name, value in values.items()}
    others[key] = raw
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in others.items()) + "}"


SOUND: dict[str, bytes] = {
    "metrics.jsonl": _log([json.dumps(record) for record in RECORDS]),
    "summary.json": json.dumps(SUMMARY).encode(),
    "environment.json": json.dumps({"sessions": [SESSION]}).encode(),
}

_FILES: dict[str, bytes] = {
    "empty": b"",
    "space": b" \n\n ",
    "no JSON": b"hello",
    "NUL": b"\0" * 1000,
    "Latin-1": b'{"step": 1, "split": "\xe9"}',
    "UTF-16": '{"step": 1, "split": "test"}\n'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + SOUND["metrics.jsonl"],
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "whole and deep": b"[" * 100_000 + b"]" * 100_000,
    "a list": b"[1, 2, 3]",
    "a number": b"1",
    "a text": b'"text"',
    "null": b"null",
    "two values": b"{} {}",
    "a long line": b'{"step": 1, "split": "' + b"x" * 10_000_000 + b'"}',
    "many keys": json.dumps({f"key {index}": index for index in range(100_000)}).encode(),
}


def _odd_files() -> Iterator[Case]:
    for file in SOUND:
        for name, content in _FILES.items():
            yield Case(f"{file}: {name}", file, content)


def _odd_records() -> Iterator[Case]:
    """Yield logs in which a key of the first, the last, or every record is odd, or is missing."""
    for place in (0, 1, len(RECORDS) - 1, None):
        chosen = [place] if place is not None else list(range(len(RECORDS)))
        keys = dict.fromkeys(key for index in chosen for key in RECORDS[index])
        where = f"record {place}" if place is not None else "every record"
        for key in [*keys, "of one's own"]:
            for name, raw in ODD.items():
                lines = [json.dumps(record) for record in RECORDS]
                for index in chosen:
                    lines[index] = _with(RECORDS[index], key, raw)
                yield Case(f"{where}: {key} is {name}", "metrics.jsonl", _log(lines))
            without = [
                {
                    name: value
                    for name, value in record.items()
                    if name != key or index not in chosen
                }
                for index, record in enumerate(RECORDS)
            ]
            lines = [json.dumps(record) for record in without]
            yield Case(f"{where}: no {key}", "metrics.jsonl", _log(lines))


_KEYS = ("", " ", "\0", "\x1b[2J", "\ud800", "<b>", "$\\frac{$", "猫", "__class__", "x" * 100_000)
"""Names that no metric has."""


def _odd_logs() -> Iterator[Case]:
    """Yield logs whose lines are records, and which no run writes."""
    train, test = RECORDS[0], RECORDS[1]
    for key in _KEYS:
        name = f"a metric named {key[:20]!a}"
        own = [json.dumps({**train, "step": step, key: 0.5}) for step in (1, 2)]
        yield Case(name, "metrics.jsonl", _log(own))
        own = [json.dumps({**train, "step": step, "split": key}) for step in (1, 2)]
        yield Case(f"{name}, as a split", "metrics.jsonl", _log(own))
    logs: dict[str, list[dict[str, Any]]] = {
        "steps fall": [{**train, "step": step} for step in (88, 44, 0)],
        "steps repeat": [{**test, "step": 44} for _ in range(5)],
        "steps alternate": [{**test, "step": step} for step in (1, 50, 2, 40, 3, 30)],
        "epochs fall": [{**train, "step": step, "epoch": 3.0 - step} for step in range(4)],
        "time falls": [{**train, "step": step, "elapsed_s": 9.0 - step} for step in range(9)],
        "epochs of 0": [{**test, "step": step, "epoch": 0.0} for step in (1, 20_001)],
        "tiny epochs": [{**test, "step": step, "epoch": 1e-300} for step in (1, 20_001)],
        "huge epochs": [{**test, "step": step, "epoch": 1e300} for step in (1, 2)],
        "far steps": [{**test, "step": 2**62 + step} for step in range(3)],
        "one step": [train],
        "all null": [{**dict.fromkeys(test), "step": 1, "split": "test"}],
        "only steps": [{"step": step, "split": "train"} for step in range(3)],
        "only unknown splits": [{**train, "split": "dev"}],
        "many splits": [{**train, "split": f"split {index}"} for index in range(1000)],
        "many keys": [{**train, **{f"key {index}": 0.5 for index in range(3000)}}],
        "many keys of a line": [
            {"step": step, "split": "train", f"key {step}": 0.5} for step in range(3000)
        ],
        "largest to smallest": [
            {**train, "step": step, "loss": value, "error_rate": value}
            for step, value in enumerate((1.7e308, -1.7e308, 5e-324, 0.0))
        ],
    }
    for name, records in logs.items():
        yield Case(name, "metrics.jsonl", _log([json.dumps(record) for record in records]))
    twice = '{"step": 1, "step": 2, "split": "test", "error_rate": 0.5, "error_rate": "a"}'
    yield Case("keys twice", "metrics.jsonl", _log([twice, twice]))
    crlf = SOUND["metrics.jsonl"].replace(b"\n", b"\r\n")
    yield Case("lines of DOS", "metrics.jsonl", crlf)
    yield Case("blank lines", "metrics.jsonl", SOUND["metrics.jsonl"].replace(b"\n", b"\n\n"))


def _odd_objects(
    file: str, values: dict[str, Any], place: tuple[str | int, ...] = ()
) -> Iterator[Case]:
    """Yield a JSON file whose object at `place` has an odd key, lacks one, or has one too many."""
    inside = ".".join(map(str, place)) or "the whole"
    whole = json.loads(SOUND[file])
    for key in [*values, "of one's own"]:
        for name, raw in ODD.items():
            text = _placed(whole, place, _with(values, key, raw))
            yield Case(f"{file}, {inside}: {key} is {name}", file, text)
        rest = {name: value for name, value in values.items() if name != key}
        text = _placed(whole, place, json.dumps(rest))
        yield Case(f"{file}, {inside}: no {key}", file, text)
    for key in _KEYS:
        text = _placed(whole, place, json.dumps({**values, key: "x"}))
        yield Case(f"{file}, {inside}: a key {key[:20]!a}", file, text)
    for name, raw in ODD.items():
        yield Case(f"{file}, {inside} is {name}", file, _placed(whole, place, raw))


def _placed(whole: Any, place: tuple[str | int, ...], raw: Raw) -> bytes:
    """Return a JSON value in which what is at `place` is a raw value."""
    if not place:
        return raw.encode()
    mark = "the place of the odd value"
    copy = json.loads(json.dumps(whole))
    inner = copy
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = mark
    return json.dumps(copy).replace(json.dumps(mark), raw).encode()
