"""A save is what was saved: every changed bit is noticed, and no save stands in another's way."""

from __future__ import annotations

import builtins
import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.config.schema import CheckpointConfig
from gnpcli.runs import reading
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.digests import HostArray, digest, on_host
from gnpcli.runs.identity import checked_run_id, new_run_id
from gnpcli.runs.reading import RunReadError, check_readable, read_bytes, system_reason
from gnpcli.runs.saves import DamagedCheckpoint, Saves
from gnpcli.step.state import Skips, TrainState
from tests.test_checkpoint import META, assert_same, like

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Orbax, about itself
    # `gnpcli.runs.saves` ignores it as well; pytest has filters of its own
    pytest.mark.filterwarnings("ignore:coroutine '_read_.*' was never awaited:RuntimeWarning"),
]

READ_ERRORS = [
    errno.EACCES,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EPERM,
    errno.ESTALE,
    errno.ETIMEDOUT,
]
BY_NAME = [errno.errorcode[code] for code in READ_ERRORS]

Change = Callable[[Path], object]


def flip(path: Path, draw: random.Random | None = None) -> None:
    """Flip a bit in the first three quarters of a file. Behind arrays is more than arrays."""
    content = bytearray(path.read_bytes())
    place = (draw or random.Random(path.name)).randrange(6 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


CHANGES: dict[str, Change] = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "remove": Path.unlink,
}
"""What may happen to a file of a save."""


def mixed(step: int) -> TrainState:
    """A state with arrays of many kinds; those of noise do not compress."""
    noise = jax.random.normal(jax.random.key(step), (64, 48))
    params = {
        "noise": noise,
        "half": noise.astype(jnp.bfloat16),
        "zeros": jnp.zeros((3, 2)),
        "whole": jnp.arange(7, dtype=jnp.int8),
    }
    return TrainState(
        jnp.int32(step),
        params,
        {"batch_stats": {"mean": jnp.ones(3)}},
        (params, jnp.int32(step)),
        jax.random.key(step),
        Skips(jnp.int32(0), jnp.int32(step)),
        jax.tree.map(lambda leaf: leaf + leaf, params),
        {},
    )


@pytest.fixture(scope="module", autouse=True)
def standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


def saved(directory: Path, *steps: int, run: str | None = None) -> Path:
    checkpoints = Checkpoints(directory, CheckpointConfig(keep=9), run)
    for step in steps:
        checkpoints.save(mixed(step), META, error_rate=0.5 / step)
    checkpoints.wait()
    checkpoints.close()
    return directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pair") / "checkpoints", 1, 2)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def is_noticed(saves: Saves, step: int) -> bool:
    """Restore a save that was changed: it is damaged, or what it was."""
    told = ""
    try:
        assert_same(saves.restore(step, like(mixed(0))), mixed(step))
    except DamagedCheckpoint as error:
        told = str(error)
    where = f"the checkpoint of step {step} in {saves.directory} is damaged: "
    assert not told or (told.startswith(where) and "\n" not in told)
    return bool(told)


def holds_data(path: Path) -> bool:
    return path.parent.name == "d" and path.stat().st_size > 5_000


@pytest.mark.parametrize("change", ["flip", pytest.param("zero", marks=pytest.mark.slow)])
def test_a_change_of_any_file_is_noticed_or_harmless(pair, tmp_path, change):
    every_change(pair, tmp_path, change)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["truncate", "empty", "remove"])
def test_what_is_cut_or_lost_is_noticed_or_harmless(pair, tmp_path, change):
    every_change(pair, tmp_path, change)


def every_change(pair: Path, tmp_path: Path, change: str) -> None:
    copy = Path(shutil.copytree(pair, tmp_path / "copy"))
    saves, whole = Saves(copy), files(copy / "2")
    assert sum(map(holds_data, whole)) >= 3  # of model, ema and optimizer
    for path in whole:
        content, must_be_noticed = path.read_bytes(), holds_data(path) or path.name == "manifest"
        CHANGES[change](path)
        assert is_noticed(saves, 2) or not must_be_noticed, path
        assert saves.steps() == [1, 2]
        path.write_bytes(content)
    assert not is_noticed(saves, 1)
    assert not is_noticed(saves, 2)


@pytest.mark.parametrize("count", [12, pytest.param(120, marks=pytest.mark.slow)])
def test_each_flipped_bit_of_array_data_is_noticed(pair, tmp_path, count):
    data = [path for path in files(pair / "2") if holds_data(path)]
    draw = random.Random(0)
    for number in range(count):
        copy = Path(shutil.copytree(pair, tmp_path / str(number)))
        path = copy / draw.choice(data).relative_to(pair)
        flip(path, draw)
        assert is_noticed(Saves(copy), 2), path
        shutil.rmtree(copy)


def array(values: Any, dtype: str | None = None) -> HostArray:
    made = np.asarray(values)
    return HostArray(dtype or str(made.dtype), made)


def test_a_digest_is_of_dtype_shape_and_values():
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    others = [
        base.reshape(4, 3),
        base.reshape(12),
        base.astype(np.int32),
        base.view(np.int32),
        base[:2],
        base.T,
        base[:0],
        np.where(base == 0, np.float32(-0.0), base),  # equal, and yet not what was saved
    ]
    assert len({digest(array(other)) for other in [base, *others]}) == 1 + len(others)
    assert digest(array(base.T)) == digest(array(base.T.copy()))
    assert digest(array(np.asfortranarray(base))) == digest(array(base))


def test_any_changed_bit_of_an_array_changes_its_digest():
    values = np.random.default_rng(0).integers(0, 256, 64, dtype=np.uint8)
    found = {digest(array(values))}
    for bit in range(8 * values.size):
        changed = values.copy()
        changed[bit // 8] ^= 1 << bit % 8
        found.add(digest(array(changed)))
    assert len(found) == 1 + 8 * values.size


def test_arrays_of_every_dtype_have_a_digest():
    names = ["float32", "bfloat16", "float16", "int8", "uint32", "bool", "float8_e4m3fn"]
    for shape in [(), (0, 3), (2, 3)]:
        tree = {name: jnp.ones(shape, name) for name in names}
        tree["key"] = jax.random.key(3) if shape == () else jax.random.split(jax.random.key(3), 2)
        found = on_host(tree)
        assert set(found) == {*names, "key"}
        assert found["key"].dtype == "key<fry>"
        assert len({digest(one) for one in found.values()}) == len(tree)
        numbers = {name: np.asarray(tree[name]) for name in names}
        assert all(digest(one) == digest(found[name]) for name, one in on_host(numbers).items())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_damaged_manifest_is_of_its_own_save_alone(pair, tmp_path, change):
    copy = Path(shutil.copytree(pair, tmp_path / "copy"))
    change(copy / "2" / "manifest" / "manifest")
    assert Saves(copy).best_step() == 1  # 2 had the lower error rate
    assert list(Saves(copy).damaged()) == [2]
    checkpoints = Checkpoints(copy, CheckpointConfig(keep=1))
    checkpoints.save(mixed(3), META, error_rate=1)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3]  # the best and the latest
    checkpoints.close()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"metrics": 3}', "\0" * 40])
def test_what_orbax_says_of_a_save_stands_in_the_way_of_none(pair, tmp_path, name, text):
    copy = Path(shutil.copytree(pair, tmp_path / "copy"))
    if not (copy / "2" / name).exists():
        pytest.skip(f"this version of Orbax writes no {name}")
    if text is None:
        (copy / "2" / name).unlink()
    else:
        (copy / "2" / name).write_text(text)
    is_noticed(Saves(copy), 2)
    checkpoints = Checkpoints(copy, CheckpointConfig(keep=2))
    assert checkpoints.best_step() == 2
    checkpoints.save(mixed(3), META, error_rate=1)
    checkpoints.wait()
    assert_same(checkpoints.restore(3, like(mixed(0))), mixed(3))
    checkpoints.close()


def test_every_item_is_bound_to_its_step_and_its_run(tmp_path):
    mine, theirs = new_run_id(), new_run_id()
    own = saved(tmp_path / "own", 1, 2, run=mine)
    other = saved(tmp_path / "other", 1, run=theirs)
    for source, why in ((own / "1", "it is of step 1"), (other / "1", "it is of another run")):
        for name in sorted(path.name for path in (own / "2").iterdir() if path.is_dir()):
            copy = Path(shutil.copytree(own, tmp_path / "copy"))
            shutil.rmtree(copy / "2" / name)
            shutil.copytree(source / name, copy / "2" / name)
            told = why if name == "manifest" else f"of its item {name} is not what was saved"
            with pytest.raises(DamagedCheckpoint, match=told):
                Saves(copy, mine).restore(2, like(mixed(0)))
            shutil.rmtree(copy)
    shutil.copytree(own / "1", own / "7")
    shutil.copytree(other / "1", own / "8")
    damaged = Saves(own, mine).damaged()
    assert list(damaged) == [7, 8]
    assert str(damaged[7]).endswith("it is of step 1")
    assert str(damaged[8]).endswith("it is of another run")
    assert_same(Saves(other).restore(1, like(mixed(0))), mixed(1))  # whose run is not known


def test_names_that_are_no_steps_are_no_saves(pair, tmp_path):
    copy = Path(shutil.copytree(pair, tmp_path / "copy"))
    for name in ("02", "2.damaged", "-3", "٣", "x", "3.orbax-checkpoint-tmp"):
        shutil.copytree(copy / "2", copy / name)
    (copy / "4").write_text("")
    assert Saves(copy).steps() == [1, 2]
    assert Saves(tmp_path / "nowhere").steps() == []


def test_a_save_is_deleted_under_another_name(tmp_path, monkeypatch):
    """A kill in the midst of it leaves no half of a save."""
    directory = saved(tmp_path / "checkpoints", 1, 2)
    gone: list[str] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: gone.append(Path(path).name))
    checkpoints = Checkpoints(directory, CheckpointConfig(keep=1, keep_best=False))
    checkpoints.wait()
    assert checkpoints.steps() == [2]
    assert gone == ["1.orbax-checkpoint-tmp-deleted"]
    checkpoints.close()
    assert set(gone) == {"1.orbax-checkpoint-tmp-deleted"}  # tried again in the end
    monkeypatch.undo()
    Checkpoints(directory, CheckpointConfig()).close()
    assert [path.name for path in directory.iterdir()] == ["2"]


def test_a_name_of_a_run_checks_itself():
    name = new_run_id()
    assert checked_run_id(name) == name != new_run_id()
    for place in range(len(name)):
        with pytest.raises(ValueError, match="no name of a run"):
            checked_run_id(f"{name[:place]}{int(name[place], 16) ^ 1:x}{name[place + 1 :]}")


@pytest.mark.parametrize("code", READ_ERRORS, ids=BY_NAME)
def test_what_the_system_says_is_known_in_any_dress(code):
    said = os.strerror(code)
    dresses: list[BaseException] = [
        OSError(code, said, "f"),
        ValueError(f"UNKNOWN: Failed to open: \"/x/manifest.ocdbt\": {said} [tensorstore_spec='']"),
        ValueError(f"NOT_FOUND: something [os_error_code='{code}'] [more='x']"),
        RuntimeError(f"Error reading local file: {said}"),
    ]
    for error in dresses:
        assert system_reason(error) == said
    assert system_reason(MemoryError()) == os.strerror(errno.ENOMEM)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"),
        ValueError("NOT_FOUND: Error opening \"zarr\" driver [os_error_code='2']"),
        ValueError("DATA_LOSS: Error decoding zstd-compressed data"),
        ValueError("INVALID_ARGUMENT: Expected rank 2"),
        KeyError("Item model was not found"),
        TypeError("x"),
    ],
)
def test_what_was_read_and_is_wrong_is_no_error_of_the_system(error):
    assert system_reason(error) is None


@pytest.mark.parametrize("code", READ_ERRORS, ids=BY_NAME)
def test_a_read_error_is_no_damage(pair, tmp_path, monkeypatch, code):
    """Of the manifest, of the folder of saves, of any file after Orbax has failed."""
    copy = Path(shutil.copytree(pair, tmp_path / "copy"))
    truth = {path: path.read_bytes() for path in files(copy)}

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), "some file")

    message = rf"cannot read .*: {os.strerror(code)}; nothing was changed"

    def restore() -> None:
        Saves(copy).restore_latest(
            lambda step: Saves(copy).restore(step, like(mixed(0))),
            on_damaged=lambda step, error: pytest.fail(str(error)),
        )

    for owner, name, action in (
        (reading, "read_file", restore),
        (Path, "iterdir", restore),
        (jax, "block_until_ready", restore),
        (builtins, "open", lambda: check_readable(copy)),
        (reading, "read_file", lambda: Checkpoints(copy, CheckpointConfig(keep=1))),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(RunReadError, match=message):
                action()
    assert {path: path.read_bytes() for path in files(copy)} == truth


def test_a_device_without_memory_is_no_damage(pair, monkeypatch):
    def fail(_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")

    monkeypatch.setattr(jax, "block_until_ready", fail)
    with pytest.raises(RunReadError, match="RESOURCE_EXHAUSTED"):
        Saves(pair).restore(2, like(mixed(0)))


def test_what_is_missing_is_no_read_error(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    check_readable(tmp_path)
    check_readable(tmp_path / "none")
    for name in ("link", "none", "folder"):
        with pytest.raises(OSError, match=r"No such file|Is a directory"):
            read_bytes(tmp_path / name)
