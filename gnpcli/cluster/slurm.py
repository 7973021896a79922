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
            ConfigError: A value has a line break or the like, or an extra option is not one.
        """
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

    def _srun(self) -> list[str]:
        """Return the command of the job's step. A task that fails ends the others, and the job."""
        options = ["--kill-on-bad-exit=1"]
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
            text=True,
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
