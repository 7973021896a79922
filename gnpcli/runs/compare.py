"""Several runs side by side: how their configurations differ, where they ended, what they cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gnpcli.config.loader import flatten
from gnpcli.config.recipe import DATA_KEYS
from gnpcli.config.resolved import Resolved
from gnpcli.errors import ConfigError
from gnpcli.recipes.plan import count_steps
from gnpcli.runs.contents import HELD_OUT, Record, Summary
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import reached_epoch, training_time_s

_MOST_STEPS = 100_000_000
"""Of a run. A log that comes to more is damaged, and they are not counted."""


def compare(folders: Sequence[Path], warn: Callable[[str], None]) -> dict[str, Any]:
    """Compare runs, finished or not.

    Args:
        folders: Run folders, each once.
        warn: Told of damaged logs, and of runs that were measured on different data.

    Returns:
        JSON-able. ``runs``: for each run its ``label`` and ``folder``, ``status``, ``step``,
        ``epoch`` and ``total_steps``; ``final`` and ``best`` per split (``error_rate``, ``loss``
        and ``step``; best by error rate); ``cost``: ``training_time_s`` (wall time of all
        sessions), ``images_per_s`` (null where it was never measured), ``plain_steps``,
        ``gnp_steps`` and ``gradients`` so far, ``num_parameters`` and ``devices``. ``differences``:
        every key whose values differ, with one value a run. ``same_data``: whether errors may be
        compared at all.

    Raises:
        ConfigError: Not a run folder, one given twice, or fewer than two.
    """
    places = [folder.resolve() for folder in folders]
    _check_distinct(folders, places)
    opened = [RunFolder(folder, warn) for folder in folders]
    configs = [run.config() for run in opened]
    runs = []
    for label, run, config in zip(labels(places), opened, configs, strict=True):
        runs.append({"label": label, "folder": str(run), **_run(run, config)})
    differences = _differences(configs)
    data = [key for key in DATA_KEYS if key in differences]
    if data:
        told = "; ".join(f"{key}: {', '.join(map(str, differences[key]))}" for key in data)
        warn(
            f"these runs are not on the same data ({told}): their errors and losses do not compare"
        )
    return {"runs": runs, "differences": differences, "same_data": not data}


def labels(places: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    common = Path(os.path.commonpath(places))
    return [str(place.relative_to(common)) if place != common else place.name for place in places]


def _check_distinct(folders: Sequence[Path], places: Sequence[Path]) -> None:
    if len(places) < 2:
        raise ConfigError("comparing takes two runs at least")
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ConfigError(f"{folders[index]} is given twice")


def _differences(configs: Sequence[Resolved]) -> dict[str, list[Any]]:
    """Return the keys whose values differ, each with its value in every run.

    The value is None where a run has no such key.
    """
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    found = {}
    for key in keys:
        values = [own.get(key) for own in flat]
        if any(value != values[0] for value in values):
            found[key] = values
    return found


def _run(run: RunFolder, config: Resolved) -> dict[str, Any]:
    """Return what a run has measured and cost; see `compare`."""
    records, summary = run.records(), run.summary()
    step = records[-1]["step"] if records else 0
    epoch = reached_epoch(records) or 0.0
    final, best = {}, {}
    for split in HELD_OUT:
        evaluations = [record for record in records if record["split"] == split]
        if evaluations:
            final[split] = _measured(evaluations[-1])
            best[split] = _measured(min(evaluations, key=_error))
    return {
        "status": summary["status"],
        "step": step,
        "epoch": epoch,
        "total_steps": summary.get("total_steps"),
        "final": final,
        "best": best,
        "cost": {
            "training_time_s": round(training_time_s(records), 3),
            "images_per_s": summary.get("images_per_s"),
            **_gradients(config, step, _steps_per_epoch(config, summary, step, epoch)),
            "num_parameters": summary.get("num_parameters"),
            "devices": _devices(run),
        },
    }


def _error(record: Record) -> float:
    error = record.get("error_rate")
    return float("inf") if error is None else float(error)


def _measured(record: Record) -> dict[str, Any]:
    return {key: record.get(key) for key in ("error_rate", "loss", "step", "epoch")}


def _steps_per_epoch(config: Resolved, summary: Summary, step: int, epoch: float) -> float:
    """Return the length of an epoch; 0 where neither the summary nor the log says it.

    The summary has it exactly. The log rounds epochs, the first ones of long epochs to 0.
    """
    total = summary.get("total_steps", 0)
    if total and total % config.train.epochs == 0:
        return total / config.train.epochs
    return step / epoch if epoch > 0 else 0.0


def _gradients(config: Resolved, step: int, steps_per_epoch: float) -> dict[str, int]:
    """Count the gradients taken up to a step; all are 0 where the length of an epoch is unknown."""
    if not 0.5 < steps_per_epoch <= _MOST_STEPS / config.train.epochs:
        return {"plain_steps": 0, "gnp_steps": 0, "gradients": 0}
    plain, gnp = count_steps(config, round(steps_per_epoch), step)
    return {"plain_steps": plain, "gnp_steps": gnp, "gradients": plain + 2 * gnp}


def _devices(run: RunFolder) -> list[str]:
    """Return the kinds of device that the run ran on, each once."""
    kinds = [device for session in run.sessions() for device in session.get("devices", [])]
    return list(dict.fromkeys(kinds))
