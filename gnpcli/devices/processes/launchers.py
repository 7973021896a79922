"""What a launcher sets in the environment of each process: Slurm, Open MPI, a TPU pod. No JAX."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping

from gnpcli.devices.processes.layout import Layout, LayoutError, cut, whole_number

Environment = Mapping[str, str]

_FIRST_PORT, _NUM_PORTS = 61440, 4096
"""Ports of coordinators whose launcher names none: the last 4096."""
_TPU_PORT = 8476


def slurm(given: Environment) -> Layout | None:
    """Return the layout of a task that ``srun`` started. The script of a job is none."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if any(name not in given for name in needed):
        return None
    # A step may have fewer tasks than its job.
    count = _number(given, "SLURM_STEP_NUM_TASKS", whole_number("SLURM_NTASKS", given[needed[2]]))
    job, step = (_number(given, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    # Neighbouring jobs, and the steps of a job, take different ports.
    port = _FIRST_PORT + (job * 61 + step) % _NUM_PORTS
    return Layout(
        count,
        whole_number("SLURM_PROCID", given["SLURM_PROCID"]),
        f"{first_node(given['SLURM_STEP_NODELIST'])}:{port}",
        local_devices=_shared_devices(given),
        nodes=_number(given, "SLURM_STEP_NUM_NODES", 0) or None,
        source="Slurm",
    )


def first_node(nodes: str) -> str:
    """Return the first name of a node list.

    >>> first_node("node[007-015,020],gpu1"), first_node("a1,a2")
    ('node007', 'a1')
    """
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    if found is None:
        raise LayoutError(f"SLURM_STEP_NODELIST is '{cut(nodes)}', which names no node")
    return "".join(part or "" for part in found.groups())


def _shared_devices(given: Environment) -> tuple[int, ...] | None:
    """Return which GPUs a task of Slurm takes where the tasks of a node see all of the node's.

    Slurm may give every task its own. It then sees no others.
    """
    if "SLURM_GPUS_PER_TASK" in given or "SLURM_TRES_PER_TASK" in given:
        return None
    return _share(given, _tasks_on_this_node(given), _number(given, "SLURM_LOCALID", 0))


def _share(given: Environment, tasks: int, place: int) -> tuple[int, ...] | None:
    """Return an even share of the GPUs that all tasks of a machine see; None where it is all."""
    seen = [name for name in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if tasks < 2 or not seen or len(seen) % tasks:
        return None
    if place >= tasks:
        raise LayoutError(
            f"the launcher says that this is task {place} of the {tasks} on {platform.node()}: "
            "they are numbered from 0"
        )
    share = len(seen) // tasks
    return tuple(range(place * share, (place + 1) * share))


def _tasks_on_this_node(given: Environment) -> int:
    """Return how many tasks a node has, of ``SLURM_STEP_TASKS_PER_NODE`` such as ``4(x2),3``."""
    node = _number(given, "SLURM_NODEID", 0)
    for part in given.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        found = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", part.strip())
        if found is None:
            break
        node -= int(found[2] or 1)
        if node < 0:
            return int(found[1])
    return 1


def open_mpi(given: Environment) -> Layout | None:
    """Return the layout of a process that ``mpirun`` of Open MPI started."""
    if "OMPI_COMM_WORLD_SIZE" not in given or "OMPI_COMM_WORLD_RANK" not in given:
        return None
    count = _number(given, "OMPI_COMM_WORLD_SIZE", 1)
    coordinator = None
    uri = given.get("OMPI_MCA_orte_hnp_uri", "")
    found = re.match(r"(\d{1,18})\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
    if found is not None:
        port = _FIRST_PORT + (int(found[1]) >> 12) % _NUM_PORTS
        host = found[2] or f"[{found[3]}]"
        coordinator = f"{host}:{port}"
    local = _number(given, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    devices = _share(given, local, _number(given, "OMPI_COMM_WORLD_LOCAL_RANK", 0))
    index = _number(given, "OMPI_COMM_WORLD_RANK", 0)
    return Layout(count, index, coordinator, local_devices=devices, source="Open MPI")


def tpu_pod(given: Environment) -> Layout | None:
    """Return the layout of a worker of a TPU pod, whose variables name all workers of its slice."""
    hosts = [host for host in given.get("TPU_WORKER_HOSTNAMES", "").split(",") if host.strip()]
    slices = _number(given, "MEGASCALE_NUM_SLICES", 1)
    if len(hosts) * slices < 2 or "TPU_WORKER_ID" not in given:
        return None
    first = hosts[0].strip()
    if slices > 1:  # another slice has other hosts: all of them know one of the first
        first = given.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0]
        if not first:
            raise LayoutError(
                f"MEGASCALE_NUM_SLICES is {slices} and MEGASCALE_COORDINATOR_ADDRESS is not given: "
                "set it to a host of the first slice"
            )
    before = len(hosts) * _number(given, "MEGASCALE_SLICE_ID", 0)
    return Layout(
        len(hosts) * slices,
        before + whole_number("TPU_WORKER_ID", given["TPU_WORKER_ID"]),
        f"{first}:{_TPU_PORT}",
        nodes=len(hosts) * slices,
        source="the TPU pod",
    )


LAUNCHERS: tuple[Callable[[Environment], Layout | None], ...] = (open_mpi, slurm, tpu_pod)
"""In the order in which they are asked: mpirun may itself be started in a step of Slurm."""


def _number(given: Environment, name: str, default: int) -> int:
    return whole_number(name, given[name]) if name in given else default
