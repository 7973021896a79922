"""The plan of a table: of each cell, with every kind of step costed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gnpcli.cluster.chips import Machine
from gnpcli.cluster.compiling import Notify
from gnpcli.cluster.costs import StepCost
from gnpcli.cluster.planning import RunPlan, check_fits_machine, plan_run, sizes_of, step_costs
from gnpcli.config.resolved import Resolved, settle
from gnpcli.errors import ConfigError
from gnpcli.recipes.plan import what_a_step_depends_on, work_of
from gnpcli.step.schedules import StepKind
from gnpcli.tables.cells import Cell


def plan_cells(
    cells: Sequence[Cell], machine: Machine, notify: Notify
) -> list[tuple[Cell, RunPlan]]:
    """Plan the cells of a table.

    Cells whose steps differ in numbers alone share their costs: seeds, radii, rates.

    Raises:
        ConfigError, DataError, GnpError: As `gnpcli.cluster.planning.plan_run`.
    """
    configs = [settle(cell.config, lambda: machine.devices) for cell in cells]
    wanted: dict[str, dict[StepKind, Resolved]] = {}
    for cell, config in zip(cells, configs, strict=True):
        _check(cell, config, machine)
        known = wanted.setdefault(what_a_step_depends_on(config), {})
        for kind in work_of(config, sizes_of(config)).steps:
            known.setdefault(kind, config)
    costs = {key: _costs(kinds, machine, notify) for key, kinds in wanted.items()}
    return [
        (cell, plan_run(config, machine, notify, costs[what_a_step_depends_on(config)]))
        for cell, config in zip(cells, configs, strict=True)
    ]


def _check(cell: Cell, config: Resolved, machine: Machine) -> None:
    try:
        check_fits_machine(config, machine)
    except ConfigError as error:
        raise ConfigError(f"{cell.row} {cell.column}: {error}") from None


def _costs(
    kinds: Mapping[StepKind, Resolved], machine: Machine, notify: Notify
) -> dict[StepKind, StepCost]:
    found: dict[StepKind, StepCost] = {}
    for kind, config in kinds.items():
        said = f"{config.model.name} at batch {config.data.batch_size}: "

        def tell(text: str, said: str = said) -> None:
            notify(said + text)

        found.update(step_costs(config, [kind], machine, tell))
    return found
