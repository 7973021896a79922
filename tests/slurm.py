"""A real Slurm of two nodes on this machine, for as long as a test needs it.

All its daemons run in the foreground as children of this process, and listen on 127.0.0.1. They
keep their state in a folder of their own, and authenticate with a key of their own. Nothing of the
system's configuration is read or written.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = 2
CPUS = 2
"""Of each node; there may be fewer cores here."""

# A job that is queued again waits for as long as a credential is good. Less than 5 s counts as 120.
CONF = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=30
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2
ReturnToService=2
MpiDefault=none
KillWait=30
MinJobAge=600
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{nodeports}] CPUs={cpus} \
RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def find(program: str) -> str | None:
    """Return the path of a program, also where daemons lie."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def missing() -> list[str]:
    """Return the programs that Slurm needs and that are not here."""
    return [program for program in PROGRAMS if find(program) is None]


class Slurm:
    """A cluster that is up; `environment` is what commands need to find it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run a command of Slurm and return what it prints."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job: str) -> Mapping[str, str]:
        """Return what is known of a job, such as its JobState, ExitCode and Restarts."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait(self, job: str, until: Callable[[Mapping[str, str]], bool], timeout_s: float) -> None:
        """Wait until something holds of a job."""
        deadline = time.monotonic() + timeout_s
        while not until(facts := self.job(job)):
            assert time.monotonic() < deadline, f"waited in vain: {facts}"
            time.sleep(0.3)

    def end(self, job: str, timeout_s: float = 300) -> Mapping[str, str]:
        """Wait until a job has ended, and return what is known of it."""
        self.wait(job, lambda facts: facts["JobState"] in ENDS, timeout_s)
        return self.job(job)


ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@contextmanager
def slurm() -> Iterator[Slurm]:
    """Start a cluster; in the end cancel its jobs and stop it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        folder.chmod(0o755)
        _configure(folder)
        cluster = Slurm(folder)
        for name, command in _daemons(folder).items():
            stack.enter_context(_running(name, command, folder))
        _wait_until_up(cluster)
        stack.callback(_cancel_all, cluster)
        yield cluster


def _configure(folder: Path) -> None:
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = _free_ports(1 + NODES)
    text = CONF.format(
        folder=folder,
        user=getpass.getuser(),
        ports=ports,
        nodes=NODES,
        nodeports=",".join(map(str, ports[1:])),
        cpus=CPUS,
    )
    (folder / "slurm.conf").write_text(text)


def _daemons(folder: Path) -> dict[str, list[str]]:
    """Return the commands of the daemons, in the order in which they start."""
    conf = str(folder / "slurm.conf")
    names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log"}
    munge = [f"--{option}={folder}/munge.{name}" for option, name in names.items()]
    nodes = {
        f"n{number}": ["slurmd", "-D", "-f", conf, "-N", f"n{number}"]
        for number in range(1, NODES + 1)
    }
    return {
        "munged": ["munged", "--foreground", "--force", f"--seed-file={folder}/munge.seed", *munge],
        "slurmctld": ["slurmctld", "-D", "-c", "-f", conf],
        **nodes,
    }


@contextmanager
def _running(name: str, command: list[str], folder: Path) -> Iterator[None]:
    program = find(command[0])
    assert program is not None
    with open(folder / f"{name}.out", "wb") as out:
        process = subprocess.Popen([program, *command[1:]], stdout=out, stderr=out)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_up(cluster: Slurm, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    states = ""
    while states.split() != ["idle"] * NODES:
        logs = [path.read_text()[-2000:] for path in sorted(cluster.folder.glob("*.out"))]
        assert time.monotonic() < deadline, "\n".join([states, *logs])
        time.sleep(0.3)
        environment = {**os.environ, **cluster.environment}
        shown = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%t"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )
        states = shown.stdout


def _cancel_all(cluster: Slurm) -> None:
    cluster.run("scancel", f"--user={getpass.getuser()}")
    deadline = time.monotonic() + 60
    while cluster.run("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.3)
