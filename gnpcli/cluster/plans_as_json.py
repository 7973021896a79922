"""Plans as JSON types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gnpcli.cluster.chips import Machine
from gnpcli.cluster.planning import RunPlan
from gnpcli.tables.cells import Cell


def plan_to_dict(plan: RunPlan, price: float | None) -> dict[str, Any]:
    """Return a plan as JSON types. Sizes are in bytes on a device.

    Args:
        plan: Of a run.
        price: Of a chip, an hour.
    """
    return {
        "machine": machine_to_dict(plan.machine),
        "batch_size": plan.work.batch_size,
        "dtype": plan.dtype,
        "steps": [_step_to_dict(plan, kind) for kind in plan.work.steps],
        "memory_bytes": plan.memory,
        "fits": plan.fits,
        "largest_batch": plan.largest_batch,
        "remedies": [
            {"settings": list(remedy.settings), "memory_bytes": remedy.memory}
            for remedy in plan.remedies
        ],
        **_sums([plan], price),
    }


def _step_to_dict(plan: RunPlan, kind: Any) -> dict[str, Any]:
    cost, time = plan.costs[kind], plan.times[kind]
    return {
        "kind": kind,
        "count": plan.work.steps[kind],
        **cost.to_dict(),
        "compute_s": time.compute_s,
        "memory_s": time.memory_s,
        "links_s": time.links_s,
        "step_s": time.total_s,
        "bound": time.bound,
        "images_per_s": plan.work.batch_size / time.total_s,
    }


def machine_to_dict(machine: Machine) -> dict[str, Any]:
    """Return a machine as JSON types, with where its figures stand."""
    chip = machine.chip
    return {
        "name": machine.name,
        "chip": chip.title,
        "chips": machine.chips,
        "devices": machine.devices,
        "peak_flops_per_s": dict(chip.peak),
        "bandwidth_bytes_per_s": chip.bandwidth,
        "memory_bytes": chip.memory,
        "link_bytes_per_s": machine.link,
        "sources": list(chip.sources),
    }


def table_to_dict(
    plans: Sequence[tuple[Cell, RunPlan]], machine: Machine, price: float | None
) -> dict[str, Any]:
    """Return the plans of a table's cells as JSON types, and their sums."""
    cells = [
        {"row": cell.row, "column": cell.column, "seed": cell.seed, **plan_to_dict(plan, price)}
        for cell, plan in plans
    ]
    for each in cells:
        del each["machine"]
    sums = _sums([plan for _, plan in plans], price)
    return {"machine": machine_to_dict(machine), "cells": cells, **sums}


def _sums(plans: Sequence[RunPlan], price: float | None) -> dict[str, Any]:
    chip_hours = sum(plan.chip_hours for plan in plans)
    return {
        "hours": sum(plan.hours for plan in plans),
        "chip_hours": chip_hours,
        "exaflop": sum(plan.exaflop for plan in plans),
        "price_per_chip_hour": price,
        "money": None if price is None else price * chip_hours,
    }
