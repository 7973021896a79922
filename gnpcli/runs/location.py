"""Which checkpoints a path means: a run's, a folder of them, or one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gnpcli.config.paths import checkpoint_path
from gnpcli.errors import CheckpointError
from gnpcli.runs.folder import RunFolder


@dataclass(frozen=True)
class Location:
    """Where checkpoints are."""

    checkpoints: Path
    """The folder of all of them."""
    step: int | None
    """The one that was named; None where the path named them all."""
    run: RunFolder | None
    """The run that they are of; None where they are in no run folder."""


def locate(path: Path) -> Location:
    """Find the checkpoints meant by a run folder, its ``checkpoints`` folder, or one step's folder.

    Raises:
        CheckpointError: Nothing there, or something else.
        ConfigError: As of `checkpoint_path`.
    """
    path = checkpoint_path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    run = RunFolder(path)
    if run.exists():
        return Location(run.checkpoint_dir, None, run)
    if _holds_steps(path):
        return Location(path, None, _run_around(path))
    if path.name.isdecimal():
        return Location(path.parent, int(path.name), _run_around(path.parent))
    raise CheckpointError(
        f"{path} is neither a run folder (no config.yaml) nor a checkpoint (no numbered step)"
    )


def _holds_steps(folder: Path) -> bool:
    return any(child.name.isdecimal() for child in folder.iterdir() if child.is_dir())


def _run_around(checkpoints: Path) -> RunFolder | None:
    run = RunFolder(checkpoints.parent)
    return run if run.exists() else None
