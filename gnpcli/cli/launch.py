"""``gnp launch``: the commands of other machines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from gnpcli.cli.options import resolve_options
from gnpcli.cli.output import say, tell
from gnpcli.config.paths import user_path

MOST_JOBS = 100_000
MOST_NODES = 100_000
MOST_CPUS = 4096

app = typer.Typer(no_args_is_help=True)

Arguments = Annotated[
    list[str],
    typer.Argument(metavar="COMMAND...", help="train or reproduce-table with its options."),
]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, max=MOST_NODES, help="Machines.")]
TasksOption = Annotated[
    int, typer.Option("--tasks-per-node", min=1, max=MOST_CPUS, help="Processes on each.")
]
CpusOption = Annotated[
    int | None, typer.Option("--cpus-per-task", min=1, max=MOST_CPUS, help="Cores of a process.")
]
GpusOption = Annotated[
    str | None, typer.Option("--gpus-per-node", metavar="[TYPE:]N", help="GPUs of a machine.")
]
MemOption = Annotated[str | None, typer.Option("--mem", help="Memory of a machine, as in 64G.")]
TimeOption = Annotated[
    str | None, typer.Option("--time", help="Limit: minutes, or DAYS-HOURS:MINUTES:SECONDS.")
]
PartitionOption = Annotated[str | None, typer.Option("--partition", help="Partition.")]
AccountOption = Annotated[str | None, typer.Option("--account", help="Account.")]
ArrayOption = Annotated[
    int | None,
    typer.Option("--array", min=1, max=MOST_JOBS, help="Jobs that divide the cells of a table."),
]
NameOption = Annotated[
    str | None,
    typer.Option("--job-name", help="Name of the job.", show_default="that of the run or table"),
]
LogsOption = Annotated[
    Path,
    typer.Option(
        "--logs",
        parser=user_path,
        metavar="FOLDER",
        help="Folder of what the job prints.",
        show_default="where it is submitted",
    ),
]
BeforeOption = Annotated[
    int,
    typer.Option(
        "--save-before",
        min=1,
        max=65535,
        help="Seconds before the time limit at which the command saves and is queued again.",
    ),
]
ExtraOption = Annotated[
    list[str],
    typer.Option("--sbatch", metavar="KEY[=VALUE]", help="Any other option of sbatch."),
]
SubmitOption = Annotated[
    bool, typer.Option("--submit", help="Hand the script to sbatch; do not print it.")
]


@app.callback()
def launch() -> None:
    """Run a command on other machines."""


@app.command("slurm", context_settings={"allow_interspersed_args": False})
def slurm(
    command: Arguments,
    nodes: NodesOption = 1,
    tasks_per_node: TasksOption = 1,
    cpus_per_task: CpusOption = None,
    gpus_per_node: GpusOption = None,
    mem: MemOption = None,
    time: TimeOption = None,
    partition: PartitionOption = None,
    account: AccountOption = None,
    array: ArrayOption = None,
    job_name: NameOption = None,
    logs: LogsOption = Path(),
    save_before: BeforeOption = 120,
    extra: ExtraOption = [],  # noqa: B006 - typer copies it
    submit: SubmitOption = False,
) -> None:
    """Print a batch script for Slurm that runs a command, or submit it.

    The command is checked first. Its job saves before the time limit, is queued again, and goes on.
    As an array, a table is divided among the jobs.

    Write -- before the command: gnp launch slurm --nodes 2 -- train --run-dir RUN
    """
    from gnpcli.cluster.slurm import SlurmJob
    from gnpcli.cluster.slurm import submit as hand_in

    name, complete = _checked(command, array)
    job = SlurmJob(
        command=[_program(), *complete],
        name=job_name or name,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        is_one=command[0] == "train",
        array=array,
        save_before_s=save_before,
        cpus_per_task=cpus_per_task,
        gpus_per_node=gpus_per_node,
        mem=mem,
        time=time,
        partition=partition,
        account=account,
        logs=logs,
        extra=[_pair(text) for text in extra],
    )
    script = job.script()
    if submit:
        logs.mkdir(parents=True, exist_ok=True)
        say(f"submitted job {hand_in(script)}, which prints into {logs.resolve()}")
        return
    say(*script.splitlines())
    if not logs.is_dir():
        tell(f"make the folder {logs} before you submit this: Slurm does not make it")


def _pair(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    return name.removeprefix("--"), value if equals else None


def _program() -> str:
    """Return the path of the command that runs now: a job may have another search path."""
    beside = Path(sys.executable).with_name("gnp")
    return str(beside) if beside.exists() else shutil.which("gnp") or "gnp"


def _checked(arguments: list[str], array: int | None) -> tuple[str, list[str]]:
    """Return a name for the job, and a command that goes on where it was stopped.

    The command is refused here, not hours later, where it would be refused there.
    """
    from gnpcli.cli.commands import COMMANDS, load

    name, *rest = arguments
    if name not in _CHECKS:
        raise typer.BadParameter(
            f"'{name}' is not one of {', '.join(_CHECKS)}", param_hint="COMMAND"
        )
    if array is not None and name != "reproduce-table":
        raise typer.BadParameter("an array divides a table: reproduce-table", param_hint="--array")
    (command,) = (command for command in COMMANDS if command.name == name)
    values = load(command).make_context(f"gnp {name}", [*rest]).params
    for flag in ("dry_run", "render"):
        if values.get(flag):
            option = f"--{flag.replace('_', '-')}"
            raise typer.BadParameter(f"{option} trains nothing: leave it out", param_hint="COMMAND")
    for option in ("processes", "process_id"):
        if values.get(option) not in (None, "auto"):
            raise typer.BadParameter(
                f"--{option.replace('_', '-')} is the same in every task, and Slurm says which "
                "each of them is: leave it out",
                param_hint="COMMAND",
            )
    job_name, needed = _CHECKS[name](values)
    return job_name, [*arguments, *needed]


def _check_train(values: Mapping[str, Any]) -> tuple[str, list[str]]:
    from gnpcli.cli.train import groups_at_start
    from gnpcli.runs.folder import RunFolder

    run_dir = values["run_dir"]
    if run_dir is None:
        raise typer.BadParameter(
            "give train a --run-dir: a job that is queued again finds its run there",
            param_hint="COMMAND",
        )
    options = ("gr", "dataset", "data_dir", "epochs", "seed")
    config = resolve_options(
        values["preset"],
        [*values["assignments"]],
        **{option: values[option] for option in options},
        flags={
            "train.init_from": ("--init-from", values["init_from"]),
            "train.time_limit": ("--time-limit", values["time_limit"]),
        },
        at_start=groups_at_start(run_dir),
    )
    run = RunFolder(run_dir)
    if run.exists():
        run.check_same(config)
    else:
        run.check_free(config)
    return f"gnp-{run_dir.name}", [] if values["resume"] else ["--resume"]


def _check_table(values: Mapping[str, Any]) -> tuple[str, list[str]]:
    from gnpcli.cli.table_part import chosen_part
    from gnpcli.tables.cells import check_folders

    part = chosen_part(**{name: values[name] for name in signature(chosen_part).parameters})
    check_folders(part.cells())
    return f"gnp-{part.table.name}", [] if values["join"] else ["--join"]


_CHECKS: dict[str, Callable[[Mapping[str, Any]], tuple[str, list[str]]]] = {
    "train": _check_train,
    "reproduce-table": _check_table,
}
"""How a command is checked. Each returns a name for the job, and the options that are missing."""
