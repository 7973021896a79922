"""``gnp check``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli.options import (
    MOST,
    MOST_IMAGES,
    NOTHING_SET,
    AcceptChangedDataOption,
    CoordinatorOption,
    DataDirOption,
    JsonOption,
    NoCacheOption,
    ProcessesOption,
    ProcessIdOption,
    QuietOption,
    SetOption,
    TrustOption,
    resolve_options,
    split_names,
)
from gnpcli.cli.output import join_processes, print_grid, print_json, say, start_process
from gnpcli.config.paths import user_path
from gnpcli.devices.processes.peers import is_first
from gnpcli.terminal import words

if TYPE_CHECKING:
    from gnpcli.config.resolved import Resolved
    from gnpcli.runs.trained import Trained
    from gnpcli.terminal.screen import Screen

    Flags = Mapping[str, tuple[str, Any]]

DTYPES = ("float32", "bfloat16")
EVERY_DTYPE = ",".join(DTYPES)

TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN|PRESET]",
        help="A run folder, one of its checkpoints, or a preset.",
        show_default="demo",
    ),
]
BatchesOption = Annotated[
    int, typer.Option("--batches", min=1, max=MOST, help="Training batches to measure on.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, max=MOST_IMAGES, help="Images in each.", show_default="as configured"
    ),
]
DtypesOption = Annotated[str, typer.Option("--dtypes", help="Compute types, joined by commas.")]
RMinOption = Annotated[float, typer.Option("--r-min", help="Smallest radius.")]
RMaxOption = Annotated[float, typer.Option("--r-max", help="Largest radius.")]
PerDecadeOption = Annotated[
    int,
    typer.Option("--per-decade", min=1, max=1000, help="Radii from one power of ten to the next."),
]
ThresholdOption = Annotated[
    float,
    typer.Option(
        "--threshold", help="Error of the penalty's gradient up to which r is trustworthy."
    ),
]
PictureOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=user_path,
        metavar="FILE",
        help="Also draw it: a .png, .svg or .pdf file.",
    ),
]


def check(
    target: TargetArgument = None,
    assignments: SetOption = NOTHING_SET,
    data_dir: DataDirOption = None,
    batches: BatchesOption = 4,
    batch_size: BatchSizeOption = None,
    dtypes: DtypesOption = EVERY_DTYPE,
    r_min: RMinOption = 1e-5,
    r_max: RMaxOption = 10.0,
    per_decade: PerDecadeOption = 2,
    threshold: ThresholdOption = 0.1,
    out: PictureOption = None,
    accept_changed_data: AcceptChangedDataOption = False,
    trust_code: TrustOption = False,
    no_cache: NoCacheOption = False,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tell for which r the finite difference is near the exact gradient of the penalty.

    It is measured on training batches: at the checkpoint's parameters for a run, at the initial
    ones for a preset.
    """
    chosen = _dtypes(dtypes)
    _check_numbers(r_min, r_max, threshold)
    join_processes()
    flags: Flags = {
        "data.dir": ("--data-dir", data_dir),
        "data.batch_size": ("--batch-size", batch_size),
    }
    if out is not None:
        from gnpcli.report.style import check_out

        check_out(out)
    is_run = target is not None and user_path(target).is_dir()
    config = None if is_run else resolve_options(target, assignments, flags=flags)
    start_process()
    from gnpcli.measure.fidelity import log_spaced
    from gnpcli.measure.verdict import check as run
    from gnpcli.terminal.screen import Screen

    screen, trained = Screen(quiet=quiet or as_json), None
    if config is None:
        config, trained = _open(Path(str(target)), assignments, flags, screen)
    result = run(
        config,
        trained,
        radii=log_spaced(r_min, r_max, per_decade),
        dtypes=chosen,
        batches=batches,
        threshold=threshold,
        screen=screen,
        accept_changed_data=accept_changed_data,
    )
    if out is not None and is_first():
        _draw(result, out)
    if as_json:
        print_json(result)
    else:
        _print(result, out)


def _draw(result: dict[str, Any], out: Path) -> None:
    from gnpcli.measure.figures import draw_fidelity
    from gnpcli.report.style import save

    save(draw_fidelity(result), out)


def _dtypes(text: str) -> list[str]:
    chosen = split_names(text)
    for name in chosen:
        if name not in DTYPES:
            raise typer.BadParameter(
                f"'{name}' is not one of {', '.join(DTYPES)}", param_hint="--dtypes"
            )
    return chosen


def _check_numbers(r_min: float, r_max: float, threshold: float) -> None:
    if not 1e-38 <= r_min < r_max <= 1e38:
        raise typer.BadParameter(
            "must be above 0 and below --r-max, both of them numbers of float32, not "
            f"{r_min:g} and {r_max:g}",
            param_hint="--r-min",
        )
    if not 0 < threshold < 1:
        raise typer.BadParameter("must lie between 0 and 1", param_hint="--threshold")


def _open(
    path: Path, assignments: list[str], flags: Flags, screen: Screen
) -> tuple[Resolved, Trained]:
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


NOTE = """\
Error of the penalty's gradient against the exact one in float32: the mean over
the batches, and the worst of them. Bold: trustworthy. *: configured. exact: what
gr.gradient=exact computes in this type. Where the cosine is near 1, a larger r
makes the penalty stronger rather than wrong: see docs/choosing.md."""


def _print(result: dict[str, Any], out: Path | None) -> None:
    from gnpcli.terminal.grid import Grid

    rows: list[list[str]] = []
    styles: list[str] = []
    for kind in result["types"]:
        name = kind["dtype"]
        for row in kind["radii"]:
            mark = "*" if row["is_configured"] else " "
            rows.append([name, f"{row['r']:g} {mark}", *_cells(row)])
            styles.append("bold" if row["is_trustworthy"] else "")
            name = ""
        if kind["exact"]:
            rows.append(["", "exact  ", *_cells(kind["exact"])])
            styles.append("")
    header = ("", "r", "error", "worst batch", "of mixed gradient", "cosine", "weights moved")
    title = (
        f"{result['model']}, {result['dataset']}, {len(result['batches'])} training batches of "
        f"{result['batch_size']} from step {result['step']}; alpha {result['alpha']:g}"
    )
    print_grid(Grid(header, rows, title=title, numbers=range(1, len(header)), styles=styles))
    say(NOTE)
    for kind in result["types"]:
        say(kind["verdict"])
    if out is not None:
        say(str(out))


def _cells(row: Mapping[str, float | None]) -> list[str]:
    penalty, worst, mixed = row["penalty"], row["worst_penalty"], row["worst_mixed"]
    errors = [
        _or_not_finite(words.rough_percent(value, 3), value) for value in (penalty, worst, mixed)
    ]
    cosine, moved = row["cosine"], row["moved"]
    return [
        *errors,
        _or_not_finite(words.number(cosine, ".4g"), cosine),
        _or_not_finite(words.rough_percent(moved, 4), moved),
    ]


def _or_not_finite(text: str, value: float | None) -> str:
    return "not finite" if value is None else text
