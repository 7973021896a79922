"""``gnp train`` and ``gnp resume``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gnpcli.cli.options import (
    DataDirOption,
    DatasetOption,
    EpochsOption,
    GrOption,
    JsonOption,
    MaxStepsOption,
    PresetOption,
    QuietOption,
    RunArgument,
    SeedOption,
    SetOption,
    resolve_options,
)

if TYPE_CHECKING:
    from gnpcli.runs.contents import Evaluation, Summary


def train(
    preset: PresetOption = None,
    gr: GrOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="RUN|CHECKPOINT|FILE",
            help=(
                "Start from these weights: a run, a checkpoint, or a file of tensors (see gnp "
                "import-weights)."
            ),
        ),
    ] = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="New folder for the run. [default: a new one in runs/]"),
    ] = None,
    max_steps: MaxStepsOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the resolved configuration and what it would do, and exit."
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a preset; with none, a small ViT on the bundled digits in about a minute on a CPU."""
    config = resolve_options(
        preset, assignments, gr=gr, dataset=dataset, data_dir=data_dir, epochs=epochs, seed=seed,
        flags={"train.init_from": ("--init-from", init_from)},
    )  # fmt: skip
    from gnpcli.runs.folder import default_run_dir

    folder = run_dir if run_dir is not None else default_run_dir(config)
    if dry_run:
        from gnpcli.config.loader import dump
        from gnpcli.recipes.plan import describe

        typer.echo(dump(config))
        for line in describe(config, str(folder)):
            typer.echo(f"# {line}")
        return
    from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory

    keep_freed_memory()
    keep_compiled_programs()
    from gnpcli.engine.train import train as run

    _report(run(config, folder, max_steps=max_steps, quiet=quiet), as_json)


def resume(
    run: RunArgument,
    max_steps: MaxStepsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a run from its last good checkpoint, bit for bit."""
    from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory

    keep_freed_memory()
    keep_compiled_programs()
    from gnpcli.engine.train import resume as continue_run

    _report(continue_run(run, max_steps=max_steps, quiet=quiet), as_json)


def _report(summary: Summary, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(summary))
        return
    if "val" in summary:
        typer.echo(_told("val", summary["val"]))
    if "test" in summary:
        typer.echo(_told("test", summary["test"]))
    typer.echo(f"{summary['status']} after {summary['elapsed_s']:.1f} s: {summary['run_dir']}")
    if summary["status"] == "stopped":
        typer.echo(f"continue with `gnp resume {summary['run_dir']}`")


def _told(split: str, result: Evaluation) -> str:
    return (
        f"{split} error {100 * result['error_rate']:.2f} %  loss {result['loss']:.4f}"
        f"  ({result['num_examples']:,} images, step {result['step']})"
    )
