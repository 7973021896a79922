"""The cost of steps on a TPU slice: compiled in a process of its own, and kept.

That process reads a request as a line of JSON on its standard input, and ends when that is closed:
whatever becomes of who asked, nothing compiles on. It writes a line of JSON for each thing that it
has to say: ``note`` (what goes on), ``kind`` and ``cost`` (a step is done), or ``error``.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from typing import Any

import jax
from jax.stages import Compiled, Lowered

from gnpcli.bench.steps import has_loop
from gnpcli.cluster.costs import COUNTED, StepCost, collectives_of
from gnpcli.cluster.counting import Count, count
from gnpcli.cluster.keeping import keep, kept_as
from gnpcli.cluster.topologies import (
    ENVIRONMENT,
    abstract_task,
    has_libtpu,
    lower_step,
    no_libtpu,
    prepare_environment,
    tpu_devices,
)
from gnpcli.config.loader import Layer
from gnpcli.config.resolved import Resolved
from gnpcli.devices import cpu
from gnpcli.devices.memory import program_memory
from gnpcli.devices.mesh import mesh_over
from gnpcli.errors import GnpError
from gnpcli.recipes.presets import resolve_layers
from gnpcli.step.schedules import StepKind

Notify = Callable[[str], None]

EVERY_S = 30.0
"""Between two words about a compilation that goes on."""
_KEPT = 2
"""Version of what is kept."""
_TOO_LARGE = re.compile(r"(required for [^(]*\(|Used )([\d.]+)([KMGT]?)[) ]")
"""What XLA says of a program: its temporaries, or all of it."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def compile_costs(
    config: Resolved, kinds: Sequence[StepKind], topology: str, notify: Notify
) -> dict[StepKind, StepCost]:
    """Return what steps of a run ask of each device of a TPU slice.

    Args:
        config: The run.
        kinds: Of the steps.
        topology: As in `gnpcli.cluster.topologies.tpu_devices`.
        notify: Told what goes on.

    Raises:
        GnpError: libtpu is not installed, there is no such slice, or the program does not compile.
    """
    if not has_libtpu():
        raise no_libtpu()
    values = {**config.model_dump(mode="json")}
    request = json.dumps({"config": values, "kinds": list(kinds), "topology": topology})
    found: dict[StepKind, StepCost] = {}
    with _process(request) as (lines, problem):
        for line in lines:
            said = json.loads(line)
            if "note" in said:
                notify(said["note"])
            elif "error" in said:
                raise GnpError(said["error"])
            else:
                found[said["kind"]] = StepCost.from_dict(said["cost"])
        if len(found) < len(kinds):
            raise GnpError(f"compiling for {topology} failed: {problem()}")
    return found


@contextmanager
def _process(request: str) -> Iterator[tuple[Iterator[str], Callable[[], str]]]:
    """Start the process that compiles; yield its lines, and what says why it ended."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
        worker = subprocess.Popen(
            [sys.executable, "-m", "gnpcli.cluster.compiling"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        assert worker.stdin is not None
        assert worker.stdout is not None

        def problem() -> str:
            status = worker.wait()
            noise.seek(0)
            lines = [line.strip() for line in noise if line.strip()]
            return lines[-1] if lines else f"its process ended with status {status}"

        try:
            worker.stdin.write(f"{request}\n")
            worker.stdin.flush()
            yield (line for line in worker.stdout if line.startswith("{")), problem
        finally:
            worker.kill()
            worker.wait()
            worker.stdin.close()
            worker.stdout.close()


def _answer(request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Compile what a request asks for."""
    # Code that the starting process has run is run here too.
    config = resolve_layers([Layer(request["config"], is_typed=True)])
    topology = request["topology"]
    mesh = mesh_over(config, tpu_devices(topology))
    for kind in request["kinds"]:
        say({"note": f"tracing the {kind} step"})
        lowered = lower_step(config, kind, mesh)
        parts = _parts(lowered, topology)
        cost = kept_as(StepCost.from_dict, "plans", parts)
        if cost is None:
            with _telling(f"compiling the {kind} step for {topology}", say):
                cost = _cost(config, kind, lowered, mesh)
            keep("plans", parts, cost.to_dict())
        say({"kind": kind, "cost": cost.to_dict()})


def _cost(config: Resolved, kind: StepKind, lowered: Lowered, mesh: jax.sharding.Mesh) -> StepCost:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return _refused(config, kind, mesh, str(error))
    cost = _of_program(compiled)
    if not has_loop(config):
        return cost
    # XLA counts the body of a loop once. Its bytes are as many times more as its FLOP.
    whole = counted(config, kind, mesh)
    scale = max(1.0, whole.flops / max(cost.flops, 1.0))
    return replace(cost, flops=whole.flops, bytes=scale * cost.bytes)


def _refused(config: Resolved, kind: StepKind, mesh: jax.sharding.Mesh, message: str) -> StepCost:
    """Return the cost of a program that is too large, of which the compiler says how large it is.

    Raises:
        GnpError: It is something else.
    """
    found = _TOO_LARGE.search(message)
    if found is None:
        raise GnpError(f"the {kind} step does not compile: {message.partition(chr(10))[0]}")
    _, state, source = abstract_task(config, mesh)
    arguments = 0
    for leaf in jax.tree.leaves((state, source)):
        arguments += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    size = int(float(found[2]) * _UNITS[found[3]])
    whole = counted(config, kind, mesh)
    return StepCost(
        flops=whole.flops,
        bytes=whole.bytes,
        arguments=arguments,
        temporaries=size if "temporaries" in found[1] else max(size - arguments, 0),
        source=COUNTED,
        is_too_large=True,
    )


def _of_program(compiled: Compiled) -> StepCost:
    memory = program_memory(compiled)
    assert memory is not None  # libtpu says it
    costs: Any = compiled.cost_analysis() or {}
    return StepCost(
        flops=float(costs.get("flops", 0.0)),
        bytes=float(costs.get("bytes accessed", 0.0)),
        arguments=memory.arguments,
        temporaries=memory.temporaries,
        collectives=collectives_of(compiled.as_text() or ""),
    )


def counted(config: Resolved, kind: StepKind, mesh: jax.sharding.Mesh) -> Count:
    """Return what the traced program of a step computes and moves, on each device of a mesh."""
    with cpu.tuning(False):
        task, state, source = abstract_task(config, mesh)
        step: Any = task.steps[kind]
        whole = count(step.trace(state, source).jaxpr)
    return Count(whole.flops / mesh.size, whole.bytes / mesh.size)


@contextmanager
def _telling(what: str, say: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Say every `EVERY_S` seconds that it goes on."""
    done, start = threading.Event(), time.monotonic()
    say({"note": what})

    def tick() -> None:
        while not done.wait(EVERY_S):
            say({"note": f"{what}: {time.monotonic() - start:.0f} s"})

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _parts(lowered: Lowered, topology: str) -> list[object]:
    """Return what the cost of a program depends on: the program, the slice and the compiler."""
    versions = [metadata.version(name) for name in ("jax", "jaxlib", "libtpu")]
    return [_KEPT, versions, topology, lowered.as_text()]


def _end_with_who_asked() -> None:
    """End this process once its standard input is closed, whatever it is doing."""

    def wait() -> None:
        os.read(0, 1)  # `sys.stdin` would be held while the interpreter ends
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Answer the request on standard input."""
    request = json.loads(sys.stdin.readline())
    _end_with_who_asked()
    prepare_environment()

    def say(said: dict[str, Any]) -> None:
        print(json.dumps(said), flush=True)

    try:
        _answer(request, say)
    except GnpError as error:
        say({"error": str(error)})


if __name__ == "__main__":
    main()
