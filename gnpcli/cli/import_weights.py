"""``gnp import-weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gnpcli.cli.options import DataDirOption, DatasetOption, QuietOption, SetOption


def _numbers(text: str | None, flag: str) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not numbers joined by commas: 0.5,0.5,0.5", param_hint=flag
        ) from None


def import_weights(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .safetensors file, or a state dict saved by PyTorch (.pth, .bin).",
        ),
    ],
    model: Annotated[
        str,
        typer.Option("--model", help="The architecture, by its name here: vit-b, resnet50, ..."),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the checkpoint.")],
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            "--num-classes", min=1, help="Another number than the weights' own starts a new head."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", min=1, help="Side in pixels; position embeddings are resized to it."
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean", help="What images are normalised with. [default: ImageNet's, 0.485,...]"
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", help="The same for the deviation. [default: 0.229,...]")
    ] = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    quiet: QuietOption = False,
) -> None:
    """Turn published weights (timm, torchvision) into a checkpoint for gnp eval and gnp train
    --init-from.

    Options of the model, such as model.patch_size, are read off the weights; --set overrides them.
    """
    means, stds = _numbers(mean, "--mean"), _numbers(std, "--std")
    if (means is None) != (stds is None):
        raise typer.BadParameter("--mean and --std go together", param_hint="--mean")
    from gnpcli.config import ModelConfig
    from gnpcli.models.registry import resolve_model

    resolve_model(
        ModelConfig(name=model)
    )  # an unknown name is said before anything heavy is loaded
    from gnpcli.terminal.screen import Screen
    from gnpcli.weights.importing import import_file

    made = import_file(
        file, model, out, dataset=dataset, data_dir=data_dir, num_classes=num_classes, image_size=image_size,
        mean=means, std=stds, assignments=assignments, screen=Screen(quiet=quiet),
    )  # fmt: skip
    typer.echo(
        f"{made}: train on it with `gnp train --init-from {made}`, evaluate it with `gnp eval "
        f"{made}`"
    )
