"""Trees of arrays, compared."""

from __future__ import annotations

from typing import Any

import jax


def same_structure(left: Any, right: Any) -> bool:
    """Say whether two trees have their leaves at the same places."""
    one, other = jax.tree.structure(left), jax.tree.structure(right)
    return bool(one == other)  # type: ignore[operator] # jax does not say what a structure is
