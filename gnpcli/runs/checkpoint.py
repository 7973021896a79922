"""The saves of a run, as they are written with Orbax: in the background, and each whole or not.

The latest N saves and the best one are kept. Orbax writes a save under another name and renames it
when all of it is on disk. `gnpcli.runs.saves` says what a save holds, and reads it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

from gnpcli.config.schema import CheckpointConfig
from gnpcli.devices.processes.peers import decided, is_first
from gnpcli.errors import CheckpointError
from gnpcli.runs.digests import HostArray, digests, on_host, put_together
from gnpcli.runs.manifest import Manifest
from gnpcli.runs.saves import MANIFEST, DamagedCheckpoint, Saves, state_items
from gnpcli.runs.writing import short_reason
from gnpcli.step.state import TrainState

_LEFTOVERS = "*.orbax-checkpoint-tmp*"
"""What a kill may leave: saves under way, as Orbax names them, and saves that are deleted."""


class Checkpoints(Saves):
    """The saves of one run, written by one process at a time.

    Args:
        directory: Made if missing; absolute or relative to the working directory now.
        config: Which saves are kept.
        run: As of `Saves`. The saves are marked as of this run.

    Raises:
        CheckpointError: The folder cannot be made, or cannot be read.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, run: str | None = None):
        super().__init__(directory, run)
        self._config = config
        with _explained(f"cannot open the checkpoints in {directory}"):
            decided("clear", self._clear)
        self._error_rates()  # what cannot be read now is an error now, and not at the first save
        self._writer = _writer(self._note_written)
        self._unchecked: int | None = None
        """The step of a save that may not be on disk yet."""
        self._started = 0.0
        self.longest_save_s = 0.0
        """From the start of a save until all of it was on disk."""

    @staticmethod
    def leftovers(directory: Path) -> list[Path]:
        """Return what a kill left of saves; only who writes there alone knows that it is none."""
        return [*directory.glob(_LEFTOVERS)]

    def _clear(self) -> None:
        """Make the folder. Delete what killed saves left: it is never read and fills the disk."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._delete_leftovers()

    def _delete_leftovers(self) -> None:
        for leftover in self.leftovers(self.directory):
            shutil.rmtree(leftover, ignore_errors=True)

    def last_good(self, *, besides: int | None = None) -> str:
        """Say for an error message which save a failed run falls back on.

        Args:
            besides: The step whose save just failed; None where it is no certain one.
        """
        steps = [step for step in self.listed() if step != besides]
        if not steps:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is step {steps[-1]}"

    def save(
        self, state: TrainState, meta: Mapping[str, Any], error_rate: float | None = None
    ) -> None:
        """Start saving `state` under its own step.

        It returns once the arrays are copied. The rest is done in the background: their digests are
        made while they are written. A step that is saved already is not saved again.

        Args:
            state: Safe to donate to the next step when this returns.
            meta: JSON-able description, read back by `read_meta`.
            error_rate: What "best" is judged by, in [0, 1]; None never counts as best.

        Raises:
            CheckpointError: This save cannot start, or the one before could not be finished. The
                disk may be full.
        """
        step = int(state.step)
        rate = None if error_rate is None else float(error_rate)
        self.wait()
        if step in self.steps():
            return
        manifest = Manifest(self.run, step, rate, dict(meta), {})
        self._started = time.monotonic()
        with self._saving(step):
            self._writer.save(self.folder(step), args=_save_args(state, manifest))
        self._rates[step] = rate
        self._unchecked = step

    def _note_written(self) -> None:
        self.longest_save_s = max(self.longest_save_s, time.monotonic() - self._started)

    def wait(self) -> None:
        """Block until the last save is on disk. Then delete those that are not to be kept.

        Raises:
            CheckpointError: It could not be written, or cannot be read back.
        """
        step, self._unchecked = self._unchecked, None
        with self._saving(step):
            self._writer.wait_until_finished()
            if step is not None:
                decided("check", partial(self._check_written, step))
            self._delete_surplus()

    def _check_written(self, step: int) -> None:
        """Delete the last save, and fail, where it is not whole.

        Orbax puts together what each process has written. What it cannot list then is left out
        without a word.
        """
        try:
            self.check_whole(step)
        except DamagedCheckpoint as error:
            self._delete(step)
            where = f"the checkpoint of step {step} in {self.directory}"
            raise CheckpointError(f"cannot save {where}: not all of it was written") from error

    def _delete_surplus(self) -> None:
        steps = self.steps()
        kept: set[int | None] = set(steps[-self._config.keep :])
        if self._config.keep_best:
            kept.add(self.best_step())
        for step in steps:
            if step not in kept:
                decided("delete", partial(self._delete, step))

    def _delete(self, step: int) -> None:
        """Delete a save. Renamed first, it never stands there by half."""
        gone = self.directory / f"{step}.orbax-checkpoint-tmp-deleted"
        self.folder(step).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def close(self) -> None:
        """Finish pending saves and release the threads. Delete what the disk kept until now.

        Nothing is raised: `wait` has reported the errors.
        """
        with contextlib.suppress(Exception):
            self._writer.close()
        if is_first():
            self._delete_leftovers()

    @contextlib.contextmanager
    def _saving(self, step: int | None) -> Iterator[None]:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        try:
            with _explained(f"cannot save {what} in {self.directory}"):
                yield
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.last_good(besides=step)}") from error.__cause__


def _writer(on_written: Callable[[], None]) -> ocp.AsyncCheckpointer:
    """Return what writes arrays and manifest in the background, and tells when all is on disk.

    Folders are made before that. Where one cannot be made in the background, Orbax's threads wait
    for it for 20 minutes, and the process does not end before.
    """
    options = ocp.options.AsyncOptions(
        create_directories_asynchronously=False, post_finalization_callback=on_written
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(async_options=options)
    )
    return ocp.AsyncCheckpointer(handler, async_options=options)


def _save_args(state: TrainState, manifest: Manifest) -> ocp.args.Composite:
    items = state_items(state)
    saved = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    arrays = {}
    if is_first():
        arrays = {name: on_host(item) for name, item in items.items()}
    else:
        put_together(items)
    return ocp.args.Composite(**saved, **{MANIFEST: _SaveManifest(manifest, arrays)})


class _ManifestHandler(ocp.AsyncCheckpointHandler):
    """Makes the digests of all arrays, and writes the manifest, while Orbax writes the arrays."""

    async def async_save(self, directory: Path, args: _SaveManifest) -> list[Future]:
        if not is_first():
            return []
        return [CommitFutureAwaitingContractedSignals(_write(directory, args), name=MANIFEST)]

    def save(self, directory: Path, args: _SaveManifest) -> None:
        raise NotImplementedError("saves are written in the background")

    def restore(self, directory: Path, args: object) -> None:
        raise NotImplementedError("`Saves.manifest` reads it")


@ocp.args.register_with_handler(_ManifestHandler, for_save=True, for_restore=True)
@dataclass
class _SaveManifest(ocp.args.CheckpointArgs):
    """A manifest without digests, and what they are of."""

    manifest: Manifest
    arrays: dict[str, dict[str, HostArray]]


async def _write(directory: Path, args: _SaveManifest) -> None:
    found = {item: digests(arrays) for item, arrays in args.arrays.items()}
    whole = replace(args.manifest, digests=found)
    (directory / MANIFEST).write_bytes(whole.to_bytes())


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever Orbax and TensorStore raise into one line. Their long text stays the cause."""
    try:
        yield
    except CheckpointError:
        raise
    # Orbax raises OSError, ValueError, XlaRuntimeError and more.
    except Exception as error:
        raise CheckpointError(f"{what}: {short_reason(error)}") from error
