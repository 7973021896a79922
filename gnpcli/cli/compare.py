"""``gnp compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnpcli.cli.options import JsonOption, RunsArgument
from gnpcli.cli.output import print_json, print_table, warn
from gnpcli.terminal import words

if TYPE_CHECKING:
    from gnpcli.terminal.grid import Cell


def compare(runs: RunsArgument, as_json: JsonOption = False) -> None:
    """Show runs side by side.

    The lines are what differs in their configuration, their final and best errors, and their cost.
    """
    from gnpcli.runs.compare import compare as run

    result = run(runs, warn)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    from gnpcli.terminal.grid import Styled

    rows: list[list[Cell]] = []
    for key, values in result["differences"].items():
        told = [words.NOTHING if value is None else str(value) for value in values]
        rows.append([Styled(key, "cyan"), *told])
    rows += [[name, *texts] for name, texts in _measurements(result["runs"])]
    print_table(["", *(one["label"] for one in result["runs"])], rows)


def _measurements(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the lines below the configuration: a name, and a text for each run."""
    lines = [("status", [f"{one['status']}, epoch {one['epoch']:g}" for one in runs])]
    for split in ("val", "test"):
        if any(split in one["final"] for one in runs):
            lines += _errors(runs, split)
    return lines + _costs([one["cost"] for one in runs])


def _errors(runs: Sequence[Mapping[str, Any]], split: str) -> list[tuple[str, list[str]]]:
    final = [one["final"].get(split, {}) for one in runs]
    best = [one["best"].get(split, {}) for one in runs]
    losses = [words.number(measured.get("loss"), ".4f") for measured in final]
    return [
        (f"{split} error", [words.percent(measured.get("error_rate")) for measured in final]),
        (f"best {split} error", [_with_epoch(measured) for measured in best]),
        (f"{split} loss", losses),
    ]


def _with_epoch(measured: Mapping[str, Any]) -> str:
    error_rate = measured.get("error_rate")
    if error_rate is None:
        return words.NOTHING
    return f"{words.percent(error_rate)} (epoch {words.number(measured['epoch'], 'g')})"


def _costs(costs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    steps = [
        f"{words.number(cost['plain_steps'])} + {words.number(cost['gnp_steps'])}" for cost in costs
    ]
    devices = [", ".join(cost["devices"]) or words.NOTHING for cost in costs]
    return [
        ("parameters", [words.number(cost["num_parameters"]) for cost in costs]),
        ("steps, plain + GNP", steps),
        ("gradients", [words.number(cost["gradients"]) for cost in costs]),
        ("training time", [words.duration(cost["training_time_s"]) for cost in costs]),
        ("images/s", [words.number(cost["images_per_s"], ",.0f") for cost in costs]),
        ("devices", devices),
    ]
