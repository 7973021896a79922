"""``gnp inspect``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gnpcli.cli.options import (
    MOST,
    MOST_IMAGES,
    AcceptChangedDataOption,
    BestOption,
    CoordinatorOption,
    DataDirOption,
    JsonOption,
    NoCacheOption,
    PictureOption,
    ProcessesOption,
    ProcessIdOption,
    QuietOption,
    RunsArgument,
    StepOption,
    TrustOption,
    check_one_checkpoint,
)
from gnpcli.cli.output import join_processes, print_json, print_table, say, start_process
from gnpcli.devices.processes.peers import is_first
from gnpcli.terminal import words

if TYPE_CHECKING:
    from gnpcli.measure.inspection import Inspection


def _distances(texts: list[str]) -> list[str]:
    parts = [part for text in texts for part in text.split(",")]
    for part in parts:
        try:
            is_distance = 1e-38 <= float(part) <= 1e38
        except ValueError:
            is_distance = False
        if not is_distance:
            raise typer.BadParameter(
                f"'{part}' is not a distance above 0 in float32, for example --radii 0.01,0.05"
            )
    return parts


ExamplesOption = Annotated[
    int,
    typer.Option("--examples", "-n", min=1, max=MOST, help="Images to measure on, of each split."),
]
SplitOption = Annotated[
    Literal["train", "val", "test"],
    typer.Option("--split", help="Split of the Hessian, the rises and the surface."),
]
TopOption = Annotated[
    int, typer.Option("--top", "-k", min=0, max=1000, help="Hessian eigenvalues; 0 for none.")
]
RadiiOption = Annotated[
    list[str],
    typer.Option(
        "--radii",
        callback=_distances,
        help="Distances along the gradient, joined by commas.",
        show_default="1/4 to 4 times the runs' r",
    ),
]
DirectionsOption = Annotated[
    int, typer.Option("--directions", min=0, max=10_000, help="Number of random directions.")
]
SurfaceOption = Annotated[
    Literal["random", "gradient", "none"],
    typer.Option(
        "--surface",
        help="Axes of the loss surface: two random directions, or the gradient and one.",
    ),
]
ResolutionOption = Annotated[
    int, typer.Option("--resolution", min=2, max=1000, help="Points of the surface along a side.")
]
SpanOption = Annotated[
    float,
    typer.Option(
        "--span", min=1e-6, max=1e6, help="Half the surface's width, in norms of the filters."
    ),
]
BatchSizeOption = Annotated[
    int, typer.Option("--batch-size", min=1, max=MOST_IMAGES, help="Images at a time.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the images and the directions.")
]
RADII_OF_THE_RUNS: list[str] = []


def inspect(
    runs: RunsArgument,
    out: PictureOption = Path("inspect.png"),
    examples: ExamplesOption = 512,
    split: SplitOption = "train",
    top: TopOption = 5,
    radii: RadiiOption = RADII_OF_THE_RUNS,
    directions: DirectionsOption = 5,
    surface: SurfaceOption = "random",
    resolution: ResolutionOption = 15,
    span: SpanOption = 0.5,
    data_dir: DataDirOption = None,
    step: StepOption = None,
    best: BestOption = False,
    batch_size: BatchSizeOption = 128,
    seed: SeedOption = 0,
    trust_code: TrustOption = False,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    accept_changed_data: AcceptChangedDataOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Measure how flat the minimum is.

    The figures are gradient norms, Hessian eigenvalues, rises of the loss, and its surface. Several
    runs stand side by side, on the same images and in the same directions. Runs that differ only in
    their seed are averaged. The loss is the mean cross-entropy without label smoothing and L2, with
    the model in evaluation mode.
    """
    check_one_checkpoint(step, best)
    join_processes()
    from gnpcli.report.style import check_out, save

    check_out(out)
    start_process()
    from gnpcli.measure.figures import draw_flatness
    from gnpcli.measure.flatness import Plan
    from gnpcli.measure.inspection import inspect as run
    from gnpcli.runs.grouping import by_seed

    plan = Plan(
        examples=examples,
        split=split,
        top=top,
        radii=tuple(map(float, radii)),
        directions=directions,
        plane=surface,
        resolution=resolution,
        span=span,
        batch_size=batch_size,
        seed=seed,
    )
    found = run(
        runs,
        plan,
        data_dir=data_dir,
        step=step,
        best=best,
        quiet=quiet or as_json,
        accept_changed_data=accept_changed_data,
    )
    groups = by_seed(found)
    if is_first():
        save(draw_flatness(groups), out)
    if as_json:
        print_json([inspection.result for inspection in found])
    else:
        _print(groups)
        say(str(out))


def _print(groups: Mapping[str, Sequence[Inspection]]) -> None:
    results = [[inspection.result for inspection in runs] for runs in groups.values()]
    labels = [_label(label, len(runs)) for label, runs in groups.items()]
    rows = [
        [name, *(_told(_values(group, path), form) for group in results)]
        for name, path, form in _rows(results[0][0])
    ]
    print_table(["", *labels], rows, numbers=labels)
    images = ", ".join(
        f"{words.number(subset['num_examples'])} {name}"
        for name, subset in results[0][0]["subsets"].items()
    )
    has_seeds = any(len(group) > 1 for group in results)
    spread = "; mean and standard deviation over seeds" if has_seeds else ""
    say(f"over {images} images{spread}")
    errors = _eigenvalue_errors([result for group in results for result in group])
    if errors:
        say(f"each eigenvalue is right to within {max(errors):.1g} of it")


def _label(label: str, seeds: int) -> str:
    return f"{label} ({seeds} seeds)" if seeds > 1 else label


def _eigenvalue_errors(results: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the residual of each eigenvalue over the eigenvalue, where that is not 0."""
    errors = []
    for result in results:
        for value, residual in zip(result["eigenvalues"], result["residuals"], strict=True):
            if value:
                errors.append(residual / abs(value))
    return errors


_Path = tuple[str | int, ...]


def _rows(first: Mapping[str, Any]) -> list[tuple[str, _Path, str]]:
    """Return name, place in a result, and format of each row: what the first run has, all have."""
    rows: list[tuple[str, _Path, str]] = [
        ("data set", ("dataset",), "s"),
        ("step", ("step",), ",d"),
        ("r in training", ("r",), "g"),
    ]
    for split in first["subsets"]:
        rows += [
            (f"{split} error", ("subsets", split, "error_rate"), "%"),
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


def _values(results: Sequence[Mapping[str, Any]], path: _Path) -> list[Any]:
    """Return what lies at a place of each result; None where there is nothing."""
    return [_at(result, path) for result in results]


def _at(result: Any, path: _Path) -> Any:
    for key in path:
        try:
            result = result[key]
        except (KeyError, IndexError):
            return None
    return result


def _told(values: Sequence[Any], form: str) -> str:
    """Return a value that all share, mean and deviation (n - 1) of numbers, or several texts."""
    known = [value for value in values if value is not None]
    if not known:
        return words.NOTHING
    if len(set(known)) == 1 or form in ("s", ",d"):
        return ", ".join(dict.fromkeys(_format(value, form) for value in known))
    import statistics

    mean, deviation = statistics.mean(known), statistics.stdev(known)
    return f"{_format(mean, form)} ± {_format(deviation, form if form == '%' else '.2g')}"


def _format(value: Any, form: str) -> str:
    """Return a value in a format of Python's, or as a percentage where that is ``%``."""
    return words.percent(value) if form == "%" else format(value, form)
