"""All that is known of a machine, part by part: one that cannot be found out is a finding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from gnpcli.devices import found, machine
from gnpcli.devices.unused import installed_versions, why_unused
from gnpcli.doctor import surroundings
from gnpcli.doctor.advice import Findings, advise
from gnpcli.doctor.child import Event, Run, run_probe
from gnpcli.terminal import words

Report = dict[str, Any]
"""JSON-able, with the same keys whatever is broken."""

USUAL = ("usual",)
CHOICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
"""Variables by which a person chooses what JAX computes on."""

_PARTS: dict[str, tuple[Callable[[], Any], Any]] = {
    "versions": (surroundings.versions, {}),
    "plugins": (surroundings.plugins, []),
    "system": (surroundings.system, {}),
    "machine": (lambda: asdict(machine.read_machine()), {}),
    "accelerators": (lambda: told(found.find_accelerators(ask=True)), {}),
    "variables": (lambda: surroundings.variables(os.environ), []),
    "folders": (surroundings.folders, []),
    "data": (surroundings.data_sets, []),
    "terminal": (surroundings.terminal, {}),
}
"""How each part is found out, and what stands for it where that fails."""


def examine(
    dtypes: Sequence[str] | None,
    *,
    run: Run = run_probe,
    notify: Callable[[str], None] = lambda text: None,
) -> Report:
    """Return the report on this machine. It raises nothing that a machine can cause.

    Args:
        dtypes: Compute types to test each device in: `USUAL`, or None for no test.
        run: What starts JAX.
        notify: Told what is being done.
    """
    findings = Findings()
    report: Report = {}
    for name, (find, missing) in _PARTS.items():
        report[name] = missing
        with _reporting(name, findings):
            report[name] = find()
    report.update(follow(run(dtypes or ()), notify, is_tested=dtypes is not None))
    report["backend"]["why"] = _why(report)
    with _reporting("advice", findings):
        if report["accelerators"] and report["backend"]["platform"] not in (None, "cpu"):
            report["accelerators"]["unused"] = None
        advise(report, findings)
    return {"is_fit": not findings.errors, **asdict(findings), **report}


@contextmanager
def _reporting(part: str, findings: Findings) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever is broken there, the other parts are told
        text = " ".join(f"{type(error).__name__}: {error}".split())
        findings.warnings.append(f"{part} cannot be found out: {text[:300]}")


def told(here: found.Found) -> dict[str, Any]:
    """Return accelerators as a report has them, and why a JAX on the CPU would not use them."""
    return {
        "nvidia": [*here.nvidia],
        "gpus": [_gpu(gpu) for gpu in here.gpus],
        "driver": here.driver,
        "tpu": [*here.tpu],
        "unused": _unused(here),
    }


def _gpu(gpu: found.Gpu) -> str:
    capability = "" if gpu.capability is None else f", compute capability {gpu.capability:g}"
    return f"{gpu.name}, {words.size(gpu.memory_bytes)}{capability}"


def follow(events: Iterator[Event], notify: Callable[[str], None], *, is_tested: bool) -> Report:
    """Return what a probe told, as the parts ``backend``, ``devices`` and ``self_test``."""
    backend: Report = {
        "platform": None,
        "why": None,
        "problem": None,
        "errors": [],
        "remarks": [],
    }
    devices: list[Report] = []
    test: Report = {"reference_losses": [], "results": [], "problem": None}
    notify("JAX looks for its devices")
    at: dict[str, str] | None = None
    for event in events:
        kind = event["event"]
        if kind == "started":
            devices = event["devices"]
            backend["platform"], backend["remarks"] = event["platform"], event["remarks"]
            backend["errors"] = [f"{name}: {text}" for name, text in event["errors"].items()]
        elif kind == "testing":
            at = {"device": event["device"], "dtype": event["dtype"]}
            notify(f"testing {event['device']} in {event['dtype']}")
        elif kind == "reference":
            test["reference_losses"] = event["losses"]
        elif kind == "tested" or (kind == "failed" and "device" in event):
            test["results"].append(_result(event))
            at = None
        elif kind == "failed" and backend["platform"] is None:
            backend["problem"] = event["problem"]
        elif kind == "failed" and at is not None:
            test["results"].append(_result({**at, **event}))
        elif kind == "failed":
            test["problem"] = event["problem"]
    return {"backend": backend, "devices": devices, "self_test": test if is_tested else None}


def _result(event: Event) -> Report:
    names = ("device", "dtype", "is_right", "is_finite", "error", "losses", "compile_s", "step_ms")
    return {name: event.get(name) for name in (*names, "problem")}


def _unused(here: found.Found) -> str | None:
    """Return why JAX does not use what is here, and the command; None where a person chose so."""
    if any(map(os.environ.get, CHOICES)):
        return None
    advice = why_unused(here, installed_versions())
    return None if advice is None else f"{advice.what}: {advice.mend}"


def _why(report: Mapping[str, Any]) -> str | None:
    """Return why JAX computes on what it does, in words."""
    platform = report["backend"]["platform"]
    given = [name for name in CHOICES if os.environ.get(name)]
    if platform is None:
        return None
    if given:
        return f"{given[0]}={os.environ[given[0]]} says so"
    if platform != "cpu":
        return "JAX takes an accelerator before the CPU"
    here = report["accelerators"]
    if here.get("nvidia") or here.get("tpu"):
        return "JAX does not find the accelerator that is here"
    if found.is_hidden(os.environ):
        return "a variable hides the GPUs"
    return "no accelerator is here"
