"""The run folder: made once, never overwritten, found again from any path inside it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnpcli.config import RunConfig
from gnpcli.config.loader import Layer, differences, dump, read_yaml, validate
from gnpcli.errors import CheckpointError, ConfigError
from gnpcli.files import write_atomically
from gnpcli.models.registry import resolve_model

CONFIG, METRICS, SUMMARY, ENVIRONMENT, CHECKPOINTS = (
    "config.yaml", "metrics.jsonl", "summary.json", "environment.json", "checkpoints",
)  # fmt: skip


def default_run_dir(config: RunConfig) -> Path:
    """Return a new folder name under ``runs/`` that says model, data, strategy, seed and time."""
    model, data = (
        re.sub(r"[^\w.-]+", "-", name).strip("-") for name in (config.model.name, config.data.name)
    )
    stem = (
        f"{model}-{data}-{config.gr.strategy}-s{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    path = Path("runs") / stem
    number = 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def check_free(run_dir: Path, config: RunConfig) -> None:
    """Refuse a folder that a new run of `config` must not be written into.

    Raises:
        ConfigError: The folder holds a run already (with the keys that differ, where any do) or
            other files.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is a file, not a folder")
    if (run_dir / CONFIG).exists():
        different = differences(read_config(run_dir), config)
        if different:
            raise ConfigError(
                f"{run_dir} holds a run with another configuration ({'; '.join(different)}): take "
                "another --run-dir"
            )
        raise ConfigError(
            f"{run_dir} holds this very run already: continue it with `gnp resume {run_dir}`, or "
            "take another --run-dir"
        )
    if run_dir.exists() and any(run_dir.iterdir()):
        raise ConfigError(f"{run_dir} is not empty and is not a run folder: take another --run-dir")


def create_run(run_dir: Path, config: RunConfig) -> None:
    """Make a run folder, which `check_free` has allowed, and write its ``config.yaml``.

    Raises:
        OSError: It cannot be written.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG, dump(config))


def read_config(run_dir: Path) -> RunConfig:
    """Return the configuration of a run folder.

    Raises:
        ConfigError: It is not a run folder, or its ``config.yaml`` does not hold a configuration.
    """
    if not (run_dir / CONFIG).is_file():
        raise ConfigError(f"{run_dir} is not a run folder (it has no {CONFIG})")
    return _complete(validate(read_yaml(run_dir / CONFIG)))


def config_from_meta(meta: dict[str, Any]) -> RunConfig:
    """Return the configuration that a checkpoint was saved with."""
    return _complete(validate(Layer(meta["config"], {})))


def _complete(config: RunConfig) -> RunConfig:
    """Fill model options that an earlier version did not write down, which is what they were."""
    return config.model_copy(update={"model": resolve_model(config.model)})


def note_session(run_dir: Path, environment: dict[str, Any], start_step: int) -> None:
    """Append to ``environment.json`` what the run runs on from `start_step` on: one entry per start
    and resume.
    """
    path = run_dir / ENVIRONMENT
    sessions = json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.exists() else []
    sessions.append({"start_step": start_step, **environment})
    write_atomically(path, json.dumps({"sessions": sessions}, indent=2) + "\n")


@dataclass(frozen=True)
class Location:
    """Where checkpoints are: the folder of all of them, one step if the path named one, the run if
    it is inside one.
    """

    checkpoints: Path
    step: int | None
    run_dir: Path | None


def locate(path: Path) -> Location:
    """Find the checkpoints meant by a run folder, its ``checkpoints`` folder, or one step's folder.

    Raises:
        CheckpointError: Nothing there, or something else.
    """
    path = path.expanduser().resolve()
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    if (path / CONFIG).is_file():
        return Location(path / CHECKPOINTS, None, path)
    if path.name.isdecimal() and not any(
        child.name.isdecimal() for child in path.iterdir() if child.is_dir()
    ):
        checkpoints, step = path.parent, int(path.name)
    elif any(child.name.isdecimal() for child in path.iterdir() if child.is_dir()):
        checkpoints, step = path, None
    else:
        raise CheckpointError(
            f"{path} is neither a run folder (no {CONFIG}) nor a checkpoint (no numbered step)"
        )
    run_dir = checkpoints.parent
    return Location(checkpoints, step, run_dir if (run_dir / CONFIG).is_file() else None)
