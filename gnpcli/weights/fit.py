"""Fitting weights to a model.

Every parameter finds its place, or the message names one that does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gnpcli.errors import CheckpointError
from gnpcli.models.base import HEAD, Params, State
from gnpcli.models.torch.facts import Path

Resize = Callable[[Path, np.ndarray, tuple[int, ...]], np.ndarray | None]
"""See `gnpcli.models.family.Family`."""

Arrays = dict[Path, Any]
"""The leaves of a tree of parameters or state by path: arrays, or their shapes and dtypes."""


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
        state: Their BatchNorm statistics, or ``{}``.
        init: Draws initial parameters and state of the model. Only the shapes are computed, and the
            values of a new head.
        resize: The family's; None where it can resize nothing.

    Raises:
        CheckpointError: Parameters are missing, left over, or of another shape. The message names
            the first of them. It has no subject: put one before it ("the weights").
    """
    wanted_params, wanted_state = jax.eval_shape(init)
    given, wanted = flatten_dict(params), flatten_dict(wanted_params)
    new_head = _why_new_head(given, wanted)
    if new_head is not None:
        given = _with_head_of(wanted, given)
    _check_names(given, wanted)
    fitted, resized = _fit_shapes(given, wanted, resize)
    _check_state(flatten_dict(state), flatten_dict(wanted_state))
    params = unflatten_dict(fitted)
    if new_head is not None:
        params[HEAD] = _draw_head(init)
    return Fitted(params, state, _notes(new_head, resized))


def _why_new_head(given: Arrays, wanted: Arrays) -> str | None:
    """Say why the classifier starts anew.

    None where the weights' own fits. None also where it differs in more than the number of classes:
    then the weights are of another model.
    """
    kernel = (HEAD, "kernel")
    if kernel not in given:
        return f"new head for {wanted[kernel].shape[-1]} classes: the weights have none"
    old, new = given[kernel].shape, wanted[kernel].shape
    if old[-1] == new[-1] or old[:-1] != new[:-1]:
        return None
    return f"new head for {new[-1]} classes: that of the weights is for {old[-1]}"


def _with_head_of(wanted: Arrays, given: Arrays) -> Arrays:
    """Return `given` with the head of `wanted` in place of its own."""
    body = {path: array for path, array in given.items() if path[0] != HEAD}
    head = {path: shape for path, shape in wanted.items() if path[0] == HEAD}
    return body | head


def _draw_head(init: Callable[[], tuple[Params, State]]) -> Any:
    """Return the initial values of the head; compiled, the rest of the model is not computed."""
    return jax.device_get(jax.jit(lambda: init()[0][HEAD])())


def _fit_shapes(given: Arrays, wanted: Arrays, resize: Resize | None) -> tuple[Arrays, list[str]]:
    """Return the arrays in the wanted shapes, and what was resized, a text each."""
    fitted: Arrays = {}
    resized: list[str] = []
    for path, like in wanted.items():
        array = given[path]
        if array.shape != like.shape:
            array = _resized(path, array, like, resize)
            resized.append(f"{_name(path)} {_shape(given[path])} -> {_shape(like)}")
        fitted[path] = array
    return fitted, resized


def _resized(path: Path, array: Any, like: Any, resize: Resize | None) -> Any:
    other = None
    if resize is not None:
        other = resize(path, array, like.shape)
    if other is None or other.shape != like.shape:
        raise _other_shape(path, array, like)
    return other


def _check_state(given: Arrays, wanted: Arrays) -> None:
    """Refuse state of other names or shapes: nothing of it can be resized."""
    _check_names(given, wanted)
    for path, like in wanted.items():
        if given[path].shape != like.shape:
            raise _other_shape(path, given[path], like)


def _check_names(given: Arrays, wanted: Arrays) -> None:
    missing = [_name(path) for path in sorted(wanted) if path not in given]
    left = [_name(path) for path in sorted(given) if path not in wanted]
    problems = []
    if missing:
        problems.append(f"lack {_some(missing)}")
    if left:
        problems.append(f"have {_some(left)}, for which there is no place")
    if problems:
        raise CheckpointError(" and ".join(problems))


def _other_shape(path: Path, array: Any, like: Any) -> CheckpointError:
    return CheckpointError(f"have {_name(path)} {_shape(array)}, not {_shape(like)}")


def _notes(new_head: str | None, resized: list[str]) -> list[str]:
    """Return what is not as it was in the weights, a line each."""
    notes = []
    if new_head is not None:
        notes.append(new_head)
    if resized:
        notes.append(f"resized bicubically: {_some(resized, shown=1)}")
    return notes


def _some(texts: list[str], shown: int = 3) -> str:
    """List the first texts, and count the rest."""
    listed = ", ".join(texts[:shown])
    rest = len(texts) - shown
    return f"{listed} and {rest} more" if rest > 0 else listed


def _name(path: Path) -> str:
    return ".".join(path)


def _shape(array: Any) -> str:
    return f"[{', '.join(map(str, array.shape))}]"
