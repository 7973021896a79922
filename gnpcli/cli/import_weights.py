"""``gnp import-weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gnpcli.cli.options import (
    MOST,
    MOST_PIXELS,
    NOTHING_SET,
    DataDirOption,
    DatasetOption,
    QuietOption,
    SetOption,
)
from gnpcli.cli.output import say, start_process
from gnpcli.config.paths import user_path

FileArgument = Annotated[
    Path,
    typer.Argument(
        parser=user_path,
        metavar="FILE",
        help="A .safetensors file, or a state dict saved by PyTorch (.pth, .bin).",
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", help="The architecture, as in gnp models list.")
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", parser=user_path, metavar="FOLDER", help="New folder for the checkpoint."
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option(
        "--num-classes",
        min=1,
        max=MOST,
        help="Number of classes. Another number than the weights' starts a new head.",
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        min=1,
        max=MOST_PIXELS,
        help="Side in pixels. Position embeddings are resized to it.",
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option("--mean", help="Mean of the images' channels.", show_default="ImageNet's"),
]
StdOption = Annotated[
    str | None,
    typer.Option("--std", help="Their standard deviation.", show_default="ImageNet's"),
]


def import_weights(
    file: FileArgument,
    model: ModelOption,
    out: OutOption,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    num_classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    assignments: SetOption = NOTHING_SET,
    quiet: QuietOption = False,
) -> None:
    """Turn published weights (timm, torchvision) into a checkpoint.

    gnp eval and gnp train --init-from read it. Options of the model, such as model.patch_size, are
    read off the weights; --set overrides them.
    """
    means, stds = _numbers(mean, "--mean"), _numbers(std, "--std")
    if (means is None) != (stds is None):
        raise typer.BadParameter("--mean and --std go together", param_hint="--mean")
    _check_name(model)
    start_process()
    from gnpcli.terminal.screen import Screen
    from gnpcli.weights.importing import ImportRequest, import_file

    request = ImportRequest(
        path=file,
        model=model,
        out=out,
        dataset=dataset,
        data_dir=data_dir,
        num_classes=num_classes,
        image_size=image_size,
        mean=means,
        std=stds,
        assignments=tuple(assignments),
    )
    made = import_file(request, Screen(quiet=quiet))
    say(f"{made}: train on it with `gnp train --init-from {made}`")
    say(f"evaluate it with `gnp eval {made}`")


def _numbers(text: str | None, flag: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not numbers joined by commas: 0.5,0.5,0.5", param_hint=flag
        ) from None


def _check_name(model: str) -> None:
    """Refuse an unknown architecture before anything heavy is loaded."""
    from gnpcli.models.registry import load_model

    load_model(model)
