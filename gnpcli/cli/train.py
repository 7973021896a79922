"""``gnp train`` and ``gnp resume``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gnpcli.cli.options import (
    NOTHING_SET,
    AcceptChangedDataOption,
    CoordinatorOption,
    DataDirOption,
    DatasetOption,
    DryRunOption,
    EpochsOption,
    GrOption,
    JsonOption,
    MaxStepsOption,
    NoCacheOption,
    PresetOption,
    ProcessesOption,
    ProcessIdOption,
    QuietOption,
    RunArgument,
    SeedOption,
    SetOption,
    TrustOption,
    resolve_options,
    with_value,
)
from gnpcli.cli.output import join_processes, print_json, say, start_process, warn
from gnpcli.config.paths import user_path
from gnpcli.terminal import words

if TYPE_CHECKING:
    from gnpcli.config.resolved import Resolved
    from gnpcli.runs.contents import Evaluation, Summary

InitFromOption = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="RUN|CHECKPOINT|FILE",
        help="Start from the weights of a run, a checkpoint or a file (see gnp import-weights).",
    ),
]
RunDirOption = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        parser=user_path,
        metavar="FOLDER",
        help="New folder for the run.",
        show_default="a new one in runs/",
    ),
]
ChangeOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=with_value,
        help="Compute the run in another way from here on, for example --set mesh.devices=4.",
    ),
]
RestartOption = Annotated[
    bool,
    typer.Option(
        "--restart", help="Start anew if there are checkpoints and none can be used; keep them."
    ),
]


def train(
    preset: PresetOption = None,
    gr: GrOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    init_from: InitFromOption = None,
    assignments: SetOption = NOTHING_SET,
    run_dir: RunDirOption = None,
    max_steps: MaxStepsOption = None,
    trust_code: TrustOption = False,
    dry_run: DryRunOption = False,
    no_cache: NoCacheOption = False,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a preset.

    With none, a small ViT is trained on the bundled digits, in about a minute on a CPU.
    """
    if not dry_run:
        join_processes()
    config = resolve_options(
        preset,
        assignments,
        gr=gr,
        dataset=dataset,
        data_dir=data_dir,
        epochs=epochs,
        seed=seed,
        flags={"train.init_from": ("--init-from", init_from)},
        code="allowed" if dry_run else "needed",
    )
    if dry_run:
        _print_plan(config, run_dir, as_json)
        return
    start_process()
    from gnpcli.engine.train import train as run

    _print_summary(run(config, run_dir, max_steps=max_steps, quiet=quiet), as_json)


def resume(
    run: RunArgument,
    assignments: ChangeOption = NOTHING_SET,
    max_steps: MaxStepsOption = None,
    accept_changed_data: AcceptChangedDataOption = False,
    trust_code: TrustOption = False,
    no_cache: NoCacheOption = False,
    processes: ProcessesOption = None,
    process_id: ProcessIdOption = None,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    restart: RestartOption = False,
) -> None:
    """Continue a run from its last good checkpoint, bit for bit."""
    join_processes()
    from gnpcli.config.loader import parse_changes

    changes = parse_changes(assignments)
    start_process()
    from gnpcli.engine.train import resume as continue_run

    summary = continue_run(
        run,
        changes,
        max_steps=max_steps,
        quiet=quiet,
        accept_changed_data=accept_changed_data,
        restart=restart,
    )
    _print_summary(summary, as_json)


def _print_plan(config: Resolved, run_dir: Path | None, as_json: bool) -> None:
    from gnpcli.config.loader import dump
    from gnpcli.devices.memory import hold_no_memory
    from gnpcli.recipes.wording import plan_lines
    from gnpcli.runs.folder import default_run_dirs
    from gnpcli.terminal.screen import Screen
    from gnpcli.weights.planning import planned_weights

    hold_no_memory()

    folder = run_dir or next(path for path in default_run_dirs(config) if not path.exists())
    config, weights = planned_weights(config, Screen(quiet=True))
    lines = plan_lines(config, str(folder), warn, weights)
    if as_json:
        tree = config.model_dump(mode="json")
        print_json({"run_dir": str(folder), "config": tree, "plan": lines})
        return
    say(*dump(config).split("\n"))
    say(*(f"# {line}" for line in lines))


def _print_summary(summary: Summary, as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    if "val" in summary:
        say(_told(summary["val"], "val"))
    if "test" in summary:
        say(_told(summary["test"], "test"))
    passed, folder = words.duration(summary["elapsed_s"]), summary["run_dir"]
    say(f"{summary['status']} after {passed}: {folder}")
    if summary["status"] == "stopped":
        say(f"continue with `gnp resume {folder}`")


def _told(result: Evaluation, split: str) -> str:
    images = words.number(result["num_examples"])
    return f"{words.evaluation(result, split)}  ({images} images, step {result['step']})"
