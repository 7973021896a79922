"""Published weights to a checkpoint that evaluation and training read like one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optax

from gnpcli.config import CheckpointConfig, DataConfig
from gnpcli.config.loader import Layer, parse_overrides
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, numbered
from gnpcli.data.registry import check_data, describe_data
from gnpcli.errors import CheckpointError, ConfigError
from gnpcli.keys import run_keys
from gnpcli.models.base import HEAD, starting_from
from gnpcli.models.registry import build_for
from gnpcli.models.torch.facts import Facts
from gnpcli.recipes.presets import read_resolved
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.step.state import init_state
from gnpcli.terminal.screen import Screen
from gnpcli.weights.source import Pretrained, fit_pretrained, read_torch, usual_statistics


def import_file(
    path: Path,
    model: str,
    out: Path,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    assignments: Sequence[str] = (),
    screen: Screen,
) -> Path:
    """Write a checkpoint of step 0 with the weights of a file, and say what became of them.

    Args:
        path: See `gnpcli.weights.files.read_tensors`.
        model: Registered name.
        out: Folder to make.
        dataset: Where classes and image size come from, if not given; None takes those of the
            weights, and ImageNet as the set that they were trained on.
        data_dir: `data.dir`.
        num_classes: None takes the data set's, else the weights' own.
        image_size: Side in pixels; None takes the data set's, where it has one, else the weights'
            own.
        mean: Per channel, of pixel values scaled to [0, 1]; None takes ImageNet's.
        std: Likewise.
        assignments: ``key=value`` texts, which win over what the weights say.
        screen: Told of a new head, of what was resized, and of the statistics taken.

    Returns:
        The absolute path of the folder.

    Raises:
        CheckpointError: The file cannot be read or does not fit, or the folder is there already.
        ConfigError: The configuration is wrong, or the data set is unknown and not here.
    """
    out = out.expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is there already: take another --out")
    given = {"name": dataset or "imagenet", "dir": data_dir}
    if dataset is not None:
        check_data(DataConfig(name=dataset, dir=data_dir))
    params, state, facts = read_torch(path.expanduser(), model)
    usual_mean, usual_std = usual_statistics(facts.channels)
    mean, std = mean or list(usual_mean), std or list(usual_std)
    if len(mean) != facts.channels or len(std) != facts.channels:
        raise ConfigError(
            f"--mean and --std take {facts.channels} number(s), one for each channel of the images"
        )
    num_classes, image_size = _sizes(
        facts, params, given, dataset is not None, num_classes, image_size
    )
    config = _configure(
        model,
        facts.options,
        {**given, "image_size": image_size, "mean": mean, "std": std},
        assignments,
    )
    spec = DataSpec(
        name=config.data.name,
        class_names=numbered(num_classes),
        image_size=image_size,
        channels=facts.channels,
        mean=tuple(mean),
        std=tuple(std),
    )
    network = build_for(config, spec)
    shape = (image_size, image_size, facts.channels)
    init = partial(network.init, run_keys(config.train.seed).init, shape)
    pretrained = Pretrained(
        path, f"a state dict of {model}", params, state, facts.options, tuple(mean), tuple(std)
    )
    params, state, notes = fit_pretrained(pretrained, config, init)
    pixels = f"{image_size} px, normalised with mean {_list(mean)}, std {_list(std)}"
    for line in (f"{config.model.name}: {num_classes:,} classes, {pixels}", *notes):
        screen.line(line)
    initial = init_state(
        starting_from(network, params, state), shape, optax.identity(), config.train.seed
    )
    checkpoints = Checkpoints(out, CheckpointConfig())
    try:
        checkpoints.save(
            initial, {"config": config.model_dump(mode="json"), "data": spec.to_dict()}
        )
        checkpoints.wait()
    finally:
        checkpoints.close()
    return out


def _sizes(
    facts: Facts,
    params: Any,
    data: dict[str, Any],
    is_named: bool,
    num_classes: int | None,
    image_size: int | None,
) -> tuple[int, int]:
    """Return number of classes and image size: as given, else the data set's, else the weights'
    own.
    """
    if is_named and (num_classes is None or image_size is None):
        info = describe_data(DataConfig(**data))
        if info is None:
            raise ConfigError(
                f"{data['name']} is not here to say its sizes: give --num-classes and "
                "--image-size, or --data-dir",
                "data.name",
            )
        num_classes = num_classes or info.num_classes
        image_size = image_size or (None if info.is_streamed else info.image_size)
    own_classes = params[HEAD]["bias"].shape[0] if HEAD in params else None
    if num_classes is None and own_classes is None:
        raise ConfigError("the weights have no head: give --num-classes or --dataset")
    return num_classes or own_classes or 0, image_size or facts.image_size


def _configure(
    model: str, options: dict[str, Any], data: dict[str, Any], assignments: Sequence[str]
) -> Resolved:
    """Return a configuration for weights that no training of ours made; what is of training alone
    is immaterial.
    """
    base: dict[str, Any] = {
        "model": {"name": model, **options}, "data": data, "optimizer": {"name": "sgd"}, "train": {"epochs": 1},
    }  # fmt: skip
    return read_resolved([Layer(base), *parse_overrides(assignments)])


def _list(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
