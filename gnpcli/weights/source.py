"""Where a run starts from: the weights of `train.init_from`.

Their hash and their normalisation become part of the configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from gnpcli.config.paths import resolved_path, user_path
from gnpcli.config.resolved import Resolved
from gnpcli.data.images.assemble import STREAMED_MEAN, STREAMED_STD
from gnpcli.errors import CheckpointError, ConfigError
from gnpcli.models.base import Params, State
from gnpcli.models.registry import MODELS, find_model
from gnpcli.models.torch.facts import Facts
from gnpcli.runs.location import locate
from gnpcli.runs.trained import open_trained
from gnpcli.terminal.screen import Screen
from gnpcli.weights.files import read_tensors
from gnpcli.weights.fit import Fitted, fit


@dataclass(frozen=True)
class Pretrained:
    """Weights that were trained before, in the layout of this package; float32 NumPy arrays."""

    path: Path
    """Absolute."""
    about: str
    """What they are, for a person."""
    params: Params
    state: State
    options: dict[str, Any]
    """Model options that they are known to be for."""
    mean: tuple[float, ...]
    """Per channel, of what their images were normalised with; of pixel values scaled to [0, 1]."""
    std: tuple[float, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of names, shapes and values. It does not depend on the kind of file or folder."""
        digest = hashlib.sha256()
        for collection in (self.params, self.state):
            for path, array in sorted(flatten_dict(collection).items()):
                digest.update(f"{'.'.join(path)} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array, "<f4").data)
        return digest.hexdigest()


def read_pretrained(path: Path, model: str, screen: Screen) -> Pretrained:
    """Read a run, a checkpoint, or a file of tensors for `model`.

    A file of tensors does not say how its images were normalised. `usual_statistics` are assumed.

    Args:
        path: See `gnpcli.runs.location.locate` and `gnpcli.weights.files.read_tensors`.
        model: Registered name. Its family reads a file of tensors.
        screen: Told of damaged checkpoints that were stepped over.

    Raises:
        CheckpointError: It cannot be read, or is of another architecture.
        ConfigError: The model's family cannot take the weights of a file.
    """
    path = resolved_path(path)
    if path.is_dir():
        trained = open_trained(locate(path), step=None, best=False, screen=screen)
        params, state = jax.device_get((trained.params, trained.model_state))
        about = f"step {trained.step} of {trained.config.model.name} on {trained.config.data.name}"
        options = trained.config.model.model_dump(exclude={"name"}, exclude_none=True)
        return Pretrained(path, about, params, state, options, trained.spec.mean, trained.spec.std)
    params, state, facts = read_torch(path, model)
    mean, std = usual_statistics(facts.channels)
    about = f"a state dict of {model}"
    return Pretrained(path, about, params, state, facts.options, mean, std)


def read_torch(path: Path, model: str) -> tuple[Params, State, Facts]:
    """Read a file of tensors under their names in PyTorch; errors as in `read_pretrained`."""
    entry = find_model(model)
    if not entry.imports:
        able = sorted({other.family for other in MODELS.values() if other.imports})
        raise ConfigError(
            f"no state dict is known for {model}; the families that have one are {', '.join(able)}",
            "model.name",
        )
    tensors = read_tensors(path)
    family = entry.load()
    try:
        params, state = family.from_torch(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path} does not hold the weights of {model}: {error}") from error
    # A mapped tensor is often a view of several. A contiguous one is hashed, saved and transferred
    # as one buffer.
    params, state = jax.tree.map(np.ascontiguousarray, (params, state))
    return params, state, family.facts(params)


def usual_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the usual mean and standard deviation per channel.

    For three channels they are ImageNet's. For any other number they map [0, 1] to [-1, 1].
    """
    if channels == len(STREAMED_MEAN):
        return STREAMED_MEAN, STREAMED_STD
    return (0.5,) * channels, (0.5,) * channels


def open_pretrained(config: Resolved, screen: Screen) -> Pretrained:
    """Read the weights of `train.init_from`; errors as in `read_pretrained`.

    Raises:
        CheckpointError: They are not those of `train.init_sha256`.
    """
    assert config.train.init_from is not None
    pretrained = read_pretrained(user_path(config.train.init_from), config.model.name, screen)
    expected = config.train.init_sha256
    if expected is not None and pretrained.sha256 != expected:
        raise CheckpointError(
            f"{pretrained.path} holds other weights than those of train.init_sha256: "
            f"their SHA-256 is {pretrained.sha256}, not {expected}"
        )
    return pretrained


def in_words(pretrained: Pretrained, notes: Sequence[str]) -> list[str]:
    """Return what weights a run starts from, and what became of them, a line each."""
    digest = pretrained.sha256[:8]
    return [f"{pretrained.about} in {pretrained.path}, SHA-256 {digest}", *notes]


def complete(config: Resolved, pretrained: Pretrained) -> Resolved:
    """Return the configuration with what the weights decide: their hash, and the normalisation.

    The run is then a function of its configuration. Resuming it does not need the weights' file.
    Images are normalised as those that the weights were trained on, unless the configuration has
    `data.mean` and `data.std`.
    """
    changes: dict[str, Any] = {
        "train.init_from": str(pretrained.path),
        "train.init_sha256": config.train.init_sha256 or pretrained.sha256,
    }
    if config.data.mean is None:
        changes |= {"data.mean": list(pretrained.mean), "data.std": list(pretrained.std)}
    return config.replaced(changes)


def fit_pretrained(
    pretrained: Pretrained, config: Resolved, init: Callable[[], tuple[Params, State]]
) -> Fitted:
    """Fit weights to the model of a configuration.

    Args:
        pretrained: What to fit.
        config: Resolved.
        init: Draws initial parameters and state of its model. It is traced, and run only for a new
            head.

    Raises:
        CheckpointError: They are of another architecture, or of another form of it. The message of
            the second names the keys to set.
    """
    entry = find_model(config.model.name)
    mine = config.model.model_dump()
    changed = {key: value for key, value in pretrained.options.items() if mine.get(key) != value}
    try:
        fitted = fit(pretrained.params, pretrained.state, init, entry.load().resize)
    except CheckpointError as error:
        text = (
            f"the weights in {pretrained.path} ({pretrained.about}) do not fit "
            f"{config.model.name}: they {error}"
        )
        shaping = [key for key in changed if key in entry.options.shaping]
        if shaping:
            remedy = ", ".join(f"model.{key}={changed[key]}" for key in shaping)
            text = f"{text}; they are for {remedy}"
        raise CheckpointError(text) from error
    options = [f"model.{key}: {value} -> {mine.get(key)}" for key, value in changed.items()]
    return fitted._replace(notes=[*fitted.notes, *options])
