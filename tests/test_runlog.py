"""The metrics of a run: what is read of a damaged file, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gnpcli.runs.log import MetricsLog, read_metrics

RECORDS = [{"step": step, "split": "train", "loss": 1.0 / step} for step in (1, 2, 3, 4)]


def written(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def line(record: object) -> bytes:
    return json.dumps(record).encode() + b"\n"


def test_a_whole_file_is_read_and_nothing_is_said(tmp_path):
    said: list[str] = []
    assert read_metrics(tmp_path / "absent.jsonl", said.append) == []
    path = written(tmp_path / "metrics.jsonl", *map(line, RECORDS))
    assert read_metrics(path, said.append) == RECORDS
    assert read_metrics(written(path), said.append) == []
    assert said == []


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (line(RECORDS[2])[:17], "is cut short"),
        (b'{"step": 3, "split": "tr\xc3', "is cut short"),  # in the middle of a character
        (b"\x00" * 64 + b"\n", "is damaged"),
        (b"17\n", "is damaged"),
        (b'{"step": 3}\n', "is damaged"),
        (b"\n", "is damaged"),
    ],
)
def test_a_damaged_file_is_read_up_to_the_damage_and_said_so(tmp_path, damage, what):
    said: list[str] = []
    path = written(tmp_path / "metrics.jsonl", *map(line, RECORDS[:2]), damage)
    assert read_metrics(path, said.append) == read_metrics(path) == RECORDS[:2]
    assert said == [f"line 3 of {path} {what}: the 2 record(s) before it are read"]


def test_what_lies_behind_the_damage_is_counted(tmp_path):
    said: list[str] = []
    path = written(
        tmp_path / "metrics.jsonl",
        line(RECORDS[0]),
        b"garbage\n",
        line(RECORDS[2]),
        line(RECORDS[3]),
    )
    assert read_metrics(path, said.append) == RECORDS[:1]
    assert said == [
        f"line 2 of {path} is damaged: the 1 record(s) before it are read, and 2 line(s) after it "
        "are not"
    ]


def test_a_run_that_goes_on_says_so_and_leaves_a_sound_file(tmp_path):
    said: list[str] = []
    path = written(tmp_path / "metrics.jsonl", *map(line, RECORDS[:3]), line(RECORDS[3])[:9])
    with MetricsLog(tmp_path, 2, on_damage=said.append) as log:
        log.write(RECORDS[2])
    assert read_metrics(path, said.append) == RECORDS[:3]
    assert len(said) == 1
    assert "line 4" in said[0]


@pytest.mark.parametrize(
    ("logged", "start", "every", "ends_with"),
    [
        ([], 3, 1, 0),
        ([1, 2], 3, 1, 2),
        ([1, 2, 3], 3, 1, None),
        ([], 0, 1, None),
        ([], 3, 4, None),  # the first record is due at step 4
        ([4], 7, 4, None),
        ([4], 8, 4, 4),
        ([9], 8, 4, 0),  # of steps that come again
    ],
)
def test_records_that_are_missing_at_the_end_are_told(tmp_path, logged, start, every, ends_with):
    said: list[str] = []
    path = tmp_path / "metrics.jsonl"
    if logged:
        written(path, *(line({**RECORDS[0], "step": step, "split": "train"}) for step in logged))
    MetricsLog(tmp_path, start, said.append, every=every).__exit__(None, None, None)
    told = f"{path} ends with step {ends_with}, and the run goes on after step {start}: "
    assert said == ([] if ends_with is None else [f"{told}what was logged between is lost"])


@pytest.mark.parametrize("value", ["x", [1.0], {"a": 1}, True])
def test_what_could_not_be_read_back_is_not_written(tmp_path, value):
    with MetricsLog(tmp_path, 0) as log, pytest.raises(ValueError, match="numbers by name"):
        log.write({**RECORDS[0], "odd": value})
    assert read_metrics(log.path) == []


def test_the_records_of_a_log_share_their_keys(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "a loss": 0.5}\n' * 2)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert all(one is other for one, other in zip(first, second, strict=True))
