"""Train steps compiled for a TPU slice that is not here, in a process of their own.

``python -m tests.tpu_programs '{"preset": ..., "kind": ..., "topology": ...}'`` writes what is said
of the program as a line of JSON. libtpu speaks, and JAX looks for devices once, so nothing else may
run in that process.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.tpu import with_libtpu

LIMIT_S = 1800
"""Of a process: many times what it takes on two busy cores."""


@dataclass(frozen=True)
class Facts:
    """What is said of the program of one chip."""

    flops: float
    counted: float
    """FLOP of the traced program, a chip's share."""
    arguments: int
    temporaries: int
    state: int
    """Bytes of the whole state."""
    split: int
    """Those of them that are split over the chips."""
    data: int
    """Bytes of the images in memory."""
    moved: list[str]
    """Operations that answer as many elements as there are in these images."""
    collectives: dict[str, dict[str, int]]


def compiled(
    preset: str, kind: str, topology: str, assignments: Sequence[str] = (), *, tiny: bool = False
) -> Facts:
    """Return what is said of a step of a preset, compiled for a slice.

    Args:
        preset: Its name.
        kind: Of the step.
        topology: Such as ``v5e:2x2``.
        assignments: Over the preset.
        tiny: Take the smallest member of the model's family. It compiles sooner.
    """
    request = {
        "preset": preset,
        "kind": kind,
        "topology": topology,
        "assignments": list(assignments),
        "tiny": tiny,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.tpu_programs", json.dumps(request)],
        capture_output=True,
        text=True,
        env=with_libtpu({"GNP_TRUST_CODE": "1"}),
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Facts(**json.loads(done.stdout.splitlines()[-1]))


def main(request: Mapping[str, Any]) -> None:
    """Compile what is asked for, and print what is said of it."""
    from gnpcli.cluster.topologies import prepare_environment, tpu_devices

    prepare_environment()
    from gnpcli.devices.mesh import mesh_over
    from gnpcli.models.registry import MODELS
    from gnpcli.recipes.presets import resolve

    config = resolve(request["preset"], request["assignments"])
    if request["tiny"]:
        entry = MODELS[config.model.name]
        smallest = entry.load().tiny
        assert smallest is not None
        MODELS[config.model.name] = replace(entry, sizes=smallest.sizes)
    mesh = mesh_over(config, tpu_devices(request["topology"]))
    print(json.dumps(_facts(config, request["kind"], mesh)))


def _facts(config: Any, kind: Any, mesh: Any) -> dict[str, Any]:
    """Return the fields of `Facts`."""
    import jax

    from gnpcli.cluster.compiling import _of_program, counted
    from gnpcli.cluster.topologies import abstract_task, lower_step

    program = lower_step(config, kind, mesh).compile()
    _, state, source = abstract_task(config, mesh)
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype != jax.dtypes.prng_key]
    split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    images = source["images"].size
    cost = _of_program(program)
    return {
        "flops": cost.flops,
        "counted": counted(config, kind, mesh).flops,
        "arguments": cost.arguments,
        "temporaries": cost.temporaries,
        "state": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "split": sum(leaf.size * leaf.dtype.itemsize for leaf in split),
        "data": images,
        "moved": operations_of(program.as_text() or "", images),
        "collectives": cost.to_dict()["collectives"],
    }


_ANSWER = re.compile(r" = (?P<type>\w+)\[(?P<sizes>[\d,]*)\]\S* (?P<name>[\w-]+)\(")
_FREE = {"parameter", "bitcast", "get-tuple-element", "copy-done", "opt-barrier"}
"""Operations that move nothing, or whose answer was counted where they began."""


def operations_of(text: str, elements: int) -> list[str]:
    """Return the names of the operations of a program whose answer has at least so many elements.

    Those that move nothing are left out.
    """
    found = []
    for match in _ANSWER.finditer(text):
        count = math.prod(int(size) for size in match["sizes"].split(",") if size)
        if count >= elements and match["name"] not in _FREE:
            found.append(match["name"])
    return found


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
