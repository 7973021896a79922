"""What a checkpoint says of itself: the configuration and the data set that it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gnpcli.config.loader import Layer
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec
from gnpcli.errors import DataError
from gnpcli.recipes.presets import read_resolved
from gnpcli.runs.saves import DamagedCheckpoint, Saves


@dataclass(frozen=True)
class Description:
    """What `meta` of a manifest holds."""

    config: Resolved
    data: DataSpec

    def to_meta(self) -> dict[str, Any]:
        """Return the description as JSON types, for `Checkpoints.save`."""
        return {"config": self.config.model_dump(mode="json"), "data": self.data.to_dict()}


def read_description(saves: Saves, step: int) -> Description:
    """Read what a save says of itself.

    Raises:
        DamagedCheckpoint: It is missing, of another run or step, or says something else.
        RunReadError: It cannot be read.
        ConfigError: Its configuration is none that this version can train.
    """
    meta = saves.read_meta(step)
    values, data = meta.get("config"), meta.get("data")
    where = f"the checkpoint of step {step} in {saves.directory} is damaged"
    if not isinstance(values, dict) or not isinstance(data, dict):
        raise DamagedCheckpoint(f"{where}: its description has no configuration or no data set")
    try:
        spec = DataSpec.from_dict(data)
    except DataError as error:
        raise DamagedCheckpoint(f"{where}: {error}") from error
    return Description(read_resolved([Layer(values)]), spec)
