"""Presets: complete recipes in YAML, each with a purpose and at most one `base:` it builds on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnpcli.config import RunConfig
from gnpcli.config.loader import Layer, located, merge, parse_overrides, read_yaml, validate
from gnpcli.config.schema import ModelConfig
from gnpcli.data.registry import check_data
from gnpcli.errors import ConfigError, suggest
from gnpcli.models.registry import MODELS, find_model, resolve_model

DEFAULT_PRESET = "vit-nano-digits"
"""What ``gnp train`` trains when nothing is named: a small ViT on the bundled digits."""


@dataclass(frozen=True)
class Preset:
    """A preset as written: its own layer, on top of its base's."""

    name: str
    purpose: str
    layers: tuple[Layer, ...]


def preset_dir() -> Path:
    """Return the folder of the shipped presets: inside the package in a wheel, beside it in a
    checkout.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "_presets"
    return inside if inside.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Return the names of the shipped presets, sorted."""
    return sorted(path.stem for path in preset_dir().glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read a shipped preset by name, or any YAML file by path (a run's ``config.yaml`` is one).

    Raises:
        ConfigError: No such preset or file, a base that has a base itself, or YAML that cannot be
            read.
    """
    preset = _read(name)
    base = preset.layers[0].values.pop("base", None)
    if base is None:
        return preset
    where = preset.layers[0].where.get("base", name)
    if not isinstance(base, str):
        raise ConfigError(f"{where}: base must be the name of a preset")
    try:
        below = _read(base)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if "base" in below.layers[0].values:
        raise ConfigError(
            f"{where}: base '{base}' has a base itself; a preset builds on one other at most"
        )
    return Preset(preset.name, preset.purpose, (*below.layers, *preset.layers))


def _read(name: str) -> Preset:
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name).expanduser() if is_path else preset_dir() / f"{name}.yaml"
    if not is_path and not path.is_file():
        choices = preset_names()
        raise ConfigError(
            f"unknown preset '{name}'{suggest(name, choices)}; see `gnp presets list`"
        )
    layer = read_yaml(path)
    values = dict(layer.values)
    purpose = values.pop("purpose", "")
    if not isinstance(purpose, str):
        raise ConfigError(f"{layer.where.get('purpose', path)}: purpose must be one line of text")
    return Preset(path.stem, purpose, (Layer(values, layer.where),))


def resolve(
    name: str | None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> RunConfig:
    """Resolve a preset, then short flags, then ``--set`` assignments, into a complete
    configuration.

    Args:
        name: Preset name or YAML path; None takes `DEFAULT_PRESET`.
        assignments: ``key=value`` texts, in the order given.
        flags: ``{key: (flag, value)}`` of the short flags; a value of None was not given.

    Returns:
        The configuration with the model's defaults, the GR warmup and sam's alpha filled in.

    Raises:
        ConfigError: Naming key, place, and what is allowed.
    """
    return resolve_layers(
        [*load_preset(name or DEFAULT_PRESET).layers, *parse_overrides(assignments, flags)]
    )


def resolve_architecture(name: str, assignments: Sequence[str] = ()) -> ModelConfig:
    """Resolve the model of that name, with its own defaults under assignments; errors as in
    `resolve`.
    """
    *below, demo = load_preset(
        DEFAULT_PRESET
    ).layers  # for the sections that a model alone does not have
    alone = Layer({**demo.values, "model": {"name": name}})
    return resolve_layers([*below, alone, *parse_overrides(assignments)]).model


def override(
    config: RunConfig,
    assignments: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> RunConfig:
    """Return a complete configuration, such as that of a run, under flags and assignments; all as
    in `resolve`.
    """
    return resolve_layers(
        [Layer(config.model_dump(mode="json")), *parse_overrides(assignments, flags)]
    )


def resolve_layers(layers: Sequence[Layer]) -> RunConfig:
    """Merge layers, the lowest first, into a complete configuration; result and errors as in
    `resolve`.
    """
    layer = merge(layers, _model_keys(layers))
    config = validate(layer)
    try:
        check_data(config.data)
        return config.model_copy(update={"model": resolve_model(config.model)})
    except ConfigError as error:
        raise located(error, layer) from None


def _model_keys(layers: Sequence[Layer]) -> dict[str, set[str]]:
    """Return the keys of the `model` section by model, those of a user's own that the layers name
    among them.
    """
    sections = [layer.values.get("model") for layer in layers]
    named = {
        str(section["name"])
        for section in sections
        if isinstance(section, dict) and "name" in section
    }
    entries = dict(MODELS)
    for name in named - MODELS.keys():
        with contextlib.suppress(
            ConfigError
        ):  # which `resolve_model` raises where the name is the one that counts
            entries[name] = find_model(name)
    return {name: {"name", *entry.options} for name, entry in entries.items()}
