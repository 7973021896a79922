"""The options of the model families: the `model` section of a configuration, a class a family.

An option that a model does not have is an error, and null takes the model's own default. A class
under another one has other defaults for a size of the family. Importing this module imports neither
jax nor flax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from gnpcli.config.ranges import Decay, Pixels, Positive
from gnpcli.config.section import ModelSection
from gnpcli.errors import ConfigError

# Options that several families have, with what they mean.
Rate = Decay
PatchSize = Annotated[
    Pixels,
    Field(
        description="Side of a square patch in pixels; the image size must be a multiple of it.",
    ),
]
Dropout = Annotated[
    Rate, Field(description="Dropout rate of the residual branches and the embeddings.")
]
AttentionDropout = Annotated[Rate, Field(description="Dropout rate of the attention weights.")]
CleanGradient = Annotated[
    Literal["shaken", "true"],
    Field(
        description="Gradient of the clean pass of a GR step. ``shaken`` is that of plain training,"
        " with random factors of its own in the backward pass. ``true`` is that of the loss itself"
        " (the papers' code)."
    ),
]
Variant = Annotated[
    Literal["paper", "upstream"],
    Field(
        description="``paper`` is the architecture's own paper; ``upstream`` is what the GNP"
        " papers' code builds where it differs."
    ),
]


class Options(ModelSection):
    """Base of the options of a family, all of which have defaults."""

    shaping: ClassVar[frozenset[str]] = frozenset()
    """The options that change names or shapes of parameters."""

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Return the names of the options."""
        return tuple(name for name in cls.model_fields if name != "name")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of every option."""
        return {name: cls.model_fields[name].default for name in cls.option_names()}

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, values: Any) -> Any:
        """Refuse the options of other families; any other key is refused as in every section."""
        if not isinstance(values, Mapping):
            return values
        for name, value in values.items():
            if value is not None and name not in cls.model_fields and name in every_option():
                own = ", ".join(cls.option_names())
                has = f"its options are {own}" if own else "it has no options"
                model = values.get("name")
                raise ConfigError(
                    f"{model} has no option {name!r}; {has}; {name!r} is an option of "
                    f"{', '.join(_owners(name))}",
                    key=f"model.{name}",
                )
        return values


def every_option() -> frozenset[str]:
    """Return the names of the options of all families in this package."""
    return frozenset(name for kind in _subclasses(Options) for name in kind.model_fields)


def _owners(option: str) -> list[str]:
    """Return the families that have an option."""
    families = [kind for kind in Options.__subclasses__() if option in kind.model_fields]
    return [(kind.__doc__ or kind.__name__).strip().removesuffix(".") for kind in families]


def _subclasses(kind: type[Options]) -> list[type[Options]]:
    own = kind.__subclasses__()
    return own + [inner for each in own for inner in _subclasses(each)]


class VggOptions(Options):
    """VGG."""

    dropout: Rate = 0.5
    """Dropout rate of the hidden dense layers."""
    variant: Variant = "paper"


class ResnetOptions(Options):
    """ResNet."""

    shaping = frozenset({"stem", "variant"})
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers: ``cifar`` keeps the resolution, ``imagenet`` divides it by 4."""
    variant: Variant = "paper"


class WideResnetOptions(Options):
    """Wide residual networks."""

    shaping = frozenset({"variant"})
    dropout: Rate = 0.0
    """Dropout rate between the convolutions of a block."""
    variant: Variant = "paper"


class ShakeShakeOptions(Options):
    """Shake-Shake."""

    clean_gradient: CleanGradient = "shaken"
    variant: Variant = "paper"


class PyramidnetOptions(Options):
    """PyramidNet."""

    shaping = frozenset({"variant"})
    variant: Variant = "paper"


class ShakeDropOptions(Options):
    """PyramidNet with ShakeDrop."""

    drop_path: Rate = 0.5
    """Probability, per image, with which the residual branch of the last block shakes.

    See arXiv 1802.02375.
    """
    clean_gradient: CleanGradient = "shaken"
    variant: Variant = "paper"


class VitOptions(Options):
    """Vision Transformer."""

    shaping = frozenset({"patch_size"})
    patch_size: PatchSize = 4
    dropout: Dropout = 0.0
    attention_dropout: AttentionDropout = 0.0
    gelu: Literal["tanh", "exact"] = "tanh"
    """Form of the GELU: ``tanh`` as in the authors' code, ``exact`` as in timm and torchvision."""


class VitNanoOptions(VitOptions):
    """Vision Transformer for images of 8 pixels."""

    patch_size: PatchSize = 2


class SwinOptions(Options):
    """Swin Transformer."""

    shaping = frozenset({"patch_size", "window_size"})
    patch_size: PatchSize = 2
    window_size: Pixels = 4
    """Side of an attention window, in patches."""
    dropout: Dropout = 0.0
    attention_dropout: AttentionDropout = 0.0
    drop_path: Rate = 0.0
    """Largest rate, per image, with which a residual branch is dropped whole.

    This is stochastic depth, arXiv 1603.09382.
    """
    variant: Variant = "paper"


class CaitOptions(Options):
    """CaiT."""

    shaping = frozenset({"patch_size"})
    patch_size: PatchSize = 4
    dropout: Dropout = 0.0
    attention_dropout: AttentionDropout = 0.0
    drop_path: Rate = 0.0
    """Rate, per image, with which a residual branch is dropped whole.

    This is stochastic depth, arXiv 1603.09382.
    """
    layer_scale: Positive | None = None
    """Initial value of LayerScale (arXiv 2103.17239).

    Null takes that of the depth (upstream: of the width).
    """
    scan: bool = False
    """Whether the equal blocks are scanned: the program then has one block in their place.

    Weights keep their names and shapes.
    """
    variant: Variant = "paper"
