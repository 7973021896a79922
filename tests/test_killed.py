"""A run that was killed leaves, when it has been resumed, the log of one that was not."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from gnpcli.config.resolved import Resolved
from gnpcli.engine.loop import Loop
from gnpcli.engine.train import resume, train
from gnpcli.errors import Interrupted
from gnpcli.recipes.presets import resolve
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import MetricsLog, read_metrics
from tests.once import Programs

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # raised inside Orbax, about itself
    pytest.mark.usefixtures("shared_programs"),
]

CLOCK = ("elapsed_s", "images_per_s")
MOMENTS = {"write": (MetricsLog, 14), "save": (Checkpoints, 3), "write_summary": (RunFolder, 1)}
"""What a whole run calls, and how often: 10 steps, 2 evaluations of 2 splits, saves at 4, 8, 10."""


class Killed(BaseException):
    """Stands for SIGKILL, which no code of ours sees."""


@pytest.fixture(autouse=True)
def _standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


def config() -> Resolved:
    return resolve(
        None,
        [
            "data.batch_size=256",
            "data.validation_fraction=0.1",
            "train.epochs=2",
            "schedule.warmup_epochs=1",
            "train.log_every_steps=1",
            "mesh.devices=1",
            "model.name=tests.small:small",
            "checkpoint.every_steps=4",
            "checkpoint.every_epochs=null",
        ],
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with programs.shared(), jax.numpy_dtype_promotion("standard"):
        train(config(), folder, quiet=True)
    return folder


def log(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in CLOCK}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def events(folder: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows: a session that starts at a step makes it forget what was from there
    on.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown: list[tuple[int, str, float]] = []
    for path in sorted(folder.glob("*tfevents*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                shown = [value for value in shown if value[0] < event.step]
            for value in event.summary.value:
                if value.tag.rpartition("/")[2] not in CLOCK:
                    shown.append((event.step, value.tag, value.simple_value))
    return shown


def kill(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, when: str) -> None:
    """End the run before or after a call of a method."""
    method, calls = getattr(owner, name), iter(range(1, 1000))

    def killed(self: Any, *args: Any, **options: Any) -> Any:
        is_due = next(calls) == call
        if is_due and when == "before":
            raise Killed
        result = method(self, *args, **options)
        if is_due:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killed)


def every_moment() -> Iterator[Any]:
    for name, (_, count) in MOMENTS.items():
        for call in range(1, count + 1):
            for when in ("before", "after"):
                is_quick = (name, call, when) in QUICK
                marks = [] if is_quick else [pytest.mark.slow]
                yield pytest.param(name, call, when, marks=marks, id=f"{when} {name} {call}")


QUICK = {
    ("write_summary", 1, "before"),
    ("write", 13, "after"),  # the last evaluation, between its two splits
}


@pytest.mark.slow
def test_the_moments_are_all_of_a_run(undisturbed):
    records = log(undisturbed)
    assert len(records) == MOMENTS["write"][1]
    assert [record["split"] for record in records[-3:]] == ["train", "val", "test"]


@pytest.mark.parametrize(("name", "call", "when"), [*every_moment()])
def test_killed_and_resumed_is_the_log_of_an_undisturbed_run(
    undisturbed, tmp_path, monkeypatch, name, call, when
):
    folder = tmp_path / "run"
    kill(monkeypatch, MOMENTS[name][0], name, call, when)
    with pytest.raises(Killed):
        train(config(), folder, quiet=True)
    monkeypatch.undo()
    summary = resume(folder, quiet=True)
    assert summary["status"] == "finished"
    assert log(folder) == log(undisturbed)
    assert events(folder) == events(undisturbed)


def test_a_signal_before_the_last_evaluation_comes_again_is_no_finished_run(
    undisturbed, tmp_path, monkeypatch
):
    """Nothing is left to train then, and nothing has been measured."""
    folder = tmp_path / "run"
    kill(monkeypatch, RunFolder, "write_summary", 1, "before")
    with pytest.raises(Killed):
        train(config(), folder, quiet=True)
    monkeypatch.undo()

    def signalled(*args: Any) -> Loop:
        signal.raise_signal(signal.SIGTERM)
        return Loop(*args)

    monkeypatch.setattr("gnpcli.engine.session.Loop", signalled)
    with pytest.raises(Interrupted):
        resume(folder, quiet=True)
    monkeypatch.undo()
    assert resume(folder, quiet=True)["status"] == "finished"
    assert log(folder) == log(undisturbed)


STARTS = [("create", "before"), ("identify", "before"), ("identify", "after")]
STARTS += [("note_session", "before"), ("note_session", "after"), ("write_summary", "after")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "when"), STARTS)
def test_one_call_starts_a_run_and_goes_on_wherever_it_was_killed(
    undisturbed, tmp_path, monkeypatch, name, when
):
    folder = tmp_path / "run"
    kill(monkeypatch, RunFolder, name, 1, when)
    with pytest.raises(Killed):
        train(config(), folder, quiet=True, resume=True)
    monkeypatch.undo()
    for _ in range(2):
        assert train(config(), folder, quiet=True, resume=True)["status"] == "finished"
    assert log(folder) == log(undisturbed)
    assert events(folder) == events(undisturbed)
