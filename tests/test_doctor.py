"""`gnp doctor`: what it finds on machines that are broken, each in another way."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gnpcli.devices.machine import Machine, read_machine
from gnpcli.doctor import child, probe, surroundings, trial
from gnpcli.doctor.advice import EXPECTED_LOSSES, Findings, advise, is_allowed
from gnpcli.doctor.examine import examine
from gnpcli.doctor.trial import Outcome, difference
from tests.conftest import Gnp, on_a_terminal
from tests.machines import H200, V100, machine, program

STARTED = {
    "event": "started",
    "platform": "gpu",
    "devices": [
        {"name": "gpu:0", "platform": "gpu", "kind": "NVIDIA H200", "memory_bytes": 140 << 30}
    ],
    "errors": {},
    "remarks": [],
}
TESTING = {"event": "testing", "device": "gpu:0", "dtype": "bfloat16"}
DONE = {"event": "done"}
REFERENCE = {"event": "reference", "device": "cpu:0", "losses": [*EXPECTED_LOSSES]}


def answered(**facts: Any) -> dict[str, Any]:
    usual = {"is_finite": True, "error": 0.04, "is_right": True, "compile_s": 1.0, "step_ms": 2.0}
    return {**TESTING, **usual, "losses": [2.3, 2.4], **facts, "event": "tested"}


def report_of(*events: dict[str, Any], dtypes: Any = ("usual",)) -> dict[str, Any]:
    def run(_: Any) -> Iterator[dict[str, Any]]:
        return iter(copy.deepcopy([*events, DONE]))

    return examine(dtypes, run=run)


# --- findings, from what a probe tells


def test_a_device_that_computes_what_the_cpu_does_is_fit():
    report = report_of(STARTED, REFERENCE, TESTING, answered())
    assert (report["is_fit"], report["errors"]) == (True, [])
    (result,) = report["self_test"]["results"]
    assert (result["device"], result["dtype"], result["error"]) == ("gpu:0", "bfloat16", 0.04)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (answered(error=0.5, is_right=False), "gpu:0 in bfloat16 is 50 % off the CPU's numbers"),
        (
            answered(is_finite=False, error=None, is_right=False),
            "gpu:0 in bfloat16 gives numbers that are not finite: unset XLA_FLAGS",
        ),
        (
            {**TESTING, "event": "failed", "problem": "out of device memory"},
            "gpu:0 in bfloat16 fails: out of device memory",
        ),
        (
            {"event": "failed", "problem": "the process was ended by SIGSEGV"},
            "gpu:0 in bfloat16 fails: the process was ended by SIGSEGV",
        ),
    ],
)
def test_a_device_that_is_wrong_is_named(event: dict[str, Any], told: str):
    report = report_of(STARTED, REFERENCE, TESTING, event)
    assert not report["is_fit"]
    (error,) = report["errors"]
    assert error.startswith(told)


def test_jax_that_does_not_start_is_an_error_and_all_else_is_told():
    report = report_of({"event": "failed", "problem": "no answer within 180 s"})
    assert report["errors"] == ["JAX does not start: no answer within 180 s"]
    assert any("another process may hold" in note for note in report["notes"])
    assert report["versions"]["jax"] == jax.__version__
    assert report["folders"]


def test_a_plugin_that_raises_is_told():
    remarks = ["Jax plugin configuration error: RuntimeError: broken"]
    report = report_of({**STARTED, "remarks": remarks}, dtypes=None)
    assert report["self_test"] is None
    assert f"JAX remarks: {remarks[0]}" in report["warnings"]


def test_losses_that_this_jax_draws_otherwise_are_a_warning():
    report = report_of(STARTED, {**REFERENCE, "losses": [2.0, 2.4]}, TESTING, answered())
    assert report["is_fit"]
    assert any("this JAX draws or rounds otherwise" in text for text in report["warnings"])


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Set the machine that is examined."""

    def build(*args: Any) -> None:
        monkeypatch.setattr("gnpcli.devices.found.ROOT", tmp_path)
        for name, value in machine(tmp_path, *args).items():
            monkeypatch.setenv(name, value)
        for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)

    return build


GPUS = ("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl")
ON_CPU = {
    **STARTED,
    "platform": "cpu",
    "devices": [{"name": "cpu:0", "platform": "cpu", "kind": "cpu", "memory_bytes": 8 << 30}],
}


def test_gpus_that_jax_does_not_see_come_with_the_command(found: Any):
    found(GPUS, [H200, H200])
    report = report_of(ON_CPU, dtypes=None)
    assert report["accelerators"]["driver"] == "580.65.06"
    assert report["accelerators"]["gpus"][0] == "NVIDIA H200, 151 GB, compute capability 9"
    assert report["backend"]["why"] == "JAX does not find the accelerator that is here"
    (line,) = [text for text in report["warnings"] if "H200" in text]
    assert "2 x NVIDIA H200 is here" in line
    assert '"jax[cuda13]==' in line


def test_the_driver_is_asked_once(found: Any, monkeypatch: pytest.MonkeyPatch):
    found(GPUS, [H200])
    asked: list[Any] = []
    run = subprocess.run

    def count(command: Any, **options: Any) -> Any:
        asked.append(command)
        return run(command, **options)

    monkeypatch.setattr("gnpcli.devices.found.subprocess.run", count)
    assert report_of(ON_CPU, dtypes=None)["accelerators"]["unused"] is not None
    assert sum("nvidia-smi" in str(command) for command in asked) == 1


def test_who_chose_the_cpu_is_not_advised(found: Any, monkeypatch: pytest.MonkeyPatch):
    found(GPUS, [H200])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    report = report_of(ON_CPU, dtypes=None)
    assert report["backend"]["why"] == "JAX_PLATFORMS=cpu says so"
    assert report["accelerators"]["unused"] is None


def test_several_gpus_with_one_seen_are_told(found: Any, monkeypatch: pytest.MonkeyPatch):
    found(GPUS, [H200, V100])
    wanted = "2 GPUs are here and JAX sees 1"
    assert any(wanted in text for text in report_of(STARTED, dtypes=None)["warnings"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert any(wanted in text for text in report_of(STARTED, dtypes=None)["notes"])


def advised(**parts: Any) -> Findings:
    """Return what follows from a report in which some parts are otherwise."""
    report = report_of(STARTED, dtypes=None)
    findings = Findings()
    advise({**report, **parts}, findings)
    return findings


def test_too_little_of_anything_is_told():
    small = dataclasses.asdict(Machine(8, 1.0, 64 << 30, 32 << 30, 1 << 30))
    findings = advised(machine=small)
    assert any("1.1 GB of memory are left" in text for text in findings.warnings)
    assert any("1 cores are left" in text for text in findings.notes)
    folder = {"name": "cache", "path": "/c", "num_bytes": 5, "free_bytes": 1000, "problem": None}
    findings = advised(folders=[folder])
    assert any("1.0 kB are free on its disk: delete /c" in text for text in findings.warnings)
    findings = advised(folders=[{**folder, "name": "shared memory", "free_bytes": 64 << 20}])
    assert any("--shm-size" in text for text in findings.notes)


def test_variables_that_slow_a_run_are_told():
    findings = advised(variables=["JAX_DEBUG_NANS=1", "JAX_DISABLE_JIT=0", "GNP_CPU_TUNING=0"])
    told = [text.partition(":")[0] for text in findings.notes]
    assert {"JAX_DEBUG_NANS=1", "GNP_CPU_TUNING=0"} <= {*told}
    assert "JAX_DISABLE_JIT=0" not in told


def test_a_locale_without_letters_is_told():
    terminal = {**surroundings.terminal(), "encoding": "ANSI_X3.4-1968"}
    assert any("PYTHONUTF8=1" in text for text in advised(terminal=terminal).notes)


def test_parts_of_jax_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch):
    wrong = {"jax": "0.10.2", "jaxlib": "0.11.0", "jax-cuda13-plugin": "0.9.0", "libtpu": "0.0.1"}
    monkeypatch.setattr("gnpcli.doctor.advice.installed_versions", lambda: wrong)
    told = "\n".join(advised().warnings)
    for name in ("jaxlib", "jax-cuda13-plugin", "libtpu"):
        assert f"and {wrong[name]} is installed" in told, name
    assert 'install "jax[cuda13]==0.10.2"' in told


@pytest.mark.parametrize(
    ("version", "wanted", "is_one"),
    [
        ("0.10.2", "<=0.10.2,>=0.10.2", True),
        ("0.10.1", "<=0.10.2,>=0.10.2", False),
        ("0.10", "==0.10.0", True),
        ("0.0.42.1", "==0.0.42.*", True),
        ("1.2.dev3", "~=9", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, is_one: bool):
    assert is_allowed(version, wanted) is is_one


# --- what is around


def test_limits_of_a_container_are_the_smallest_above(tmp_path: Path):
    files = (
        "proc/self/cgroup=0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max=max\n",
        "sys/fs/cgroup/a/memory.max=2147483648\n",
        "sys/fs/cgroup/a/cpu.max=150000 100000\n",
        "proc/meminfo=MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
    )
    machine(tmp_path, files)
    found = read_machine(tmp_path)
    assert (found.limit_bytes, found.memory_bytes) == (2 << 30, 8 << 30)
    assert (found.available_bytes, found.usable_bytes) == (4 << 30, 2 << 30)
    assert found.usable_cores == min(1.5, len(os.sched_getaffinity(0)))


def test_limits_of_the_old_kind_are_read(tmp_path: Path):
    files = (
        "proc/self/cgroup=4:memory:/x\n2:cpu,cpuacct:/x\n",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes=1073741824\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes=9223372036854771712\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us=50000\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_period_us=100000\n",
    )
    machine(tmp_path, files)
    found = read_machine(tmp_path)
    assert (found.limit_bytes, found.usable_cores) == (1 << 30, 0.5)


def test_a_machine_that_says_nothing_is_no_error(tmp_path: Path):
    found = read_machine(tmp_path)
    assert (found.limit_bytes, found.available_bytes) == (None, None)


def test_what_is_secret_is_not_told():
    told = surroundings.variables(
        {"GNP_MIRROR": "https://me:word@host/x", "JAX_TOKEN": "s", "HOME": "/h", "XLA_FLAGS": "-x"}
    )
    assert told == ["GNP_MIRROR=https://***@host/x", "JAX_TOKEN=***", "XLA_FLAGS=-x"]


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path):
    assert surroundings.why_not_writable(tmp_path / "new" / "deep") is None
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").write_text("x")
    assert surroundings.why_not_writable(tmp_path / "file" / "deep") == (
        f"{tmp_path / 'file'} is not a folder"
    )
    assert surroundings.why_not_writable(Path("/proc/self")) is not None
    assert surroundings.size_of(tmp_path) == 1


def test_a_part_that_cannot_be_found_out_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    def breaks() -> None:
        raise RuntimeError("two\nlines")

    for name in ("_PARTS",):
        parts = getattr(sys.modules["gnpcli.doctor.examine"], name)
        broken = {part: (breaks, missing) for part, (_, missing) in parts.items()}
        monkeypatch.setattr(f"gnpcli.doctor.examine.{name}", broken)
    report = report_of(ON_CPU, dtypes=None)
    told = [text for text in report["warnings"] if "cannot be found out" in text]
    assert len(told) >= len(broken)
    assert "versions cannot be found out: RuntimeError: two lines" in told


# --- the process that starts JAX


def test_a_process_that_dies_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch):
    code = "import os, sys; print('first\\nlast', file=sys.stderr, flush=True); os.abort()"
    script = [sys.executable, "-c", code]
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(script, **options))
    (event,) = child.run_probe(())
    assert event["event"] == "failed"
    assert event["problem"].startswith("the process was ended by SIGABRT")
    assert "last" in event["problem"] or "Abort" in event["problem"]


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child, "DISCOVERY_S", 0.2)
    script = [sys.executable, "-c", "import time; time.sleep(600)"]
    started: list[subprocess.Popen[bytes]] = []

    def start(command: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(script, **options))
        return started[0]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    (event,) = child.run_probe(())
    assert event["problem"] == "no answer within 0 s"
    assert started[0].returncode is not None


# --- the steps


def outcome(losses: Any = (2.0, 2.1), update: Any = (3.0, 4.0)) -> Outcome:
    return Outcome(np.array(losses), np.array(update), 1.0, 0.01)


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (outcome(), 0),
        (outcome(losses=(2.0, 2.31)), 0.1),
        (outcome(update=(3.0, 4.5)), 0.1),
        (outcome(update=(0.0, 0.0)), 1),
    ],
)
def test_the_difference_is_the_largest_relative_error(found: Outcome, error: float):
    assert difference(found, outcome()) == pytest.approx(error)


@pytest.mark.parametrize("bad", [outcome(losses=(np.nan, 1)), outcome(update=(np.inf, 1))])
def test_what_is_not_finite_is_not_right(bad: Outcome):
    told = probe._tested(bad, outcome(), "bfloat16")
    assert (told["is_finite"], told["is_right"], told["error"]) == (False, False, None)
    json.dumps(told, allow_nan=False)


def test_a_cpu_is_tested_in_the_type_that_it_trains_in():
    (cpu,) = jax.devices("cpu")[:1]
    assert probe._suitable(["usual"], cpu) == ["float32"]
    assert probe._suitable(["bfloat16"], cpu) == ["bfloat16"]


@pytest.mark.slow
def test_a_step_is_that_of_every_machine_and_bfloat16_rounds_it():
    cpu = jax.devices("cpu")[0]
    reference = trial.run_steps(cpu, "float32")
    assert reference.losses == pytest.approx(EXPECTED_LOSSES, rel=1e-4)
    rounded = trial.run_steps(cpu, "bfloat16")
    assert 1e-3 < difference(rounded, reference) < probe.TOLERANCES["bfloat16"]


# --- the command


def test_it_looks_without_computing(gnp: Gnp):
    done = gnp("doctor", "--no-test", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["is_fit"]
    assert report["self_test"] is None
    assert report["backend"]["platform"] == jax.devices()[0].platform


def test_a_type_that_is_none_is_refused(gnp: Gnp):
    done = gnp("doctor", "--dtype", "float16")
    assert done.returncode == 2
    assert "'float16' is not one of float32, bfloat16" in done.stderr


@pytest.mark.slow
def test_it_tests_every_device_of_this_machine(gnp: Gnp):
    flags = "--xla_force_host_platform_device_count=2"
    done = gnp("doctor", "--json", "--dtype", "float32", env={"XLA_FLAGS": flags})
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    results = report["self_test"]["results"]
    assert [each["device"] for each in results] == ["cpu:0", "cpu:1"]
    assert results[0]["is_right"]
    assert results[1]["is_right"] or results[1]["problem"].startswith("not tested")
    assert f"XLA_FLAGS={flags}" in report["variables"]


PLUGIN = {
    "raises at discovery": "def initialize():\n    raise RuntimeError('no such device')\n",
    "cannot be imported": "import nothing_of_that_name\n",
    "ends the process": "def initialize():\n    import os\n    os._exit(3)\n",
    "aborts": "def initialize():\n    import os\n    os.abort()\n",
}
TOLD = {
    "raises at discovery": "no such device",
    "cannot be imported": "does not exist",
    "ends the process": "the process ended with status 3",
    "aborts": "the process was ended by SIGABRT",
}


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, on a machine without device files."""
    environment = {**os.environ, "COLUMNS": "200", **variables}
    done = subprocess.run(
        [sys.executable, "-c", program(tmp_path), "doctor", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLUGIN)
def test_a_plugin_that_is_broken_is_a_finding(tmp_path: Path, kind: str):
    plugin = tmp_path / "path" / "jax_plugins" / "broken.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(PLUGIN[kind])
    path = os.pathsep.join([str(tmp_path / "path"), str(Path.cwd()), *sys.path])
    done = run(tmp_path, "--no-test", PYTHONPATH=path)
    assert TOLD[kind] in done.stdout
    is_alive = kind in ("raises at discovery", "cannot be imported")
    assert done.returncode == (0 if is_alive else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("JAX_PLATFORMS", "cuda", "JAX finds no device for JAX_PLATFORMS=cuda"),
        ("JAX_PLATFORMS", "nonsense", "JAX finds no device for JAX_PLATFORMS=nonsense"),
        ("XLA_FLAGS", "--xla_nonsense=1", "Unknown flag in XLA_FLAGS: --xla_nonsense=1"),
        ("JAX_NUM_CPU_DEVICES", "abc", "unset JAX_NUM_CPU_DEVICES=abc"),
        ("JAX_DEFAULT_PRNG_IMPL", "rbg", "changes what a seed means: unset it"),
        ("JAX_ENABLE_X64", "maybe", "unset JAX_ENABLE_X64=maybe"),
    ],
)
def test_a_variable_that_cannot_be_is_an_error(tmp_path, variable: str, value: str, told: str):
    done = run(tmp_path, "--no-test", **{variable: value})
    assert done.returncode == 1
    assert told in done.stdout
    assert f"{variable}={value}" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: this machine is not fit to train: 1")


@pytest.mark.slow
def test_jax_that_cannot_be_imported_is_an_error(tmp_path: Path):
    (tmp_path / "path" / "jax").mkdir(parents=True)
    (tmp_path / "path" / "jax" / "__init__.py").write_text("raise ImportError('jaxlib is gone')\n")
    path = os.pathsep.join([str(tmp_path / "path"), str(Path.cwd())])
    done = run(tmp_path, PYTHONPATH=path)
    assert done.returncode == 1
    assert "JAX does not start: ImportError: jaxlib is gone" in done.stdout
    json.loads(run(tmp_path, "--json", PYTHONPATH=path).stdout)


@pytest.mark.slow
def test_a_cache_and_a_home_that_are_none_are_findings(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    done = run(tmp_path, "--no-test", GNP_CACHE_DIR=str(tmp_path / "file"))
    assert done.returncode == 0
    assert f"{tmp_path / 'file'} is not a folder, so every start compiles anew" in done.stdout
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "GNP_X": "±"}
    odd = {"GNP_CACHE_DIR": "~nobody-of-that-name/x", "HOME": "/nowhere", **plain}
    done = run(tmp_path, "--no-test", **odd)
    assert done.returncode == 0
    assert "~nobody-of-that-name is the home of no user" in done.stdout
    assert "PYTHONUTF8=1" in done.stdout


@pytest.mark.slow
def test_it_fits_a_terminal_of_eighty_columns():
    status, shown = on_a_terminal("doctor", "--no-test")
    assert status == 0
    lines = re.sub(r"\x1b\[[0-9;]*m|\r", "", shown).splitlines()
    paths = [line for line in lines if len(line) > 80 and "/" not in line]
    assert paths == []
