"""``gnp plan``: what a run or a table costs on a machine, before it is rented."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Annotated

import typer

from gnpcli.cli.options import (
    NOTHING_SET,
    DataDirOption,
    DatasetOption,
    EpochsOption,
    GrOption,
    JsonOption,
    SeedOption,
    SetOption,
    TrustOption,
    resolve_options,
)
from gnpcli.cli.output import print_json, start_measuring, tell
from gnpcli.cli.plan_words import print_plan, print_table_plan
from gnpcli.cli.table_part import ColumnsOption, RowsOption, SeedsOption, VariantOption, chosen_part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gnpcli.cluster.chips import Machine
    from gnpcli.config.resolved import Resolved
    from gnpcli.tables.cells import Cell

NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="PRESET|TABLE",
        help="Of gnp presets list or gnp tables list, or a YAML file.",
        show_default="the demo",
    ),
]
OnOption = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="MACHINE",
        help="v4, v5e, v5p or v6e with the chips along each axis, as in v5e:4x4; a100, h100, h200 "
        "or rtx3090 with their number, as in h100:8; cpu.",
    ),
]


def _price(value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise typer.BadParameter("write what a chip costs an hour")
    return value


PriceOption = Annotated[
    float | None,
    typer.Option("--price", min=0, max=1e6, callback=_price, help="What one chip costs an hour."),
]


def plan(
    name: NameArgument = None,
    on: OnOption = "cpu",
    price: PriceOption = None,
    gr: GrOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    models: RowsOption = None,
    columns: ColumnsOption = None,
    seeds: SeedsOption = None,
    variant: VariantOption = None,
    assignments: SetOption = NOTHING_SET,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what a run, or all of a table, asks of a machine that need not be here.

    For each kind of step: FLOP, bytes, collectives, memory, and the time at the roofline. Then
    whether it fits, and hours, EFLOP and money. Programs for TPUs are compiled for them, which
    takes minutes and needs libtpu: pip install 'gnpcli[plan]'.
    """
    from gnpcli.cluster.chips import find_machine

    machine = None if on == "cpu" else find_machine(on)
    os.environ["JAX_PLATFORMS"] = "cpu"  # what plans is a CPU, whatever there is beside it
    of_a_run = {"--gr": gr, "--seed": seed}
    of_a_table = {"--models": models, "--columns": columns, "--seeds": seeds, "--variant": variant}
    if name is not None and _is_table(name):
        _refuse(of_a_run, "it is for a preset, not a table")
        part = chosen_part(
            name, models, columns, seeds, epochs, dataset, data_dir, variant, assignments, out=None
        )
        _plan_table(name, part.cells(), machine, price, as_json)
        return
    _refuse(of_a_table, "it is for a table, not a preset")
    count = None if machine is None else machine.devices
    config = resolve_options(
        name,
        assignments,
        gr=gr,
        dataset=dataset,
        data_dir=data_dir,
        epochs=epochs,
        seed=seed,
        at_start=None if count is None else lambda: count,
    )
    start_measuring()
    from gnpcli.cluster.planning import plan_run
    from gnpcli.cluster.plans_as_json import plan_to_dict

    found = plan_run(config, machine or _here([config]), tell)
    if as_json:
        print_json({"name": name, **plan_to_dict(found, price)})
    else:
        print_plan(name or "the demo", config.model.name, found, price)


def _here(configs: Sequence[Resolved]) -> Machine:
    from gnpcli.cluster.this_machine import this_machine

    tell("measuring this machine")
    return this_machine(configs)


def _is_table(name: str) -> bool:
    """Return whether a name is that of a table, or of a file that has rows and columns.

    Raises:
        ConfigError: It is no preset either.
    """
    from gnpcli.config.loader import read_yaml
    from gnpcli.config.paths import user_path
    from gnpcli.errors import ConfigError, suggest
    from gnpcli.recipes.presets import preset_names
    from gnpcli.tables.spec import table_names

    if name.endswith((".yaml", ".yml")) or "/" in name:
        return {"rows", "columns"} <= read_yaml(user_path(name)).values.keys()
    presets, tables = preset_names(), table_names()
    if name not in presets and name not in tables:
        hint = suggest(name, [*presets, *tables])
        raise ConfigError(
            f"unknown preset or table '{name}'{hint}; see `gnp presets list` and `gnp tables list`"
        )
    return name in tables and name not in presets


def _refuse(options: Mapping[str, object], why: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise typer.BadParameter(why, param_hint=option)


def _plan_table(
    name: str, cells: list[Cell], machine: Machine | None, price: float | None, as_json: bool
) -> None:
    start_measuring()
    from gnpcli.cluster.plans_as_json import table_to_dict
    from gnpcli.cluster.table_plans import plan_cells

    machine = machine or _here([cell.on_one_device for cell in cells])
    found = plan_cells(cells, machine, tell)
    if as_json:
        print_json({"table": name, **table_to_dict(found, machine, price)})
    else:
        print_table_plan(name, found, machine, price)
