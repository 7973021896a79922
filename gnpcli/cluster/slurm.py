"""A command as a Slurm job: its batch script, and `sbatch`."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gnpcli.errors import ConfigError, GnpError

SUBMIT_WITHIN_S = 120
"""How long `sbatch` may take."""
EARLY_S = 60
"""By how much Slurm may be early with the signal that ``--signal`` asks for."""

_BODY = """\
# Before the time limit Slurm sends USR1 to this script, which passes it on. The tasks save and
# stop. Then the job is queued again, and the command goes on where it stopped.
stopping=
step=
trap 'stopping=yes; kill -USR1 "$step"' USR1
{command} &
step=$!
while kill -0 "$step" 2> /dev/null; do # a signal ends a wait
  wait "$step"
done
wait "$step"
status=$?
# 75 is the status of a command that has reached a time limit of its own.
if [ "$status" -eq 75 ] || {{ [ -n "$stopping" ] && [ "$status" -gt 128 ]; }}; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


_HAVE_VALUES = ("job-name", "gpus-per-node", "mem", "time", "partition", "account")

_SET = "the launcher has an option of its own for it"
_OF_LAUNCHER = {
    **dict.fromkeys([*_HAVE_VALUES, "nodes", "ntasks-per-node", "cpus-per-task", "array"], _SET),
    "ntasks": "give --nodes and --tasks-per-node",
    "output": "give the folder by --logs",
    "signal": "give the seconds by --save-before",
    "open-mode": "a job that is queued again goes on with its file",
    "requeue": "the job is queued again in any case",
    "no-requeue": "a job that is not queued again is lost at its time limit",
    "wrap": "the command is what stands behind --",
}
"""Options of `sbatch` that the script depends on, and what to give in their place."""

_TIME = re.compile(
    r"(?:(?P<days>\d{1,6})-(?P<dh>\d{1,6})(?::(?P<dm>\d{1,6})(?::(?P<ds>\d{1,6}))?)?"
    r"|(?:(?P<hours>\d{1,6}):(?=\d+:))?(?P<minutes>\d{1,9})(?::(?P<seconds>\d{1,6}))?)"
)
_NO_LIMIT = ("INFINITE", "UNLIMITED")


def seconds_of(time: str) -> int | None:
    """Return the seconds of a time limit as Slurm writes it; None where there is no limit.

    >>> seconds_of("90"), seconds_of("1:30"), seconds_of("4:00:00"), seconds_of("1-12")
    (5400, 90, 14400, 129600)

    Raises:
        ConfigError: It is none.
    """
    if time.upper() in _NO_LIMIT:
        return None
    found = _TIME.fullmatch(time)
    if found is None:
        raise ConfigError(
            f"--time {time} is no time: write minutes, HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS:MINUTES:SECONDS"
        )
    part = {name: int(value or 0) for name, value in found.groupdict().items()}
    hours = 24 * part["days"] + part["dh"] + part["hours"]
    minutes = 60 * hours + part["dm"] + part["minutes"]
    return (60 * minutes + part["ds"] + part["seconds"]) or None  # 0 is no limit


@dataclass(frozen=True)
class SlurmJob:
    """What is asked of Slurm, and the command that every task runs.

    None leaves a choice to the cluster.
    """

    command: Sequence[str]
    """The program and its arguments, as they are."""
    name: str
    nodes: int = 1
    tasks_per_node: int = 1
    is_one: bool = True
    """Whether the tasks do one thing together. Else each goes on where another one ends."""
    array: int | None = None
    """Jobs of an array, which all run the same command."""
    save_before_s: int = 120
    """Seconds before the time limit at which the command is told to save and stop."""
    cpus_per_task: int | None = None
    gpus_per_node: str | None = None
    """A number, or ``type:number``."""
    mem: str | None = None
    """Of a node, such as ``64G``."""
    time: str | None = None
    """The limit, as Slurm writes it: minutes, or ``days-hours:minutes:seconds``."""
    partition: str | None = None
    account: str | None = None
    logs: Path = Path()
    """Folder of what the job prints. Slurm does not make it."""
    extra: Sequence[tuple[str, str | None]] = ()
    """Other options of `sbatch`, by their long names without the dashes."""

    def script(self) -> str:
        """Return the batch script.

        Raises:
            ConfigError: A value has a line break or the like, is empty or no time, or an extra
                option is none, or is one that the launcher has itself.
        """
        self._check()
        options = [(name, value) for name, value in self._options() if value is not None]
        directives = [_directive(name, str(value)) for name, value in options]
        command = shlex.join(self._srun())
        _check_printable("the command", command)
        return "\n".join(["#!/bin/bash", *directives, "", _BODY.format(command=command)])

    def _options(self) -> Iterator[tuple[str, object]]:
        """Yield the options in order. What is None is left to the cluster; "" has no value."""
        is_array = self.array is not None
        yield "job-name", self.name
        yield "array", f"0-{self.array - 1}" if self.array is not None else None
        yield "nodes", self.nodes
        yield "ntasks-per-node", self.tasks_per_node
        yield "cpus-per-task", self.cpus_per_task
        yield "gpus-per-node", self.gpus_per_node
        yield "mem", self.mem
        yield "time", self.time
        yield "partition", self.partition
        yield "account", self.account
        yield "output", self.logs / ("%x-%A_%a.out" if is_array else "%x-%j.out")
        yield "open-mode", "append"
        yield "requeue", ""
        yield "signal", f"B:USR1@{self.save_before_s}"
        for name, value in self.extra:
            yield name, value or ""

    def _check(self) -> None:
        """Refuse what Slurm would refuse, or what would queue the job again without end."""
        for name, value in self._options():
            if value == "" and name in _HAVE_VALUES:
                raise ConfigError(f"--{name} is empty: give it a value, or leave it out")
        limit_s = None if self.time is None else seconds_of(self.time)
        if limit_s is not None and limit_s <= self.save_before_s + EARLY_S:
            raise ConfigError(
                f"--time {self.time} is within the {self.save_before_s} s of --save-before, which "
                f"Slurm may count {EARLY_S} s early: the job would be stopped as it starts, again "
                "and again"
            )
        for name, _ in self.extra:
            if name in _OF_LAUNCHER:
                raise ConfigError(f"--sbatch {name}: {_OF_LAUNCHER[name]}")

    def _srun(self) -> list[str]:
        """Return the command of the job's step.

        A task that fails ends those that compute together with it, and the job. The defaults of a
        cluster may do so to others, too.
        """
        options = ["--kill-on-bad-exit=1"] if self.is_one else ["--kill-on-bad-exit=0", "--wait=0"]
        if self.cpus_per_task is not None:  # srun takes it from sbatch in some versions only
            options.append(f"--cpus-per-task={self.cpus_per_task}")
        return ["srun", *options, *self.command]


def _directive(name: str, value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ConfigError(f"--sbatch {name}: name an option of sbatch, as in --sbatch qos=long")
    _check_printable(f"--{name}", value)
    return f"#SBATCH --{name}={shlex.quote(value)}" if value else f"#SBATCH --{name}"


def _check_printable(what: str, text: str) -> None:
    if not text.isprintable():
        raise ConfigError(f"{what}: {text!r} has characters that cannot stand in a script")


def submit(script: str) -> str:
    """Hand a script to `sbatch`, and return the number of the job.

    Raises:
        GnpError: There is no `sbatch` here, or it refuses the job.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"],
            input=script,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SUBMIT_WITHIN_S,
        )
    except FileNotFoundError:
        raise GnpError(
            "there is no sbatch here: submit on a machine of the cluster, or leave out --submit to "
            "print the script"
        ) from None
    except subprocess.TimeoutExpired:
        raise GnpError(f"sbatch did not answer within {SUBMIT_WITHIN_S} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise GnpError(f"sbatch refused the job: {_plain(said)}")
    return done.stdout.strip().partition(";")[0]


def _plain(lines: Sequence[str]) -> str:
    """Return what sbatch said of an error in a line, without its name on every one."""
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines)
