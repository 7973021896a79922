"""The saves of a run, as they are read: each is checked to be what was saved.

The folder of a save is named after its step. It holds up to four items:

- `model`: parameters and model state, all that evaluation reads;
- `ema`: the moving average of the parameters, where one is kept;
- `optimizer`: everything else that resuming needs;
- `manifest`: what the save is of, and a digest of each array (`gnpcli.runs.manifest`).

Nothing else of the folder is needed. Damage of one save is found when that save is read, and never
stands in the way of another.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore

from gnpcli.config.weights import Weights
from gnpcli.devices.processes import peers
from gnpcli.devices.processes.peers import agreed, decided
from gnpcli.errors import CheckpointError
from gnpcli.files import set_aside
from gnpcli.runs.digests import HostArray, digests, on_host
from gnpcli.runs.manifest import Manifest, parse_manifest
from gnpcli.runs.reading import RunReadError, check_readable, read_bytes, system_reason
from gnpcli.runs.writing import short_reason
from gnpcli.step.state import TrainState

# Orbax logs every save. It also logs each error of its threads before it raises it. Here and in
# `gnpcli.runs.checkpoint` the error is said in one line.
logging.getLogger("absl").setLevel(logging.CRITICAL + 1)

MANIFEST = "manifest"
"""The item that says what a save is, and the one file in it."""


class DamagedCheckpoint(CheckpointError):
    """A save that is there but is not what was saved; the one before it may be good."""


class Saves:
    """The saves in a folder.

    Args:
        directory: Absolute or relative to the working directory now; may be missing.
        run: The name of the run that they must be of, see `gnpcli.runs.identity`. None takes those
            of any.
    """

    def __init__(self, directory: Path, run: str | None = None):
        _silence_echoes()
        self.directory = directory.resolve()
        self.run = run
        self._rates: dict[int, float | None] = {}

    def steps(self) -> list[int]:
        """Return the steps that have a finished save, rising.

        Only restoring a save shows whether it is good.

        Raises:
            RunReadError: The folder cannot be listed.
        """
        return decided("steps", self.listed)

    def listed(self) -> list[int]:
        """Return the steps as this process finds them, without a word to others."""
        try:
            names = [path.name for path in self.directory.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunReadError(self.directory, error.strerror or str(error)) from error
        return sorted(int(name) for name in names if _is_step(name))

    def folder(self, step: int) -> Path:
        """Return the folder of a save."""
        return self.directory / str(step)

    def best_step(self, besides: Container[int] = ()) -> int | None:
        """Return the kept step with the lowest error rate, the latest of equals.

        None where no save has an error rate. A damaged save has no say, nor have those `besides`.
        """
        rates = self._error_rates().items()
        known = {step: rate for step, rate in rates if rate is not None and step not in besides}
        return min(known, key=lambda step: (known[step], -step), default=None)

    def _error_rates(self) -> dict[int, float | None]:
        """Return the error rate of each save. What was read once is not read again."""
        for step in self.steps():
            if step not in self._rates:
                self._rates[step] = self._error_rate(step)
        return {step: self._rates[step] for step in self.steps()}

    def _error_rate(self, step: int) -> float | None:
        try:
            return self.manifest(step).error_rate
        except DamagedCheckpoint:
            return None

    def manifest(self, step: int) -> Manifest:
        """Return what a save says of itself.

        Raises:
            DamagedCheckpoint: It says nothing, or is of another run or step.
            RunReadError: It cannot be read.
        """
        text = decided(f"manifest {step}", lambda: self._read_manifest(step))
        if text is None:
            raise self._damaged(step, "it has no manifest")
        try:
            found = parse_manifest(text.encode(errors="surrogateescape"))
        except ValueError as error:
            raise self._damaged(step, str(error)) from error
        if self.run is not None and found.run != self.run:
            raise self._damaged(step, "it is of another run")
        if found.step != step:
            raise self._damaged(step, f"it is of step {found.step}")
        return found

    def _read_manifest(self, step: int) -> str | None:
        try:
            content = read_bytes(self.folder(step) / MANIFEST / MANIFEST)
        except OSError:
            return None
        return content.decode(errors="surrogateescape")

    def check_whole(self, step: int) -> None:
        """Check that a save holds an array for each digest of its manifest. No array is read.

        Raises:
            DamagedCheckpoint: It holds others, or its manifest is damaged.
            RunReadError: It cannot be read.
        """
        for name, wanted in self.manifest(step).digests.items():
            try:
                found = _names_of_arrays(self.folder(step) / name)
            except ValueError as error:  # that is how TensorStore tells of a file
                raise RunReadError(self.folder(step), short_reason(error)) from error
            if found != wanted.keys():
                raise self._damaged(step, f"its item {name} is not whole")

    def damaged(self) -> dict[int, DamagedCheckpoint]:
        """Return the saves whose manifest is damaged or of another run or step.

        The arrays are not read.

        Raises:
            RunReadError: A manifest cannot be read.
        """
        found = {}
        for step in self.steps():
            try:
                self.manifest(step)
            except DamagedCheckpoint as error:
                found[step] = error
        return found

    def read_meta(self, step: int) -> dict[str, Any]:
        """Return the description saved with a step; errors as of `manifest`."""
        return self.manifest(step).meta

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Restore the whole state of a step.

        Args:
            step: One of `steps()`.
            like: Shapes, dtypes and shardings to restore to, as `jax.ShapeDtypeStruct` leaves; the
                device count may differ from the one that saved.

        Raises:
            DamagedCheckpoint: It is not what was saved, or of another shape.
            RunReadError: It cannot be read.
        """
        items = self._restore(step, state_items(like))
        return TrainState(
            **items["model"], **items["optimizer"], ema=items.get("ema", {}).get("params", {})
        )

    def restore_model(
        self, step: int, params: Any, model_state: Any, *, weights: Weights = "raw"
    ) -> tuple[Any, Any]:
        """Restore what evaluation needs, leaving the optimizer state on disk.

        Args:
            step: One of `steps()`.
            params: What to restore the parameters to, as in `restore`.
            model_state: The same for the model's state.
            weights: ``ema`` takes the averaged parameters, which must have been saved; the model's
                state is always that of the parameters themselves.

        Raises:
            DamagedCheckpoint, RunReadError: As of `restore`.
        """
        items = {"model": {"params": params, "model_state": model_state}}
        if weights == "ema":
            items["ema"] = {"params": params}
        restored = self._restore(step, items)
        source = "ema" if weights == "ema" else "model"
        return restored[source]["params"], restored["model"]["model_state"]

    def _restore(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
        wanted = self.manifest(step).digests

        def read() -> dict[str, Any]:
            restored = {}
            for name, like in items.items():
                restored[name] = self._restore_item(step, name, like)
            return restored

        restored = agreed(f"restore {step}", read, RunReadError, DamagedCheckpoint)
        arrays = {name: on_host(item) for name, item in restored.items()}

        def check() -> None:
            for name, found in arrays.items():
                self._check(step, name, found, wanted.get(name, {}))

        agreed(f"check {step}", check, DamagedCheckpoint)
        return restored

    def _restore_item(self, step: int, name: str, like: Any) -> Any:
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(like)})
        try:
            with _reader() as checkpointer:
                restored = checkpointer.restore(self.folder(step), args=args)[name]
            # Waiting here puts a late read error where it can be explained.
            return jax.block_until_ready(restored)
        # Orbax raises OSError, ValueError, KeyError, XlaRuntimeError and more for a bad file.
        except Exception as error:
            raise self._explained(step, name, error) from error

    def _check(
        self, step: int, name: str, arrays: Mapping[str, HostArray], wanted: Mapping[str, str]
    ) -> None:
        for path, found in digests(arrays).items():
            if found != wanted.get(path):
                raise self._damaged(step, f"{path} of its item {name} is not what was saved")

    def _explained(self, step: int, name: str, error: Exception) -> CheckpointError:
        """Return what an error of restoring an item means.

        It is damage only where the whole save can be read.
        """
        reason = system_reason(error)
        try:
            check_readable(self.folder(step))
        except RunReadError as unreadable:
            return unreadable
        if reason is not None:
            return RunReadError(self.folder(step), reason)
        return self._damaged(step, f"its item {name} cannot be restored ({short_reason(error)})")

    def _damaged(self, step: int, why: str) -> DamagedCheckpoint:
        where = f"the checkpoint of step {step} in {self.directory}"
        return DamagedCheckpoint(f"{where} is damaged: {why}")

    def restore_latest(
        self, restore: Callable[[int], Any], *, on_damaged: Callable[[int, DamagedCheckpoint], None]
    ) -> tuple[int, Any] | None:
        """Try the saves from the latest down until one restores.

        Args:
            restore: Given a step, restores from it; a `DamagedCheckpoint` means "damaged, take the
                one before".
            on_damaged: Told of each step that did not restore.

        Returns:
            ``(step, what restore returned)``, or None where no save is usable.
        """
        for step in reversed(self.steps()):
            try:
                return step, restore(step)
            except DamagedCheckpoint as error:
                on_damaged(step, error)
        return None

    def set_aside(self, step: int) -> Path:
        """Rename a damaged save to ``STEP.damaged``, so that the step can be saved again.

        Returns:
            The new path. It has a number where that name is taken.
        """
        self._rates.pop(step, None)
        return Path(decided("set aside", lambda: str(set_aside(self.folder(step)))))


def _reader() -> ocp.Checkpointer:
    """Return what reads for this process alone: one that fails must not leave others waiting."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=peers.index(),
        active_processes={peers.index()},
        barrier_sync_key_prefix=f"process-{peers.index()}",
    )
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(composite_options=options), multiprocessing_options=alone
    )


def _names_of_arrays(item: Path) -> set[str]:
    """Return the paths of the arrays that an item of a save holds.

    Raises:
        ValueError: They cannot be read.
    """
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item}/"}}
    keys = tensorstore.KvStore.open(spec).result().list().result()
    return {key.decode().rpartition("/")[0] for key in keys}


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name == str(int(name))


def state_items(state: TrainState) -> dict[str, dict[str, Any]]:
    """Return the array items that a state is saved as. Each field is in one of them."""
    rest = state._asdict()
    items = {"model": {"params": rest.pop("params"), "model_state": rest.pop("model_state")}}
    ema = rest.pop("ema")
    if ema:
        items["ema"] = {"params": ema}
    items["optimizer"] = rest
    return items


@functools.cache
def _silence_echoes() -> None:
    """Drop what a failed save or restore prints besides the error that it raises.

    Writes that were still under way find their event loop closed, and nobody asks for their
    results. Reads that were still under way are dropped, and Orbax makes an error of that. Reads
    that have not begun never do, and Python warns of them. All may show long after the failure, so
    this holds for the rest of the process.
    """
    never_began = r"coroutine '(_read_|Store\.).*' was never awaited"
    warnings.filterwarnings("ignore", never_began, RuntimeWarning)
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        error = unraisable.exc_value
        write = isinstance(error, RuntimeError) and "Event loop is closed" in str(error)
        read = isinstance(getattr(error, "__cause__", None), GeneratorExit)
        if not (write or read):
            hook(unraisable)

    sys.unraisablehook = quiet
    logging.getLogger("asyncio").addFilter(_is_no_echo)


def _is_no_echo(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "orbax-checkpoint-tmp" not in text and "tensorstore_spec" not in text
