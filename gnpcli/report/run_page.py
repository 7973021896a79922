"""``gnp report``: the page of one run."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gnpcli import __version__
from gnpcli.config.checks import advice
from gnpcli.config.resolved import Resolved
from gnpcli.errors import DataError
from gnpcli.report import page
from gnpcli.report.bands import Group, panels_of
from gnpcli.report.charts import inline_charts
from gnpcli.report.formula import formula
from gnpcli.report.metrics import MOST_PANELS, not_drawn
from gnpcli.report.style import check_place
from gnpcli.runs.contents import HELD_OUT, Record, Session, Summary
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.history import History, read_history
from gnpcli.runs.log import training_time_s
from gnpcli.terminal.words import duration, percent, size

_MANY_EVALUATIONS = 20
"""More are folded."""


def write_report(folder: Path, out: Path | None) -> Path:
    """Write the page of a run.

    Args:
        folder: The run; finished or not.
        out: The file, replaced where it is there; None takes ``report.html`` in the run folder.

    Returns:
        The file written.

    Raises:
        ConfigError: Not a run folder.
        DataError: Nothing logged yet, or the file has no folder to be in.
        GnpError: It cannot be written.
    """
    history = read_history(folder)
    out = out if out is not None else folder / "report.html"
    check_place(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"{out}: the name of a page ends in .html")
    page.write(out, f"{folder.resolve().name}: {_headline(history.config)}", run_page(history))
    return out


def run_page(history: History) -> str:
    """Return the body of a run's page."""
    damage: list[str] = []
    run = RunFolder(history.folder, damage.append)
    summary, sessions = run.summary(), run.sessions()
    config = history.config
    group = Group(history.folder.resolve().name, (history,))
    status = summary["status"]
    panels = panels_of([group])
    drawn = panels[:MOST_PANELS]
    notes = [*damage, *_warnings(history, summary), not_drawn(panels, drawn)]
    bad = "" if status == "finished" else " bad"
    sections = [
        f"<header><h1>{html.escape(_headline(config))} <span "
        f'class="badge{bad}">{html.escape(status)}</span></h1>\n'
        f'<p class="sub">{html.escape(group.label)}</p></header>\n',
        page.warnings([note for note in notes if note]),
        page.tiles(_tiles(history, summary)),
        "<h2>Objective</h2>\n",
        formula(config),
        "<h2>Curves</h2>\n",
        inline_charts([group], drawn, "epoch", "range"),
        "<h2>Evaluation</h2>\n",
        _evaluations(history),
        "<h2>Checkpoints</h2>\n",
        _checkpoints(history, run.checkpoint_sizes(), summary),
        "<h2>Configuration</h2>\n",
        _configuration(config),
        "<h2>Where it ran</h2>\n",
        _sessions(sessions),
        f"<footer>Written by gnp {__version__} from the run folder; means over the global batch of "
        "a logged step, evaluations over the whole split.</footer>\n",
    ]
    return "".join(sections)


def _headline(config: Resolved) -> str:
    how = config.gr.strategy if config.gr.how.penalises else "plain training"
    return f"{config.model.name} on {config.data.name}, {how}"


def _evaluated(history: History, split: str) -> list[Record]:
    """Return the evaluations of a split whose error is finite."""
    return [
        record
        for record in history.records
        if record["split"] == split and record.get("error_rate") is not None
    ]


def _warnings(history: History, summary: Summary) -> list[str]:
    found = []
    if history.damage:
        found.append(f"The log is damaged: {history.damage}.")
    match summary["status"]:
        case "diverged":
            found.append(f"The run diverged: {summary.get('error', 'no reason was written')}")
        case "unfinished":
            found.append("The run has not come to an end: it is still going on or was killed.")
        case "stopped" | "interrupted" as status:
            found.append(f"The run is {status} at step {history.records[-1]['step']}.")
    lost = [record for record in history.records if record.get("non_finite")]
    if lost:
        found.append(
            f"Step {lost[0]['step']} logged values that are not finite: "
            f"{', '.join(lost[0]['non_finite'])}."
        )
    return found + [f"Advice: {text}." for text in advice(history.config)]


def _tiles(history: History, summary: Summary) -> dict[str, str]:
    """Return the figures that matter most, by name."""
    tiles: dict[str, str] = {}
    for split in reversed(HELD_OUT):
        tiles |= _error_tiles(_evaluated(history, split), split)
    step = history.records[-1]["step"]
    total = summary.get("total_steps", step)
    tiles["steps" if total == step else f"of {total:,} steps"] = f"{step:,}"
    if num_parameters := summary.get("num_parameters"):
        tiles["parameters"] = f"{num_parameters:,}"
    if seconds := training_time_s(history.records):
        tiles["training time"] = duration(seconds)
    if images_per_s := summary.get("images_per_s"):
        tiles["images/s in training"] = f"{images_per_s:,.0f}"
    return tiles


def _error_tiles(records: Sequence[Record], split: str) -> dict[str, str]:
    if not records:
        return {}
    last, best = records[-1], min(records, key=_error_rate)
    tiles = {f"{split} error at epoch {_epoch(last)}": percent(last["error_rate"])}
    if best["error_rate"] < last["error_rate"]:
        tiles[f"lowest {split} error, epoch {_epoch(best)}"] = percent(best["error_rate"])
    if last.get("loss") is not None:
        tiles[f"{split} loss"] = f"{last['loss']:.4f}"
    return tiles


def _error_rate(record: Record) -> float:
    return float(record["error_rate"])


def _epoch(record: Record) -> str:
    return f"{record.get('epoch') or 0:g}"


def _evaluations(history: History) -> str:
    """Return a line for each evaluation, folded where they are many."""
    lowest = {}
    for split in HELD_OUT:
        rates = [_error_rate(record) for record in _evaluated(history, split)]
        lowest[split] = min(rates, default=None)
    records = [record for record in history.records if record["split"] in HELD_OUT]
    rows = [_evaluation(record, lowest[record["split"]]) for record in records]
    if not rows:
        return "<p>None yet.</p>\n"
    heads = ("epoch", "step", "split", "error", "top-5 error", "loss", "images")
    listed = page.table(heads, rows, numbers=(0, 1, 3, 4, 5, 6))
    is_open = " open" if len(rows) <= _MANY_EVALUATIONS else ""
    count = f"<summary>{len(rows)} evaluations</summary>"
    return f"<details{is_open}>{count}\n{listed}</details>\n"


def _evaluation(record: Record, lowest: float | None) -> list[str]:
    """Return the cells of one evaluation; a null is a value that was not finite."""
    rate, top5, loss = (record.get(key) for key in ("error_rate", "top5_error_rate", "loss"))
    error = "not finite" if rate is None else percent(rate)
    if rate is not None and rate == lowest:
        error = f"lowest ▸ {error}"
    return [
        _epoch(record),
        f"{record['step']:,}",
        record["split"],
        error,
        "" if top5 is None else percent(top5),
        "not finite" if loss is None else f"{loss:.4f}",
        f"{record.get('num_examples') or 0:,}",
    ]


def _checkpoints(history: History, sizes: Mapping[int, int], summary: Summary) -> str:
    """Return a line for each checkpoint: its step, its error, its bytes on disk."""
    if not sizes:
        return "<p>None.</p>\n"
    rates: dict[int, float] = {}
    for split in ("test", "val"):  # val decides where there is one
        rates |= {record["step"]: _error_rate(record) for record in _evaluated(history, split)}
    rows = []
    for step, num_bytes in sizes.items():
        marks = {"best": step == summary.get("best_step"), "last": step == max(sizes)}
        which = ", ".join(mark for mark, is_so in marks.items() if is_so)
        error = percent(rates[step]) if step in rates else ""
        rows.append([f"{step:,}", which, error, size(num_bytes)])
    return page.table(("step", "", "error", "on disk"), rows, numbers=(0, 2, 3))


def _configuration(config: Resolved) -> str:
    sections = []
    for section, keys in config.model_dump(mode="json").items():
        shown = sorted(keys, key=lambda key: key != "name")  # the name chooses the rest
        rows = [[key, _value(keys[key])] for key in shown if keys[key] is not None]
        unset = [key for key, value in keys.items() if value is None]
        table = page.table(("", ""), rows)
        rest = f'<p class="sub">null: {html.escape(", ".join(unset))}</p>' if unset else ""
        sections.append(f"<section><h3>{html.escape(section)}</h3>{table}{rest}</section>\n")
    return f'<div class="columns">{"".join(sections)}</div>\n'


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sessions(sessions: Sequence[Session]) -> str:
    if not sessions:
        return "<p>Not recorded.</p>\n"
    keys = ("start_step", "devices", "backend", "platform", "python", "git_commit")
    rows = [[_told(session.get(key)) for key in keys] for session in sessions]
    versions = sessions[-1].get("versions") or {}
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    heads = ("from step", "devices", "backend", "platform", "python", "commit")
    lines = [told, *_data_changes(sessions)]
    below = "".join(f'<p class="sub">{html.escape(line)}</p>\n' for line in lines)
    return page.table(heads, rows, numbers=(0,)) + below


def _data_changes(sessions: Sequence[Session]) -> list[str]:
    """Return a sentence for each session that went on with changed data, as it was asked to."""
    return [
        f"From step {session.get('start_step')} on with changed data: "
        f"{'; '.join(session['accepted_data_changes'])}."
        for session in sessions
        if session.get("accepted_data_changes")
    ]


def _told(value: object) -> str:
    """Return a value as text; equal devices are counted."""
    if value is None:
        return "-"
    if isinstance(value, list):
        counts = {item: value.count(item) for item in value}
        texts = [f"{count} x {item}" if count > 1 else str(item) for item, count in counts.items()]
        return ", ".join(texts)
    return str(value)
