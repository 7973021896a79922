"""Which run a configuration is of: what a run is stays, and how it is computed may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gnpcli.config.loader import differences, flatten
from gnpcli.config.paths import resolved_path
from gnpcli.config.resolved import Resolved, settle
from gnpcli.config.schema import RunConfig
from gnpcli.errors import ConfigError
from gnpcli.terminal.words import listing

COMPUTED_BY = (
    "data.dir",
    "data.placement",
    "data.workers",
    "mesh.devices",
    "mesh.shard",
    "train.time_limit",
)
"""Keys that say how a run is computed, and not what it is.

They change its numbers by no more than rounding, so that a run may be resumed with other values.
That the images in another folder are the same ones is checked by their fingerprint.
"""


def another_run(begun: Resolved, wanted: RunConfig) -> list[str]:
    """Return what makes `wanted` another run, as lines ``key: begun -> wanted``.

    Args:
        begun: As the run folder or a checkpoint has it.
        wanted: As a person or a table says it, or as completed at a start.
    """
    return differences(begun, as_begun(begun, wanted), besides=COMPUTED_BY)


def as_begun(begun: Resolved, wanted: RunConfig) -> Resolved:
    """Return `wanted` with what a start fills in, as the start of `begun` filled it.

    These are groups per device, which are of the devices that the run began on, and what the
    weights of `train.init_from` decide. Those weights need not be there any more.
    """
    sections: dict[str, Any] = {}

    def at_start() -> int:
        return begun.gr.groups

    if _starts_from_same(begun, wanted):
        weights = {"init_from": begun.train.init_from, "init_sha256": begun.train.init_sha256}
        sections["train"] = wanted.train.model_copy(update=weights)
        if wanted.data.mean is None:
            normalisation = {"mean": begun.data.mean, "std": begun.data.std}
            sections["data"] = wanted.data.model_copy(update=normalisation)
    return settle(wanted.model_copy(update=sections), at_start, at_start)


def _starts_from_same(begun: Resolved, wanted: RunConfig) -> bool:
    """Return whether both start from the same weights: of one hash, or else of one path."""
    ours, theirs = wanted.train, begun.train
    if ours.init_from is None or theirs.init_from is None:
        return False
    if ours.init_sha256 is not None:
        return ours.init_sha256 == theirs.init_sha256
    return str(resolved_path(ours.init_from, "train.init_from")) == theirs.init_from


def computed_otherwise(begun: Resolved, changes: Mapping[str, Any]) -> Resolved:
    """Return the configuration of a run that goes on with other values of `COMPUTED_BY`.

    Args:
        begun: As the run folder has it.
        changes: ``{"section.key": value}``.

    Raises:
        ConfigError: Another key, or a value that is wrong.
    """
    for key in changes:
        if key not in COMPUTED_BY:
            raise ConfigError(
                f"{key} cannot change in a run that has begun, as {listing(COMPUTED_BY)} can: "
                "start another run",
                key,
            )
    return begun.replaced(changes) if changes else begun


def how_computed(config: RunConfig) -> dict[str, Any]:
    """Return the values of `COMPUTED_BY`, by key."""
    values = flatten(config)
    return {key: values[key] for key in COMPUTED_BY}
