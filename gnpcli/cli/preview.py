"""``gnp data preview``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gnpcli.cli.options import (
    MOST,
    NOTHING_SET,
    DataDirOption,
    DatasetOption,
    NoCacheOption,
    PresetOption,
    QuietOption,
    SeedOption,
    SetOption,
    resolve_options,
)
from gnpcli.cli.output import say, start_process
from gnpcli.config.paths import user_path
from gnpcli.terminal import words

if TYPE_CHECKING:
    from gnpcli.config.schema import DataConfig

OutOption = Annotated[
    Path, typer.Option("--out", "-o", parser=user_path, metavar="FILE", help="The PNG to write.")
]
CountOption = Annotated[int, typer.Option("--count", min=1, max=400, help="Number of images.")]
StepOption = Annotated[
    int, typer.Option("--step", min=0, max=MOST, help="Step of the run, from 0.")
]
ColumnsOption = Annotated[
    int, typer.Option("--columns", min=1, max=400, help="Images side by side.")
]


def preview(
    preset: PresetOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = None,
    assignments: SetOption = NOTHING_SET,
    out: OutOption = Path("preview.png"),
    count: CountOption = 16,
    step: StepOption = 0,
    columns: ColumnsOption = 8,
    no_cache: NoCacheOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a contact sheet of training images as a PNG.

    Each image stands above what augmentation makes of it.
    """
    config = resolve_options(
        preset, assignments, dataset=dataset, data_dir=data_dir, seed=seed, code="none"
    )
    if not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"no folder {out.absolute().parent}", param_hint="--out")
    start_process()
    from gnpcli.measure.augmentation import preview as run

    shown = run(config, out, count=count, step=step, columns=columns, quiet=quiet)
    augmentation = _augmentation(config.data)
    say(f"{out}: {shown} images of {config.data.name}, before and after {augmentation}")


def _augmentation(data: DataConfig) -> str:
    names: list[str] = [name for name in (data.augment, data.mix) if name != "none"]
    if data.random_erasing:
        names.append("random erasing")
    return words.listing(names) or "no augmentation"
