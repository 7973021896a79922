"""How ``gnp plan`` prints a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnpcli.cli.output import print_heading, print_table, say
from gnpcli.terminal import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gnpcli.cluster.chips import Machine
    from gnpcli.cluster.planning import RunPlan
    from gnpcli.step.schedules import StepKind
    from gnpcli.tables.cells import Cell

CAUTION = "real runs differ: docs/planning.md says by how much"


def print_plan(name: str, model: str, plan: RunPlan, price: float | None) -> None:
    """Print the plan of a run."""
    machine, devices = plan.machine, plan.machine.devices
    print_heading(
        f"{name} on {machine.name} ({machine.chips:,} x {machine.chip.title}): {model}, batch "
        f"{plan.work.batch_size:,} ({plan.work.batch_size // devices:,} a device), {plan.dtype}"
    )
    columns = [_step(plan, kind) for kind in plan.costs]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    print_table(["a step", *plan.costs], rows, numbers=[*plan.costs])
    say("", *_lines(plan, price), *_origin(plan))


def _step(plan: RunPlan, kind: StepKind) -> dict[str, str]:
    cost, time = plan.costs[kind], plan.times[kind]
    collectives = [f"{each.count} {name}" for name, each in cost.collectives.items()]
    return {
        "GFLOP": _three_digits(cost.flops / 1e9),
        "memory traffic": words.size(int(cost.bytes)),
        "collectives": ", ".join(collectives) or "none",
        "over links": words.size(int(cost.moved)),
        "memory": words.size(cost.memory),
        "  arguments": words.size(cost.arguments),
        "  temporaries": words.size(cost.temporaries),
        "time": f"{1e3 * time.total_s:,.2f} ms",
        "bound by": time.bound,
    }


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _lines(plan: RunPlan, price: float | None) -> Iterator[str]:
    there = words.size(int(plan.machine.memory))
    if plan.fits:
        yield f"memory   fits: {words.size(plan.memory)} of {there} a device"
    else:
        yield f"memory   does not fit: {words.size(plan.memory)} of {there} a device; {_fix(plan)}"
    largest = plan.largest_batch
    if largest is not None:
        yield f"batch    the largest that fits is about {largest:,} (an estimate)"
    counts = ", ".join(f"{count:,} {kind}" for kind, count in plan.work.steps.items())
    yield f"steps    {counts}; {plan.work.evaluated:,} images evaluated"
    yield f"run      {_sum(plan.hours, plan.exaflop, plan.chip_hours, price)}"
    yield f"         {CAUTION}"


def _fix(plan: RunPlan) -> str:
    if not plan.remedies:
        return f"with {words.listing(plan.tried)} neither (an estimate)"
    fits = [" ".join(remedy.settings) for remedy in plan.remedies]
    return f"fits with {words.listing(fits, last='or')} (an estimate)"


def _sum(hours: float, exaflop: float, chip_hours: float, price: float | None) -> str:
    money = "" if price is None else f", {_money(price * chip_hours)} at {price:g} a chip-hour"
    return (
        f"about {words.duration(3600 * hours)}, {chip_hours:,.3g} chip-hours, "
        f"{exaflop:,.3g} EFLOP{money}"
    )


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.2g}"


def _origin(plan: RunPlan) -> Iterator[str]:
    """Yield where each number comes from."""
    cost = max(plan.costs.values(), key=lambda cost: cost.is_too_large)
    is_compiled = plan.machine.chip.kind == "tpu" and not cost.is_too_large
    collectives = cost.source if is_compiled else "what the method asks for"
    memory = cost.memory_source
    yield f"from     FLOP and memory traffic: {cost.source}; collectives: {collectives}"
    refused = "; what the compiler says it would need" if cost.is_too_large else ""
    yield f"         memory: {memory}{refused}"
    yield f"         rates and memory of the chip: {', '.join(plan.machine.chip.sources)}"


def print_table_plan(
    name: str,
    plans: Sequence[tuple[Cell, RunPlan]],
    machine: Machine,
    price: float | None,
) -> None:
    """Print the plan of a table: a line for each row and column, and the sum."""
    print_heading(f"{name} on {machine.name} ({machine.chips:,} x {machine.chip.title})")
    of: dict[tuple[str, str], list[RunPlan]] = {}
    for cell, plan in plans:
        of.setdefault((cell.row, cell.column), []).append(plan)
    rows = [_cell(row, column, found) for (row, column), found in of.items()]
    header = ["row", "column", "runs", "hours a run", "EFLOP a run", "memory", "fits"]
    print_table(header, rows, numbers=header[2:6], has_notes=True)
    found = [plan for _, plan in plans]
    hours, chip_hours = sum(each.hours for each in found), sum(each.chip_hours for each in found)
    exaflop = sum(each.exaflop for each in found)
    say("", f"{words.plural(len(found), 'run')}: {_sum(hours, exaflop, chip_hours, price)}")
    say(CAUTION, *_origin(found[0]))


def _cell(row: str, column: str, plans: Sequence[RunPlan]) -> list[str]:
    plan = plans[0]
    return [
        row,
        column,
        f"{len(plans):,}",
        f"{plan.hours:,.3g}",
        f"{plan.exaflop:,.3g}",
        words.size(plan.memory),
        "yes" if plan.fits else f"no, {_fix(plan)}",
    ]
