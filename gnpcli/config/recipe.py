"""What of a configuration decides a result, and what is only about where, when and how often."""

from __future__ import annotations

from typing import Any

from gnpcli.config.loader import flatten
from gnpcli.config.schema import RunConfig

DATA_KEYS = (
    "data.name",
    "data.train_split",
    "data.test_split",
    "data.validation_fraction",
    "data.image_size",
)
"""Keys that decide which images a run is trained and measured on.

Errors of runs that differ in them do not compare.
"""

_NO_MATTER = (
    "train.seed",
    "train.log_every_steps",
    "train.eval_every_epochs",
    "train.time_limit",
    "checkpoint.",
    "mesh.",
    "data.dir",
    "data.eval_batch_size",
    "data.placement",
    "data.workers",
    "data.stream",
)
"""Keys, and sections with a dot, that decide no result."""
_ACT_WITHOUT_GR = ("gr.strategy", "gr.groups", "gr.batch_norm")


def recipe(config: RunConfig) -> dict[str, Any]:
    """Return ``{"section.key": value}`` of the keys that decide a result, up to the seed.

    Without gradient regularization most keys of ``gr`` decide nothing. Those that say how the batch
    is cut still count, because BatchNorm and dropout follow them either way.
    """
    is_plain = not config.gr.how.penalises
    return {key: value for key, value in flatten(config).items() if _matters(key, is_plain)}


def _matters(key: str, is_plain: bool) -> bool:
    if key.startswith(_NO_MATTER):
        return False
    return not is_plain or not key.startswith("gr.") or key in _ACT_WITHOUT_GR
