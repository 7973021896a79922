"""Accelerators that are here: found on machines that a test builds, and what is said of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gnpcli.devices import found, start, unused
from gnpcli.devices.found import Found, Gpu, find_accelerators
from gnpcli.devices.unused import cuda_extra, why_unused
from gnpcli.doctor.surroundings import variables
from tests.commands import FINDS_SMALL, REPOSITORY
from tests.machines import A100_535, H200, V100, machine, program

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
GPU = ("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "dev/nvidia-uvm")
OPEN = "proc/driver/nvidia/version=NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@x)\n"  # noqa: E501
CLOSED = "proc/driver/nvidia/version=NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\nGCC version: 9.3.0\n"  # noqa: E501


def find(root: Path, *files: str, gpus=None, ask=False, is_old=False, **variables: str) -> Found:
    environment = {**machine(root, files, gpus, is_old=is_old), **variables}
    return find_accelerators(root, environment, ask=ask)


def test_a_machine_without_any_has_none(tmp_path: Path):
    assert find(tmp_path, "dev/null", "dev/vfio/vfio", "dev/accel/accel0", "dev/dxg") == Found()


def test_gpus_are_those_of_the_driver(tmp_path: Path):
    found = find(tmp_path, *GPU, gpus=[H200, V100])
    assert found.nvidia == ("/dev/nvidia0", "/dev/nvidia1")
    assert found.gpus[0] == Gpu("NVIDIA H200", 143771 << 20, "580.65.06", 9.0)
    assert (found.gpus[1].capability, found.driver) == (7.0, "580.65.06")


def test_an_old_driver_does_not_say_the_capability(tmp_path: Path):
    found = find(tmp_path, *GPU, gpus=[A100_535], is_old=True)
    assert found.gpus == (Gpu("NVIDIA A100-SXM4-40GB", 40960 << 20, "535.129.03"),)


@pytest.mark.parametrize(("text", "driver"), [(OPEN, "580.65.06"), (CLOSED, "470.57.02")])
def test_the_kernel_says_the_driver_where_nothing_answers(tmp_path: Path, text: str, driver: str):
    assert find(tmp_path, *GPU, text, PATH=str(tmp_path)).driver == driver


def test_a_program_that_fails_lists_nothing(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    for text in ("#!/bin/sh\necho 'No devices were found'\nexit 6\n", "not a program"):
        (tmp_path / "bin" / "nvidia-smi").write_text(text)
        (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
        assert find(tmp_path, *GPU) == Found(("/dev/nvidia0", "/dev/nvidia1"))


def test_the_program_alone_is_run_only_where_it_is_asked_for(tmp_path: Path):
    assert find(tmp_path, gpus=[H200]) == Found()
    assert find(tmp_path, ask=True).nvidia == ("nvidia-smi",)
    assert find(tmp_path, "dev/dxg").nvidia == ("/dev/dxg",)


@pytest.mark.parametrize(
    ("files", "variables", "shown"),
    [
        (("dev/accel0", "dev/accel1"), {}, ("/dev/accel0", "/dev/accel1")),
        (("dev/vfio/0", "sys/bus/pci/devices/a/vendor=0x1ae0\n"), {}, ("/dev/vfio/0",)),
        (("dev/vfio/0", "sys/bus/pci/devices/a/vendor=0x10de\n"), {}, ()),
        ((), {"TPU_ACCELERATOR_TYPE": "v5litepod-4"}, ("TPU_ACCELERATOR_TYPE",)),
        ((), {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_SKIP_MDS_QUERY": "1"}, ()),
    ],
)
def test_a_tpu_is_its_files_or_the_variables_of_its_machine(tmp_path, files, variables, shown):
    assert find(tmp_path, *files, **variables).tpu == shown


@pytest.mark.parametrize("hides", [{"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}])
def test_a_gpu_that_a_person_hides_is_not_there(tmp_path: Path, hides: dict[str, str]):
    assert find(tmp_path, *GPU, gpus=[H200], **hides) == Found()


@pytest.mark.parametrize(
    ("driver", "capability", "extra"),
    [
        ("580.65.06", 9.0, "cuda13"),
        ("595.1", None, "cuda13"),
        ("580.65.06", 7.0, "cuda12"),
        ("579.99", 9.0, "cuda12"),
        ("525.60.13", 8.0, "cuda12"),
        (None, None, "cuda12"),
        ("524.9", 8.0, None),
    ],
)
def test_the_driver_and_the_gpu_decide_which_cuda(driver, capability, extra):
    found = Found(("/dev/nvidia0",), (Gpu("X", None, driver, capability),), driver)
    assert cuda_extra(found) == extra


JAX = {"jax": "0.10.2", "jaxlib": "0.10.2"}
CUDA_13 = {"jax-cuda13-plugin": "0.10.2", "jax-cuda13-pjrt": "0.10.2"}
CUDA_12 = {"jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}
NEW = Found(("/dev/nvidia0",), (Gpu("NVIDIA H200", 1, "580.1", 9.0),), "580.1")
OLD = Found(("/dev/nvidia0",), (Gpu("A100", 1, "535.1", 8.0),), "535.1")
TOO_OLD = Found(("/dev/nvidia0",), (), "470.57")
TPU = Found(tpu=("/dev/accel0",))


@pytest.mark.parametrize(
    ("found", "versions", "what", "mend"),
    [
        (NEW, JAX, "NVIDIA H200 is here, and this JAX is for", 'install "jax[cuda13]==0.10.2"'),
        (OLD, JAX, "A100 is here, and this JAX is for", 'install "jax[cuda12]==0.10.2"'),
        (OLD, JAX | CUDA_13, "cannot run CUDA 13 with driver 535.1", "uninstall"),
        (TOO_OLD, JAX, "needs a newer driver than 470.57", "driver 525 or newer"),
        (NEW, JAX | CUDA_12 | CUDA_13, "both installed", "jax-cuda12-plugin jax-cuda12-pjrt"),
        (NEW, JAX | CUDA_13 | {"jaxlib": "0.11.0"}, "is not for jaxlib 0.11.0", "jax[cuda13]"),
        (NEW, JAX | CUDA_13, "does not find it", "gnp doctor"),
        (TPU, JAX, "a TPU is here (/dev/accel0), and libtpu is missing", '"jax[tpu]==0.10.2"'),
        (TPU, JAX | {"libtpu": "0.0.42"}, "libtpu 0.0.42 does not find it", "that holds it"),
    ],
)
def test_what_is_wrong_comes_with_the_command_that_mends_it(found, versions, what, mend):
    advice = why_unused(found, versions)
    assert what in advice.what
    assert mend in advice.mend
    assert "\n" not in advice.what + advice.mend


def test_nothing_is_wrong_without_an_accelerator():
    assert why_unused(Found(), JAX) is None


def test_the_command_is_of_the_python_that_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.executable", "/a folder/bin/python")
    assert unused.install("jax[tpu]", JAX).startswith("'/a folder/bin/python' -m pip install ")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert unused.install("jax", {}) == "uv pip install --python '/a folder/bin/python' \"jax\""


def run_on(root: Path, environment: dict[str, str], *arguments: str, **variables: str):
    return subprocess.run(
        [sys.executable, "-c", program(root), *arguments],
        cwd=root,
        env={**os.environ, **FINDS_SMALL, **environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


TRAIN = ("train", "--set", "model.name=tests.small:small", "--set", "data.batch_size=30")


@pytest.mark.slow
def test_a_run_on_the_cpu_beside_a_gpu_says_so_once(tmp_path: Path):
    environment = machine(tmp_path, GPU, [H200])
    done = run_on(tmp_path, environment, *TRAIN, "-q", "--max-steps", "1")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: NVIDIA H200 is here, and this JAX is for the CPU alone, so")
    assert re.search(r'computes: .*pip install .*"jax\[cuda13\]==[\d.]+"$', line)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "show", "vit-nano"],
        ["bench", "--rounds", "1", "--steps", "1", *TRAIN[1:]],
        ["check", "--batches", "1", "--per-decade", "1", *TRAIN[1:]],
        ["reproduce-table", "adam-vs-gr-digits", "--dry-run"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_every_command_that_computes_says_so_once(tmp_path: Path, arguments: list[str]):
    environment = machine(tmp_path, GPU, [H200])
    done = run_on(tmp_path, environment, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("this JAX is for the CPU alone") == 1


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{"JAX_PLATFORMS": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_who_asks_for_the_cpu_is_told_nothing(tmp_path: Path, chosen: dict[str, str]):
    environment = machine(tmp_path, GPU, [H200])
    done = run_on(tmp_path, environment, "models", "show", "vit-nano", **chosen)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_who_asks_for_a_gpu_without_its_plugin_is_told_the_command(tmp_path: Path):
    environment = machine(tmp_path, GPU, [H200])
    done = run_on(tmp_path, environment, *TRAIN, JAX_PLATFORMS="cuda")
    assert done.returncode == 1
    assert re.search(r'unset it, or .*pip install "jax\[cuda13\]==[\d.]+"$', done.stderr.strip())


# --- how it is installed


def test_the_extras_are_those_of_jax_for_the_same_jax():
    (required,) = [text for text in PROJECT["dependencies"] if text.startswith("jax>")]
    for extra in ("cuda12", "cuda13", "tpu"):
        version = required.removeprefix("jax")
        assert PROJECT["optional-dependencies"][extra] == [f"jax[{extra}]{version}"]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # `make test` runs this
    return subprocess.run(
        ["make", "-n", "VENV=none", *arguments],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name not in outer},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("extra", ["", "cuda12", "cuda13", "tpu"])
def test_the_demo_installs_what_the_accelerator_needs(extra: str):
    done = make("demo", f"ACCELERATOR={extra}")
    assert done.returncode == 0, done.stderr
    wanted = f'--editable ".[{extra}]"' if extra else "--editable ."
    (line,) = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert line.endswith(wanted)
    assert done.stdout.splitlines()[-1] == "none/bin/gnp train"


@pytest.mark.parametrize("extra", ["cuda", "dev", "cuda12 cuda13"])
def test_an_accelerator_that_is_none_is_refused_in_a_line(extra: str):
    done = make("demo", f"ACCELERATOR={extra}")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"ACCELERATOR={extra} is not one of cuda12 cuda13 tpu" in line


@pytest.mark.parametrize(
    ("files", "given"), [((), {}), (("dev/vfio/0",), {}), ((), {"TPU_WORKER_ID": "0"})]
)
def test_libtpu_is_told_that_there_is_no_tpu_where_there_is_none(
    tmp_path, monkeypatch, files, given
):
    may = bool(files or given)
    machine(tmp_path, files)
    monkeypatch.setattr(found, "ROOT", tmp_path)
    assert found.may_have_tpu(environment=given) == may
    monkeypatch.setattr(start, "find_spec", lambda name: object())
    environment: dict[str, str] = dict(given)
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr(start, "may_have_tpu", lambda: may)
    start.expect_no_tpu()
    assert environment == (given if may else start.NO_TPU)
    assert variables(environment) == [f"{name}={value}" for name, value in given.items()]
