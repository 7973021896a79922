"""``gnp train`` and ``gnp resume``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from gnpcli.config.resolved import Devices, Resolved
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
        help="New folder for the run, or that of the run with --resume.",
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


def _minutes(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is neither auto nor a number of minutes") from None


TimeLimitOption = Annotated[
    Any,
    typer.Option(
        "--time-limit",
        parser=_minutes,
        metavar="MINUTES|auto",
        help="Save and stop within so many minutes, or before the Slurm job ends (auto); "
        "the exit status is then 75.",
        show_default="no limit",
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on where the folder of --run-dir holds this very run; else start it there.",
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
    resume: ResumeOption = False,
    time_limit: TimeLimitOption = None,
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
    if resume and run_dir is None:
        raise typer.BadParameter("it needs the folder of the run: --run-dir", param_hint="--resume")
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
        flags={
            "train.init_from": ("--init-from", init_from),
            "train.time_limit": ("--time-limit", time_limit),
        },
        code="allowed" if dry_run else "needed",
        at_start=groups_at_start(run_dir) if resume else None,
    )
    if dry_run:
        _print_plan(_planned(config, run_dir, max_steps, resume), run_dir, as_json)
        return
    start_process()
    from gnpcli.engine.train import train as run

    summary = run(config, run_dir, max_steps=max_steps, quiet=quiet, resume=resume)
    _print_summary(summary, as_json)


def resume(
    run: RunArgument,
    assignments: ChangeOption = NOTHING_SET,
    time_limit: TimeLimitOption = None,
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

    limit = {"train.time_limit": ("--time-limit", time_limit)}
    changes = parse_changes(assignments, limit)
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


def groups_at_start(run_dir: Path | None) -> Devices | None:
    """Return what groups per device are where a run has begun in a folder; None where none has."""
    from gnpcli.runs.folder import RunFolder

    run = None if run_dir is None else RunFolder(run_dir)
    if run is None or not run.exists():
        return None
    return lambda: run.config().gr.groups


@dataclass(frozen=True)
class _Planned:
    """What a run would do with its folder."""

    config: Resolved
    start: str | None = None
    """In words, with ``--resume``."""
    begins: bool = True


def _planned(
    config: Resolved, run_dir: Path | None, max_steps: int | None, resume: bool
) -> _Planned:
    """Return what ``--resume`` would do with a folder.

    Raises:
        ConfigError: It holds another run, or other files.
    """
    if run_dir is None or not resume:
        return _Planned(config)
    from gnpcli.config.same_run import as_begun
    from gnpcli.runs.contents import is_at_end
    from gnpcli.runs.folder import RunFolder

    run = RunFolder(run_dir)
    if not run.exists():
        run.check_free(config)
        return _Planned(config, "begins")
    config = as_begun(run.check_same(config), config)
    summary, steps = run.summary(), run.checkpoint_sizes()
    if is_at_end(summary, max_steps):
        return _Planned(config, f"is already at step {summary['step']}: nothing to do", False)
    where = f"step {max(steps)}, its last checkpoint" if steps else "the start: no step is saved"
    return _Planned(config, f"goes on from {where}", False)


def _print_plan(planned: _Planned, run_dir: Path | None, as_json: bool) -> None:
    from gnpcli.config.loader import dump
    from gnpcli.devices.memory import hold_no_memory
    from gnpcli.recipes.wording import plan_lines
    from gnpcli.runs.names import default_run_dirs
    from gnpcli.terminal.screen import Screen
    from gnpcli.weights.planning import planned_weights

    hold_no_memory()

    config = planned.config
    weights: list[str] = []
    folder = run_dir or next(path for path in default_run_dirs(config) if not path.exists())
    if planned.begins:
        config, weights = planned_weights(config, Screen(quiet=True))
    lines = plan_lines(config, str(folder), warn, weights)
    if planned.start is not None:
        lines.append(f"run          {folder} {planned.start}")
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
