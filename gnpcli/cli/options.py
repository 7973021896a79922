"""Options that several commands share, and how their values become overrides of a preset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli.output import warn
from gnpcli.config.paths import user_path
from gnpcli.config.strategies import STRATEGIES
from gnpcli.models.own import TRUST
from gnpcli.terminal.words import listing

if TYPE_CHECKING:
    from gnpcli.config.resolved import Devices, Resolved
    from gnpcli.recipes.presets import Code


MOST = 1_000_000_000
"""The most steps, examples or the like that an option counts."""
MOST_IMAGES = 1 << 20
"""The most images of a batch, as a configuration has it."""
MOST_PIXELS = 8192
"""The longest side of an image, as a configuration has it."""


def split_names(text: str) -> list[str]:
    """Return the names in a text that joins them by commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def with_value(assignments: list[str]) -> list[str]:
    """Refuse a text that is not ``key=value``."""
    for text in assignments:
        key, equals, _ = text.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"'{text}' is not key=value, for example optimizer.lr=0.01")
    return assignments


def _without_cache(is_asked: bool) -> bool:
    if is_asked:
        os.environ["GNP_NO_CACHE"] = "1"  # also for the processes of a table's cells
    return is_asked


PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        help="Preset name, or a YAML file such as a run's config.yaml.",
        show_default="the demo",
    ),
]
GrOption = Annotated[
    str | None,
    typer.Option("--gr", help=f"GR strategy: {listing(STRATEGIES, last='or')}."),
]
DatasetOption = Annotated[
    str | None,
    typer.Option("--dataset", help="Data set of gnp data list, folder:DIR or tfds:NAME."),
]
DataDirOption = Annotated[
    str | None, typer.Option("--data-dir", help="Folder that holds the data set.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", help="Passes over the training data.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=with_value,
        help="Set any key, for example --set optimizer.lr=0.01.",
    ),
]
NOTHING_SET: list[str] = []
"""The default of `SetOption`, which typer copies."""

MaxStepsOption = Annotated[
    int | None,
    typer.Option(
        "--max-steps",
        min=0,
        max=MOST,
        help="Stop after this many steps in all. Schedules keep the length of --epochs.",
    ),
]
StepOption = Annotated[
    int | None,
    typer.Option("--step", min=0, max=MOST, help="Which checkpoint.", show_default="the last"),
]
BestOption = Annotated[bool, typer.Option("--best", help="The checkpoint with the lowest error.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done, and exit.")
]


def _trust(is_asked: bool) -> None:
    if is_asked:
        os.environ[TRUST] = "1"  # as if it had been set: for this process and those it starts


TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        callback=_trust,
        help="Run the code of a model of one's own that a file names (also GNP_TRUST_CODE=1).",
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only warnings and the result.")
]
NoCacheOption = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        callback=_without_cache,
        help="Decode images anew; the cache of decoded ones is left alone (also GNP_NO_CACHE=1).",
    ),
]


def _set_for_processes(name: str) -> Callable[[Any], Any]:
    def set_variable(value: Any) -> Any:
        if value is not None:
            os.environ[name] = str(value)  # as if it had been set
        return value

    return set_variable


def _count(text: str) -> str:
    if text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise typer.BadParameter(f"'{text}' is neither auto nor a number from 1 on")
    return text


ProcessesOption = Annotated[
    str | None,
    typer.Option(
        "--processes",
        metavar="auto|N",
        parser=_count,
        callback=_set_for_processes("GNP_PROCESSES"),
        help="How many processes compute together; auto asks Slurm, Open MPI or the TPU pod.",
        show_default="auto",
    ),
]
ProcessIdOption = Annotated[
    int | None,
    typer.Option(
        "--process-id",
        min=0,
        max=MOST,
        callback=_set_for_processes("GNP_PROCESS_ID"),
        help="Which of them this one is, from 0.",
    ),
]
CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT",
        callback=_set_for_processes("GNP_COORDINATOR"),
        help="Where process 0 is, and a free port there; the same for all.",
    ),
]
AcceptChangedDataOption = Annotated[
    bool,
    typer.Option(
        "--accept-changed-data",
        help="Go on with data that have changed since the training, and record it.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[
    Path, typer.Argument(parser=user_path, metavar="RUN", help="A folder made by gnp train.")
]
RunsArgument = Annotated[
    list[Path],
    typer.Argument(parser=user_path, metavar="RUN...", help="Folders made by gnp train."),
]
PictureOption = Annotated[
    Path,
    typer.Option(
        "--out", "-o", parser=user_path, metavar="FILE", help="The picture: .png, .svg or .pdf."
    ),
]
TableArgument = Annotated[
    str, typer.Argument(metavar="TABLE", help="Name of gnp tables list, or a YAML file.")
]


def check_one_checkpoint(step: int | None, best: bool) -> None:
    """Refuse `StepOption` and `BestOption` together."""
    if best and step is not None:
        raise typer.BadParameter(
            "--best and --step name two checkpoints: give one", param_hint="--best"
        )


def resolve_options(
    preset: str | None,
    assignments: list[str],
    *,
    gr: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    code: Code = "needed",
    at_start: Devices | None = None,
) -> Resolved:
    """Resolve a preset under the short flags and the ``--set`` assignments.

    What is doubtful about the configuration is printed as warnings. `flags` are those of one
    command alone, and `code` says whether a model of the user's own runs; both and `at_start` are
    as in `gnpcli.recipes.presets.resolve`.
    """
    from gnpcli.config.checks import advice
    from gnpcli.recipes.presets import resolve

    shared: dict[str, tuple[str, Any]] = {
        "gr.strategy": ("--gr", gr),
        "data.name": ("--dataset", dataset),
        "data.dir": ("--data-dir", data_dir),
        "train.epochs": ("--epochs", epochs),
        "train.seed": ("--seed", seed),
    }
    config = resolve(preset, assignments, {**shared, **(flags or {})}, code, at_start)
    for warning in advice(config):
        warn(warning)
    return config
