"""What a feed is: where the batches of training and evaluation come from.

A feed has two halves. On the host it says what a step reads (`FeedData`), which is an argument of
the jitted step. Inside the step it makes a batch of it, as a pure function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Float32, Int32, Key

from gnpcli.config.schema import DataConfig
from gnpcli.errors import ConfigError

FeedData = dict[str, jax.Array]
"""What a step makes its batch of. It is an argument of the jitted step, never a constant of it."""

StepNumber: TypeAlias = Int32[Array, ""] | int
"""Number of a batch, traced or not."""

BatchLabels: TypeAlias = Int32[Array, " B"] | Float32[Array, "B K"]
"""Labels, or class probabilities where images are mixed."""


def steps_per_epoch(num_train: int, batch_size: int) -> int:
    """Return how many whole batches an epoch has; the remainder is dropped.

    Raises:
        ConfigError: If not even one batch is whole (``data.batch_size``).
    """
    if batch_size > num_train:
        raise ConfigError(
            f"data.batch_size {batch_size} is more than the {num_train} training images",
            key="data.batch_size",
        )
    return num_train // batch_size


class EvalBatches(NamedTuple):
    """The batches of an evaluation, all of one size, so that one program computes them."""

    number: int
    size: int
    """Examples of each. The devices divide it."""


def eval_batches(count: int, config: DataConfig, devices: int) -> EvalBatches:
    """Return the batches that cover a split.

    They are as few as the largest size allows, and of one size, about the smallest with which so
    many cover the split. A device's share of a batch is rounded up by less than a sixteenth, to a
    number that powers of two divide: what is computed in chunks needs divisors, and splits of
    nearly the same size have the same program.

    Args:
        count: Examples of the split.
        config: `eval_batch_size` examples are the most, or `batch_size` where it is null.
        devices: How many share a batch. They divide the most.
    """
    most = config.eval_batch_size or config.batch_size
    number = -(-count // most)
    share = max(-(-count // (max(number, 1) * devices)), 1)
    unit = 1 << max(share.bit_length() - 5, 0)
    share = -(-share // unit) * unit
    return EvalBatches(number, min(share * devices, most))


@runtime_checkable
class TrainFeed(Protocol):
    """Training batches, each a function of the configuration, the run's keys and the step."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch. The remainder is dropped, another one each epoch."""
        ...

    @property
    def skipped(self) -> Sequence[str]:
        """Files that could not be read and were skipped so far (``data.unreadable: skip``)."""
        ...

    def source(self, step: int) -> FeedData:
        """Return what `step` of the run, counted from 0, reads. Called on the host."""
        ...

    def batch(
        self, source: FeedData, step_in_epoch: StepNumber, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B S S C"], BatchLabels]:
        """Return the batch of a step. Pure: it is traced inside the jitted step.

        Returns:
            Augmented, normalised images ``[B, H, W, C]`` and labels, ``[B]`` int32 or ``[B, K]``
            float32 class probabilities.
        """
        ...

    def close(self) -> None:
        """End what works in the background. It may be called again."""
        ...


@runtime_checkable
class EvalFeed(Protocol):
    """Evaluation batches: every example of a split exactly once, the last batch filled up.

    `eval_batches` says how many there are.
    """

    @property
    def skipped(self) -> Sequence[str]:
        """Files that the last `sources` could not read and skipped."""
        ...

    def sources(self) -> Iterator[FeedData]:
        """Yield what batch 0, 1, ... reads. Called on the host."""
        ...

    def batch(
        self, source: FeedData, index: StepNumber
    ) -> tuple[Float[Array, "B S S C"], Int32[Array, " B"], Bool[Array, " B"]]:
        """Return a batch. Pure: it is traced inside the jitted step.

        Returns:
            Normalised images ``[B, H, W, C]``, labels ``[B]`` int32, and a mask ``[B]`` bool that
            is False on padding.
        """
        ...
