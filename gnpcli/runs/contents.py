"""What the JSON files of a run folder hold, as types, and the checks that a file holds it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NotRequired, Required, TypeGuard, get_args

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic cannot read typing's before Python 3.12

from gnpcli.runs.identity import checked_run_id

Status = Literal["finished", "stopped", "interrupted", "diverged", "unfinished"]
"""How a run ended.

It ended at its last step, at ``--max-steps``, by a signal, or at a loss or a gradient that is not
finite. An ``unfinished`` run has no summary: it is still going on, or was killed.
"""

HeldOut = Literal["val", "test"]
HELD_OUT: tuple[HeldOut, ...] = get_args(HeldOut)
"""The splits that are evaluated, beside ``train``, which is logged step by step."""

Record = dict[str, Any]
"""A line of ``metrics.jsonl``: `step` (int), `split` (text), and numbers by name.

A number is null where its value was not finite, and ``non_finite`` lists the names of those.
``weights`` is a text.
"""

_STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


@with_config(_STRICT)
class Measured(TypedDict):
    """What is measured of a model on a split."""

    error_rate: float
    """In [0, 1]."""
    top5_error_rate: NotRequired[float]
    """In [0, 1]; of more than 5 classes."""
    loss: float
    """Mean cross-entropy over the split, in nats."""
    num_examples: int


@with_config(_STRICT)
class Evaluation(Measured):
    """The last evaluation of a split in a run."""

    step: int
    weights: NotRequired[str]
    """``raw`` or ``ema``."""


@with_config(_STRICT)
class Summary(TypedDict, total=False):
    """``summary.json``: where a run ended. A run that diverged has `status` and `error` alone."""

    run_dir: str
    status: Required[Status]
    error: str
    step: int
    epoch: float
    total_steps: int
    num_parameters: int
    skipped_steps: int
    val: Evaluation
    test: Evaluation
    best_step: int | None
    best_split: str | None
    elapsed_s: float
    """Of the last session."""
    images_per_s: float | None
    """Of training alone; null where no step was timed."""


@with_config(_STRICT)
class Session(TypedDict, total=False):
    """An entry of ``environment.json``: what a run ran on from `start_step` on."""

    start_step: int
    python: str
    platform: str
    versions: dict[str, str | None]
    backend: str
    devices: list[str]
    processor: str
    git_commit: str | None
    data: str | None
    """`gnpcli.data.base.DataSpec.digest`; sessions of older versions have none."""
    accepted_data_changes: list[str]
    """What had changed of the data since the last session, where that was accepted."""


@with_config(_STRICT)
class Environment(TypedDict):
    """``environment.json``: one session for the start and for each resume."""

    sessions: list[Session]


@with_config(ConfigDict(strict=True, extra="forbid"))
class Identity(TypedDict):
    """``run.json``: written once, when the run begins."""

    id: Annotated[str, AfterValidator(checked_run_id)]
    """What the saves of the run bear."""


def is_done(summary: Summary, step: int) -> bool:
    """Return whether a run has come to an end at `step` and has measured what it leaves."""
    is_whole = summary["status"] in ("finished", "stopped") and "elapsed_s" in summary
    return is_whole and summary.get("step") == step


SUMMARY: TypeAdapter[Summary] = TypeAdapter(Summary)
ENVIRONMENT: TypeAdapter[Environment] = TypeAdapter(Environment)
IDENTITY: TypeAdapter[Identity] = TypeAdapter(Identity)


def reason(error: ValidationError) -> str:
    """Return the first thing that is wrong with a file, with the key it is wrong at."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def is_record(value: object) -> bool:
    """Return whether a parsed line is a `Record`."""
    if not isinstance(value, dict):
        return False
    step, split = value.get("step"), value.get("split")
    if not isinstance(step, int) or not is_number(step) or step < 0 or not isinstance(split, str):
        return False
    return all(_fits(key, item) for key, item in value.items())


def _fits(key: str, value: object) -> bool:
    if key in ("split", "weights"):
        return isinstance(value, str)
    if key == "non_finite":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    return value is None or is_number(value)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value of a record is a finite number; true and false are none."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) < 2**63  # what NumPy holds
    return isinstance(value, float) and math.isfinite(value)
