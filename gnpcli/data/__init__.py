"""Data sources by name: check a `DataConfig`, describe what it names, load it.

Importing this package imports neither jax nor numpy; a source is imported when it is used. The types are in
`gnpcli.data.base`, the batches in `gnpcli.data.feed`. Adding a source is one module with `describe` and `load` (see
`SourceModule`) and one line of `SOURCES`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from gnpcli.errors import ConfigError, suggest

if TYPE_CHECKING:
    from gnpcli.config.schema import DataConfig
    from gnpcli.data.base import DataInfo, Dataset

Progress = Callable[[int, int], None]
"""Called with (images decoded so far, images to decode), every now and then and at the end."""


class SourceModule(Protocol):
    """What a source's module holds."""

    def describe(self, config: DataConfig) -> DataInfo | None:
        """Answer `gnpcli.data.describe` for this source."""

    def load(self, config: DataConfig, progress: Progress | None) -> Dataset:
        """Read the images. A source with a validation split of its own refuses `validation_fraction` itself."""


@dataclass(frozen=True)
class Source:
    """One line of the registry."""

    module: str
    """Module with `describe` and `load`, imported at first use."""
    about: str
    """What a listing says."""
    takes_dir: bool = False
    """Whether `data.dir` means anything to it."""


SOURCES: dict[str, Source] = {
    "digits": Source("gnpcli.data.digits", "1,797 handwritten digits, 8x8 grey, bundled with gnp"),
    "cifar10": Source(
        "gnpcli.data.cifar10", "60,000 photographs, 32x32, 10 classes, as an image or TFDS folder", takes_dir=True
    ),
    "folder:DIR": Source("gnpcli.data.folder", "small images in DIR/train/<class>/ and DIR/test/<class>/"),
}
"""Sources by name. ``scheme:WORD`` stands for every name that begins with ``scheme:`` and goes on."""


def check_data(config: DataConfig) -> None:
    """Check that `config` names a source and gives it what it needs. Reads no file.

    Raises:
        ConfigError: On an unknown name (``data.name``, with the choices and the closest one), a scheme without its
            argument, or a ``data.dir`` for a source that has no use for it.
    """
    _source(config)


def describe(config: DataConfig) -> DataInfo | None:
    """Say how much data `config` names, without decoding images; None where the data is absent and nothing is known.

    ``cifar10`` answers from its published sizes where no images are present (`DataInfo.present` is then False).

    Raises:
        ConfigError: As `check_data`; also a `validation_fraction` that the data cannot serve.
        DataError: A folder that `load_dataset` would refuse, as far as its names and file sizes show it.
    """
    return _module(config).describe(config)


def load_dataset(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Load all splits into memory; sets `config.validation_fraction` of every training class aside where it is not 0.

    Args:
        config: Names the source; `batch_size` and `augment` play no part here.
        progress: Called while images are decoded; not called for data that is bundled or found in the cache.

    Raises:
        ConfigError: As `describe`.
        DataError: Images that are missing, unreadable, or of different sizes.
    """
    dataset = _module(config).load(config, progress)
    if config.validation_fraction == 0:
        return dataset
    from gnpcli.data.base import carve_validation

    return carve_validation(dataset, config.validation_fraction)


def _source(config: DataConfig) -> Source:
    name = config.name
    source = SOURCES.get(name) if ":" not in name else None
    if source is None:
        source = _scheme(name)
    if config.dir is not None and not source.takes_dir:
        remedy = "the folder is part of the name" if ":" in name else f"{name} is bundled with gnp"
        raise ConfigError(f"data.dir is not used by {name!r}: {remedy}; leave it out", key="data.dir")
    return source


def _scheme(name: str) -> Source:
    schemes = {known.partition(":")[0]: known for known in SOURCES if ":" in known}
    scheme, _, argument = name.partition(":")
    if scheme in schemes:
        known = schemes[scheme]
        if not argument.strip():
            raise ConfigError(f"{name!r} names no directory: write {known}", key="data.name")
        return SOURCES[known]
    hint = suggest(name, SOURCES)
    if not hint and os.path.isdir(os.path.expanduser(name)):
        hint = f" - did you mean 'folder:{name}'?"
    raise ConfigError(f"unknown data set {name!r}{hint} (choices: {', '.join(SOURCES)})", key="data.name")


def _module(config: DataConfig) -> SourceModule:
    return cast(SourceModule, importlib.import_module(_source(config).module))
