"""``gnp data preview``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gnpcli.cli.options import (
    DataDirOption,
    DatasetOption,
    PresetOption,
    QuietOption,
    SeedOption,
    SetOption,
    resolve_options,
)

if TYPE_CHECKING:
    from gnpcli.config import DataConfig


def preview(
    preset: PresetOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path(
        "preview.png"
    ),
    count: Annotated[int, typer.Option("--count", min=1, max=400, help="Images.")] = 16,
    step: Annotated[int, typer.Option("--step", min=0, help="Step of the run, from 0.")] = 0,
    columns: Annotated[int, typer.Option("--columns", min=1, help="Images side by side.")] = 8,
    quiet: QuietOption = False,
) -> None:
    """Write a contact sheet (PNG) of training images, each before (above) and after (below)
    augmentation.
    """
    config = resolve_options(preset, assignments, dataset=dataset, data_dir=data_dir, seed=seed)
    if not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"no folder {out.absolute().parent}", param_hint="--out")
    from gnpcli.measure.augmentation import preview as run

    shown = run(config, out, count=count, step=step, columns=columns, quiet=quiet)
    typer.echo(
        f"{out}: {shown} images of {config.data.name}, before and after "
        f"{_augmentation(config.data)}"
    )


def _augmentation(data: DataConfig) -> str:
    names: list[str] = [name for name in (data.augment, data.mix) if name != "none"]
    if data.random_erasing:
        names.append("random erasing")
    return " and ".join(names) or "no augmentation"
