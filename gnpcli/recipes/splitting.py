"""Whether ``mesh.shard: fsdp`` has anything to split over a number of devices."""

from __future__ import annotations

import math
from typing import Any

from gnpcli.config.resolved import Resolved
from gnpcli.terminal.words import percent

_ENOUGH = 0.5
"""Share of the elements; below it a device is hardly relieved."""


def little_split(config: Resolved, params: Any, devices: int) -> str | None:
    """Return a warning where most of the parameters stay whole on every device; else None.

    An array is split along an axis that the number of devices divides
    (`gnpcli.devices.sharding.split_axis`): 7 devices divide few sizes of a network.

    Args:
        config: The run.
        params: Nested dicts of the shapes of the parameters.
        devices: All of the mesh.
    """
    if config.mesh.shard != "fsdp" or devices == 1:
        return None
    share = split_share(params, devices)
    if share >= _ENOUGH:
        return None
    better = next((n for n in range(devices - 1, 1, -1) if split_share(params, n) >= _ENOUGH), None)
    advice = f"{better} devices do" if better is not None else "leave it out"
    return (
        f"mesh.shard=fsdp splits {percent(share, 0)} of the parameters over {devices} devices, "
        f"which divide few of their sizes: {advice}"
    )


def split_share(params: Any, devices: int) -> float:
    """Return the share, in [0, 1], of the elements that are split over a number of devices."""
    import jax

    from gnpcli.devices.sharding import split_axis

    sizes: list[tuple[tuple[int, ...], int]] = [
        (leaf.shape, math.prod(leaf.shape)) for leaf in jax.tree.leaves(params)
    ]
    split = sum(size for shape, size in sizes if split_axis(shape, devices) is not None)
    return split / max(sum(size for _, size in sizes), 1)
