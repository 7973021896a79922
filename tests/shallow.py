"""The smallest members of the families under the names of the registry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gnpcli.models.registry import MODELS


def make_shallow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the model `name` in the sizes of its family's `Tiny`, until the test ends.

    A preset keeps its own options of the model, and all else.
    """
    entry = MODELS[name]
    tiny = entry.load().tiny
    assert tiny is not None
    monkeypatch.setitem(MODELS, name, replace(entry, sizes=tiny.sizes))


def family(name: str) -> str:
    """Return the module of a model's family, without its package."""
    return MODELS[name].module.rpartition(".")[2]
