"""``gnp eval``."""

from __future__ import annotations

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
    DatasetOption,
    JsonOption,
    NoCacheOption,
    ProcessesOption,
    ProcessIdOption,
    QuietOption,
    StepOption,
    TrustOption,
    check_one_checkpoint,
)
from gnpcli.cli.output import join_processes, print_json, say, start_process
from gnpcli.config.paths import user_path
from gnpcli.config.weights import Weights
from gnpcli.terminal import words

if TYPE_CHECKING:
    from gnpcli.engine.evaluate import Evaluated

CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        parser=user_path, metavar="RUN|CHECKPOINT", help="A run folder, or one of its checkpoints."
    ),
]
SplitOption = Annotated[
    Literal["test", "val", "train"], typer.Option("--split", help="Which images.")
]
WeightsOption = Annotated[
    Weights | None,
    typer.Option("--weights", help="Which weights.", show_default="what the run itself evaluated"),
]
RecalibrateOption = Annotated[
    int | None,
    typer.Option(
        "--recalibrate",
        min=0,
        max=MOST,
        help="Take BatchNorm statistics anew from this many training batches; 0 keeps them.",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, max=MOST_IMAGES, help="The most images at a time."),
]

OF_ONE_DATA_SET = (
    "dir",
    "image_size",
    "train_split",
    "test_split",
    "val_labels",
    "stream",
    "mean",
    "std",
)
"""Keys of ``data`` that another data set does not share."""


def evaluate(
    path: CheckpointArgument,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    split: SplitOption = "test",
    step: StepOption = None,
    best: BestOption = False,
    weights: WeightsOption = None,
    recalibrate: RecalibrateOption = None,
    batch_size: BatchSizeOption = None,
    accept_changed_data: AcceptChangedDataOption = False,
    trust_code: TrustOption = False,
    no_cache: NoCacheOption = False,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print the error and loss of a trained model.

    The images are those of its own data set, or of another that fits the model.
    """
    check_one_checkpoint(step, best)
    join_processes()
    data = _data(dataset, data_dir, batch_size)
    start_process()
    from gnpcli.engine.evaluate import evaluate_trained
    from gnpcli.runs.location import locate
    from gnpcli.runs.trained import open_trained
    from gnpcli.terminal.screen import Screen

    screen = Screen(quiet=quiet or as_json)
    trained = open_trained(locate(path), step=step, best=best, weights=weights, screen=screen)
    result = evaluate_trained(
        trained,
        data=data,
        split=split,
        screen=screen,
        recalibrate=recalibrate,
        accept_changed_data=accept_changed_data,
    )
    if as_json:
        print_json(result)
    else:
        _print(result)


def _data(dataset: str | None, data_dir: str | None, batch_size: int | None) -> dict[str, Any]:
    """Return the keys of ``data`` to evaluate under in place of the run's own."""
    options = {"name": dataset, "dir": data_dir, "eval_batch_size": batch_size}
    given = {key: value for key, value in options.items() if value is not None}
    if dataset is None:
        return given
    from gnpcli.config.schema import DataConfig
    from gnpcli.data.registry import check_data

    check_data(DataConfig(name=dataset, dir=data_dir))
    return {"validation_fraction": 0.0, **dict.fromkeys(OF_ONE_DATA_SET), **given}


def _print(result: Evaluated) -> None:
    images = words.number(result["num_examples"])
    averaged = ", averaged weights" if result["weights"] == "ema" else ""
    say(
        f"{result['dataset']} {result['split']}: {words.evaluation(result)}"
        f"  ({images} images, step {result['step']}{averaged})"
    )
