"""Checkpoints with Orbax.

Saving is asynchronous. The latest N saves and the best one are kept. Restoring steps over damaged
ones. The folder of a save holds up to four items:

- `model`: parameters and model state, all that evaluation reads;
- `ema`: the moving average of the parameters, where one is kept;
- `optimizer`: everything else that resuming needs;
- `meta`: configuration and data description as JSON.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from gnpcli.config.schema import CheckpointConfig
from gnpcli.config.weights import Weights
from gnpcli.errors import CheckpointError
from gnpcli.files import set_aside
from gnpcli.step.state import TrainState

# Orbax logs every save. It also logs each error of its threads before it raises it. `_explained`
# says the error in one line.
logging.getLogger("absl").setLevel(logging.CRITICAL + 1)


_SYSTEM_REASONS = (
    "No space left on device",
    "Permission denied",
    "Read-only file system",
    "File too large",
    "Disk quota exceeded",
)
_MAX_REASON = 160
"""Characters of a reason; of a longer one the start is shown."""


class DamagedCheckpoint(CheckpointError):
    """A save that is there but cannot be read; the one before it may be good."""


class Checkpoints:
    """The checkpoints of one run folder, written by one run at a time.

    Args:
        directory: Made if missing; absolute or relative to the working directory now.
        config: Which saves are kept.
        read_only: Only restore; leave even leftovers of killed saves alone.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, *, read_only: bool = False):
        _silence_echoes()
        self.directory = directory.resolve()
        options = _options(config, read_only)
        with _explained(f"cannot open the checkpoints in {directory}"):
            if not read_only:
                self._clear()
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("model", "ema", "optimizer", "meta")
            )

    def _clear(self) -> None:
        """Make the folder. Delete what killed saves left: it is never read and fills the disk."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps that have a finished save, rising.

        Only restoring a save shows whether it can be read.
        """
        return sorted(self._manager.all_steps())

    def last_good(self, *, besides: int | None = None) -> str:
        """Say for an error message which save a failed run falls back on.

        Args:
            besides: The step whose save just failed; None where it is no certain one.
        """
        steps = [step for step in self.steps() if step != besides]
        if not steps:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is step {steps[-1]}"

    def best_step(self) -> int | None:
        """Return the kept step with the lowest `error_rate`, the latest of equals.

        None where no save has an error rate.
        """
        known: dict[int, float] = {}
        for step in self.steps():
            rate = self._error_rate(step)
            if rate is not None:
                known[step] = rate
        return min(known, key=lambda step: (known[step], -step), default=None)

    def _error_rate(self, step: int) -> float | None:
        try:
            metrics = self._manager.metrics(step)
        except (OSError, ValueError):  # a damaged save has no say in which is best
            return None
        return None if metrics is None else metrics.get("error_rate")

    def save(
        self, state: TrainState, meta: Mapping[str, Any], error_rate: float | None = None
    ) -> None:
        """Start saving `state` under its own step.

        It returns once the arrays are copied, and writes them in the background. A step that is
        saved already is not saved again.

        Args:
            state: Safe to donate to the next step when this returns.
            meta: JSON-able description, read back by `read_meta`.
            error_rate: What "best" is judged by, in [0, 1]; None never counts as best.

        Raises:
            CheckpointError: This save cannot start, or the one before could not be finished. The
                disk may be full.
        """
        step = int(state.step)
        metrics = None
        if error_rate is not None:
            metrics = {"error_rate": float(error_rate)}
        self.wait()
        with self._saving(step):
            if step not in self._manager.all_steps():
                args = _save_args(state, meta)
                self._manager.save(step, args=args, metrics=metrics, force=True)

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
            CheckpointError: It could not be written.
        """
        with self._saving(None):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish pending saves and release the threads.

        Nothing is raised: `wait` has reported the errors.
        """
        with contextlib.suppress(Exception):
            self._manager.close()

    @contextlib.contextmanager
    def _saving(self, step: int | None) -> Iterator[None]:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        try:
            with _explained(f"cannot save {what} in {self.directory}"):
                yield
        except CheckpointError as error:
            with contextlib.suppress(Exception):
                self._manager.reload()
            raise CheckpointError(f"{error}; {self.last_good(besides=step)}") from error.__cause__

    def read_meta(self, step: int) -> dict[str, Any]:
        """Return the description saved with a step.

        Raises:
            DamagedCheckpoint: It is missing or unreadable.
        """
        with _explained(
            f"the checkpoint of step {step} in {self.directory} is damaged", DamagedCheckpoint
        ):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
            return dict(restored.meta)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Restore the whole state of a step.

        Args:
            step: One of `steps()`.
            like: Shapes, dtypes and shardings to restore to, as `jax.ShapeDtypeStruct` leaves; the
                device count may differ from the one that saved.

        Raises:
            DamagedCheckpoint: Missing, truncated, or of another shape.
        """
        items = self._restore(step, **_items(like))
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
            DamagedCheckpoint: Missing, truncated, or of another shape.
        """
        items = {"model": {"params": params, "model_state": model_state}}
        if weights == "ema":
            items["ema"] = {"params": params}
        restored = self._restore(step, **items)
        source = "ema" if weights == "ema" else "model"
        return restored[source]["params"], restored["model"]["model_state"]

    def _restore(self, step: int, **items: Any) -> Any:
        with _explained(
            f"the checkpoint of step {step} in {self.directory} is damaged", DamagedCheckpoint
        ):
            args = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
            # Waiting here puts a late read error where it can be explained.
            return jax.block_until_ready({name: restored[name] for name in items})

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
        target = set_aside(self.directory / str(step))
        self._manager.reload()
        return target


def _options(config: CheckpointConfig, read_only: bool) -> ocp.CheckpointManagerOptions:
    keep = [LatestN(config.keep)]
    if config.keep_best:
        best = BestN(get_metric_fn=_rate, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        keep.append(best)
    return ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(keep),
        best_fn=_rate,  # only so that metrics are written; the policy decides what is kept
        best_mode="min",
        create=False,
        read_only=read_only,
        enable_async_checkpointing=not read_only,
    )


def _rate(metrics: Mapping[str, float]) -> float:
    return metrics["error_rate"]


def _save_args(state: TrainState, meta: Mapping[str, Any]) -> ocp.args.Composite:
    items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
    return ocp.args.Composite(**items, meta=ocp.args.JsonSave(dict(meta)))


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
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
    results. Reads that were still under way are dropped, and Orbax makes an error of that. All may
    show long after the failure, so this holds for the rest of the process.
    """
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        error = unraisable.exc_value
        write = isinstance(error, RuntimeError) and "Event loop is closed" in str(error)
        read = isinstance(getattr(error, "__cause__", None), GeneratorExit)
        if not (write or read):
            hook(unraisable)

    sys.unraisablehook = quiet
    logging.getLogger("asyncio").addFilter(
        lambda record: "orbax-checkpoint-tmp" not in record.getMessage()
    )


@contextlib.contextmanager
def _explained(what: str, kind: type[CheckpointError] = CheckpointError) -> Iterator[None]:
    """Turn whatever Orbax and TensorStore raise into one line. Their long text stays the cause."""
    try:
        yield
    except CheckpointError:
        raise
    # Orbax raises OSError, ValueError, KeyError, XlaRuntimeError and more for a bad file.
    except Exception as error:
        raise kind(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return why a file could not be read or written, in at most `_MAX_REASON` characters."""
    text = " ".join(str(error).split())
    for known in _SYSTEM_REASONS:
        if known.lower() in text.lower():
            return known
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not text:
        return type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
