"""``gnp eval``."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any

import typer

from gnpcli.cli.options import DataDirOption, DatasetOption, JsonOption, QuietOption
from gnpcli.config import Weights


def evaluate(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or one of its checkpoints."),
    ],
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    split: Annotated[str, typer.Option("--split", help="test, val or train.")] = "test",
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Which checkpoint. [default: the last]")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The checkpoint with the lowest error.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="raw or ema. [default: what the run itself evaluated]"),
    ] = None,
    recalibrate: Annotated[
        int | None,
        typer.Option(
            "--recalibrate",
            min=0,
            help="Training batches to take BatchNorm statistics anew from; 0 is none.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images at a time.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print the error and loss of a trained model on its own data set, or on another that fits it."""
    from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory

    if split not in ("test", "val", "train"):
        raise typer.BadParameter("must be test, val or train", param_hint="--split")
    if weights not in (None, *typing.get_args(Weights)):
        raise typer.BadParameter("must be raw or ema", param_hint="--weights")
    if best and step is not None:
        raise typer.BadParameter(
            "--best and --step name two checkpoints: give one", param_hint="--best"
        )
    data: dict[str, Any] = {"name": dataset, "dir": data_dir, "eval_batch_size": batch_size}
    given = {key: value for key, value in data.items() if value is not None}
    if dataset is not None:
        from gnpcli.config import DataConfig
        from gnpcli.data.registry import check_data

        # Another data set lives elsewhere, keeps its own image size and splits, and has nothing
        # carved out of it.
        own = (
            "dir",
            "image_size",
            "train_split",
            "test_split",
            "val_labels",
            "stream",
            "mean",
            "std",
        )
        given = {"validation_fraction": 0.0, **dict.fromkeys(own)} | given
        check_data(DataConfig(name=dataset, dir=data_dir))
    keep_freed_memory()
    keep_compiled_programs()
    from gnpcli.engine.evaluate import evaluate as run
    from gnpcli.runs.location import locate

    result = run(
        locate(path), data=given, split=split, step=step, best=best, quiet=quiet or as_json,
        weights=typing.cast(Weights | None, weights), recalibrate=recalibrate,
    )  # fmt: skip
    if as_json:
        import json

        typer.echo(json.dumps(result))
        return
    top5 = (
        f"  top-5 error {100 * result['top5_error_rate']:.2f} %"
        if "top5_error_rate" in result
        else ""
    )
    averaged = ", averaged weights" if result["weights"] == "ema" else ""
    typer.echo(
        f"{result['dataset']} {result['split']}: error {100 * result['error_rate']:.2f} %{top5}"
        f"  loss {result['loss']:.4f}  ({result['num_examples']:,} images, step "
        f"{result['step']}{averaged})"
    )
