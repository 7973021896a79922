"""Published weights to a checkpoint that evaluation and training read like one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optax

from gnpcli.config.loader import Layer, parse_overrides
from gnpcli.config.paths import resolved_path, user_path
from gnpcli.config.resolved import Resolved
from gnpcli.config.schema import CheckpointConfig, DataConfig
from gnpcli.data.base import DataSpec, numbered
from gnpcli.data.registry import check_data, describe_data
from gnpcli.errors import CheckpointError, ConfigError
from gnpcli.keys import run_keys
from gnpcli.locks import LOCK_FILES, FolderLock
from gnpcli.models.base import HEAD, Params, starting_from
from gnpcli.models.registry import build_for
from gnpcli.models.torch.facts import Facts
from gnpcli.recipes.presets import read_resolved
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.description import Description
from gnpcli.runs.writing import writing
from gnpcli.step.state import init_state
from gnpcli.terminal.screen import Screen
from gnpcli.weights.source import Pretrained, fit_pretrained, read_torch, usual_statistics


@dataclass(frozen=True)
class ImportRequest:
    """Published weights, and what a checkpoint of them is to be like."""

    path: Path
    """See `gnpcli.weights.files.read_tensors`."""
    model: str
    """Registered name."""
    out: Path
    """Folder to make."""
    dataset: str | None = None
    """Gives classes and image size where they are not given themselves.

    None takes those of the weights, and assumes that they were trained on ImageNet.
    """
    data_dir: str | None = None
    """`data.dir`."""
    num_classes: int | None = None
    """None takes the data set's, else the weights' own."""
    image_size: int | None = None
    """Side in pixels. None takes the data set's, where it has one, else the weights' own."""
    mean: tuple[float, ...] | None = None
    """Per channel, of pixel values scaled to [0, 1]; None takes ImageNet's."""
    std: tuple[float, ...] | None = None
    """Likewise."""
    assignments: tuple[str, ...] = ()
    """``key=value`` texts, which win over what the weights say."""


def import_file(request: ImportRequest, screen: Screen) -> Path:
    """Write a checkpoint of step 0 with the weights of a file, and say what became of them.

    Args:
        request: The file, and what its checkpoint is to be like.
        screen: Told of a new head, of what was resized, and of the statistics taken.

    Returns:
        The absolute path of the folder.

    Raises:
        CheckpointError: The file cannot be read or does not fit, or the folder is there already.
        FolderInUse: Another process imports into the folder.
        RunWriteError: The folder cannot be written.
        ConfigError: The configuration is wrong, or the data set is unknown and not here.
    """
    out = resolved_path(request.out)
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file, not a folder: take another --out")
    with ExitStack() as stack:
        with writing(out):
            stack.enter_context(FolderLock(out, making="if missing"))
        ours = {*Checkpoints.leftovers(out), *(out / name for name in LOCK_FILES)}
        if not ours.issuperset(out.iterdir()):
            raise CheckpointError(f"{out} is there already: take another --out")
        _import(request, out, screen)
    return out


def _import(request: ImportRequest, out: Path, screen: Screen) -> None:
    if request.dataset is not None:
        check_data(DataConfig(name=request.dataset, dir=request.data_dir))
    params, state, facts = read_torch(user_path(request.path), request.model)
    description = _describe(request, params, facts)
    about = f"a state dict of {request.model}"
    mean, std = description.data.mean, description.data.std
    pretrained = Pretrained(request.path, about, params, state, facts.options, mean, std)
    _save(pretrained, description, out, screen)


def _describe(request: ImportRequest, params: Params, facts: Facts) -> Description:
    """Return the configuration and the data set of the checkpoint."""
    mean, std = _statistics(request, facts.channels)
    num_classes, image_size = _sizes(request, params, facts)
    config = _configure(request, facts.options, image_size, mean, std)
    spec = DataSpec(
        name=config.data.name,
        class_names=numbered(num_classes),
        image_size=image_size,
        channels=facts.channels,
        mean=mean,
        std=std,
    )
    return Description(config, spec)


def _statistics(
    request: ImportRequest, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel: as given, else the usual ones."""
    usual_mean, usual_std = usual_statistics(channels)
    mean, std = request.mean or usual_mean, request.std or usual_std
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"--mean and --std take {channels} number(s), one for each channel of the images"
        )
    return mean, std


def _sizes(request: ImportRequest, params: Params, facts: Facts) -> tuple[int, int]:
    """Return number of classes and image size.

    What is given comes first, then what the data set says, then what the weights say.
    """
    num_classes, image_size = request.num_classes, request.image_size
    if request.dataset is not None and (num_classes is None or image_size is None):
        info = describe_data(DataConfig(name=request.dataset, dir=request.data_dir))
        if info is None:
            raise ConfigError(
                f"{request.dataset} is not here to say its sizes: give --num-classes and "
                "--image-size, or --data-dir",
                "data.name",
            )
        num_classes = num_classes or info.num_classes
        if image_size is None and not info.is_streamed:
            image_size = info.image_size
    if num_classes is None:
        if HEAD not in params:
            raise ConfigError("the weights have no head: give --num-classes or --dataset")
        num_classes = int(params[HEAD]["bias"].shape[0])
    return num_classes, image_size or facts.image_size


def _configure(
    request: ImportRequest,
    options: dict[str, Any],
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Resolved:
    """Return a configuration for weights that this program did not train.

    Its optimizer and its epochs mean nothing.
    """
    base: dict[str, Any] = {
        "model": {"name": request.model, **options},
        "data": {
            "name": request.dataset or "imagenet",
            "dir": request.data_dir,
            "image_size": image_size,
            "mean": list(mean),
            "std": list(std),
        },
        "optimizer": {"name": "sgd"},
        "train": {"epochs": 1},
    }
    return read_resolved([Layer(base), *parse_overrides(request.assignments)])


def _save(pretrained: Pretrained, description: Description, out: Path, screen: Screen) -> None:
    """Fit the weights to the model, tell `screen` what became of them, and write the checkpoint."""
    config, spec = description.config, description.data
    network = build_for(config, spec)
    shape = (spec.image_size, spec.image_size, spec.channels)
    init = partial(network.init, run_keys(config.train.seed).init, shape)
    params, state, notes = fit_pretrained(pretrained, config, init)
    screen.line(
        f"{config.model.name}: {spec.num_classes:,} classes, {spec.image_size} px, normalised with "
        f"mean {_list(spec.mean)}, std {_list(spec.std)}"
    )
    for note in notes:
        screen.line(note)
    start = starting_from(network, params, state)
    initial = init_state(start, shape, optax.identity(), config.train.seed)
    checkpoints = Checkpoints(out, CheckpointConfig())
    try:
        checkpoints.save(initial, description.to_meta())
        checkpoints.wait()
    finally:
        checkpoints.close()


def _list(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
