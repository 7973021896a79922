"""What a family of models says of itself. Importing this module imports neither jax nor flax.

A family is a class under `Family` in a module of its own, whose ``FAMILY`` is one of it. A line a
size in `gnpcli.models.registry.MODELS` makes it known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gnpcli.config.section import ModelSection
from gnpcli.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from gnpcli.models.base import Model, Params, State
    from gnpcli.models.torch.facts import Facts, Path

OptionsT = TypeVar("OptionsT", bound=ModelSection)


@dataclass(frozen=True)
class Images:
    """The images that a model is built for.

    Attributes:
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        classes: Number of labels, and of logits.
    """

    size: int
    channels: int
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)`` of one image."""
        return self.size, self.size, self.channels


@dataclass(frozen=True)
class Tiny:
    """The smallest useful member of a family, for tests: it compiles in seconds.

    Attributes:
        sizes: As of an entry of the registry.
        options: What it needs besides its defaults.
        image_size: Side of its images in pixels.
    """

    sizes: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 8


class Family(Generic[OptionsT]):
    """A family of networks; all but `build` has a default."""

    tiny: Tiny | None = None
    """For tests that go over all families; None leaves this one out."""

    def build(
        self, sizes: Mapping[str, int], options: OptionsT, images: Images, dtype: str
    ) -> Model:
        """Build a member of the family.

        Args:
            sizes: Those of the entry in the registry.
            options: The `model` section of a configuration.
            images: What it is built for.
            dtype: Compute type, ``float32`` or ``bfloat16``. Parameters, normalisation statistics,
                the softmax of the attention and logits are float32 in both.

        Raises:
            ConfigError: The options do not suit the images.
        """
        raise NotImplementedError

    def from_torch(self, tensors: Mapping[str, np.ndarray]) -> tuple[Params, State]:
        """Map a PyTorch state dict to parameters and state.

        Raises:
            ConfigError: The family knows no state dict.
            CheckpointError: The tensors are those of another architecture.
        """
        raise ConfigError("no state dict is known for this family", "model.name")

    def to_torch(self, params: Params, state: State) -> dict[str, np.ndarray]:
        """Map parameters and state to a PyTorch state dict.

        Raises:
            ConfigError: The family cannot.
        """
        raise ConfigError("this family cannot write a state dict", "model.name")

    def facts(self, params: Params) -> Facts:
        """Return what parameters from `from_torch` say of images and options."""
        raise NotImplementedError

    def resize(self, path: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the parameter at `path` in another shape; None where that makes no sense."""
        return None
