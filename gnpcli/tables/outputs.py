"""The files of a result, beside its cells."""

from __future__ import annotations

from pathlib import Path

from gnpcli.files import write_atomically
from gnpcli.strict_json import to_json
from gnpcli.tables.formats import to_csv, to_dict, to_latex, to_markdown, to_runs_csv
from gnpcli.tables.page import to_html
from gnpcli.tables.report import make_report
from gnpcli.tables.results import TableResult


def write_outputs(result: TableResult, out: Path) -> list[Path]:
    """Write ``table.md``, ``.csv``, ``.tex``, ``.json`` and ``.html``, and ``runs.csv``.

    Returns:
        Their paths.

    Raises:
        OSError: A file cannot be written.
    """
    report = make_report(result)
    texts = {
        "table.md": to_markdown(report),
        "table.csv": to_csv(result),
        "runs.csv": to_runs_csv(result),
        "table.tex": to_latex(report),
        "table.json": to_json(to_dict(result), indent=2) + "\n",
        "table.html": to_html(report, result),
    }
    for name, text in texts.items():
        write_atomically(out / name, text)
    return [out / name for name in texts]
