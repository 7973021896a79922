"""The time limit of a run: when it stops, why, and how a command then ends."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gnpcli.engine.stopping import HOOK, TIME_LIMIT, Reason, Stop
from gnpcli.engine.time_limit import (
    JOB,
    JOB_END,
    MARGIN_S,
    SAVES,
    STEPS_BEHIND,
    TimeLimit,
    Work,
    end_of,
)
from gnpcli.errors import TRY_AGAIN, ConfigError
from gnpcli.recipes.presets import resolve
from gnpcli.runs.folder import RunFolder
from tests.conftest import Gnp, fails


class Clock:
    """Time that passes when a test says so."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_is_ahead_the_last_steps_and_a_save_must_fit(clock: Clock):
    limit = TimeLimit(1600, now=clock)
    longest: dict[Work, float] = {"step": 1, "evaluation": 30, "save": 5, "compilation": 60}
    for work, seconds in longest.items():
        limit.took(work, seconds)
        limit.took(work, seconds / 2)  # the longest counts
    stopping = STEPS_BEHIND * 1 + SAVES * 5 + MARGIN_S
    cases: list[tuple[list[Work], float]] = [
        (["step"], 1),
        (["step", "evaluation"], 31),
        (["compilation"], 60),
    ]
    for ahead, seconds in cases:
        assert limit.needed_s(ahead) == seconds + stopping
        clock.now_s = 1600 - seconds - stopping
        assert not limit.is_near(ahead)
        clock.now_s += 0.1
        assert limit.is_near(ahead)


def test_a_save_that_was_never_seen_is_taken_to_be_slow(clock: Clock):
    limit = TimeLimit(1600, state_bytes=2_000_000_000, now=clock)
    assert limit.needed_s([]) == SAVES * 20 + MARGIN_S
    limit.took("save", 50)
    assert limit.needed_s([]) == SAVES * 50 + MARGIN_S


def test_a_session_takes_one_step_at_least(clock: Clock):
    limit = TimeLimit(clock.now_s - 5, now=clock)
    assert not limit.is_near(["compilation"])
    with limit.timing("compilation"):
        clock.now_s += 3
    assert limit.is_near(["step"])


def test_without_a_limit_it_is_never_near(clock: Clock):
    limit = TimeLimit(None, now=clock)
    limit.took("step", 1e9)
    assert not limit.is_near(["step"])


def test_minutes_count_from_the_call_and_null_has_no_end():
    told: list[str] = []
    before = time.monotonic()
    end_s = end_of(2.5, told.append)
    assert end_s is not None
    assert before + 150 <= end_s <= time.monotonic() + 150
    assert end_of(None, told.append) is None
    assert told == []


def test_auto_is_the_end_of_the_job(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setenv(JOB_END, str(int(time.time()) + 1000))
    end_s = end_of("auto", told.append)
    assert end_s is not None
    assert 990 < end_s - time.monotonic() < 1001
    assert told == []
    monkeypatch.setenv(JOB_END, "tomorrow")
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME=tomorrow is no time in seconds"):
        end_of("auto", told.append)
    monkeypatch.delenv(JOB_END)
    monkeypatch.delenv(JOB, raising=False)
    assert end_of("auto", told.append) is None
    assert told == ["time limit  none: SLURM_JOB_END_TIME is not set"]


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ("1:59", 119),
        ("12:00:03", 43_203),
        ("2-00:00:01", 172_801),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
        ("no such job >&2; exit 1", None),
    ],
)
def test_auto_asks_a_slurm_that_sets_no_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, seconds: int | None
):
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\n[ "$2" = --jobs=17 ] && echo {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv(JOB_END, raising=False)
    monkeypatch.setenv(JOB, "17")
    told: list[str] = []
    before = time.monotonic()
    end_s = end_of("auto", told.append)
    if seconds is None:
        assert end_s is None
        assert told == [
            "time limit  none: SLURM_JOB_END_TIME is not set, and squeue tells no end of job 17"
        ]
        return
    assert told == []
    assert end_s is not None
    assert before + seconds <= end_s <= time.monotonic() + seconds


@pytest.mark.parametrize(
    ("value", "is_right"),
    [("30", True), ("0.5", True), ("auto", True), ("null", True), ("0", False), ("-1", False)]
    + [(value, False) for value in ("1e7", ".nan", ".inf", "true", "soon", "[1]")],
)
def test_a_limit_is_minutes_or_auto(value: str, is_right: bool):
    assignment = f"train.time_limit={value}"
    if is_right:
        resolve(None, [assignment])
        return
    with pytest.raises(ConfigError, match=r"train\.time_limit: .* neither auto nor a number"):
        resolve(None, [assignment])


def test_of_several_reasons_the_greatest_counts_and_stays(clock: Clock):
    received: list[signal.Signals] = []
    limit = TimeLimit(2000, now=clock)
    limit.took("step", 1)
    stop = Stop(received, limit)
    assert stop.reason(["step"]) is None
    stop.report(HOOK)
    assert stop.reason() == HOOK
    clock.now_s = 1999
    assert stop.reason() == HOOK  # no work is ahead, and the limit is not asked
    assert stop.reason(["step"]) == TIME_LIMIT
    stop.report(HOOK)
    assert stop.reason() == TIME_LIMIT
    received += [signal.SIGUSR1, signal.SIGTERM]
    assert stop.reason() == Reason.of_signal(signal.SIGUSR1)
    assert [HOOK.is_interruption, TIME_LIMIT.is_interruption] == [False, True]
    assert [HOOK.exit_status, TIME_LIMIT.exit_status] == [0, TRY_AGAIN]
    last = stop.reason()
    assert last is not None
    assert (str(last), last.exit_status) == ("SIGUSR1", 128 + signal.SIGUSR1)


INT, TERM = (Reason.of_signal(number).code for number in (signal.SIGINT, signal.SIGTERM))


@pytest.mark.parametrize(
    ("codes", "cause", "is_from_elsewhere"),
    [
        ([0], "None", False),
        ([TERM], "SIGTERM", False),
        ([TERM, TERM], "SIGTERM", False),
        ([TERM, 0], "SIGTERM to process 0", False),
        ([0, INT, TERM, TERM], "SIGTERM to processes 2 and 3", True),
        ([TIME_LIMIT.code, TERM, 0], "SIGTERM to process 1", True),
        ([0, TIME_LIMIT.code], "its time limit", False),
        ([HOOK.code, HOOK.code], "a hook", False),
    ],
)
def test_all_processes_take_the_greatest_reason_and_know_where_it_came_from(
    codes: list[int], cause: str, is_from_elsewhere: bool
):
    for own in codes:
        stop = Stop()
        if own:
            stop.report(Reason(own))
        asked: list[int] = []
        stop.settle(lambda code, asked=asked: asked.append(code) or codes)  # type: ignore[misc]
        assert asked == [own]
        assert stop.reason() == (Reason(max(codes)) if max(codes) else None)
        assert (stop.cause, stop.is_from_elsewhere) == (cause, is_from_elsewhere)
        stop.report(Reason.of_signal(signal.SIGTERM))
        assert stop.cause == cause


SMALL = ("train", "--gr", "none", "--set", "model.name=tests.small:small", "--run-dir", "run")


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_wrong_limit_on_the_command_line_is_one_line(gnp: Gnp, text: str):
    done = gnp(*SMALL, "--time-limit", text)
    assert done.returncode == (2 if text == "soon" else 1)
    assert "neither auto nor a number of minutes" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def limited(gnp: Gnp, *command: Any, **variables: str) -> int:
    """Run a command that stops at its time limit; return the step that it has come to."""
    done = gnp(*command, env=variables)
    fails(done, "stopped by its time limit after step", "saved; continue with", status=TRY_AGAIN)
    return int(done.stderr.partition("after step ")[2].partition(",")[0])


def test_a_job_that_is_over_takes_one_step_and_is_to_be_run_again(gnp: Gnp, tmp_path: Path):
    over = {JOB_END: str(int(time.time()) - 60)}
    command = (*SMALL, "--epochs", 2, "--resume", "--time-limit", "auto")
    assert [limited(gnp, *command, **over) for _ in range(2)] == [1, 2]
    run = RunFolder(tmp_path / "run")
    assert run.summary()["status"] == "interrupted"
    assert sorted(run.checkpoint_sizes()) == [1, 2]
    assert run.config().train.time_limit == "auto"
    done = gnp("resume", "run", "--time-limit", "1000", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    *_, last = run.sessions()
    assert last["computed_otherwise"] == ["train.time_limit: auto -> 1000.0"]


@pytest.mark.slow
def test_a_run_ends_before_its_limit(gnp: Gnp, tmp_path: Path):
    """Minutes are few, and steps many: most of them are the margin."""
    step = limited(gnp, *SMALL, "--epochs", 100_000, "--time-limit", 1.5)
    assert step > 1
    assert RunFolder(tmp_path / "run").checkpoint_sizes().keys() >= {step}
