"""Ranges of numbers that several keys share.

Every number of a configuration has a largest value. That of a size or a count is far above what
anybody trains with, and low enough that nothing overflows, or takes memory before it is refused.
That of another number is about the largest of float32.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

_LEAST = 1.2e-38
"""float32 has only 0 below it."""


def _in_float32(value: float) -> float:
    if value < _LEAST:
        raise PydanticCustomError("float32", "is 0 in float32")
    return value


Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""A number of steps, or a count of what happens in them."""
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
"""Whole passes over the training images."""
WarmupEpochs = Annotated[float, Field(ge=0, le=1_000_000)]
"""Passes over the training images, or a part of one."""
Examples = Annotated[int, Field(ge=1, le=1 << 20)]
"""Examples of a batch, or the parts that a batch is cut into."""
Pixels = Annotated[int, Field(ge=1, le=8192)]
"""A side of something in an image."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed of random numbers."""
Amount = Annotated[float, Field(ge=0, le=1e38)]
"""A number that may be 0."""
Positive = Annotated[float, Field(gt=0, le=1e38), AfterValidator(_in_float32)]
"""A number that is divided by, or that does nothing at 0."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share or a probability."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""What a running mean keeps of its value in each step."""
