"""The registry of models. Importing it imports neither jax nor flax: families load when built.

A new family is one file in ``families``, a class in `gnpcli.models.options`, and a line in `MODELS`
per size. One outside this package is a module with an `Entry`, whose name is ``module:entry``, and
with a ``FAMILY``; see `gnpcli.models.family`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from gnpcli.config.schema import RunConfig
from gnpcli.config.section import ModelSection, UnloadedModel
from gnpcli.errors import ConfigError, suggest
from gnpcli.models.family import Family, Images
from gnpcli.models.options import (
    CaitOptions,
    Options,
    PyramidnetOptions,
    ResnetOptions,
    ShakeDropOptions,
    ShakeShakeOptions,
    SwinOptions,
    VggOptions,
    VitNanoOptions,
    VitOptions,
    WideResnetOptions,
)
from gnpcli.models.own import (
    OwnModel,
    import_own,
    in_words,
    is_imported,
    is_own,
    note_code,
    read_name,
    refusal,
)

if TYPE_CHECKING:
    from gnpcli.models.base import Model


@dataclass(frozen=True)
class Entry:
    """One registered architecture.

    Attributes:
        module: Import path of the family's module, which has ``FAMILY``.
        sizes: What makes this member of the family; not configurable.
        options: The `model` section of a configuration that names it, with its defaults.
        paper: arXiv number of the architecture's paper.
        imports: Whose state dicts the family's `from_torch` reads.
        image_size: Side in pixels of the images that the defaults suit.
        parameters: Trained scalars for RGB images of that size and 10 classes; None if nobody
            counted.
        gflop: 10^9 floating-point operations of a forward pass of one such image in eval mode, as
            XLA counts them before it optimises (a multiplication and an addition are two); None if
            nobody counted.
    """

    module: str
    sizes: Mapping[str, int]
    options: type[Options] = Options
    paper: str = ""
    imports: tuple[str, ...] = ()
    image_size: int = 32
    parameters: int | None = None
    gflop: float | None = None

    @property
    def family(self) -> str:
        """Last part of the module's name."""
        return self.module.rpartition(".")[2]

    def load(self) -> Family[Any]:
        """Import the family.

        Raises:
            ConfigError: The module of an entry from outside this package cannot be imported, or has
                no family.
        """
        note_code(self.module)
        try:
            module = importlib.import_module(self.module)
        except Exception as error:
            raise ConfigError(f"{self.module} cannot be imported: {in_words(error)}") from error
        family = getattr(module, "FAMILY", None)
        if not isinstance(family, Family):
            raise ConfigError(f"{self.module} has no gnpcli.models.family.Family named FAMILY")
        return family


_FAMILIES = "gnpcli.models.families"
_TIMM_TORCHVISION = ("timm", "torchvision")


def _vgg(parameters: int, gflop: float, depth: int, batch_norm: bool = False) -> Entry:
    return Entry(
        f"{_FAMILIES}.vgg",
        {"depth": depth, "width": 64, "hidden": 4096, "batch_norm": int(batch_norm)},
        VggOptions,
        "1409.1556",
        imports=_TIMM_TORCHVISION,
        parameters=parameters,
        gflop=gflop,
    )


def _resnet(parameters: int, gflop: float, depth: int) -> Entry:
    return Entry(
        f"{_FAMILIES}.resnet",
        {"depth": depth, "width": 64},
        ResnetOptions,
        "1512.03385",
        imports=_TIMM_TORCHVISION,
        parameters=parameters,
        gflop=gflop,
    )


def _wide_resnet(parameters: int, gflop: float, depth: int, width: int) -> Entry:
    return Entry(
        f"{_FAMILIES}.wide_resnet",
        {"depth": depth, "width": width},
        WideResnetOptions,
        "1605.07146",
        imports=("PyTorch",),
        parameters=parameters,
        gflop=gflop,
    )


def _shake_shake(parameters: int, gflop: float, depth: int, width: int) -> Entry:
    return Entry(
        f"{_FAMILIES}.shake_shake",
        {"depth": depth, "width": width},
        ShakeShakeOptions,
        "1705.07485",
        parameters=parameters,
        gflop=gflop,
    )


def _pyramidnet(parameters: int, gflop: float, depth: int, widening: int) -> Entry:
    return Entry(
        f"{_FAMILIES}.pyramidnet",
        {"depth": depth, "widening": widening},
        PyramidnetOptions,
        "1610.02915",
        parameters=parameters,
        gflop=gflop,
    )


def _shake_drop(parameters: int, gflop: float, depth: int, widening: int) -> Entry:
    return Entry(
        f"{_FAMILIES}.pyramidnet",
        {"depth": depth, "widening": widening},
        ShakeDropOptions,
        "1802.02375",
        parameters=parameters,
        gflop=gflop,
    )


def _vit(
    parameters: int,
    gflop: float,
    dim: int,
    depth: int,
    heads: int,
    options: type[VitOptions] = VitOptions,
    image_size: int = 32,
) -> Entry:
    return Entry(
        f"{_FAMILIES}.vit",
        {"dim": dim, "depth": depth, "heads": heads, "mlp": 4 * dim},
        options,
        "2010.11929",
        _TIMM_TORCHVISION,
        image_size,
        parameters,
        gflop,
    )


def _swin(parameters: int, gflop: float, dim: int, depth: int, heads: int) -> Entry:
    return Entry(
        f"{_FAMILIES}.swin",
        {"dim": dim, "depth": depth, "heads": heads},
        SwinOptions,
        "2103.14030",
        imports=("timm", "PyTorch"),
        parameters=parameters,
        gflop=gflop,
    )


def _cait(parameters: int, gflop: float, dim: int, depth: int, heads: int) -> Entry:
    return Entry(
        f"{_FAMILIES}.cait",
        {"dim": dim, "depth": depth, "heads": heads},
        CaitOptions,
        "2103.17239",
        imports=("timm",),
        parameters=parameters,
        gflop=gflop,
    )


# Each with its `Entry.parameters` and `Entry.gflop`. Rates of dropout and drop path are 0 where
# they belong to a recipe and the paper's where they belong to the architecture (VGG's hidden
# layers, ShakeDrop).
MODELS: dict[str, Entry] = {
    "vgg16": _vgg(33_638_218, 0.533, depth=16),
    "vgg19": _vgg(38_947_914, 0.657, depth=19),
    "vgg16-bn": _vgg(33_646_666, 0.534, depth=16, batch_norm=True),
    "vgg19-bn": _vgg(38_958_922, 0.658, depth=19, batch_norm=True),
    "resnet18": _resnet(11_173_962, 0.966, depth=18),
    "resnet34": _resnet(21_282_122, 2.00, depth=34),
    "resnet50": _resnet(23_520_842, 2.45, depth=50),
    "resnet101": _resnet(42_512_970, 4.68, depth=101),
    "resnet152": _resnet(58_156_618, 6.93, depth=152),
    "resnet200": _resnet(62_637_642, 9.13, depth=200),
    "wrn-16-4": _wide_resnet(2_748_890, 0.718, depth=16, width=4),
    "wrn-28-10": _wide_resnet(36_479_194, 9.53, depth=28, width=10),
    "wrn-40-10": _wide_resnet(55_841_754, 14.7, depth=40, width=10),
    "shake-shake-26-2x96d": _shake_shake(26_192_922, 6.87, depth=26, width=96),
    "pyramidnet-164-48": _pyramidnet(1_715_442, 0.766, depth=164, widening=48),
    "pyramidnet-164-270": _pyramidnet(27_216_021, 8.78, depth=164, widening=270),
    "pyramidnet-200-240": _pyramidnet(26_752_702, 8.69, depth=200, widening=240),
    "pyramidnet-272-200": _pyramidnet(26_210_842, 8.64, depth=272, widening=200),
    "pyramidnet-164-48-shakedrop": _shake_drop(1_715_442, 0.769, depth=164, widening=48),
    "pyramidnet-272-200-shakedrop": _shake_drop(26_210_842, 8.65, depth=272, widening=200),
    "vit-nano": _vit(
        102_730, 0.00222, dim=64, depth=2, heads=4, options=VitNanoOptions, image_size=8
    ),
    "vit-ti": _vit(5_362_762, 0.689, dim=192, depth=12, heads=3),
    "vit-s": _vit(21_342_346, 2.66, dim=384, depth=12, heads=6),
    "vit-b": _vit(85_152_010, 10.5, dim=768, depth=12, heads=12),
    "vit-l": _vit(302_439_434, 38.4, dim=1024, depth=24, heads=16),
    "swin-t": _swin(27_505_108, 0.721, dim=96, depth=6, heads=3),
    "swin-s": _swin(48_805_732, 1.41, dim=96, depth=18, heads=3),
    "swin-b": _swin(86_701_186, 2.49, dim=128, depth=18, heads=4),
    "cait-xxs12": _cait(6_258_154, 0.75, dim=192, depth=12, heads=4),
    "cait-xxs24": _cait(11_601_610, 1.48, dim=192, depth=24, heads=4),
    "cait-xxs36": _cait(16_945_066, 2.21, dim=192, depth=36, heads=4),
    "cait-xs12": _cait(14_032_378, 1.65, dim=288, depth=12, heads=6),
    "cait-xs24": _cait(26_029_162, 3.26, dim=288, depth=24, heads=6),
    "cait-s12": _cait(24_903_370, 2.91, dim=384, depth=12, heads=8),
    "cait-s24": _cait(46_207_882, 5.73, dim=384, depth=24, heads=8),
    "cait-s36": _cait(67_512_394, 8.55, dim=384, depth=36, heads=8),
    "cait-m24": _cait(184_434_442, 22.5, dim=768, depth=24, heads=16),
    "cait-m36": _cait(269_513_866, 33.6, dim=768, depth=36, heads=16),
    "cait-m48": _cait(354_593_290, 44.8, dim=768, depth=48, heads=16),
}


def find_model(name: str) -> Entry:
    """Return the entry of a name of `MODELS`, or of a model of one's own. No code runs.

    `gnpcli.models.own` says how the latter are named, and when their code runs.

    Raises:
        ConfigError: There is none, or the module of a model of one's own is not imported.
    """
    if name in MODELS:
        return MODELS[name]
    own = _own(name)
    module = sys.modules.get(own.module)
    if module is None:
        raise refusal(own)
    return _entry(own, module)


def load_model(name: str) -> Entry:
    """Return the entry as `find_model` does. The module of a model of one's own is imported.

    It is for names that a person has typed or trusts.

    Raises:
        ConfigError: There is none, or its code fails.
    """
    if name in MODELS:
        return MODELS[name]
    own = _own(name)
    return _entry(own, import_own(own))


def is_unloaded(name: str) -> bool:
    """Return whether a name means a model of one's own whose module is not imported."""
    return name not in MODELS and is_own(name) and not is_imported(name)


def _own(name: str) -> OwnModel:
    if not is_own(name):
        raise ConfigError(
            f"unknown model {name!r}{suggest(name, MODELS)}; the models are {', '.join(MODELS)}, "
            "and one of your own is module:entry or ./file.py:entry",
            key="model.name",
        )
    return read_name(name)


def _entry(own: OwnModel, module: ModuleType) -> Entry:
    entry = vars(module).get(own.entry)
    if not isinstance(entry, Entry):
        raise ConfigError(
            f"model {own.name!r}: '{own.file or own.module}' has no gnpcli.models.registry.Entry "
            f"named {own.entry}",
            key="model.name",
        )
    if not (isinstance(entry.options, type) and issubclass(entry.options, Options)):
        raise ConfigError(
            f"model {own.name!r}: the options of its Entry are no class under "
            "gnpcli.models.options.Options",
            key="model.name",
        )
    return entry


def model_section(name: str) -> type[ModelSection]:
    """Return the class of the `model` section of a configuration, for the model of that name.

    No code runs. For a model of one's own whose module is not imported it is `UnloadedModel`.

    Raises:
        ConfigError: There is no such model.
    """
    return UnloadedModel if is_unloaded(name) else find_model(name).options


def model_options(name: str, **options: Any) -> Options:
    """Return the `model` section for a model with these options and its defaults for the others.

    Raises:
        ConfigError: As `load_model`; or an option that this model does not have.
    """
    return load_model(name).options.model_validate({"name": name, **options})


def build_model(options: ModelSection, images: Images, dtype: str = "float32") -> Model:
    """Build the model of a `model` section for square images; see `Family.build`.

    Raises:
        ConfigError: As `find_model`; or the options do not suit the images; or the code of a model
            of one's own builds something else.
    """
    entry = find_model(options.name)
    model = entry.load().build(entry.sizes, options, images, dtype)
    if options.name in MODELS:
        return model
    from gnpcli.models.base import check_model

    return check_model(model, images.shape, images.classes)


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
    images = Images(data.image_size, data.channels, data.num_classes)
    return build_model(config.model, images, config.train.dtype)
