"""Checkpoints on their own: exactness under donation, damage, full disks, other device counts."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.config.schema import CheckpointConfig
from gnpcli.errors import CheckpointError
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.description import read_description
from gnpcli.runs.saves import DamagedCheckpoint, Saves
from gnpcli.step.state import Skips, TrainState
from tests.trees import same_structure

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # raised inside Orbax, about itself

META = {"config": {"a": 1}, "data": {"name": "x"}}


def state(step: int, size: int = 100, ema: int | None = None) -> TrainState:
    params = {
        "w": jnp.arange(size, dtype=jnp.float32) + step,
        "nested": {"b": jnp.full((2, 3), step, jnp.bfloat16)},
    }
    opt_state = (jax.tree.map(jnp.zeros_like, params), jnp.int32(step))
    return TrainState(
        jnp.int32(step),
        params,
        {"batch_stats": {"mean": jnp.ones(3)}},
        opt_state,
        jax.random.key(step),
        Skips(jnp.int32(1), jnp.int32(step)),
        {} if ema is None else jax.tree.map(lambda leaf: leaf + ema, params),
        {},
    )


def like(tree: TrainState) -> TrainState:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def plain(tree: TrainState) -> list[np.ndarray]:
    return [
        np.asarray(leaf)
        for leaf in jax.tree.leaves(tree._replace(key=jax.random.key_data(tree.key)))
    ]


def assert_same(left: TrainState, right: TrainState) -> None:
    assert same_structure(left, right)
    for a, b in zip(plain(left), plain(right), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    made = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(keep=2))
    yield made
    made.close()


def test_a_state_comes_back_whole(checkpoints):
    checkpoints.save(state(7), META, error_rate=0.25)
    checkpoints.wait()
    assert checkpoints.steps() == [7]
    assert checkpoints.best_step() == 7
    assert checkpoints.read_meta(7) == META
    assert_same(checkpoints.restore(7, like(state(0))), state(7))
    params, model_state = checkpoints.restore_model(
        7, like(state(0)).params, like(state(0)).model_state
    )
    np.testing.assert_array_equal(params["w"], state(7).params["w"])
    np.testing.assert_array_equal(model_state["batch_stats"]["mean"], np.ones(3))


@pytest.mark.parametrize("meta", [{}, {"config": 3, "data": {}}, META, {**META, "data": []}])
def test_a_save_that_does_not_say_what_it_is_of_is_damaged(checkpoints, meta):
    checkpoints.save(state(7), meta)
    checkpoints.wait()
    with pytest.raises(DamagedCheckpoint, match=r"the checkpoint of step 7 in .* is damaged: "):
        read_description(checkpoints, 7)


def test_averages_are_an_item_of_their_own(checkpoints):
    checkpoints.save(state(7, ema=5), META)
    checkpoints.wait()
    assert_same(checkpoints.restore(7, like(state(0, ema=0))), state(7, ema=5))
    shutil.rmtree(checkpoints.directory / "7" / "optimizer")  # evaluation reads nothing of it
    abstract = like(state(0))
    for weights, moved in (("raw", 0), ("ema", 5)):
        params, model_state = checkpoints.restore_model(
            7, abstract.params, abstract.model_state, weights=weights
        )
        np.testing.assert_array_equal(params["w"], np.asarray(state(7).params["w"]) + moved)
        np.testing.assert_array_equal(model_state["batch_stats"]["mean"], np.ones(3))


def test_averages_that_were_never_saved_are_not_restored(checkpoints):
    checkpoints.save(state(7), META)
    checkpoints.wait()
    assert not (checkpoints.directory / "7" / "ema").exists()
    abstract = like(state(0))
    with pytest.raises(DamagedCheckpoint):
        checkpoints.restore_model(7, abstract.params, abstract.model_state, weights="ema")


def test_a_saved_state_is_safe_from_the_next_step_that_reuses_its_buffers(checkpoints):
    step = jax.jit(
        lambda s: s._replace(params=jax.tree.map(lambda x: x * 0 - 1, s.params), step=s.step + 1),
        donate_argnums=0,
    )
    current = jax.jit(lambda: state(1, 3_000_000))()
    expected = plain(current)
    expected = [leaf.copy() for leaf in expected]
    checkpoints.save(current, META)
    for _ in range(5):
        current = step(current)
    jax.block_until_ready(current)
    checkpoints.wait()
    for a, b in zip(plain(checkpoints.restore(1, like(current))), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_latest_and_the_best_are_kept(checkpoints):
    for step, rate in ((1, 0.5), (2, 0.1), (3, 0.4), (4, None), (5, 0.3)):
        checkpoints.save(state(step), META, rate)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best_step() == 2


def test_saving_a_step_twice_changes_nothing(checkpoints):
    checkpoints.save(state(1), META, 0.5)
    checkpoints.save(state(1)._replace(params=state(9).params), META, 0.5)
    checkpoints.wait()
    assert_same(checkpoints.restore(1, like(state(0))), state(1))


def largest_file(folder: Path) -> Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def truncate(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def without_arrays(folder: Path) -> None:
    shutil.rmtree(folder / "model")


def without_manifest(folder: Path) -> None:
    shutil.rmtree(folder / "manifest")


@pytest.mark.parametrize("damage", [truncate, empty, without_arrays, without_manifest])
def test_a_damaged_save_is_named_and_the_one_before_is_taken(tmp_path, damage):
    directory = tmp_path / "checkpoints"
    first = Checkpoints(directory, CheckpointConfig(keep=5))
    for step in (1, 2, 3):
        first.save(state(step), META, 0.1 * step)
    first.wait()
    first.close()
    damage(directory / "3")
    again = Checkpoints(directory, CheckpointConfig(keep=5))
    told: list[tuple[int, str]] = []

    def restore(step: int) -> TrainState:
        again.read_meta(step)
        return again.restore(step, like(state(0)))

    found = again.restore_latest(
        restore, on_damaged=lambda step, error: told.append((step, str(error)))
    )
    assert found is not None
    step, restored = found
    assert step == 2
    assert_same(restored, state(2))
    if told:  # an empty folder may not count as a save at all
        assert told[0][0] == 3
        assert "the checkpoint of step 3 in" in told[0][1]
        assert "is damaged" in told[0][1]
        assert "\n" not in told[0][1]
        assert again.set_aside(3).name == "3.damaged"
    else:
        assert damage is empty
    again.save(state(3), META, 0.1)
    again.wait()
    assert_same(again.restore(3, like(state(0))), state(3))
    again.close()


def test_nothing_usable_is_none(checkpoints):
    def restore(step: int) -> None:
        raise DamagedCheckpoint("no")

    assert checkpoints.restore_latest(restore, on_damaged=lambda *_: None) is None
    checkpoints.save(state(1), META)
    checkpoints.wait()
    assert checkpoints.restore_latest(restore, on_damaged=lambda *_: None) is None


def test_another_shape_is_refused(checkpoints):
    checkpoints.save(state(1), META)
    checkpoints.wait()
    with pytest.raises(DamagedCheckpoint, match="step 1"):
        checkpoints.restore(1, like(state(0, size=50)))
    gc.collect()  # the reads that Orbax forgot: what they say would fail this test


def test_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path):
    directory = tmp_path / "checkpoints"
    first = Checkpoints(directory, CheckpointConfig())
    first.save(state(1), META)
    first.wait()
    first.close()
    leftover = directory / "2.orbax-checkpoint-tmp"
    shutil.copytree(directory / "1", leftover)
    assert Saves(directory).steps() == [1]
    assert leftover.exists()
    again = Checkpoints(directory, CheckpointConfig())
    assert again.steps() == [1]
    again.close()
    assert not leftover.exists()


def test_a_save_that_the_disk_would_not_delete_is_gone_in_the_end(tmp_path, monkeypatch):
    directory = tmp_path / "checkpoints"
    checkpoints = Checkpoints(directory, CheckpointConfig(keep=1, keep_best=False))
    with monkeypatch.context() as failing:
        failing.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
        for step in (1, 2):
            checkpoints.save(state(step), META)
        checkpoints.wait()
    assert checkpoints.steps() == [2]
    assert Checkpoints.leftovers(directory)
    checkpoints.close()
    assert [path.name for path in directory.iterdir()] == ["2"]


def test_a_save_that_is_not_whole_is_none(tmp_path, monkeypatch):
    """Orbax leaves out what it cannot list when it puts together what processes have written."""
    directory = tmp_path / "checkpoints"
    checkpoints = Checkpoints(directory, CheckpointConfig())
    checkpoints.save(state(1), META)
    checkpoints.wait()
    finish = checkpoints._writer.wait_until_finished

    def finish_without_index() -> None:
        finish()
        (directory / "2" / "model" / "manifest.ocdbt").unlink(missing_ok=True)

    monkeypatch.setattr(checkpoints._writer, "wait_until_finished", finish_without_index)
    checkpoints.save(state(2), META)
    with pytest.raises(CheckpointError, match=r"cannot save .* step 2 .*not all of it.*step 1$"):
        checkpoints.wait()
    assert checkpoints.steps() == [1]
    checkpoints.wait()
    checkpoints.close()
    assert [path.name for path in directory.iterdir()] == ["1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_in_one_line_and_earlier_saves_stay_good(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints", CheckpointConfig(keep=5))
    small, large = state(1), state(2, size=2_000_000)
    large = large._replace(
        params={**large.params, "w": jax.random.normal(jax.random.key(0), (2_000_000,))}
    )
    checkpoints.save(small, META, 0.5)
    checkpoints.wait()

    def save_and_wait() -> None:
        checkpoints.save(large, META, 0.1)
        checkpoints.wait()

    message = r"cannot save .*: No space left on device; the last good checkpoint is step 1"
    with pytest.raises(CheckpointError, match=message) as caught:
        save_and_wait()
    assert "\n" not in str(caught.value)
    checkpoints.close()
    again = Checkpoints(small_disk / "checkpoints", CheckpointConfig(keep=5))
    assert again.steps() == [1]
    assert_same(again.restore(1, like(state(0))), state(1))
    again.save(
        state(3), META, 0.2
    )  # the leftovers of the failed save are gone: there is room again
    again.wait()
    assert again.steps() == [1, 3]
    again.close()


def test_a_path_that_is_a_file_is_said_in_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot open the checkpoints in"):
        Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
