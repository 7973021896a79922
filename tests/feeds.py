"""Feeds for tests: what a feed must have beside its batches, once."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from gnpcli.data.feeds.base import FeedData


class GivenFeed:
    """A training feed whose steps are given what they read; the batches are a subclass's."""

    skipped = ()

    def source(self, step: int) -> FeedData:
        raise NotImplementedError

    def close(self) -> None:
        pass


class GivenEvalFeed:
    """The same of evaluation: masked batches as they are given."""

    skipped = ()

    def sources(self) -> Iterator[FeedData]:
        raise NotImplementedError

    def batch(
        self, source: FeedData, index: jax.Array | int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return source["images"], source["labels"], source["mask"]
