"""Small image folders, and what their description has to agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import Dataset
from gnpcli.data.registry import describe_data, load_dataset


def pixels(seed: int, size: int = 6, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, size * size * len(mode), dtype=np.uint8)
    return Image.frombytes(mode, (size, size), values.tobytes())


def put(path: Path, seed: int = 0, size: int = 6, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels(seed, size, mode).save(path)
    return path


def of(root: Path, **values: object) -> DataConfig:
    return DataConfig(name=f"folder:{root}", **values)  # type: ignore[arg-type]


def check_described(config: DataConfig) -> Dataset:
    """Load a data set; assert that it is what its description says."""
    info, data = describe_data(config), load_dataset(config)
    assert info is not None
    assert info.present
    assert info.num_train == len(data.train)
    assert info.num_validation == (0 if data.validation is None else len(data.validation))
    assert info.num_test == (0 if data.test is None else len(data.test))
    assert (info.image_size, info.channels) == (data.spec.image_size, data.spec.channels)
    assert (info.num_classes, info.name) == (data.spec.num_classes, config.name)
    for split in (data.train, data.validation, data.test):
        assert split is None or split.images.shape[1:] == (
            info.image_size,
            info.image_size,
            info.channels,
        )
    return data
