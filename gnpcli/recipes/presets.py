"""Presets: complete recipes in YAML, each with a purpose and at most one `base:` it builds on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gnpcli.config.loader import Layer, merge, parse_overrides, read_yaml, validate
from gnpcli.config.messages import located
from gnpcli.config.paths import user_path
from gnpcli.config.resolved import Devices, Resolved, settle
from gnpcli.config.resolved import resolve as resolve_configuration
from gnpcli.config.schema import RunConfig
from gnpcli.config.section import ModelSection, UnloadedModel
from gnpcli.data.registry import check_data
from gnpcli.errors import ConfigError, suggest
from gnpcli.models.own import is_trusting
from gnpcli.models.registry import find_model, is_unloaded, load_model, model_section

DEFAULT_PRESET = "vit-nano-digits"
"""What ``gnp train`` trains when nothing is named: a small ViT on the bundled digits."""

Code = Literal["none", "allowed", "needed"]
"""How far the code of a model of the user's own runs, see `gnpcli.models.own`.

``none`` runs nothing: the options of such a model are shown as written. ``allowed`` runs what a
person named or trusts. ``needed`` refuses a configuration whose code may not run.
"""


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

    Unlike the result of `resolve`, ``gr.groups`` may be ``per-device``. It is for showing: no code
    of the user's own runs.

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
    code: Code = "needed",
    at_start: Devices | None = None,
) -> Resolved:
    """Resolve a preset under flags and assignments for the devices of this machine.

    The other arguments are those of `compose`.

    Args:
        code: Whether code of the user's own runs.
        at_start: Gives the groups per device of a run that has begun, as in `settle`.

    Raises:
        ConfigError: As `compose`; or the code is needed, a file names it, and it is not trusted.
    """
    config = compose_layers(_layers(name, assignments, flags), code)
    return settle(config, count_devices, at_start)


def resolve_architecture(name: str, assignments: Sequence[str] = ()) -> ModelSection:
    """Resolve the model of that name, with its own defaults under assignments.

    Raises:
        ConfigError: As `compose`.
    """
    *below, demo = load_preset(DEFAULT_PRESET).layers
    values = {**demo.values, "model": {"name": name}}  # the other sections are no matter
    alone = Layer(values, is_typed=True)
    return compose_layers([*below, alone, *parse_overrides(assignments)], "needed").model


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


def compose_layers(layers: Sequence[Layer], code: Code = "none") -> RunConfig:
    """Merge layers, the lowest first, into a configuration; as in `compose`."""
    _run_code(layers, code)
    layer = merge(layers, model_section)
    config = validate(layer, model_section)
    try:
        check_data(config.data)
    except ConfigError as error:
        raise located(error, layer.where) from None
    return config


def resolve_layers(layers: Sequence[Layer], code: Code = "needed") -> Resolved:
    """Merge layers, the lowest first, into a complete configuration; as in `resolve`."""
    return settle(compose_layers(layers, code), count_devices)


def read_resolved(layers: Sequence[Layer]) -> Resolved:
    """Resolve layers, whether or not their data set is known here. No code of the user's own runs.

    A run of an earlier version may lack model options. They take the model's defaults, which is
    what they were. `with_code` makes a configuration of it that can be trained.

    Raises:
        ConfigError: They are no configuration.
    """
    return resolve_configuration(layers, count_devices, model_section)


def with_code(config: Resolved, where: str) -> Resolved:
    """Return a configuration of a file with the options of its model as the model's code has them.

    The code of a model of the user's own runs, where it is trusted.

    Args:
        config: From `read_resolved`.
        where: The file, for errors.

    Raises:
        ConfigError: The code is not trusted, or the options are not those of the model.
    """
    if not isinstance(config.model, UnloadedModel):
        return config
    layers = [Layer(config.model_dump(mode="json"), {"model": where})]
    _run_code(layers, "needed")
    return read_resolved(layers)


def _run_code(layers: Sequence[Layer], code: Code) -> None:
    """Run the code of a model of the user's own, if the layers name one and it may run.

    Raises:
        ConfigError: It is needed and not trusted, or it cannot be imported.
    """
    naming = [layer for layer in layers if _model_name(layer) is not None]
    if not naming or code == "none":
        return
    last = naming[-1]
    name = str(_model_name(last))
    try:
        if not is_unloaded(name):
            return
        if last.is_typed or is_trusting():
            load_model(name)
        elif code == "needed":
            find_model(name)  # which says what would run
    except ConfigError as error:
        raise located(error, last.where) from None


def _model_name(layer: Layer) -> str | None:
    """Return the model that a layer names; None where it names none."""
    model = layer.values.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return name if isinstance(name, str) else None


def count_devices() -> int:
    """Return how many devices share a batch."""
    from gnpcli.devices import mesh

    return mesh.count_devices()


def _layers(
    name: str | None,
    assignments: Sequence[str],
    flags: Mapping[str, tuple[str, Any]] | None,
) -> list[Layer]:
    preset = load_preset(name or DEFAULT_PRESET)
    return [*preset.layers, *parse_overrides(assignments, flags)]
