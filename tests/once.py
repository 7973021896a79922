"""Runs of one configuration in this process share their programs: traced and compiled once.

A run traces and compiles its steps anew, also where the run before it did. What tests ask of twenty
runs that were stopped at twenty places is not about that.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from jax.sharding import Mesh

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.engine import session, train
from gnpcli.engine.evaluator import Evaluator
from gnpcli.engine.task import Task, build_task
from gnpcli.models.base import Model


class Programs:
    """What was built for the runs of this process, by what it is built of.

    A task and an evaluator hold the images that they read, and nothing of a run that uses them.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, Task] = {}
        self._evaluators: dict[Hashable, tuple[Model, Evaluator]] = {}

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Have the runs of a block share what there is, and add to it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "build_task", self.task)
            patch.setattr(session, "Evaluator", self.evaluator)
            yield

    def task(self, config: Resolved, images: Split | FileSplit, spec: DataSpec, mesh: Mesh) -> Task:
        """Stand in for `gnpcli.engine.task.build_task`. No step depends on when a run is saved."""
        if not isinstance(images, Split):
            return build_task(config, images, spec, mesh)
        key = (config.model_dump_json(exclude={"checkpoint"}), repr(spec), contents(images), mesh)
        if key not in self._tasks:
            self._tasks[key] = build_task(config, images, spec, mesh)
        return replace(self._tasks[key], config=config, spec=spec)

    def evaluator(
        self,
        images: Split | FileSplit,
        spec: DataSpec,
        config: Resolved,
        model: Model,
        mesh: Mesh,
    ) -> Evaluator:
        """Stand in for `gnpcli.engine.evaluator.Evaluator`."""
        own: tuple[Any, ...] = (images, spec, config, model, mesh)
        if not isinstance(images, Split):
            return Evaluator(*own)
        # The model is kept beside it: no other one can get its identity.
        data = config.data.model_dump_json()
        key = (id(model), data, config.train.dtype, repr(spec), contents(images), mesh)
        if key not in self._evaluators:
            self._evaluators[key] = model, Evaluator(*own)
        return self._evaluators[key][1]


def contents(images: Split) -> Hashable:
    """Return all bytes of a split."""
    return images.images.shape, images.images.tobytes(), images.labels.tobytes()
