"""A data source of a contributor's own, in one file: stripes that run along rows or columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataInfo, Dataset
from gnpcli.data.progress import ProgressListener


def describe(config: DataConfig) -> DataInfo:
    """Answer `gnpcli.data.registry.describe_data`."""
    return load(config, None).info


def load(config: DataConfig, progress: ProgressListener | None) -> Dataset:
    """Return 32 training and 8 test images of 8x8 pixels."""
    del config, progress
    return Dataset.from_arrays(
        train=_stripes(32), test=_stripes(8), class_names=("rows", "columns")
    )


def _stripes(count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    labels = np.arange(count, dtype=np.int32) % 2
    rows = np.zeros((8, 8), np.uint8)
    rows[::2] = 255
    images = np.where(labels[:, None, None] == 0, rows, rows.T)
    return images[..., None].astype(np.uint8), labels
