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
"""Keys that decide which images a run is trained and measured on: others make errors that do not
compare.
"""

_NO_MATTER = (
    "train.seed", "train.log_every_steps", "train.eval_every_epochs", "checkpoint.", "mesh.", "data.dir",
    "data.eval_batch_size", "data.workers", "data.stream",
)  # fmt: skip
_ACT_WITHOUT_GR = ("gr.strategy", "gr.groups", "gr.batch_norm")


def recipe(config: RunConfig) -> dict[str, Any]:
    """Return ``{"section.key": value}`` of the keys that decide a result, up to the seed.

    Without gradient regularization the keys that say how it is done decide nothing, but for those
    that say how the batch is cut, which BatchNorm and dropout follow either way.
    """
    is_plain = not config.gr.how.penalises
    return {
        key: value
        for key, value in flatten(config).items()
        if not key.startswith(_NO_MATTER)
        and not (is_plain and key.startswith("gr.") and key not in _ACT_WITHOUT_GR)
    }
