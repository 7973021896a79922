"""Several runs side by side: what differs in their configuration, where they ended, what they cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gnpcli.config import RunConfig
from gnpcli.config.loader import flatten
from gnpcli.config.recipe import DATA_KEYS
from gnpcli.errors import ConfigError
from gnpcli.recipes.plan import count_steps
from gnpcli.runs.folder import ENVIRONMENT, METRICS, SUMMARY, read_config
from gnpcli.runs.log import Record, read_metrics, training_time_s

SPLITS = ("val", "test")


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
    if len(places) < 2:
        raise ConfigError("comparing takes two runs at least")
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ConfigError(f"{folders[index]} is given twice")
    configs = [read_config(folder) for folder in folders]
    runs = [
        {"label": label, "folder": str(folder), **_run(folder, config, warn)}
        for label, folder, config in zip(labels(places), folders, configs, strict=True)
    ]
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    different = {key: [values.get(key) for values in flat] for key in keys}
    different = {
        key: values
        for key, values in different.items()
        if any(value != values[0] for value in values)
    }
    if data := [key for key in DATA_KEYS if key in different]:
        told = "; ".join(f"{key}: {', '.join(map(str, different[key]))}" for key in data)
        warn(
            f"these runs are not on the same data ({told}): their errors and losses do not compare"
        )
    return {"runs": runs, "differences": different, "same_data": not data}


def labels(places: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    common = Path(os.path.commonpath(places))
    return [str(place.relative_to(common)) if place != common else place.name for place in places]


def _run(folder: Path, config: RunConfig, warn: Callable[[str], None]) -> dict[str, Any]:
    records = read_metrics(folder / METRICS, warn)
    summary = _read_json(folder / SUMMARY)
    last = records[-1] if records else {"step": 0, "epoch": 0.0}
    evaluations = {split: [r for r in records if r["split"] == split] for split in SPLITS}
    evaluations = {split: found for split, found in evaluations.items() if found}
    return {
        "status": summary.get("status", "unfinished"),
        "step": last["step"],
        "epoch": last["epoch"],
        "total_steps": summary.get("total_steps"),
        "final": {split: _measured(found[-1]) for split, found in evaluations.items()},
        "best": {split: _measured(min(found, key=_error)) for split, found in evaluations.items()},
        "cost": {
            "training_time_s": round(training_time_s(records), 3),
            "images_per_s": summary.get("images_per_s"),
            **_gradients(config, last),
            "num_parameters": summary.get("num_parameters"),
            "devices": _devices(folder),
        },
    }


def _error(record: Record) -> float:
    error = record.get("error_rate")
    return float("inf") if error is None else float(error)


def _measured(record: Record) -> dict[str, Any]:
    return {key: record.get(key) for key in ("error_rate", "loss", "step", "epoch")}


def _gradients(config: RunConfig, last: Record) -> dict[str, int]:
    """Count the gradients taken up to the last record."""
    if not last["step"]:
        return {"plain_steps": 0, "gnp_steps": 0, "gradients": 0}
    plain, gnp = count_steps(config, round(last["step"] / last["epoch"]), last["step"])
    return {"plain_steps": plain, "gnp_steps": gnp, "gradients": plain + 2 * gnp}


def _devices(folder: Path) -> list[str]:
    sessions = _read_json(folder / ENVIRONMENT).get("sessions", [])
    return list(
        dict.fromkeys(device for session in sessions for device in session.get("devices", []))
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
