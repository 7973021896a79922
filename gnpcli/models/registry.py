"""The registry of models. Importing it imports neither jax nor flax: a family's module loads when
it is built.

A new family is one file in this folder, with a function ``build(architecture, config, *,
num_classes, image_size, channels, dtype) -> Model``, and one line in `MODELS` per size. One outside
this package is a module with such a function and with an `Entry`, and its name is ``module:entry``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import model_validator

from gnpcli.config.schema import ModelConfig, RunConfig
from gnpcli.errors import ConfigError, suggest

if TYPE_CHECKING:
    from gnpcli.models.base import Model

OPTION_NAMES: tuple[str, ...] = tuple(
    field for field in ModelConfig.model_fields if field != "name"
)
"""Every option that some model has: the fields of `ModelConfig` besides the name."""


@dataclass(frozen=True)
class Entry:
    """One registered architecture.

    Attributes:
        module: Import path of the family's module, which has the function `build`.
        architecture: The sizes that make this member of the family; not configurable.
        options: The `ModelConfig` fields that this model takes, with their defaults.
        paper: arXiv number of the architecture's paper.
        imports: Whose state dicts ``from_torch`` of the module reads; see
            `gnpcli.models.torch.facts`.
        image_size: Side in pixels of the images that the defaults suit.
        parameters: Trained scalars for RGB images of that size and 10 classes; None if nobody
            counted.
        gflop: 10^9 floating-point operations of a forward pass of one such image in eval mode, as
            XLA counts them before it optimises (a multiplication and an addition are two); None if
            nobody counted.
    """

    module: str
    architecture: Mapping[str, int]
    options: Mapping[str, object] = field(default_factory=dict)
    paper: str = ""
    imports: tuple[str, ...] = ()
    image_size: int = 32
    parameters: int | None = None
    gflop: float | None = None

    @property
    def family(self) -> str:
        """Last part of the module's name."""
        return self.module.rpartition(".")[2]


def _sized(entry: Entry, parameters: int, gflop: float) -> Entry:
    return replace(entry, parameters=parameters, gflop=gflop)


def _vgg(depth: int, batch_norm: bool = False) -> Entry:
    architecture = {"depth": depth, "width": 64, "hidden": 4096, "batch_norm": int(batch_norm)}
    options = {"dropout": 0.5, "variant": "paper"}
    return Entry(
        "gnpcli.models.families.vgg",
        architecture,
        options,
        "1409.1556",
        imports=("timm", "torchvision"),
    )


def _resnet(depth: int) -> Entry:
    architecture = {"depth": depth, "width": 64}
    options = {"stem": "cifar", "variant": "paper"}
    return Entry(
        "gnpcli.models.families.resnet",
        architecture,
        options,
        "1512.03385",
        imports=("timm", "torchvision"),
    )


def _wide_resnet(depth: int, width: int) -> Entry:
    architecture = {"depth": depth, "width": width}
    options = {"dropout": 0.0, "variant": "paper"}
    return Entry(
        "gnpcli.models.families.wide_resnet",
        architecture,
        options,
        "1605.07146",
        imports=("PyTorch",),
    )


def _shake_shake(depth: int, width: int) -> Entry:
    architecture = {"depth": depth, "width": width}
    options = {"clean_gradient": "shaken", "variant": "paper"}
    return Entry("gnpcli.models.families.shake_shake", architecture, options, "1705.07485")


def _pyramidnet(depth: int, widening: int) -> Entry:
    architecture = {"depth": depth, "widening": widening}
    return Entry(
        "gnpcli.models.families.pyramidnet", architecture, {"variant": "paper"}, "1610.02915"
    )


def _shake_drop(depth: int, widening: int) -> Entry:
    plain = _pyramidnet(depth, widening)
    return replace(
        plain,
        options={"drop_path": 0.5, "clean_gradient": "shaken", **plain.options},
        paper="1802.02375",
    )


def _vit(dim: int, depth: int, heads: int, patch_size: int = 4) -> Entry:
    architecture = {"dim": dim, "depth": depth, "heads": heads, "mlp": 4 * dim}
    options = {"patch_size": patch_size, "dropout": 0.0, "attention_dropout": 0.0, "gelu": "tanh"}
    return Entry(
        "gnpcli.models.families.vit",
        architecture,
        options,
        "2010.11929",
        imports=("timm", "torchvision"),
    )


def _vit_nano() -> Entry:
    return replace(_vit(dim=64, depth=2, heads=4, patch_size=2), image_size=8)


def _swin(dim: int, depth: int, heads: int) -> Entry:
    architecture = {"dim": dim, "depth": depth, "heads": heads}
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0}
    options = {"patch_size": 2, "window_size": 4, **rates, "variant": "paper"}
    return Entry(
        "gnpcli.models.families.swin",
        architecture,
        options,
        "2103.14030",
        imports=("timm", "PyTorch"),
    )


def _cait(dim: int, depth: int, heads: int) -> Entry:
    architecture = {"dim": dim, "depth": depth, "heads": heads}
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0}
    # layer_scale: null takes the initial value of the variant for this size
    options = {"patch_size": 4, **rates, "layer_scale": None, "scan": False, "variant": "paper"}
    return Entry(
        "gnpcli.models.families.cait", architecture, options, "2103.17239", imports=("timm",)
    )


# Each with its `Entry.parameters` and `Entry.gflop`. Rates of dropout and drop path are 0 where
# they belong to a recipe and the paper's where they belong to the architecture (VGG's hidden
# layers, ShakeDrop).
MODELS: dict[str, Entry] = {
    "vgg16": _sized(_vgg(16), 33_638_218, 0.533),
    "vgg19": _sized(_vgg(19), 38_947_914, 0.657),
    "vgg16-bn": _sized(_vgg(16, batch_norm=True), 33_646_666, 0.534),
    "vgg19-bn": _sized(_vgg(19, batch_norm=True), 38_958_922, 0.658),
    "resnet18": _sized(_resnet(18), 11_173_962, 0.966),
    "resnet34": _sized(_resnet(34), 21_282_122, 2.00),
    "resnet50": _sized(_resnet(50), 23_520_842, 2.45),
    "resnet101": _sized(_resnet(101), 42_512_970, 4.68),
    "resnet152": _sized(_resnet(152), 58_156_618, 6.93),
    "resnet200": _sized(_resnet(200), 62_637_642, 9.13),
    "wrn-16-4": _sized(_wide_resnet(depth=16, width=4), 2_748_890, 0.718),
    "wrn-28-10": _sized(_wide_resnet(depth=28, width=10), 36_479_194, 9.53),
    "wrn-40-10": _sized(_wide_resnet(depth=40, width=10), 55_841_754, 14.7),
    "shake-shake-26-2x96d": _sized(_shake_shake(depth=26, width=96), 26_192_922, 6.87),
    "pyramidnet-164-48": _sized(_pyramidnet(depth=164, widening=48), 1_715_442, 0.766),
    "pyramidnet-164-270": _sized(_pyramidnet(depth=164, widening=270), 27_216_021, 8.78),
    "pyramidnet-200-240": _sized(_pyramidnet(depth=200, widening=240), 26_752_702, 8.69),
    "pyramidnet-272-200": _sized(_pyramidnet(depth=272, widening=200), 26_210_842, 8.64),
    "pyramidnet-164-48-shakedrop": _sized(_shake_drop(depth=164, widening=48), 1_715_442, 0.769),
    "pyramidnet-272-200-shakedrop": _sized(_shake_drop(depth=272, widening=200), 26_210_842, 8.65),
    "vit-nano": _sized(_vit_nano(), 102_730, 0.00222),
    "vit-ti": _sized(_vit(dim=192, depth=12, heads=3), 5_362_762, 0.689),
    "vit-s": _sized(_vit(dim=384, depth=12, heads=6), 21_342_346, 2.66),
    "vit-b": _sized(_vit(dim=768, depth=12, heads=12), 85_152_010, 10.5),
    "vit-l": _sized(_vit(dim=1024, depth=24, heads=16), 302_439_434, 38.4),
    "swin-t": _sized(_swin(dim=96, depth=6, heads=3), 27_505_108, 0.721),
    "swin-s": _sized(_swin(dim=96, depth=18, heads=3), 48_805_732, 1.41),
    "swin-b": _sized(_swin(dim=128, depth=18, heads=4), 86_701_186, 2.49),
    "cait-xxs12": _sized(_cait(dim=192, depth=12, heads=4), 6_258_154, 0.75),
    "cait-xxs24": _sized(_cait(dim=192, depth=24, heads=4), 11_601_610, 1.48),
    "cait-xxs36": _sized(_cait(dim=192, depth=36, heads=4), 16_945_066, 2.21),
    "cait-xs12": _sized(_cait(dim=288, depth=12, heads=6), 14_032_378, 1.65),
    "cait-xs24": _sized(_cait(dim=288, depth=24, heads=6), 26_029_162, 3.26),
    "cait-s12": _sized(_cait(dim=384, depth=12, heads=8), 24_903_370, 2.91),
    "cait-s24": _sized(_cait(dim=384, depth=24, heads=8), 46_207_882, 5.73),
    "cait-s36": _sized(_cait(dim=384, depth=36, heads=8), 67_512_394, 8.55),
    "cait-m24": _sized(_cait(dim=768, depth=24, heads=16), 184_434_442, 22.5),
    "cait-m36": _sized(_cait(dim=768, depth=36, heads=16), 269_513_866, 33.6),
    "cait-m48": _sized(_cait(dim=768, depth=48, heads=16), 354_593_290, 44.8),
}


def find_model(name: str) -> Entry:
    """Return the entry of a name of `MODELS`, or of ``module:entry``, an `Entry` of a module on the
    Python path.

    The current folder is part of that path.

    Raises:
        ConfigError: There is none; or it has an option that `ModelConfig` does not have.
    """
    if name in MODELS:
        return MODELS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"unknown model {name!r}{suggest(name, MODELS)}; the models are {', '.join(MODELS)}, "
            "and one of your own is module:entry",
            key="model.name",
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        entry = getattr(importlib.import_module(module_name), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"model {name!r}: {module_name!r} cannot be imported: {error}", key="model.name"
        ) from error
    if not isinstance(entry, Entry):
        raise ConfigError(
            f"model {name!r}: {module_name} has no gnpcli.models.registry.Entry of that name",
            key="model.name",
        )
    if unknown := sorted(set(entry.options) - set(OPTION_NAMES)):
        raise ConfigError(
            f"model {name!r} has options that a configuration does not: {', '.join(unknown)}",
            key="model.name",
        )
    return entry


def model_section(name: str) -> type[ModelConfig]:
    """Return the class of the `model` section of a configuration for the model of that name.

    It takes the options of this model alone, each with the model's own default.

    Raises:
        ConfigError: As `find_model`; and in validating, an option that this model does not have.
    """
    return _section_of(tuple(find_model(name).options.items()))


@cache
def _section_of(options: tuple[tuple[str, object], ...]) -> type[ModelConfig]:
    return type("ModelOptions", (_OwnOptions,), {"own": dict(options)})


class _OwnOptions(ModelConfig):
    own: ClassVar[Mapping[str, object]] = {}

    @classmethod
    def key_names(cls) -> tuple[str, ...]:
        return ("name", *cls.own)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in values.items() if value is not None}
        for option in OPTION_NAMES:
            if option in given and option not in cls.own:
                has = f"its options are {', '.join(cls.own)}" if cls.own else "it has no options"
                name = given.get("name")
                raise ConfigError(f"{name} has no option {option!r}; {has}", f"model.{option}")
        return {**cls.own, **given}


def resolve_model(config: ModelConfig) -> ModelConfig:
    """Return the configuration with the model's own default for every option that is null.

    Raises:
        ConfigError: As `find_model`; or an option is set that this model does not have.
    """
    found = model_section(config.name).model_validate(config.model_dump())
    return ModelConfig(**found.model_dump())


def build_model(
    config: ModelConfig, *, num_classes: int, image_size: int, channels: int, dtype: str = "float32"
) -> Model:
    """Build a model for square images of `image_size` pixels with `channels` channels.

    Args:
        config: Name and options; resolved here, so null options are welcome.
        num_classes: Number of logits.
        image_size: Height and width of the images in pixels.
        channels: Channels of the images.
        dtype: Compute type, ``float32`` or ``bfloat16``. Parameters, normalisation statistics, the
            softmax of the attention and logits are float32 in both.

    Raises:
        ConfigError: As `resolve_model`; or the options do not suit the images.
    """
    config = resolve_model(config)
    entry = find_model(config.name)
    family = importlib.import_module(entry.module)
    model: Model = family.build(
        entry.architecture,
        config,
        num_classes=num_classes,
        image_size=image_size,
        channels=channels,
        dtype=dtype,
    )
    return model


class ImageData(Protocol):
    """What a model has to know of its data: `gnpcli.data.base.DataSpec` and `DataInfo` say it."""

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        ...

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        ...


def build_for(config: RunConfig, data: ImageData) -> Model:
    """Build the model of a run for its data, in its compute type; errors as in `build_model`."""
    return build_model(
        config.model,
        num_classes=data.num_classes,
        image_size=data.image_size,
        channels=data.channels,
        dtype=config.train.dtype,
    )
