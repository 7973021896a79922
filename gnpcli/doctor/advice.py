"""What follows from a report: what is broken, what costs, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from gnpcli.devices.unused import TPU_PLUGIN, install, installed_versions
from gnpcli.doctor.probe import TOLERANCES
from gnpcli.terminal import words

LITTLE_MEMORY = 2 << 30
"""Below it a run of a CIFAR model does not fit."""
LITTLE_DISK = 2 << 30
"""Checkpoints and compiled programs of a few runs."""
LITTLE_SHARED_MEMORY = 1 << 30
"""Docker gives 64 MB; the batches of worker processes take more."""

EXPECTED_LOSSES = (2.344574, 2.414543)
"""Of the self-test on a CPU in float32, with jax 0.10.2."""
EXPECTED_TO = 1e-4

_CUTS = ("CUDA_VISIBLE_DEVICES=", "JAX_CUDA_VISIBLE_DEVICES=", "JAX_LOCAL_DEVICE_IDS=")
"""Variables by which a person hands a process some of the GPUs."""

Level = Literal["errors", "warnings", "notes"]
Finding = tuple[Level, str]


@dataclass
class Findings:
    """Each is a line: what is wrong, then what to do about it."""

    errors: list[str] = field(default_factory=list)
    """With them nothing trains, or numbers are wrong."""
    warnings: list[str] = field(default_factory=list)
    """What costs time or will fail later."""
    notes: list[str] = field(default_factory=list)
    """What is not as usual, which may be meant."""


def advise(report: Mapping[str, Any], findings: Findings) -> None:
    """Add what follows from a report."""
    for rule in (_jax, _accelerator, _self_test, _versions, _memory, _folders, _settings, _data):
        for level, text in rule(report):
            getattr(findings, level).append(text)


def _jax(report: Mapping[str, Any]) -> Iterator[Finding]:
    backend = report["backend"]
    if backend["problem"]:
        problem = backend["problem"]
        yield "errors", f"JAX does not start: {problem.removeprefix('JAX does not start: ')}"
        if "no answer" in problem:
            yield (
                "notes",
                "another process may hold the accelerator; on several hosts of a TPU pod, type "
                "gnp doctor on all of them at once",
            )
    if backend["platform"] is not None and not report["devices"]:
        yield "errors", "JAX has started without a device"
    here = report["accelerators"]
    present = [name for name, shown in (("cuda", "nvidia"), ("tpu", "tpu")) if here.get(shown)]
    for text in backend["errors"]:
        if text.startswith(tuple(present)):  # JAX tries those that are not here as well
            yield "warnings", f"JAX could not start a backend: {text}"
    for text in backend["remarks"]:
        if "may be present" not in text:  # the next rule says so, with the command
            yield "warnings", f"JAX remarks: {text}"


def _accelerator(report: Mapping[str, Any]) -> Iterator[Finding]:
    here = report["accelerators"]
    if not here:
        return
    if here["unused"]:
        yield "warnings", here["unused"]
    gpus = [device for device in report["devices"] if device["platform"] == "gpu"]
    count = len(here["gpus"]) or sum(name.startswith("/dev/nvidia") for name in here["nvidia"])
    is_cut = any(text.startswith(_CUTS) for text in report["variables"])
    if gpus and len(gpus) < count:
        level: Level = "notes" if is_cut else "warnings"
        yield (
            level,
            (
                f"{count} GPUs are here and JAX sees {len(gpus)}: a variable such as "
                "CUDA_VISIBLE_DEVICES, a container or a job scheduler hides the others"
            ),
        )
    if gpus and any(text.startswith("LD_LIBRARY_PATH=") for text in report["variables"]):
        yield (
            "notes",
            "LD_LIBRARY_PATH is set and may bring other libraries of CUDA than JAX's own: "
            "unset it where a GPU fails",
        )


def _self_test(report: Mapping[str, Any]) -> Iterator[Finding]:
    test = report["self_test"]
    if test is None:
        return
    if test["problem"]:
        yield "errors", f"the self-test cannot run: {test['problem']}"
    for result in test["results"]:
        where = f"{result['device']} in {result['dtype']}"
        if result["problem"] and result["problem"].startswith("not tested"):
            yield "notes", f"{where} was {result['problem']}"
        elif result["problem"]:
            yield "errors", f"{where} fails: {result['problem']}"
        elif not result["is_finite"]:
            yield "errors", f"{where} gives numbers that are not finite: {_SUSPECTS}"
        elif not result["is_right"]:
            limit = words.rough_percent(TOLERANCES[result["dtype"]])
            yield (
                "errors",
                f"{where} is {words.rough_percent(result['error'])} off the CPU's numbers, "
                f"more than {limit}: {_SUSPECTS}",
            )
    losses = test["reference_losses"]
    if losses and not all(
        abs(loss - wanted) <= EXPECTED_TO * wanted
        for loss, wanted in zip(losses, EXPECTED_LOSSES, strict=True)
    ):
        told = " and ".join(f"{loss:.6f}" for loss in losses)
        wanted = " and ".join(f"{loss:.6f}" for loss in EXPECTED_LOSSES)
        yield (
            "warnings",
            f"the losses of the CPU are {told}, and {wanted} with jax 0.10.2: this JAX "
            "draws or rounds otherwise, so runs differ from those of others",
        )


_SUSPECTS = (
    "unset XLA_FLAGS and the variables of JAX, update the driver, and test the memory of the device"
)


def _versions(report: Mapping[str, Any]) -> Iterator[Finding]:
    versions = report["versions"]
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        if versions and versions.get(name) is None:
            yield "errors", f'{name} is not installed: pip install --upgrade "gnpcli"'
    have = installed_versions()
    for name, wanted in required_by_jax().items():
        if name in have and not is_allowed(have[name], wanted):
            extra = "tpu" if name == TPU_PLUGIN else name.removeprefix("jax-").partition("-")[0]
            what = "jax" if name == "jaxlib" else f"jax[{extra}]"
            yield (
                "warnings",
                f"jax {have.get('jax')} wants {name} {wanted}, and {have[name]} is installed: "
                f"{install(what, have)}",
            )


def required_by_jax() -> dict[str, str]:
    """Return which versions the installed JAX takes of its own parts, as ``<=0.10.2,>=0.10.2``."""
    try:
        lines = metadata.requires("jax") or []
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for line in lines:
        text = line.partition(";")[0]
        match = re.match(r"(jaxlib|libtpu|jax-cuda1[23]-plugin)\b(?:\[[^]]*\])?\s*(.*)", text)
        if match and match[2].strip():
            found[match[1]] = match[2].strip()
    return found


def is_allowed(version: str, wanted: str) -> bool:
    """Return whether a version is one of those that are wanted; true where that is not understood.

    >>> is_allowed("0.10.2", "<=0.10.2,>=0.10.2"), is_allowed("0.11.0", "<=0.10.2,>=0.10.2")
    (True, False)
    >>> is_allowed("0.0.42.1", "==0.0.42.*"), is_allowed("0.0.41", "==0.0.42.*")
    (True, False)
    """
    mine = _numbers(version)
    for part in wanted.split(","):
        match = re.fullmatch(r"\s*(<=|>=|==|<|>)\s*(\d+(?:\.\d+)*)(\.\*)?\s*", part)
        if not match:
            continue
        other = _numbers(match[2])
        size = len(other) if match[3] else max(len(mine), len(other))
        left = (mine + (0,) * size)[:size]
        right = (other + (0,) * size)[:size]
        if not {
            "<=": left <= right,
            ">=": left >= right,
            "==": left == right,
            "<": left < right,
            ">": left > right,
        }[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _memory(report: Mapping[str, Any]) -> Iterator[Finding]:
    machine = report["machine"]
    if not machine:
        return
    known = [machine[name] for name in ("memory_bytes", "limit_bytes", "available_bytes")]
    least = min((size for size in known if size is not None), default=None)
    if least is not None and least < LITTLE_MEMORY:
        yield (
            "warnings",
            f"{words.size(least)} of memory are left to this process: lower "
            "data.batch_size, or end what holds the rest",
        )
    for device in report["devices"]:
        size = device["memory_bytes"]
        if size is not None and size < LITTLE_MEMORY:
            yield (
                "warnings",
                f"{device['name']} has {words.size(size)} of memory: lower data.batch_size",
            )
    usable = machine["usable_cores"]
    if usable is not None and usable < 2:
        yield "notes", f"{usable:g} cores are left to this process: data is prepared slowly"


def _folders(report: Mapping[str, Any]) -> Iterator[Finding]:
    for folder in report["folders"]:
        name, path = folder["name"], folder["path"]
        is_cache = name in ("compiled programs", "cache")
        if folder["problem"]:
            what = {
                "compiled programs": "every start compiles anew",
                "cache": "images are decoded anew",
                "this folder": "runs need --run-dir elsewhere",
                "data sets": "nothing can be prepared there",
            }.get(name, "worker processes fail")
            remedy = {
                "this folder": "go to another folder",
                "data sets": "set GNP_DATA_DIR to a folder that can be written",
                "shared memory": "mount it",
            }.get(name, "set GNP_CACHE_DIR to a folder that can be written")
            yield "warnings", f"{name}: {folder['problem']}, so {what}: {remedy}"
        elif name == "shared memory":
            if folder["free_bytes"] < LITTLE_SHARED_MEMORY:
                yield (
                    "notes",
                    f"{path} has {words.size(folder['free_bytes'])}: give a container "
                    "--shm-size 8g where images are streamed",
                )
        elif folder["free_bytes"] is not None and folder["free_bytes"] < LITTLE_DISK:
            remedy = f"delete {path}, which costs time alone" if is_cache else "free some"
            yield (
                "warnings",
                f"{name}: {words.size(folder['free_bytes'])} are free on its disk: {remedy}",
            )


_SLOW = {
    "JAX_DISABLE_JIT": "nothing is compiled, which is slow",
    "JAX_DEBUG_NANS": "every program is checked, which is slow",
    "JAX_DEBUG_INFS": "every program is checked, which is slow",
    "JAX_ENABLE_CHECKS": "JAX checks itself, which is slow",
    "JAX_CHECK_TRACER_LEAKS": "JAX checks itself, which is slow",
    "JAX_ENABLE_X64": "some of it is computed in 64 bits",
    "GNP_CPU_TUNING": "the tuning for a CPU is off",
    "GNP_DEBUG": "libraries say all they have to say",
}
_OFF = ("", "0", "false", "False", "off")


def _settings(report: Mapping[str, Any]) -> Iterator[Finding]:
    for text in report["variables"]:
        name, _, value = text.partition("=")
        is_off = value in _OFF
        if name in _SLOW and is_off == (name == "GNP_CPU_TUNING"):
            yield "notes", f"{text}: {_SLOW[name]}"
    terminal = report["terminal"]
    encoding = str(terminal.get("encoding") or "").lower().replace("-", "")
    if terminal and not encoding.startswith("utf"):
        yield (
            "notes",
            f"texts are written in {terminal['encoding']}, which has not all signs and names: "
            "set LC_ALL=C.UTF-8 or PYTHONUTF8=1",
        )
    if terminal.get("is_terminal") and terminal["columns"] < 60:
        yield "notes", f"the terminal has {terminal['columns']} columns: tables want 80"


def _data(report: Mapping[str, Any]) -> Iterator[Finding]:
    for row in report["data"]:
        if row["problem"]:
            yield "warnings", f"data set {row['name']}: {row['problem']}"
