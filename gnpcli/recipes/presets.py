"""Presets: complete recipes in YAML, each with a purpose and at most one `base:` it builds on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnpcli.config.loader import Layer, merge, parse_overrides, read_yaml, validate
from gnpcli.config.messages import located
from gnpcli.config.paths import user_path
from gnpcli.config.resolved import Resolved, settle
from gnpcli.config.resolved import resolve as resolve_configuration
from gnpcli.config.schema import RunConfig
from gnpcli.config.section import ModelSection
from gnpcli.data.registry import check_data
from gnpcli.errors import ConfigError, suggest
from gnpcli.models.registry import model_section

DEFAULT_PRESET = "vit-nano-digits"
"""What ``gnp train`` trains when nothing is named: a small ViT on the bundled digits."""


@dataclass(frozen=True)
class Preset:
    """A preset as written."""

    name: str
    purpose: str
    """What it is for, in one line."""
    layers: tuple[Layer, ...]
    """The base's, if there is one, and its own."""


def preset_dir() -> Path:
    """Return the folder of the shipped presets.

    It is inside the package in a wheel, and beside the package in a checkout.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "_presets"
    return inside if inside.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Return the names of the shipped presets, sorted."""
    return sorted(path.stem for path in preset_dir().glob("*.yaml"))


def load_preset(name: str, folder: Path | None = None) -> Preset:
    """Read a shipped preset by name, or any YAML file by path (a run's ``config.yaml`` is one).

    A `base` that is a relative path is looked for beside the file that names it.

    Args:
        name: As typed or written.
        folder: What a relative path is relative to; None stands for the current folder.

    Raises:
        ConfigError: No such preset or file, a base that has a base itself, or YAML that cannot be
            read.
    """
    path = _path(name, folder or Path())
    preset = _read(path)
    base = preset.layers[0].values.pop("base", None)
    if base is None:
        return preset
    where = preset.layers[0].where.get("base", name)
    if not isinstance(base, str):
        raise ConfigError(f"{where}: base must be the name of a preset")
    try:
        below = _read(_path(base, path.parent))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if "base" in below.layers[0].values:
        raise ConfigError(
            f"{where}: base '{base}' has a base itself; a preset builds on one other at most"
        )
    return Preset(preset.name, preset.purpose, (*below.layers, *preset.layers))


def _path(name: str, folder: Path) -> Path:
    """Return the file of a shipped preset, or that of a path, which is relative to `folder`."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return folder / user_path(name)
    if name not in preset_names():
        hint = suggest(name, preset_names())
        raise ConfigError(f"unknown preset '{name}'{hint}; see `gnp presets list`")
    return preset_dir() / f"{name}.yaml"


def _read(path: Path) -> Preset:
    layer = read_yaml(path)
    values = dict(layer.values)
    purpose = values.pop("purpose", "")
    if not isinstance(purpose, str):
        raise ConfigError(f"{layer.where.get('purpose', path)}: purpose must be one line of text")
    return Preset(path.stem, purpose, (Layer(values, layer.where),))


def compose(
    name: str | None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> RunConfig:
    """Compose a configuration of a preset, then short flags, then ``--set`` assignments.

    Unlike the result of `resolve`, ``gr.groups`` may be ``per-device``.

    Args:
        name: Preset name or YAML path; None takes `DEFAULT_PRESET`.
        assignments: ``key=value`` texts, in the order given.
        flags: ``{key: (flag, value)}`` of the short flags; a value of None was not given.

    Raises:
        ConfigError: With the key, its place, and what is allowed.
    """
    return compose_layers(_layers(name, assignments, flags))


def resolve(
    name: str | None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> Resolved:
    """Resolve a preset under flags and assignments for the devices of this machine.

    Arguments and errors are those of `compose`.
    """
    return resolve_layers(_layers(name, assignments, flags))


def resolve_architecture(name: str, assignments: Sequence[str] = ()) -> ModelSection:
    """Resolve the model of that name, with its own defaults under assignments.

    Raises:
        ConfigError: As `compose`.
    """
    *below, demo = load_preset(DEFAULT_PRESET).layers
    alone = Layer({**demo.values, "model": {"name": name}})  # the other sections are no matter
    return compose_layers([*below, alone, *parse_overrides(assignments)]).model


def override(
    config: RunConfig,
    assignments: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> Resolved:
    """Resolve a configuration, such as that of a run, under flags and assignments.

    The other arguments and the errors are those of `compose`.
    """
    layers = [Layer(config.model_dump(mode="json")), *parse_overrides(assignments, flags)]
    return resolve_layers(layers)


def compose_layers(layers: Sequence[Layer]) -> RunConfig:
    """Merge layers, the lowest first, into a configuration; as in `compose`."""
    layer = merge(layers, model_section)
    config = validate(layer, model_section)
    try:
        check_data(config.data)
    except ConfigError as error:
        raise located(error, layer.where) from None
    return config


def resolve_layers(layers: Sequence[Layer]) -> Resolved:
    """Merge layers, the lowest first, into a complete configuration; as in `resolve`."""
    return settle(compose_layers(layers), count_devices)


def read_resolved(layers: Sequence[Layer]) -> Resolved:
    """Resolve layers as `resolve_layers` does, whether or not their data set is known here.

    A run of an earlier version may lack model options. They take the model's defaults, which is
    what they were.

    Raises:
        ConfigError: They are no configuration.
    """
    return resolve_configuration(layers, count_devices, model_section)


def count_devices() -> int:
    """Return how many local devices share a batch."""
    from gnpcli.devices.mesh import count_local_devices

    return count_local_devices()


def _layers(
    name: str | None,
    assignments: Sequence[str],
    flags: Mapping[str, tuple[str, Any]] | None,
) -> list[Layer]:
    preset = load_preset(name or DEFAULT_PRESET)
    return [*preset.layers, *parse_overrides(assignments, flags)]
