"""``arrays:NAME``: images that a Python program gave as NumPy arrays, which no file holds."""

from __future__ import annotations

from typing import NoReturn

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataInfo
from gnpcli.data.progress import ProgressListener
from gnpcli.errors import DataError


def describe(config: DataConfig) -> DataInfo | None:
    """Answer `gnpcli.data.registry.describe_data`: nothing is known without the arrays."""
    return None


def load(config: DataConfig, progress: ProgressListener | None) -> NoReturn:
    """Refuse: only the program that has the arrays can give them."""
    raise DataError(
        f"{config.name} was given to gnpcli.engine.train as NumPy arrays, and no file holds it: "
        "give `data=` to `train` or `resume` in Python, or name another data set"
    )
