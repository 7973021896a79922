"""What the folder of a run is called where nobody named one."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

from gnpcli.config.resolved import Resolved


def default_run_dirs(config: Resolved) -> Iterator[Path]:
    """Yield folder names under ``runs/`` that say model, data, strategy, seed and time.

    The first has no number; the others end in ``-2``, ``-3`` and so on, without end.
    """
    model, data = _file_name(config.model.name), _file_name(config.data.name)
    now = time.strftime("%Y%m%d-%H%M%S")
    stem = f"{model}-{data}-{config.gr.strategy}-s{config.train.seed}-{now}"
    yield Path("runs") / stem
    for number in itertools.count(2):
        yield Path("runs") / f"{stem}-{number}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")
