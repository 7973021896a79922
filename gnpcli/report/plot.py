"""``gnp plot``: the curves of several runs as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gnpcli.errors import DataError
from gnpcli.report.bands import Group, Spread, group_runs, panels_of
from gnpcli.report.charts import picture, spread_note
from gnpcli.report.metrics import choose_panels, default_panels, not_drawn
from gnpcli.report.style import check_out, save
from gnpcli.runs.grouping import data_sets
from gnpcli.runs.history import History, XAxis, read_histories


def plot(
    folders: Sequence[Path],
    out: Path,
    *,
    metrics: Sequence[str],
    axis: XAxis,
    spread: Spread,
    columns: int,
    warn: Callable[[str], None],
) -> list[str]:
    """Draw runs into a picture. Runs that differ only in their seed are one curve with a band.

    Args:
        folders: Run folders, each once.
        out: ``.png``, ``.svg`` or ``.pdf``; an existing file is replaced.
        metrics: Panels or keys; empty draws every panel but the extra ones.
        axis: What the curves are drawn over.
        spread: What a band shows.
        columns: Panels side by side.
        warn: Told about damaged logs and runs of several data sets.

    Returns:
        What was drawn, for a person: a line for each group, and what the bands are.

    Raises:
        ConfigError: Not a run folder.
        DataError: Nothing logged, a run given twice, an unknown metric, or a file that cannot be
            written.
    """
    check_out(out)
    histories = read_histories(folders)
    _warn_of(histories, warn)
    groups = group_runs(histories)
    panels = panels_of(groups)
    chosen = choose_panels(panels, metrics) if metrics else default_panels(panels)
    if not metrics and (left := not_drawn(panels, chosen)):
        warn(left)
    if not chosen:
        raise DataError("these runs have logged nothing that can be drawn")
    save(picture(groups, chosen, axis, spread, columns), out)
    names = ", ".join(panel.name for panel in chosen)
    lines = [f"{out}: {names}", *map(_told, groups), spread_note(groups, spread)]
    return [line for line in lines if line]


def _warn_of(histories: Sequence[History], warn: Callable[[str], None]) -> None:
    for history in histories:
        if history.damage:
            warn(history.damage)
    names = data_sets(histories)
    if len(names) > 1:
        warn(
            f"these runs are of several data sets ({', '.join(names)}): their losses and errors do "
            "not compare"
        )


def _told(group: Group) -> str:
    folders = ", ".join(str(run.folder) for run in group.runs)
    return f"  {group.title}: {folders}"
