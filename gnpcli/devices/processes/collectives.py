"""The connections that devices of different processes compute over."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from functools import lru_cache

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gnpcli.devices.processes import peers


@lru_cache(maxsize=8)
def connect_devices(mesh: Mesh) -> None:
    """Connect the devices of a mesh along each of its axes, and along all of them.

    In one process there is nothing to do.

    Gloo connects devices in the first program that needs it, gives up after 30 s, and prints on
    stdout. A process that still compiles would make the others fail. Here all begin at once, with
    tiny programs; whatever comes later finds the connections made.
    """
    if peers.count() == 1:
        return
    # Processes also wait for each other through JAX, which is a sum over one device of each.
    by_process = Mesh(mesh.devices.reshape(peers.count(), -1), ("process", "local"))
    programs = [_sum_over(mesh, axes) for axes in (mesh.axis_names, *mesh.axis_names)]
    programs.append(_sum_over(by_process, "process"))
    peers.barrier("compiled the first programs")
    with _quiet_stdout():
        for program, ones in programs:
            jax.block_until_ready(program(ones))
    peers.barrier("connected the devices")


def _sum_over(mesh: Mesh, axes: object) -> tuple[jax.stages.Compiled, jax.Array]:
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    ones = jax.make_array_from_callback((mesh.size,), split, lambda index: np.ones(1, np.float32))
    total = jax.shard_map(
        lambda part: jax.lax.psum(part, axes),
        mesh=mesh,
        in_specs=split.spec,
        out_specs=split.spec,
        check_vma=False,
    )
    return jax.jit(total).lower(ones).compile(), ones


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Drop what code that is not Python's prints on stdout."""
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        kept = os.dup(1)
        stack.callback(os.close, kept)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, 1)
        stack.callback(os.dup2, kept, 1)
        yield
