"""``gnp report``: the page of one run."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnpcli import __version__
from gnpcli.config import GrConfig
from gnpcli.config.checks import advice
from gnpcli.config.resolved import Resolved
from gnpcli.errors import DataError
from gnpcli.recipes.wording import objective_in_words
from gnpcli.report import page
from gnpcli.report.bands import Group, panels_of
from gnpcli.report.charts import check_place, inline_charts
from gnpcli.report.metrics import EVALUATED
from gnpcli.runs.contents import Session, Summary
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.history import History, read_history
from gnpcli.runs.log import training_time_s


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
        OSError: It cannot be written.
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
    bad = "" if status == "finished" else " bad"
    sections = [
        f"<header><h1>{html.escape(_headline(config))} <span "
        f'class="badge{bad}">{html.escape(status)}</span></h1>\n'
        f'<p class="sub">{html.escape(group.label)}</p></header>\n',
        page.warnings([*damage, *_warnings(history, summary)]),
        page.tiles(_tiles(history, summary)),
        "<h2>Objective</h2>\n",
        formula(config),
        "<h2>Curves</h2>\n",
        inline_charts([group], panels_of([group]), "epoch", "range"),
        "<h2>Evaluation</h2>\n",
        _evaluations(history),
        "<h2>Checkpoints</h2>\n",
        _checkpoints(history, run.checkpoint_sizes(), summary),
        "<h2>Configuration</h2>\n",
        _configuration(config),
        "<h2>Where it ran</h2>\n",
        _sessions(sessions),
        f"<footer>Written by gnp {__version__} from the run folder; means over the global batch of "
        "a logged step, "
        "evaluations over the whole split.</footer>\n",
    ]
    return "".join(sections)


def _headline(config: Resolved) -> str:
    how = config.gr.strategy if config.gr.how.penalises else "plain training"
    return f"{config.model.name} on {config.data.name}, {how}"


def _evaluated(history: History, split: str) -> list[dict[str, Any]]:
    return [
        record
        for record in history.records
        if record["split"] == split and record.get("error_rate") is not None
    ]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


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
    tiles = {}
    for split in reversed(EVALUATED):
        if records := _evaluated(history, split):
            last, best = records[-1], min(records, key=lambda record: float(record["error_rate"]))
            tiles[f"{split} error at epoch {last.get('epoch') or 0:g}"] = _percent(
                last["error_rate"]
            )
            if best["error_rate"] < last["error_rate"]:
                tiles[f"lowest {split} error, epoch {best.get('epoch') or 0:g}"] = _percent(
                    best["error_rate"]
                )
            if last.get("loss") is not None:
                tiles[f"{split} loss"] = f"{last['loss']:.4f}"
    last = history.records[-1]
    total = summary.get("total_steps", last["step"])
    tiles["steps" if total == last["step"] else f"of {total:,} steps"] = f"{last['step']:,}"
    if num_parameters := summary.get("num_parameters"):
        tiles["parameters"] = f"{num_parameters:,}"
    if seconds := training_time_s(history.records):
        tiles["training time"] = _duration(seconds)
    if images_per_s := summary.get("images_per_s"):
        tiles["images/s in training"] = f"{images_per_s:,.0f}"
    return tiles


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{minutes} min" if minutes < 120 else f"{hours:.1f} h"


def _when(gr: GrConfig) -> str:
    if not gr.how.warms_up:
        return "at full strength from the first step"
    words = gr.how.words.replace("alpha", "α")
    return f"{words} for the first {gr.warmup_epochs:g} epochs"


def formula(config: Resolved) -> str:
    """Return the objective as a formula, what its letters are in this run, and the line that `gnp
    train` printed.
    """
    gr, train = config.gr, config.train
    loss = "<i>L</i>(<i>w</i>)"
    inner = f"{loss} + ½·{train.l2:g}·‖<i>w</i>‖²" if train.l2 else loss
    told = ["L is the mean cross-entropy"
            + (f" with label smoothing {train.label_smoothing:g}" if train.label_smoothing else "")]  # fmt: skip
    r, alpha = gr.r, gr.alpha
    if not gr.how.penalises or not r * alpha:
        formula = inner
    else:
        gradient = f"∇[{inner}]" if train.l2 and gr.penalize_l2 else f"∇{loss}"
        gradient = f"<i>T</i>&#8202;{gradient}" if gr.ascent == "adaptive" else gradient
        formula = f"{inner} + <i>λ</i>·‖{gradient}‖₂"
        how = _when(gr)
        kind = (
            "a second gradient at distance r"
            if gr.gradient == "finite-difference"
            else "an exact Hessian-vector product"
        )
        told += [
            f"λ = α·r = {alpha * r:g} with r = {r:g} and α = {alpha:g}, {how}",
            f"its gradient is taken by {kind}",
        ]
    if config.optimizer.weight_decay:
        told.append(f"decoupled weight decay {config.optimizer.weight_decay:g} acts besides")
    if train.clip_norm:
        told.append(f"the gradient is clipped to a norm of {train.clip_norm:g}")
    return (
        '<div class="formula"><div '
        f'class="math">{formula}</div>\n<p>{html.escape("; ".join(told))}.</p>'
        f'<p class="sub"><code>{html.escape(objective_in_words(config))}</code></p></div>\n'
    )


def _evaluations(history: History) -> str:
    rows = []
    records = [record for record in history.records if record["split"] in EVALUATED]
    lowest = {
        split: min(record["error_rate"] for record in found)
        for split in EVALUATED
        if (found := _evaluated(history, split))
    }
    for record in records:
        rate = record.get("error_rate")
        top5, loss = record.get("top5_error_rate"), record.get("loss")
        rows.append(
            [
                f"{record.get('epoch') or 0:g}", f"{record['step']:,}", record["split"],
                "not finite" if rate is None else "lowest ▸ " * (rate == lowest[record["split"]]) + _percent(rate),
                "" if top5 is None else _percent(top5),
                "not finite" if loss is None else f"{loss:.4f}", f"{record.get('num_examples') or 0:,}",
            ]
        )  # fmt: skip
    if not rows:
        return "<p>None yet.</p>\n"
    listed = page.table(
        ("epoch", "step", "split", "error", "top-5 error", "loss", "images"),
        rows,
        numbers=(0, 1, 3, 4, 5, 6),
    )
    return f"<details{' open' if len(rows) <= 20 else ''}><summary>{len(rows)} evaluations</summary>\n{listed}</details>\n"


def _checkpoints(history: History, sizes: Mapping[int, int], summary: Summary) -> str:
    if not sizes:
        return "<p>None.</p>\n"
    rates = {
        record["step"]: record["error_rate"]
        for split in ("test", "val")
        for record in _evaluated(history, split)
    }
    rows = []
    for step, size in sizes.items():
        what = ["best"] if step == summary.get("best_step") else []
        what += ["last"] if step == max(sizes) else []
        rows.append(
            [
                f"{step:,}",
                ", ".join(what),
                _percent(rates[step]) if step in rates else "",
                f"{size / 1e6:,.1f} MB",
            ]
        )
    return page.table(("step", "", "error", "on disk"), rows, numbers=(0, 2, 3))


def _configuration(config: Resolved) -> str:
    sections = []
    for section, keys in config.model_dump(mode="json").items():
        shown = sorted(
            keys, key=lambda key: key != "name"
        )  # the name, which chooses the rest, first
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
    return page.table(heads, rows, numbers=(0,)) + f'<p class="sub">{html.escape(told)}</p>\n'


def _told(value: object) -> str:
    """Return a value as text; equal devices are counted."""
    if value is None:
        return "-"
    if isinstance(value, list):
        counts = {item: value.count(item) for item in value}
        return ", ".join(
            f"{count} x {item}" if count > 1 else str(item) for item, count in counts.items()
        )
    return str(value)
