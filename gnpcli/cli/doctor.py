"""``gnp doctor``."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from gnpcli.cli.options import JsonOption, QuietOption, split_names
from gnpcli.cli.output import print_grid, print_heading, print_json, print_table, say, tell
from gnpcli.errors import GnpError
from gnpcli.terminal import words

DTYPES = ("float32", "bfloat16")

DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Compute types to test in, joined by commas: float32, bfloat16.",
        show_default="float32 on a CPU, else both",
    ),
]
NoTestOption = Annotated[
    bool, typer.Option("--no-test", help="Leave the steps out: it looks, and computes nothing.")
]


def doctor(
    dtype: DtypeOption = None,
    no_test: NoTestOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check this machine, and test a step on each device.

    It tells versions, devices and their memory, what JAX computes on and why, folders, data sets,
    and what to do about what is wrong. A few GNP steps of a small model on each device are compared
    with the same steps on the CPU in float32. Exit status 1 says that nothing would train, or that
    numbers are wrong. Give its --json with a report of a bug.
    """
    named = _named(dtype)
    _take_any_text()
    from gnpcli.doctor.examine import USUAL, examine

    chosen: Sequence[str] | None = None if no_test else named or USUAL
    is_silent = quiet or as_json
    report = examine(chosen, notify=(lambda text: None) if is_silent else tell)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report["is_fit"]:
        count = words.plural(len(report["errors"]), "error")
        raise GnpError(f"this machine is not fit to train: {count}, told above")


def _take_any_text() -> None:
    """Let what an odd locale has no signs for be written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _named(dtype: str | None) -> list[str]:
    chosen = split_names(dtype or "")
    for name in chosen:
        if name not in DTYPES:
            raise typer.BadParameter(
                f"'{name}' is not one of {', '.join(DTYPES)}", param_hint="--dtype"
            )
    return chosen


def _print(report: Mapping[str, Any]) -> None:
    _print_facts(report)
    _print_devices(report)
    _print_folders(report)
    _print_data(report)
    _print_findings(report)


def _print_facts(report: Mapping[str, Any]) -> None:
    from gnpcli.terminal.grid import Grid

    rows = [[name, text] for name, text in _facts(report) if text]
    print_grid(Grid(("", ""), rows, has_header=False))


def _facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    versions, here, backend = report["versions"], report["accelerators"], report["backend"]
    yield "versions", ", ".join(f"{name} {text}" for name, text in versions.items() if text)
    yield "plugins", ", ".join(report["plugins"])
    system = report["system"]
    parts = [system.get(name) for name in ("platform", "processor", "container", "executable")]
    yield "system", ", ".join(filter(None, parts))
    yield "machine", _machine(report["machine"])
    if here:
        yield "GPUs", _counted(here["gpus"]) or ", ".join(here["nvidia"])
        yield "driver", here["driver"] or ""
        yield "TPU", ", ".join(here["tpu"])
    yield "backend", f"{backend['platform']}: {backend['why']}" if backend["platform"] else "none"
    yield "variables", "  ".join(report["variables"])
    terminal = report["terminal"]
    if terminal:
        kind = terminal["kind"] if terminal["is_terminal"] else "not a terminal"
        yield "output", f"{kind}, {terminal['encoding']}, locale {terminal['locale']}"


def _counted(gpus: Sequence[str]) -> str:
    many = [f"{count} x {name}" if count > 1 else name for name, count in Counter(gpus).items()]
    return "; ".join(many)


def _machine(machine: Mapping[str, Any]) -> str:
    if not machine:
        return ""
    usable = words.number(machine["usable_cores"], "g")
    parts = [
        f"{words.number(machine['cores'])} cores, {usable} for this process",
        f"{words.size(machine['memory_bytes'])} of memory",
        f"{words.size(machine['available_bytes'])} available",
    ]
    if machine["limit_bytes"] is not None:
        parts.append(f"limited to {words.size(machine['limit_bytes'])}")
    return ", ".join(parts)


def _print_devices(report: Mapping[str, Any]) -> None:
    """Print each device, with a row for each type that it was tested in."""
    devices, test = report["devices"], report["self_test"]
    if not devices:
        return
    say("")
    results = test["results"] if test else []
    rows = []
    for device in devices:
        first = [device["name"], device["kind"], words.size(device["memory_bytes"])]
        if not test:
            rows.append(first)
            continue
        for result in [each for each in results if each["device"] == device["name"]] or [None]:
            rows.append([*first, *_tested(result)])
            first = ["", "", ""]
    header = ["device", "kind", "memory"]
    if test:
        header += ["type", "test", "off by", "step ms", "compiled in"]
    print_table(header, rows, numbers=("memory", "off by", "step ms", "compiled in"))


def _tested(result: Mapping[str, Any] | None) -> list[str]:
    if result is None:
        return [words.NOTHING, "not tested", *3 * [words.NOTHING]]
    if result["problem"]:
        is_left_out = result["problem"].startswith("not tested")
        verdict = "not tested" if is_left_out else "fails"
    elif not result["is_finite"]:
        verdict = "not finite"
    else:
        verdict = "right" if result["is_right"] else "off"
    return [
        result["dtype"],
        verdict,
        words.rough_percent(result["error"]),
        words.number(result["step_ms"], ".1f"),
        words.duration(result["compile_s"]),
    ]


def _print_folders(report: Mapping[str, Any]) -> None:
    if not report["folders"]:
        return
    say("")
    rows = [
        [
            folder["name"],
            "no" if folder["problem"] else "yes",
            words.size(folder["free_bytes"]),
            words.size(folder["num_bytes"]),
            folder["path"] or words.NOTHING,
        ]
        for folder in report["folders"]
    ]
    header = ("folder", "writable", "free", "holds", "where")
    print_table(header, rows, numbers=("free", "holds"), has_notes=True)


def _print_data(report: Mapping[str, Any]) -> None:
    rows = [
        [row["name"], row["format"] or words.NOTHING, row["where"] or row["problem"] or ""]
        for row in report["data"]
    ]
    if rows:
        say("")
        print_table(("data set", "format", "where"), rows, has_notes=True)


_LEVELS = (
    ("errors", "error", "bold red"),
    ("warnings", "warning", "yellow"),
    ("notes", "note", ""),
)


def _print_findings(report: Mapping[str, Any]) -> None:
    from gnpcli.terminal.grid import Grid, Styled

    rows = [[Styled(word, style), text] for level, word, style in _LEVELS for text in report[level]]
    say("")
    if rows:
        print_heading("What was found")
        print_grid(Grid(("", ""), rows, has_header=False))
    else:
        say("Nothing is wrong.")
