"""``gnp inspect``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gnpcli.cli.options import DataDirOption, JsonOption, QuietOption, RunsArgument

if TYPE_CHECKING:
    from gnpcli.measure.inspection import Inspection


def _distances(texts: list[str]) -> list[str]:
    for text in texts:
        for part in text.split(","):
            try:
                is_positive = float(part) > 0
            except ValueError:
                is_positive = False
            if not is_positive:
                raise typer.BadParameter(
                    f"'{part}' is not a distance above 0, for example --radii 0.01,0.05"
                )
    return [part for text in texts for part in text.split(",")]


def inspect(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.")] = Path("inspect.png"),
    examples: Annotated[int, typer.Option("--examples", "-n", min=1, help="Images of a subset.")] = 512,
    split: Annotated[
        Literal["train", "val", "test"], typer.Option("--split", help=("What Hessian, rises and "
            "surface are of."))
    ] = "train",
    top: Annotated[int, typer.Option("--top", "-k", min=0, help="Hessian eigenvalues; 0 for none.")] = 5,
    radii: Annotated[
        list[str],
        typer.Option(
            "--radii", callback=_distances,
            help=("Distances along the gradient, joined by commas. [default: 1/4 to 4 times the "
                "runs' r]"),
        ),
    ] = [],  # noqa: B006 - typer copies it
    directions: Annotated[int, typer.Option("--directions", min=0, help="Random directions.")] = 5,
    surface: Annotated[
        Literal["random", "gradient", "none"],
        typer.Option("--surface", help=("Axes of the loss surface: two random directions, or the "
            "gradient and one.")),
    ] = "random",
    resolution: Annotated[int, typer.Option("--resolution", min=2, help=("Points of the surface a "
        "side."))] = 15,
    span: Annotated[float, typer.Option("--span", min=1e-6, help=("Half its width, in norms of the "
        "filters."))] = 0.5,
    data_dir: DataDirOption = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help=("Which checkpoint. [default: "
        "the last]"))] = None,
    best: Annotated[bool, typer.Option("--best", help="The checkpoint with the lowest error.")] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of subset and directions.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Measure how flat the minimum is: gradient norms, Hessian eigenvalues, rises of the loss, its
    surface.

    Several runs stand side by side, on the same images and in the same directions; those that
    differ only in their seed are averaged. The loss is the mean cross-entropy without label
    smoothing and L2, the model in evaluation mode.
    """
    if best and step is not None:
        raise typer.BadParameter(
            "--best and --step name two checkpoints: give one", param_hint="--best"
        )
    from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory
    from gnpcli.report.charts import check_out, save

    check_out(out)
    keep_freed_memory()
    keep_compiled_programs()
    from gnpcli.measure.figures import draw_flatness
    from gnpcli.measure.flatness import Plan
    from gnpcli.measure.inspection import inspect as run
    from gnpcli.runs.grouping import by_seed

    plan = Plan(
        examples=examples, split=split, top=top, radii=tuple(map(float, radii)), directions=directions, plane=surface,
        resolution=resolution, span=span, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    found = run(runs, plan, data_dir=data_dir, step=step, best=best, quiet=quiet or as_json)
    groups = by_seed(found)
    save(draw_flatness(groups), out)
    if as_json:
        import json

        typer.echo(json.dumps([inspection.result for inspection in found]))
    else:
        _print(groups)
        typer.echo(str(out))


def _print(groups: Mapping[str, Sequence[Inspection]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for label, runs in groups.items():
        table.add_column(
            f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label, justify="right"
        )
    results = [[inspection.result for inspection in runs] for runs in groups.values()]
    for name, path, form in _rows(results[0][0]):
        table.add_row(
            name, *(_told([_at(result, path) for result in group], form) for group in results)
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = (
            400  # piped output is for other programs: a row is a line, whatever its length
        )
    console.print(table)
    images = ", ".join(
        f"{subset['num_examples']:,} {name}" for name, subset in results[0][0]["subsets"].items()
    )
    spread = (
        "; mean and standard deviation over seeds"
        if any(len(group) > 1 for group in results)
        else ""
    )
    typer.echo(f"over {images} images{spread}")
    residuals = [
        residual / abs(value)
        for result in (result for group in results for result in group)
        for value, residual in zip(result["eigenvalues"], result["residuals"], strict=True)
        if value
    ]
    if residuals:
        typer.echo(f"each eigenvalue is right to within {max(residuals):.1g} of it")


_Path = tuple[str | int, ...]


def _rows(first: Mapping[str, Any]) -> list[tuple[str, _Path, str]]:
    """Return name, place in a result, and format of each row: what the first run has, all have."""
    rows: list[tuple[str, _Path, str]] = [
        ("data set", ("dataset",), "s"), ("step", ("step",), ",d"), ("r in training", ("r",), "g"),
    ]  # fmt: skip
    for split in first["subsets"]:
        rows += [
            (f"{split} error", ("subsets", split, "error_rate"), ".2%"),
            (f"{split} loss", ("subsets", split, "loss"), ".4f"),
            (f"{split} gradient norm", ("subsets", split, "gradient_norm"), ".4g"),
        ]
    for place in range(len(first["eigenvalues"])):
        rows.append((f"Hessian eigenvalue {place + 1}", ("eigenvalues", place), ".4g"))
    for key, value, where in (
        ("gradient_rise", "rise", "along the gradient"),
        ("random_rise", "mean", "at random"),
    ):
        for place, point in enumerate(first[key]):
            rows.append((f"rise at {point['distance']:g} {where}", (key, place, value), ".3g"))
    return rows


def _at(result: Any, path: _Path) -> Any:
    """Return what lies at a place; None where there is nothing."""
    for key in path:
        try:
            result = result[key]
        except (KeyError, IndexError):
            return None
    return result


def _told(values: Sequence[Any], form: str) -> str:
    """Return one value, or mean and standard deviation (n - 1) of several numbers, or several
    texts.
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(set(known)) == 1 or form in ("s", ",d"):
        return ", ".join(dict.fromkeys(format(value, form) for value in known))
    deviation = statistics.stdev(known)
    return f"{statistics.mean(known):{form}} ± {deviation:{'.2%' if form == '.2%' else '.2g'}}"
