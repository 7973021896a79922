"""A configuration that is complete for a number of devices.

A `RunConfig` is what a person writes: ``gr.r`` may be null, and ``gr.groups`` may be
``per-device``. A `Resolved` is what training computes with: both are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from pydantic import field_serializer

from gnpcli.config.checks import check_batch_is_divisible
from gnpcli.config.loader import Layer, merge, nest, validate
from gnpcli.config.messages import located
from gnpcli.config.ranges import Amount, Examples, Share, WarmupEpochs
from gnpcli.config.schema import GrConfig, RunConfig
from gnpcli.config.section import ModelSections
from gnpcli.errors import ConfigError

Devices = Callable[[], int]
"""Counts the devices that share a batch; called only where the number matters."""


class ResolvedGr(GrConfig):
    """Gradient regularization in numbers; what was never given is 0."""

    r: Amount = 0.0
    """Perturbation radius at full strength."""
    alpha: Share = 0.0
    """Mixing weight of the perturbed gradient at full strength."""
    warmup_epochs: WarmupEpochs = 0.0
    """Length of the GR warmup."""
    groups: Examples = 1
    """Equal parts of the batch that each have a perturbation of their own."""

    @field_serializer("r", "alpha")
    def _as_given(self, value: float) -> float | None:
        """Write null where there was none, so that ``--gr`` over the file asks for the number."""
        is_given = self.how.penalises or self.r > 0 or self.alpha > 0
        return value if is_given else None


class Resolved(RunConfig):
    """A whole run in numbers. Its dump is a preset that resolves to the same again."""

    gr: ResolvedGr = ResolvedGr()

    def replaced(self, changes: Mapping[str, Any]) -> Self:
        """Return the configuration with other values, validated like any configuration.

        Args:
            changes: ``{"section.key": value}``, the model's name not among them.

        Raises:
            ConfigError: Values that are wrong, or that contradict others.
        """
        layers = [Layer(self.model_dump(mode="json")), *(_one(*item) for item in changes.items())]
        layer = merge(layers)
        config = validate(layer, lambda name: type(self.model))
        return type(self).of(config, lambda: self.gr.groups)

    @classmethod
    def of(cls, config: RunConfig, devices: Devices, at_start: Devices | None = None) -> Self:
        """Complete a configuration; as `settle`."""
        given = {key: value for key, value in dict(config.gr).items() if value is not None}
        if config.gr.groups == "per-device":
            given["groups"] = at_start() if at_start else config.mesh.devices or devices()
        sections = {**dict(config), "gr": ResolvedGr(**given)}
        resolved = cls(**sections)
        check_batch_is_divisible(resolved)
        return resolved


def _one(key: str, value: Any) -> Layer:
    return Layer(nest(key, value))


def settle(config: RunConfig, devices: Devices, at_start: Devices | None = None) -> Resolved:
    """Complete a validated configuration for a number of devices.

    Args:
        config: From `gnpcli.config.loader.validate`.
        devices: Gives the groups where they are per device and `mesh.devices` is null.
        at_start: Gives them in any case, of a run that has begun: they are part of what it is,
            whatever devices it goes on with.

    Raises:
        ConfigError: That many groups do not divide the batch.
    """
    return Resolved.of(config, devices, at_start)


def resolve(
    layers: Sequence[Layer], devices: Devices, model_section: ModelSections | None = None
) -> Resolved:
    """Merge layers, the lowest first, into a complete configuration.

    Args:
        layers: Values of presets, files and options.
        devices: As in `settle`.
        model_section: The class of the `model` section by the model's name.

    Raises:
        ConfigError: With the key, where it was written, and what is allowed.
    """
    layer = merge(layers, model_section)
    config = validate(layer, model_section)
    try:
        return settle(config, devices)
    except ConfigError as error:
        raise located(error, layer.where) from None
