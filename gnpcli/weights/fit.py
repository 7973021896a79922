"""Fitting weights to a model: every parameter finds its place, or the message names the one that
does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gnpcli.errors import CheckpointError
from gnpcli.models.base import HEAD, Params, State
from gnpcli.models.torch.facts import Path

Resize = Callable[[Path, np.ndarray, tuple[int, ...]], np.ndarray | None]
"""See `gnpcli.models.torch.facts`."""


class Fitted(NamedTuple):
    """Weights in the shapes of a model."""

    params: Params
    state: State
    notes: list[str]
    """What is not as it was in the weights, a line each."""


def fit(
    params: Params, state: State, init: Callable[[], tuple[Params, State]], resize: Resize | None
) -> Fitted:
    """Give a model's tree the values of other weights of the same architecture.

    The classifier is drawn anew where the weights have none, or one for another number of classes.

    Args:
        params: The weights, float32.
        state: BatchNorm statistics of theirs, or ``{}``.
        init: Draws initial parameters and state of the model. Only its shapes are computed, and a
            new head's values.
        resize: Of the model's family; None where nothing of it can be resized.

    Raises:
        CheckpointError: Without a subject, to be put after one ("the weights"): parameters that are
            missing or left over, or of another shape, the first of them named.
    """
    like, like_state = jax.eval_shape(init)
    given, wanted = flatten_dict(params), flatten_dict(like)
    notes: list[str] = []
    new_head = _new_head(given, wanted)
    if new_head is not None:
        notes.append(new_head)
        given = {path: value for path, value in given.items() if path[0] != HEAD}
        given |= {path: value for path, value in wanted.items() if path[0] == HEAD}
    _check_names(given.keys(), wanted.keys())
    fitted: dict[Path, Any] = {}
    resized: list[str] = []
    for path, like in wanted.items():
        array = given[path]
        if array.shape != like.shape:
            other = resize(path, array, like.shape) if resize is not None else None
            if other is None or other.shape != like.shape:
                raise CheckpointError(f"have {_name(path)} {_shape(array)}, not {_shape(like)}")
            resized.append(f"{_name(path)} {_shape(array)} -> {_shape(like)}")
            array = other
        fitted[path] = array
    if resized:
        more = f" and {len(resized) - 1} more" if len(resized) > 1 else ""
        notes.append(f"resized bicubically: {resized[0]}{more}")
    given_state, wanted_state = flatten_dict(state), flatten_dict(like_state)
    _check_names(given_state.keys(), wanted_state.keys())
    for path, like in wanted_state.items():
        if given_state[path].shape != like.shape:
            raise CheckpointError(
                f"have {_name(path)} {_shape(given_state[path])}, not {_shape(like)}"
            )
    params = unflatten_dict(fitted)
    if new_head is not None:
        params[HEAD] = jax.device_get(jax.jit(lambda: init()[0][HEAD])())
    return Fitted(params, state, notes)


def _new_head(given: dict[Path, Any], wanted: dict[Path, Any]) -> str | None:
    """Say why the classifier starts anew; None where that of the weights fits, or does for another
    reason not.
    """
    kernel = (HEAD, "kernel")
    if kernel not in given:
        return f"new head for {wanted[kernel].shape[-1]} classes: the weights have none"
    old, new = given[kernel].shape, wanted[kernel].shape
    if old[-1] == new[-1] or old[:-1] != new[:-1]:
        return None
    return f"new head for {new[-1]} classes: that of the weights is for {old[-1]}"


def _check_names(given: Collection[Path], wanted: Collection[Path]) -> None:
    missing = [_name(path) for path in sorted(wanted) if path not in given]
    left = [_name(path) for path in sorted(given) if path not in wanted]
    problems = [f"lack {_some(missing)}"] if missing else []
    problems += [f"have {_some(left)}, for which there is no place"] if left else []
    if problems:
        raise CheckpointError(" and ".join(problems))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _name(path: Path) -> str:
    return ".".join(path)


def _shape(array: Any) -> str:
    return f"[{', '.join(map(str, array.shape))}]"
