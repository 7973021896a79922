"""``gnp check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli.options import DataDirOption, JsonOption, QuietOption, SetOption, resolve_options

if TYPE_CHECKING:
    from gnpcli.config import RunConfig
    from gnpcli.runs.trained import Trained
    from gnpcli.terminal.screen import Screen

DTYPES = ("float32", "bfloat16")


def check(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|PRESET]",
            help="A run folder, one of its checkpoints, or a preset. [default: demo]",
        ),
    ] = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    data_dir: DataDirOption = None,
    batches: Annotated[
        int, typer.Option("--batches", min=1, help="Training batches to measure on.")
    ] = 4,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images in each. [default: as configured]"),
    ] = None,
    dtypes: Annotated[
        str, typer.Option("--dtypes", help="Compute types, joined by commas.")
    ] = ",".join(DTYPES),
    r_min: Annotated[float, typer.Option("--r-min", help="Smallest radius.")] = 1e-5,
    r_max: Annotated[float, typer.Option("--r-max", help="Largest radius.")] = 10.0,
    per_decade: Annotated[
        int, typer.Option("--per-decade", min=1, help="Radii from one power of ten to the next.")
    ] = 2,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold", help="Error of the penalty's gradient up to which r is trustworthy."
        ),
    ] = 0.1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also draw it: a .png, .svg or .pdf file.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say for which r the finite difference of a training step is near the exact gradient of the
    penalty.

    Measured on training batches, at the checkpoint's parameters for a run and at the initial ones
    for a preset.
    """
    chosen = [name.strip() for name in dtypes.split(",")]
    if unknown := [name for name in chosen if name not in DTYPES]:
        raise typer.BadParameter(
            f"'{unknown[0]}' is not one of {', '.join(DTYPES)}", param_hint="--dtypes"
        )
    if not 0 < r_min < r_max < float("inf"):
        raise typer.BadParameter(
            f"must be above 0 and below --r-max, not {r_min:g} and {r_max:g}", param_hint="--r-min"
        )
    if not 0 < threshold < 1:
        raise typer.BadParameter("must lie between 0 and 1", param_hint="--threshold")
    flags: dict[str, tuple[str, Any]] = {
        "data.dir": ("--data-dir", data_dir),
        "data.batch_size": ("--batch-size", batch_size),
    }
    if out is not None:
        from gnpcli.report.charts import check_out

        check_out(out)
    config, trained = None, None
    if target is None or not Path(target).expanduser().is_dir():
        config = resolve_options(target, assignments, flags=flags)
    from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory

    keep_freed_memory()
    keep_compiled_programs()
    from gnpcli.measure.fidelity import log_spaced
    from gnpcli.measure.verdict import check as run
    from gnpcli.terminal.screen import Screen

    screen = Screen(quiet=quiet or as_json)
    if config is None:
        config, trained = _open(Path(str(target)), assignments, flags, screen)
    radii = log_spaced(r_min, r_max, per_decade)
    result = run(
        config,
        trained,
        radii=radii,
        dtypes=chosen,
        batches=batches,
        threshold=threshold,
        screen=screen,
    )
    if out is not None:
        from gnpcli.measure.figures import draw_fidelity
        from gnpcli.report.charts import save

        save(draw_fidelity(result), out)
    if as_json:
        import json

        typer.echo(json.dumps(result, indent=2))
        return
    _print(result)
    if out is not None:
        typer.echo(str(out))


def _open(
    path: Path, assignments: list[str], flags: dict[str, tuple[str, Any]], screen: Screen
) -> tuple[RunConfig, Trained]:
    from gnpcli.errors import ConfigError
    from gnpcli.recipes.presets import override
    from gnpcli.runs.location import locate
    from gnpcli.runs.trained import open_trained

    trained = open_trained(locate(path), step=None, best=False, screen=screen)
    config = override(trained.config, assignments, flags)
    if config.model != trained.config.model:
        raise ConfigError(
            f"--set: the model of {path} is trained, its keys cannot be set; check a preset instead"
        )
    return config, trained


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    count = len(result["batches"])
    table = Table(
        title=f"{result['model']}, {result['dataset']}, {count} training batches of {result['batch_size']} "
        f"from step {result['step']}; alpha {result['alpha']:g}",
        box=None, title_justify="left",
    )  # fmt: skip
    for column in ("", "r", "error", "worst batch", "of mixed gradient", "cosine", "weights moved"):
        table.add_column(column, justify="right" if column else "left")

    def add(name: str, r: str, row: dict[str, Any], style: str | None = None) -> None:
        def told(key: str, scale: float, digits: int) -> str:
            value = row[key]
            return (
                "not finite"
                if value is None
                else f"{scale * value:.{digits}g}" + (" %" if scale == 100 else "")
            )

        table.add_row(
            name, r, told("penalty", 100, 3), told("worst_penalty", 100, 3), told("worst_mixed", 100, 3),
            told("cosine", 1, 4), told("moved", 100, 4), style=style,
        )  # fmt: skip

    for kind in result["types"]:
        for index, row in enumerate(kind["radii"]):
            mark = f"{row['r']:g}" + (" *" if row["is_configured"] else "  ")
            add(
                "" if index else kind["dtype"], mark, row, "bold" if row["is_trustworthy"] else None
            )
        if kind["exact"]:
            add("", "exact  ", kind["exact"])
    Console(highlight=False).print(table)
    typer.echo(
        "Error of the penalty's gradient against the exact one in float32: mean over the batches, "
        "and the worst of\n"
        "them. Bold: trustworthy. *: configured. exact: what gr.gradient=exact computes in this "
        "type.\n"
        "Where the cosine is near 1, a larger r makes the penalty stronger rather than wrong: see "
        "docs/choosing.md."
    )
    for kind in result["types"]:
        typer.echo(kind["verdict"])
