"""The process that starts JAX for `gnp doctor`, and tells line by line how far it gets.

It is a process of its own: what aborts, hangs or is killed in it is a finding and not the end of
the command. Each line on its stdout is an event in JSON, with its name in ``event``:

- ``started``: JAX has its devices. `platform`, `devices`, `errors` (of backends that did not
  start), `remarks` (what JAX logged).
- ``testing``: a step begins on `device` in `dtype`.
- ``tested``: how it ended, see `_tested`.
- ``failed``: JAX does not start, or a step failed; `problem` says why in a line.
- ``done``: there is no more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gnpcli.devices.machine import read_machine
from gnpcli.devices.process import keep_freed_memory
from gnpcli.devices.start import StartError, explain, no_device, start_jax

if TYPE_CHECKING:
    import jax

    from gnpcli.doctor.trial import Outcome

ENOUGH_S = 45.0
"""Seconds after which only the first device of each kind is still tested."""

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.15}
"""Up to which `gnpcli.doctor.trial.difference` is rounding: 0.05 was seen in bfloat16 on a
CPU."""

Tell = Callable[..., None]


def main() -> None:
    """Start JAX and test the devices.

    The arguments are the types to test in, ``usual`` for those that suit each device, or none.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print on stdout, also from C++, is no event

    def tell(event: str, **facts: Any) -> None:
        channel.write(json.dumps({"event": event, **facts}) + "\n")
        channel.flush()

    try:
        examine(sys.argv[1:], tell)
    except Exception as error:
        tell("failed", problem=in_a_line(error))
    tell("done")


def in_a_line(error: BaseException) -> str:
    """Return what an error says, for a person."""
    message, _ = explain(error)
    text = message or f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


def examine(dtypes: Sequence[str], tell: Tell) -> None:
    """Tell of the devices, and of a step on each.

    Raises:
        Exception: JAX does not start.
    """
    remarks = _Remarks()
    logging.getLogger().addHandler(remarks)
    keep_freed_memory()
    devices = _find_devices()
    tell(
        "started",
        platform=devices[0].platform,
        devices=[_described(device, len(devices)) for device in devices],
        errors=_backend_errors(),
        remarks=remarks.lines,
    )
    if dtypes:
        _test(devices, dtypes, tell)


def _find_devices() -> list[jax.Device]:
    """Return the devices that a run has. The CPU is started as well: it is compared with.

    Raises:
        StartError: JAX has none of what `JAX_PLATFORMS` names, or as `start_jax`.
    """
    chosen = os.environ.get("JAX_PLATFORMS", "")
    is_added = bool(chosen) and "cpu" not in chosen.split(",")
    if is_added:
        os.environ["JAX_PLATFORMS"] = f"{chosen},cpu"
    try:
        start_jax()
    finally:
        if is_added:
            os.environ["JAX_PLATFORMS"] = chosen
    import jax

    devices: list[jax.Device] = jax.local_devices()
    if is_added and devices[0].platform == "cpu":
        raise StartError(no_device("no such device is here"))
    return devices


def _described(device: jax.Device, count: int) -> dict[str, Any]:
    memory = None
    if device.platform == "cpu":  # the devices of a CPU share what the machine has
        usable = read_machine().usable_bytes
        memory = None if usable is None else usable // count
    with contextlib.suppress(Exception):  # a plugin need not have it, and says so in its own way
        memory = (device.memory_stats() or {}).get("bytes_limit", memory)
    return {
        "name": _name(device),
        "platform": device.platform,
        "kind": device.device_kind,
        "memory_bytes": memory,
    }


def _name(device: jax.Device) -> str:
    return f"{device.platform}:{device.id}"


def _backend_errors() -> dict[str, str]:
    """Return why the backends that JAX tried did not start, as far as this JAX keeps it."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    errors = getattr(bridge, "_backend_errors", None)
    if not isinstance(errors, dict):
        return {}
    return {str(name): " ".join(str(text).split())[:500] for name, text in errors.items()}


class _Remarks(logging.Handler):
    """Keeps what JAX warns of while it starts, such as of a plugin that raises."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # JAX has a message with more places than values
            text = str(record.msg)
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            text = f"{text}: {type(error).__name__}: {error}"
        self.lines.append(" ".join(text.split())[:500])


def _test(devices: Sequence[jax.Device], dtypes: Sequence[str], tell: Tell) -> None:
    import jax

    from gnpcli.doctor.trial import run_steps

    start = time.perf_counter()
    cpu = jax.local_devices(backend="cpu")[0]
    tell("testing", device=_name(cpu), dtype="float32")
    reference = run_steps(cpu, "float32")
    tell("reference", device=_name(cpu), losses=[*map(float, reference.losses)])
    for index, device in enumerate(devices):
        for dtype in _suitable(dtypes, device):
            facts = {"device": _name(device), "dtype": dtype}
            if index and time.perf_counter() - start > ENOUGH_S:
                tell("tested", **facts, problem=f"not tested: {ENOUGH_S:.0f} s were over")
                continue
            tell("testing", **facts)
            try:
                is_reference = device == cpu and dtype == "float32"
                outcome = reference if is_reference else run_steps(device, dtype)
            except Exception as error:
                tell("failed", **facts, problem=in_a_line(error))
            else:
                tell("tested", **facts, **_tested(outcome, reference, dtype))


def _suitable(dtypes: Sequence[str], device: jax.Device) -> list[str]:
    """Return the types to test a device in: a CPU trains in float32."""
    if [*dtypes] != ["usual"]:
        return [*dtypes]
    return ["float32"] if device.platform == "cpu" else [*TOLERANCES]


def _tested(outcome: Outcome, reference: Outcome, dtype: str) -> dict[str, Any]:
    """Return what is told of a step: whether it is right, by how much it is off, and its time."""
    from gnpcli.doctor.trial import difference

    is_finite = outcome.is_finite
    error = difference(outcome, reference) if is_finite else None
    return {
        "is_finite": is_finite,
        "error": error,
        "is_right": error is not None and error <= TOLERANCES[dtype],
        "compile_s": outcome.compile_s,
        "step_ms": 1e3 * outcome.step_s,
        "losses": [float(loss) if is_finite else None for loss in outcome.losses],
    }


if __name__ == "__main__":
    main()
