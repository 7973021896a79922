"""Logs and JSON files of a run bear digests: every flipped bit is noticed, or changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gnpcli.runs.contents import Summary
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import MetricsLog, parse_records
from gnpcli.runs.stamped import WrongStamp, stamp, unstamp

RECORDS = [
    {"step": 5, "epoch": 0.5, "split": "train", "loss": 2.25, "lr": 1e-3},
    {"step": 10, "epoch": 1.0, "split": "test", "error_rate": 0.133, "weights": "raw"},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("value", [{"a": 1}, {"a": {"b": [1.5, None]}, "c": "}\n, é"}])
def test_what_is_stamped_is_read_back(value: dict[str, object], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    stamped = stamp(text)
    assert json.loads(stamped) == {**value, "check": json.loads(stamped)["check"]}
    assert json.loads(unstamp(stamped.encode())) == value
    assert unstamp(text.encode()) == text.encode()  # of an older version


def flips(content: bytes) -> list[bytes]:
    return [
        content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]
        for place in range(len(content))
        for bit in range(8)
    ]


def test_every_flipped_bit_of_a_log_is_noticed_or_harmless(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        for record in RECORDS:
            log.write(record)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for flipped in flips(whole):
        path.write_bytes(flipped)
        records, damage = parse_records(path)
        assert records == RECORDS[: len(records)]
        assert damage is not None or len(records) == len(RECORDS)


def test_every_flipped_bit_of_a_summary_is_noticed_or_harmless(tmp_path: Path) -> None:
    told: list[str] = []
    summary: Summary = {"status": "stopped", "step": 10, "epoch": 1.0, "elapsed_s": 12.5}
    written = RunFolder(tmp_path).write_summary(summary)
    path = tmp_path / "summary.json"
    for flipped in flips(path.read_bytes()):
        path.write_bytes(flipped)
        told.clear()
        found = RunFolder(tmp_path, told.append).summary()
        same = {key: value for key, value in found.items() if key in written} == written
        assert same or (told and found == {"status": "unfinished"}), flipped


def test_a_wrong_stamp_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongStamp, match="not what was written"):
        unstamp(stamp('{"loss": 13.3}').replace("13.3", "33.3").encode())
    told: list[str] = []
    RunFolder(tmp_path).write_summary({"status": "stopped", "step": 10})
    path = tmp_path / "summary.json"
    path.write_text(path.read_text().replace("10", "11"))
    assert RunFolder(tmp_path, told.append).summary() == {"status": "unfinished"}
    assert told == [f"{path} is damaged (it is not what was written): it is left out"]
