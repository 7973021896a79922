"""Whole runs, in this process: the run folder, exact resuming, when a run evaluates and saves,
divergence.
"""

from __future__ import annotations

import itertools
import json
import math
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gnpcli import __version__
from gnpcli.config.loader import read_yaml, validate
from gnpcli.config.resolved import Resolved
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.devices.signals import STOP_SIGNALS
from gnpcli.engine.evaluate import Evaluated, evaluate_trained
from gnpcli.engine.evaluator import Evaluator
from gnpcli.engine.pending import LOOKAHEAD
from gnpcli.engine.task import build_task
from gnpcli.engine.train import _prepare, resume, train
from gnpcli.errors import CheckpointError, ConfigError, DivergenceError, Interrupted
from gnpcli.models.registry import model_section
from gnpcli.recipes.presets import read_resolved, resolve
from gnpcli.runs.folder import RunFolder, claimed_run
from gnpcli.runs.location import Location, locate
from gnpcli.runs.log import MetricsLog, read_metrics
from gnpcli.runs.names import default_run_dirs
from gnpcli.runs.saves import Saves
from gnpcli.runs.trained import open_trained
from gnpcli.step.schedules import lr_schedule
from gnpcli.terminal.screen import Screen
from tests.once import Programs
from tests.programs import compilations

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # raised inside Orbax, about itself

SMALL = [
    "data.batch_size=256",
    "train.epochs=4",
    "schedule.warmup_epochs=1",
    "train.log_every_steps=1",
    "mesh.devices=1",
    "model.name=tests.small:small",
    "checkpoint.every_epochs=1",
]
"""5 steps an epoch, 20 in all, of them 5 plain; dropout and augmentation draw from the run's keys.
"""


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


def config(*assignments: str) -> Resolved:
    return resolve(None, [*SMALL, *assignments])


def evaluate(
    location: Location,
    *,
    data: dict[str, Any],
    split: str,
    step: int | None,
    best: bool,
    quiet: bool,
) -> Evaluated:
    """Evaluate a checkpoint, as the command does."""
    screen = Screen(quiet=quiet)
    trained = open_trained(location, step=step, best=best, screen=screen)
    return evaluate_trained(trained, data=data, split=split, screen=screen)


def lines(run_dir: Path, split: str) -> list[dict[str, Any]]:
    """Records without wall-clock fields, which no run repeats."""
    clock = ("elapsed_s", "images_per_s")
    records = [
        record for record in read_metrics(run_dir / "metrics.jsonl") if record["split"] == split
    ]
    return [{key: value for key, value in record.items() if key not in clock} for record in records]


def saved(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a saved state by its path."""
    saves = Saves(run_dir / "checkpoints")
    own = read_resolved([read_yaml(run_dir / "config.yaml")])
    task, _ = _prepare(own, None, Screen(quiet=True))
    state = saves.restore(step, task.abstract_state())
    leaves = jax.tree_util.tree_leaves_with_path(state._replace(key=jax.random.key_data(state.key)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_state(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> Path:
    """A finished run of 20 steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    with programs.shared(), jax.numpy_dtype_promotion("standard"):
        summary = train(config(), run_dir, quiet=True)
    assert summary["status"] == "finished"
    return run_dir


def test_a_run_folder_holds_what_the_run_was(whole):
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "environment.json",
        "checkpoints",
    } <= names
    assert any("tfevents" in name for name in names)
    assert read_resolved([read_yaml(whole / "config.yaml")]) == config()
    (session,) = json.loads((whole / "environment.json").read_text())["sessions"]
    assert session["start_step"] == 0
    assert session["versions"]["jax"] == jax.__version__
    assert session["versions"]["gnpcli"] == __version__
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["step"], summary["total_steps"], summary["epoch"]) == (20, 20, 4)
    assert summary["test"]["num_examples"] == 360


def test_metrics_have_every_step_with_both_passes_and_the_schedules(whole):
    records = lines(whole, "train")
    assert [record["step"] for record in records] == list(range(1, 21))
    for record in records:
        assert {
            "loss",
            "perturbed_loss",
            "clean_grad_norm",
            "perturbed_grad_norm",
            "grad_cosine",
            "update_norm",
            "update_ratio",
            "clip_ratio",
            "surrogate_gap",
            "lr",
            "r",
            "alpha",
            "lambda",
            "adaptive_lr_mean",
            "adaptive_lr_variance",
            "adaptive_lr_log_variance",
            "skipped_steps",
        } <= set(record)
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))
    plain, full = records[:5], records[5:]
    assert {(record["r"], record["alpha"], record["grad_cosine"]) for record in plain} == {
        (0, 0, 1)
    }
    gr = config().gr
    assert {(record["r"], record["alpha"]) for record in full} == {
        (float(np.float32(gr.r)), float(np.float32(gr.alpha)))
    }
    assert all(record["perturbed_loss"] > record["loss"] for record in full)
    for record in records:
        np.testing.assert_allclose(record["lambda"], record["alpha"] * record["r"], rtol=1e-6)
        np.testing.assert_allclose(
            record["surrogate_gap"], record["perturbed_loss"] - record["loss"], atol=1e-6
        )
        np.testing.assert_allclose(
            record["update_ratio"], record["update_norm"] / record["grad_norm"], rtol=1e-5
        )
        clip_norm = config().train.clip_norm or math.inf
        np.testing.assert_allclose(
            record["clip_ratio"], min(1, clip_norm / record["grad_norm"]), rtol=1e-5
        )
    np.testing.assert_allclose(
        [record["lr"] for record in records[:6]],
        np.arange(6) / 5 * config().optimizer.lr,
        rtol=1e-5,
    )


def test_evaluation_comes_with_every_epoch_and_counts_every_image(whole):
    records = lines(whole, "test")
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert {record["num_examples"] for record in records} == {360}
    assert all({"error_rate", "loss", "top5_error_rate"} <= set(record) for record in records)
    assert records[-1]["loss"] < records[0]["loss"]


def test_tensorboard_holds_the_same_values(whole):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = whole.glob("*tfevents*")
    data, found, place = path.read_bytes(), {}, 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + length])
        place += 12 + length + 4
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    for record in read_metrics(whole / "metrics.jsonl"):
        for key, value in record.items():
            if isinstance(value, float) and key != "epoch":
                np.testing.assert_allclose(
                    found[f"{record['split']}/{key}", record["step"]], value, rtol=1e-6
                )


def test_the_latest_checkpoints_and_the_best_are_kept(whole):
    saves = Saves(whole / "checkpoints")
    rates = {record["step"]: record["error_rate"] for record in lines(whole, "test")}
    best = min(rates, key=lambda step: (rates[step], -step))
    assert set(saves.steps()) == {10, 15, 20} | {best}
    assert (
        saves.best_step() == best == json.loads((whole / "summary.json").read_text())["best_step"]
    )


@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize("stop", [3, 7, 10])
def test_stopping_and_resuming_changes_nothing(whole, tmp_path, stop):
    run_dir = tmp_path / "halves"
    summary = train(config(), run_dir, max_steps=stop, quiet=True)
    assert (summary["status"], summary["step"]) == ("stopped", stop)
    summary = resume(run_dir, quiet=True)
    assert (summary["status"], summary["step"]) == ("finished", 20)
    assert_same_state(saved(run_dir, 20), saved(whole, 20))
    assert lines(run_dir, "train") == lines(whole, "train")
    ends = {record["step"]: record for record in lines(run_dir, "test")}
    assert [ends[step] for step in (5, 10, 15, 20)] == lines(whole, "test")
    sessions = json.loads((run_dir / "environment.json").read_text())["sessions"]
    assert [session["start_step"] for session in sessions] == [0, stop]


def test_each_step_is_compiled_once(whole, tmp_path, monkeypatch):
    tasks = []
    build = build_task
    monkeypatch.setattr(
        "gnpcli.engine.train.build_task", lambda *args: tasks.append(build(*args)) or tasks[-1]
    )
    train(config(), tmp_path / "run", max_steps=7, quiet=True)
    resume(tmp_path / "run", max_steps=12, quiet=True)
    assert [
        (compilations(task.steps["plain"]), compilations(task.steps["gnp"])) for task in tasks
    ] == [
        (1, 1),
        (0, 1),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        ["gr.every=3", "gr.between=reuse", "gr.groups=2", "train.accumulate=4"],
        ["gr.probability=0.2", "gr.probability_end=1"],
    ],
)
def test_steps_of_either_kind_resume_bit_for_bit(tmp_path, monkeypatch, variant):
    """Stopped between two penalised steps: what is reused, and the coins, are part of the run."""
    tasks = []
    build = build_task
    monkeypatch.setattr(
        "gnpcli.engine.train.build_task", lambda *args: tasks.append(build(*args)) or tasks[-1]
    )
    settings = config(
        "train.epochs=2", "gr.strategy=sam", "gr.r=0.1", "checkpoint.every_steps=5", *variant
    )
    train(settings, tmp_path / "whole", quiet=True)
    train(settings, tmp_path / "parts", max_steps=5, quiet=True)
    resume(tmp_path / "parts", quiet=True)
    assert_same_state(saved(tmp_path / "whole", 10), saved(tmp_path / "parts", 10))
    records = lines(tmp_path / "whole", "train")
    assert records == lines(tmp_path / "parts", "train")
    kinds = tasks[0].parts.schedule.kinds
    assert [record["r"] > 0 for record in records] == [kind == "gnp" for kind in kinds]
    assert [record["alpha"] > 0 for record in records] == [kind != "plain" for kind in kinds]
    assert 0 < sum(kind == "gnp" for kind in kinds) < 10


def test_groups_per_device_are_recorded_as_their_number(tmp_path):
    assert (
        train(config("gr.groups=per-device"), tmp_path / "run", max_steps=0, quiet=True)["step"]
        == 0
    )
    assert validate(read_yaml(tmp_path / "run" / "config.yaml"), model_section).gr.groups == 1


def test_a_run_without_gr_never_compiles_the_gnp_step(tmp_path, monkeypatch):
    tasks = []
    build = build_task
    monkeypatch.setattr(
        "gnpcli.engine.train.build_task", lambda *args: tasks.append(build(*args)) or tasks[-1]
    )
    train(config("gr.strategy=none"), tmp_path / "run", max_steps=6, quiet=True)
    assert (compilations(tasks[0].steps["plain"]), compilations(tasks[0].steps["gnp"])) == (1, 0)


def test_alpha_zero_is_bit_identical_to_no_gr(tmp_path):
    for name, assignment in (("none", "gr.strategy=none"), ("zero", "gr.alpha=0")):
        train(config("gr.strategy=constant", assignment), tmp_path / name, max_steps=6, quiet=True)
    assert_same_state(saved(tmp_path / "none", 6), saved(tmp_path / "zero", 6))


def test_saving_by_steps_and_evaluating_rarely(tmp_path):
    changes = [
        "checkpoint.every_steps=4",
        "checkpoint.every_epochs=null",
        "checkpoint.keep=9",
        "train.eval_every_epochs=3",
    ]
    train(config(*changes), tmp_path / "run", quiet=True)
    assert Saves(tmp_path / "run" / "checkpoints").steps() == [4, 8, 12, 16, 20]
    assert [record["step"] for record in lines(tmp_path / "run", "test")] == [15, 20]


def test_validation_decides_the_best_where_there_is_one(tmp_path):
    summary = train(
        config("data.validation_fraction=0.1", "data.batch_size=128"),
        tmp_path / "run",
        quiet=True,
        max_steps=20,
    )
    assert summary["best_split"] == "val"
    assert 130 < summary["val"]["num_examples"] < 160
    rates = {record["step"]: record["error_rate"] for record in lines(tmp_path / "run", "val")}
    assert summary["best_step"] == min(rates, key=lambda step: (rates[step], -step))


def test_no_steps_at_all_saves_and_evaluates_the_initial_model(tmp_path):
    summary = train(config(), tmp_path / "run", max_steps=0, quiet=True)
    assert (summary["status"], summary["step"]) == ("stopped", 0)
    assert 0.8 < summary["test"]["error_rate"] < 1
    assert resume(tmp_path / "run", max_steps=0, quiet=True) == summary


@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_and_says_how_to_go_on(whole, tmp_path, monkeypatch, number):
    run_dir = tmp_path / "run"
    write = MetricsLog.write

    def write_and_signal(self: MetricsLog, record: Any) -> None:
        write(self, record)
        if record["split"] == "train" and record["step"] == 6:
            signal.raise_signal(number)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)
    with pytest.raises(Interrupted, match=r"continue with `gnp resume .*run`") as caught:
        train(config(), run_dir, quiet=True)
    assert caught.value.exit_status == 128 + number
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 6 <= summary["step"] <= 6 + LOOKAHEAD
    monkeypatch.undo()
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    resume(run_dir, quiet=True)
    assert_same_state(saved(run_dir, 20), saved(whole, 20))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            [
                "optimizer.lr=1e38",
                "optimizer.weight_decay=0",
                "schedule.warmup_epochs=0",
                "gr.strategy=none",
            ],
            r"step 1: the norm of the update is inf; .*no checkpoint yet",
        ),
        (
            ["gr.strategy=constant", "gr.r=1e38"],
            r"step 1: the (loss|gradient norm) of the perturbed pass is (nan|inf)",
        ),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_place(
    tmp_path, changes, pattern
):
    with pytest.raises(DivergenceError, match=pattern):
        train(config(*changes), tmp_path / "run", quiet=True)
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["non_finite"]
    assert all(last[key] is None for key in last["non_finite"])
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"


def test_divergence_names_the_last_good_checkpoint_which_still_evaluates(tmp_path, monkeypatch):
    # the rate explodes in the third epoch
    changes = [
        "schedule.name=stepped",
        "schedule.boundaries=[0.5]",
        "schedule.factor=1",
        "checkpoint.every_steps=3",
    ]
    own = config(*changes, "gr.strategy=none")
    schedule = lr_schedule
    monkeypatch.setattr(
        "gnpcli.step.parts.lr_schedule",
        lambda *args: lambda step: schedule(*args)(step) * jax.numpy.where(step >= 10, 1e38, 1.0),
    )
    with pytest.raises(
        DivergenceError, match=r"step 1[12]: .* the last good checkpoint is step (9|10)"
    ):
        train(own, tmp_path / "run", quiet=True)
    result = evaluate(
        locate(tmp_path / "run"), data={}, split="test", step=None, best=False, quiet=True
    )
    assert result["step"] in (9, 10)
    assert math.isfinite(result["loss"])


class Poisoned:
    """A training feed that turns the images of some steps into NaN."""

    def __init__(self, feed: Any, steps: set[int]):
        self._feed, self._steps = feed, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def source(self, step: int) -> Any:
        return {
            **self._feed.source(step),
            "poison": np.float32(np.nan if step in self._steps else 0),
        }

    def batch(self, source: Any, step_in_epoch: Any, key: Any) -> Any:
        images, labels = self._feed.batch(source, step_in_epoch, key)
        return images + source["poison"], labels


@pytest.fixture
def poisoned(monkeypatch):
    """Poison the batches of the given steps, counted from 0, in every run that starts later."""
    make = make_train_feed

    def poison(*steps: int) -> None:
        monkeypatch.setattr(
            "gnpcli.engine.task.make_train_feed",
            lambda *args, **kwargs: Poisoned(make(*args, **kwargs), {*steps}),
        )

    return poison


@pytest.mark.slow
def test_a_run_stopped_by_a_passing_fault_resumes_to_where_it_would_have_been(
    whole, tmp_path, poisoned
):
    run_dir = tmp_path / "run"
    poisoned(7)
    with pytest.raises(
        DivergenceError,
        match=r"^step 8: the loss of the clean pass is nan; .*checkpoint is step 5;",
    ):
        train(config(), run_dir, quiet=True)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], "step 8" in summary["error"]) == ("diverged", True)
    assert Saves(run_dir / "checkpoints").steps() == [5]
    assert (
        evaluate(locate(run_dir), data={}, split="test", step=None, best=False, quiet=True)["step"]
        == 5
    )
    with pytest.raises(DivergenceError, match=r"^step 8: "):  # what is no accident happens again
        resume(run_dir, quiet=True)
    poisoned()
    assert resume(run_dir, quiet=True)["status"] == "finished"
    assert_same_state(saved(run_dir, 20), saved(whole, 20))


@pytest.mark.slow
def test_skipped_steps_are_counted_and_resumed_over(tmp_path, poisoned, capsys):
    own = config(
        "train.on_nonfinite=skip",
        "train.max_skips=3",
        "train.log_every_steps=100",
        "train.ema_decay=0.9",
    )
    poisoned(2, 6, 7)
    summary = train(own, tmp_path / "run", max_steps=9)
    assert (summary["step"], summary["skipped_steps"]) == (9, 3)
    told = " ".join(capsys.readouterr().err.split())
    for part in (
        "warning: step 3 skipped (1 in a row, stopping at 3): the loss of the clean pass is nan",
        "step 7 skipped (1 in a row",
        "step 8 skipped (2 in a row",
    ):
        assert part in told
    skipped = [record for record in lines(tmp_path / "run", "train") if record["skips_in_a_row"]]
    assert [(record["step"], record["skipped_steps"], record["loss"]) for record in skipped] == [
        (3, 1, None),
        (7, 2, None),
        (8, 3, None),
    ]
    train(own, tmp_path / "halves", max_steps=7, quiet=True)
    assert resume(tmp_path / "halves", max_steps=9, quiet=True)["skipped_steps"] == 3
    assert_same_state(saved(tmp_path / "halves", 9), saved(tmp_path / "run", 9))
    assert "loss" in summary["test"]


@pytest.mark.slow
def test_too_many_skips_in_a_row_stop_the_run(tmp_path, poisoned):
    poisoned(6, 7, 8)
    with pytest.raises(
        DivergenceError,
        match=r"^3 steps in a row were not finite, the last of them step 9: the loss of",
    ):
        train(config("train.on_nonfinite=skip", "train.max_skips=3"), tmp_path / "run", quiet=True)
    records = lines(tmp_path / "run", "train")
    assert (records[-1]["step"], records[-1]["skips_in_a_row"], records[-1]["skipped_steps"]) == (
        9,
        3,
        2,
    )


def test_a_folder_with_a_run_is_never_written_to(whole, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with pytest.raises(
        ConfigError, match=r"holds this very run already: continue it with `gnp resume"
    ):
        RunFolder(whole).check_free(config())
    with pytest.raises(
        ConfigError, match=r"another configuration \(optimizer.lr: .* -> 0.5; train.seed: 0 -> 1\)"
    ):
        train(config("optimizer.lr=0.5", "train.seed=1"), whole, quiet=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(ConfigError, match="not empty and is not a run folder"):
        train(config(), tmp_path / "thesis", quiet=True)
    with pytest.raises(ConfigError, match="is a file"):
        train(config(), tmp_path / "thesis" / "chapter1.tex", quiet=True)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (["data.batch_size=2000"], r"data\.batch_size 2000 is more than the 1437 training images"),
        (["model.name=vit-nano", "model.patch_size=3"], r"3.*8"),
        (["mesh.devices=64"], r"mesh\.devices = 64, but this machine has \d+"),
        (
            ["data.crop_padding=8", "data.augment=crop"],
            r"crop_padding 8 must be below the image size 8",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_exists(tmp_path, changes, pattern):
    with pytest.raises(ConfigError, match=pattern):
        train(config(*changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_evaluating_a_run_reproduces_its_last_record(whole):
    for path in (whole, whole / "checkpoints", whole / "checkpoints" / "20"):
        result = evaluate(locate(path), data={}, split="test", step=None, best=False, quiet=True)
        record = lines(whole, "test")[-1]
        assert result == {
            "step": 20,
            "dataset": "digits",
            "split": "test",
            **{k: record[k] for k in record if k not in ("step", "epoch", "split")},
        }


@pytest.mark.parametrize("batch_size", [7, 100, 360, 1000])
def test_evaluation_does_not_depend_on_the_batch_size(whole, batch_size):
    result = evaluate(
        locate(whole),
        data={"eval_batch_size": batch_size},
        split="test",
        step=None,
        best=False,
        quiet=True,
    )
    record = lines(whole, "test")[-1]
    assert result["num_examples"] == 360
    assert result["error_rate"] == record["error_rate"]
    np.testing.assert_allclose(result["loss"], record["loss"], rtol=1e-5)


def test_the_best_checkpoint_can_be_chosen(whole):
    best = json.loads((whole / "summary.json").read_text())["best_step"]
    assert (
        evaluate(locate(whole), data={}, split="test", step=None, best=True, quiet=True)["step"]
        == best
    )
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 13 in .*there: .*20"):
        evaluate(locate(whole), data={}, split="test", step=13, best=False, quiet=True)


def test_default_run_folders_say_what_they_are_and_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = itertools.islice(default_run_dirs(config()), 2)
    assert first.name.startswith("tests.small-small-digits-zero-warmup-s0-")
    monkeypatch.setattr("gnpcli.runs.folder.default_run_dirs", lambda _: iter([first, second]))
    with claimed_run(config(), None) as one, claimed_run(config(), None) as another:
        assert [one.path, another.path] == [first.resolve(), second.resolve()]
    assert not (tmp_path / "runs").exists()  # nothing was written into either


@pytest.mark.usefixtures("shared_programs")
def test_a_signal_while_evaluating_is_no_lost_work(whole, tmp_path, monkeypatch):
    """It comes after the boundary has decided what to do; the steps since the last save must be
    saved all the same.
    """
    run_dir = tmp_path / "run"
    called = Evaluator.__call__

    def evaluate_and_signal(self: Any, *args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return called(self, *args)

    monkeypatch.setattr(Evaluator, "__call__", evaluate_and_signal)
    with pytest.raises(Interrupted):
        train(config("checkpoint.every_epochs=4"), run_dir, quiet=True)
    assert json.loads((run_dir / "summary.json").read_text())["step"] == 5
    monkeypatch.undo()
    resume(run_dir, quiet=True)
    assert_same_state(saved(run_dir, 20), saved(whole, 20))


def test_a_signal_at_the_very_end_is_a_finished_run(tmp_path, monkeypatch):
    write = MetricsLog.write

    def write_and_signal(self: MetricsLog, record: Any) -> None:
        write(self, record)
        if record["split"] == "test":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)
    assert (
        train(config("train.epochs=1", "gr.strategy=none"), tmp_path / "run", quiet=True)["status"]
        == "finished"
    )
