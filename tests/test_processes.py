"""Several processes as one: how they find each other, train as one would, and end together."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gnpcli.cli.same_command import asked_for
from gnpcli.devices.processes import peers, team
from gnpcli.devices.processes.detect import ONE, detect
from gnpcli.devices.processes.launchers import first_node
from gnpcli.devices.processes.layout import LayoutError, split_address
from gnpcli.devices.processes.team import First, Other, Team
from tests.launch import Launched, environment, free_port, wait_until
from tests.meeting import layouts, meet, silent

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TPU = {"TPU_WORKER_HOSTNAMES": "t-0,t-1,t-2,t-3", "TPU_WORKER_ID": "1"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "3",
    "MEGASCALE_SLICE_ID": "2",
    "MEGASCALE_COORDINATOR_ADDRESS": "s-0:8081",
}
BY_HAND = {"GNP_PROCESSES": "2", "GNP_PROCESS_ID": "1", "GNP_COORDINATOR": "10.0.0.1:4000"}
OF_JAX = {
    "JAX_NUM_PROCESSES": "8",
    "JAX_PROCESS_ID": "5",
    "JAX_COORDINATOR_ADDRESS": "a.example:99",
}
GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, (1, 0, None, None)),
        ({"GNP_PROCESSES": "auto"}, (1, 0, None, None)),
        ({"GNP_PROCESSES": "1"}, (1, 0, None, None)),
        (BY_HAND, (2, 1, "10.0.0.1:4000", None)),
        ({**BY_HAND, "GNP_COORDINATOR": "[fe80::1]:4000"}, (2, 1, "[fe80::1]:4000", None)),
        (OF_JAX, (8, 5, "a.example:99", None)),
        ({**OF_JAX, **BY_HAND}, (2, 1, "10.0.0.1:4000", None)),
        ({**OF_JAX, "JAX_LOCAL_DEVICE_IDS": "2,3"}, (8, 5, "a.example:99", (2, 3))),
        (SLURM, (4, 3, "node007:62091", None)),
        ({**SLURM, **BY_HAND}, (2, 1, "10.0.0.1:4000", None)),
        ({**SLURM, "GNP_PROCESSES": "1"}, (1, 0, None, None)),
        ({**SLURM, "GNP_COORDINATOR": "10.0.0.1:5"}, (4, 3, "10.0.0.1:5", None)),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "10.0.0.1:5"}, (4, 3, "10.0.0.1:5", None)),
        ({**SLURM, **GPUS}, (4, 3, "node007:62091", (2, 3))),
        ({**SLURM, **GPUS, "SLURM_LOCALID": "0"}, (4, 3, "node007:62091", (0, 1))),
        ({**SLURM, **GPUS, "SLURM_GPUS_PER_TASK": "2"}, (4, 3, "node007:62091", None)),
        ({**SLURM, **GPUS, "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, (4, 3, "node007:62091", None)),
        ({**SLURM, "SLURM_NTASKS": "8"}, (4, 3, "node007:62091", None)),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, (1, 0, None, None)),
        (MPI, (3, 2, "10.96.0.1:62624", None)),
        ({**SLURM, **MPI}, (3, 2, "10.96.0.1:62624", None)),
        ({**MPI, **GPUS, "OMPI_COMM_WORLD_LOCAL_SIZE": "0"}, (3, 2, "10.96.0.1:62624", None)),
        ({**SLURM, **GPUS, "SLURM_STEP_TASKS_PER_NODE": "0(x2)"}, (4, 3, "node007:62091", None)),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x999999999)"}, (4, 3, "node007:62091", None)),
        (TPU, (4, 1, "t-0:8476", None)),
        ({**TPU, "TPU_WORKER_HOSTNAMES": "localhost"}, (1, 0, None, None)),
        ({**TPU, **SLICES}, (12, 9, "s-0:8476", None)),
        (
            {**TPU, **SLICES, "TPU_WORKER_HOSTNAMES": "t-0", "TPU_WORKER_ID": "0"},
            (3, 2, "s-0:8476", None),
        ),
    ],
)
def test_the_environment_says_which_processes_there_are(environment, wanted):
    found = detect(environment)
    assert (found.count, found.index, found.coordinator, found.local_devices) == wanted


def test_process_0_may_listen_at_another_address_than_it_is_reached_at():
    found = detect({**BY_HAND, "GNP_COORDINATOR_BIND": "0.0.0.0:4001"})
    assert (found.coordinator, found.bind) == ("10.0.0.1:4000", "0.0.0.0:4001")


def test_two_steps_of_a_job_do_not_share_a_port():
    steps = [detect({**SLURM, "SLURM_STEP_ID": str(step)}).coordinator for step in range(50)]
    assert len(set(steps)) == 50
    ports = {split_address(str(step))[1] for step in steps}
    assert min(ports) > 1024
    assert max(ports) < 1 << 16


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("node[001-015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("rack2-node[3]-ib", "rack2-node3-ib"),
    ],
)
def test_the_first_node_of_a_list_is_process_0s(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({**BY_HAND, "GNP_PROCESS_ID": "2"}, "process 2 of 2: processes are numbered from 0 to 1"),
        ({**BY_HAND, "GNP_PROCESS_ID": "-1"}, "--process-id (GNP_PROCESS_ID) is '-1'"),
        ({**BY_HAND, "GNP_PROCESSES": "two"}, "--processes (GNP_PROCESSES) is 'two'"),
        ({**BY_HAND, "GNP_PROCESSES": "0", "GNP_PROCESS_ID": "0"}, "there is at least 1"),
        ({**BY_HAND, "GNP_COORDINATOR": "10.0.0.1"}, "'10.0.0.1' is not HOST:PORT"),
        ({**BY_HAND, "GNP_COORDINATOR": "h:0"}, "'h:0' is not HOST:PORT"),
        ({**BY_HAND, "GNP_COORDINATOR": "fe80::1:9"}, "an IPv6 address as [fe80::1]:9"),
        ({**BY_HAND, "GNP_COORDINATOR": "h:70000"}, "'h:70000' is not HOST:PORT"),
        ({"GNP_PROCESSES": "2"}, "--process-id (GNP_PROCESS_ID) is not"),
        ({"GNP_PROCESS_ID": "1"}, "--processes (GNP_PROCESSES) is not"),
        ({"GNP_COORDINATOR": "h:1"}, "--processes (GNP_PROCESSES) is not"),
        ({"GNP_PROCESSES": "2", "GNP_PROCESS_ID": "1"}, "--coordinator (GNP_COORDINATOR) is not"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID is not"),
        ({**OF_JAX, "JAX_LOCAL_DEVICE_IDS": "a"}, "JAX_LOCAL_DEVICE_IDS is 'a'"),
        ({**SLURM, "SLURM_STEP_NODELIST": "localhost,n2"}, "no address that 2 nodes can reach"),
        ({**BY_HAND, "GNP_PROCESSES": "1" * 5000}, "--processes (GNP_PROCESSES) is '111"),
        ({**BY_HAND, "GNP_PROCESSES": "1000000000"}, "1000000000 processes are too many"),
        ({**BY_HAND, "GNP_COORDINATOR": "h:" + "1" * 5000}, "...' is not HOST:PORT"),
        ({**OF_JAX, "JAX_LOCAL_DEVICE_IDS": "1,2,1"}, "names a device twice: 1,2,1"),
        ({**SLURM, **GPUS, "SLURM_LOCALID": "2"}, "this is task 2 of the 2 on"),
        ({**TPU, "MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_COORDINATOR_ADDRESS is not given"),
        ({**SLURM, "SLURM_STEP_ID": "4294967294.batch"}, "SLURM_STEP_ID is '4294967294.batch'"),
        ({**MPI, "OMPI_MCA_orte_hnp_uri": ""}, "Open MPI says that there are 3 processes and not"),
    ],
)
def test_a_contradiction_is_one_line(environment, said):
    with pytest.raises(LayoutError) as caught:
        detect(environment)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_process_is_its_own_answer():
    assert peers.decided("a value", lambda: {"a": 1}) == {"a": 1}
    assert peers.gathered("values", 3) == [3]
    assert peers.united("names", ["b", "a", "b"]) == ["b", "a", "b"]
    peers.barrier("nothing")
    peers.leave()
    assert (peers.count(), peers.index(), peers.is_first()) == (1, 0, True)


def team_of(count: int) -> list[Team]:
    first, *others = meet(*layouts(count), keep=True)
    process_0: list[Team] = [First(first[1], first[2], silent)]
    return process_0 + [Other(channel, silent) for channel, _, _ in others]


def test_processes_tell_each_other_what_they_know(monkeypatch):
    monkeypatch.setenv("GNP_CONNECT_TIMEOUT_S", "20")
    members = team_of(3)

    def work(index: int) -> list[Any]:
        own = members[index]
        found = [own.told("a", f"of {index}"), own.gathered("b", index)]
        found += [own.gathered("c", {"index": index})[index], own.told("d", None)]
        own.leave()
        return found

    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(work, range(3)))
    assert told == [["of 0", [0, 1, 2], {"index": index}, None] for index in range(3)]


def test_a_layout_of_one_is_one_process():
    assert ONE.count == 1


@pytest.mark.parametrize("index", [0, 1])
def test_two_threads_that_end_a_process_say_so_once(monkeypatch, index):
    monkeypatch.setenv("GNP_CONNECT_TIMEOUT_S", "20")
    monkeypatch.setattr(team, "_GOODBYE_S", 0.1)
    statuses: list[int] = []
    is_over = threading.Event()

    def end(status: int) -> None:
        statuses.append(status)
        is_over.wait(30)

    monkeypatch.setattr(team, "end_process", end)
    said: list[str] = []
    first, second = meet(*layouts(2), keep=True)
    own = Other(second[0], said.append) if index else First(first[1], first[2], said.append)
    for _ in range(2):
        threading.Thread(target=own.fail, args=("a full disk", 3), daemon=True).start()
    wait_until(lambda: bool(statuses), 20)
    time.sleep(0.3)
    assert (said, statuses) == (["a full disk"], [3])
    is_over.set()
    for channel in (first[1][1], second[0]):
        channel.close()


WITHOUT_JAX = """
import os, sys, time
from gnpcli.devices.processes import peers
from gnpcli.devices.processes.detect import detect
from gnpcli.errors import ConfigError, DataError, GnpError
from gnpcli.runs.reading import RunReadError
from gnpcli.cli.output import fail

peers._start_jax = lambda *connection: None
peers.connect(detect(os.environ), fail, fail)
index = peers.index()
try:
    {body}
except GnpError as error:
    peers.fail(f"{{type(error).__name__}}: {{error}}", error.exit_status)
peers.leave()
"""
"""What the processes of a run are without what they compute."""


def together(folder: Path, body: str, count: int = 2) -> Launched:
    """Start processes that run some lines, with `index` and `peers`."""
    lines = body.strip().replace("\n", "\n    ")
    programs = dict.fromkeys(range(count), WITHOUT_JAX.format(body=lines))
    address = f"127.0.0.1:{free_port()}"
    launched = Launched([], folder, processes=0)
    for index in range(count):
        given = {"GNP_PROCESSES": count, "GNP_PROCESS_ID": index, "GNP_COORDINATOR": address}
        variables = environment() | {key: str(value) for key, value in given.items()}
        launched.start(index, [], programs[index], variables)
    return launched


def test_what_process_0_decides_is_known_to_all(tmp_path):
    body = """
def outer():
    return [peers.decided("inner", lambda: index), index]
print(peers.decided("outer", outer), peers.decided("next", lambda: index + 10))
"""
    with together(tmp_path, body, 3) as going:
        going.succeed()
        assert [going.out(index) for index in range(3)] == ["[0, 0] 10\n"] * 3


@pytest.mark.parametrize(
    ("body", "said", "status"),
    [
        (
            'peers.decided("it", lambda: open("/nowhere/at/all"))',
            "No such file or directory: /nowhere/at/all",
            1,
        ),
        ('peers.gathered("it", 0) if index else fails()', "NameError", 1),
        (
            'time.sleep(60) if index == 0 else peers.fail("a full disk", 3)',
            "a full disk",
            3,
        ),
        ('time.sleep(60) if index else peers.fail("a full disk", 3)', "a full disk", 3),
    ],
)
def test_an_error_of_one_process_is_that_of_all(tmp_path, body, said, status):
    with together(tmp_path, "try:\n    " + body + CAUGHT) as going:
        assert going.wait(30) == [status] * 2, (going.err(0), going.err(1))
        assert going.error(0) == going.error(1)
        assert said in going.error(0)


@pytest.mark.parametrize("first", ["told", "gathered"])
@pytest.mark.parametrize("other", ["told", "gathered"])
def test_processes_that_do_different_things_do_not_wait_for_each_other(tmp_path, first, other):
    calls = {
        "told": "peers.decided(what, lambda: index)",
        "gathered": "peers.gathered(what, index)",
    }
    body = f"""
peers.barrier("all are here")
what = "this" if index == 0 else "that"
{calls[first]} if index == 0 else {calls[other]}
peers.barrier("the end")
"""
    with together(tmp_path, body) as going:
        assert going.wait(60) == [1, 1], (going.err(0), going.err(1))
        assert going.error(0) == going.error(1)
        assert "the processes do not run the same program: process " in going.error(0)
        assert "'this'" in going.error(0)
        assert "'that'" in going.error(0)


CAUGHT = """
except OSError as error:
    peers.fail(f"{error.strerror}: {error.filename}", 1)
except NameError as error:
    peers.fail("NameError", 1)"""


def test_an_error_keeps_its_class_where_processes_agree(tmp_path):
    body = """
def make():
    if index == 1:
        raise RunReadError("the file", "it is away")
    if index == 2:
        raise DataError("damaged")
    return "made"
try:
    peers.agreed("it", make, RunReadError, DataError)
except RunReadError as error:
    print(error)
print(peers.agreed("more", lambda: index, DataError))
"""
    with together(tmp_path, body, 3) as going:
        going.succeed()
        told = [going.out(index) for index in range(3)]
    assert all(text.startswith("cannot read the file: it is away") for text in told)
    assert [text.split()[-1] for text in told] == ["0", "1", "2"]


def test_a_run_folder_that_is_not_shared_is_refused(tmp_path):
    body = """
from pathlib import Path
from gnpcli.runs import shared
shared.SEEN_WITHIN_S = 0.5
with shared.SharedRunFolder(Path("both").resolve()).claimed("if missing"):
    peers.barrier("both are in it")
with shared.SharedRunFolder(Path(f"of-{index}").resolve()).claimed("if missing"):
    print("never")
"""
    with together(tmp_path, body) as going:
        assert going.wait(60) == [1, 1]
        assert going.error(0) == going.error(1)
        assert "process 1 on " in going.error(0)
        assert "does not see " in going.error(0)
        assert going.out(0) == going.out(1) == ""


def test_processes_that_find_other_images_are_refused(tmp_path):
    body = """
from types import SimpleNamespace
from gnpcli.engine.loading import check_same_images
check_same_images(SimpleNamespace(name="cats", digest="a"))
check_same_images(SimpleNamespace(name="dogs", digest="b" if index == 1 else "a"))
print("never")
"""
    with together(tmp_path, body) as going:
        assert going.wait(60) == [1, 1]
        assert going.error(0) == going.error(1)
        assert "process 1 finds other images of dogs than process 0" in going.error(0)
        assert going.out(0) == going.out(1) == ""


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("train --process-id 1 --set a.b=c", ["train", "--set a.b=c"]),
        ("train --processes=2 --set=a.b=c --coordinator h:1", ["train", "--set a.b=c"]),
        ("eval --best RUN -q --json", ["eval", "--best RUN"]),
        ("--debug train --resume --run-dir 'a b'", ["train", "--resume", "--run-dir 'a b'"]),
        ("resume RUN --processes 2", ["resume", "RUN"]),
    ],
)
def test_what_is_asked_for_is_the_same_in_all_processes(typed, asked):
    assert asked_for(shlex.split(typed)) == asked


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_who_is_killed_is_named_by_the_others(tmp_path, victim):
    body = """
peers.barrier("all are here")
open(f"here-{index}", "w").close()
time.sleep(60)
"""
    with together(tmp_path, body, 3) as going:
        wait_until(lambda: len(list(tmp_path.glob("here-*"))) == 3)
        going.processes[victim].kill()
        statuses = going.wait(30)
        others = {0, 1, 2} - {victim}
        assert statuses == [-signal.SIGKILL if index == victim else 1 for index in range(3)]
        for index in others:
            assert f"process {victim} on " in going.error(index)
            assert "has ended without a word, as after kill -9" in going.error(index)


LOCKSTEP = """
import random
from concurrent.futures import ThreadPoolExecutor
from gnpcli.devices.processes.halt import Halt
LOOKAHEAD, WHO, WHEN = 2, {who}, {when}
pace = random.Random(100 * WHEN + index)
device = ThreadPoolExecutor(1)
for run in range(3):
    halts, results, step = Halt(LOOKAHEAD), [], 0
    while step < 10_000 and not halts(step, index in WHO and step >= WHEN):
        results.append(device.submit(peers.gathered, "a result", step))
        step += 1
        time.sleep(pace.choice([0, 0, 0.002, 0.01]))
        if step > LOOKAHEAD:
            results[step - LOOKAHEAD - 1].result()
    assert [result.result() for result in results] == [[s] * 3 for s in range(step)]
    print(step)
"""
"""Three processes whose steps need each other, as those on devices do, at paces of their own."""


@pytest.mark.parametrize(
    ("who", "when"),
    [((0,), 0), ((0,), 20), ((1,), 0), ((2,), 31), ((1, 2), 7), ((0, 1, 2), 50), ((1,), 100)],
)
def test_all_processes_stop_before_the_same_step(tmp_path, who, when):
    with together(tmp_path, LOCKSTEP.format(who=who, when=when), 3) as going:
        going.succeed()
        told = [going.out(index) for index in range(3)]
    assert told[0] == told[1] == told[2]
    assert all(when <= int(step) < 10_000 for step in told[0].split())
