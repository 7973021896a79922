"""What the JSON files of a run folder hold, as types, and the checks that a file holds it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Literal, NotRequired, Required, TypeGuard, get_args

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic cannot read typing's before Python 3.12

from gnpcli.runs.identity import checked_run_id

Status = Literal["finished", "stopped", "interrupted", "diverged", "unfinished"]
"""How a run ended.

It ended at its last step, at ``--max-steps``, by a signal or its time limit, or at a loss or a
gradient that is not finite. An ``unfinished`` run is still going on, or was killed: it has no
summary, or has one of this status alone where it was started anew.
"""

HeldOut = Literal["val", "test"]
HELD_OUT: tuple[HeldOut, ...] = get_args(HeldOut)
"""The splits that are evaluated, beside ``train``, which is logged step by step."""

Record = dict[str, Any]
"""A line of ``metrics.jsonl``: `step` (int), `split` (text), and numbers by name.

A number is null where its value was not finite or too large, and ``non_finite`` lists the names of
those. ``weights`` is a text. Names and texts are printable, and short enough to stand in a picture.
`BOUNDS` has the numbers that cannot take every value.
"""

LONGEST_NAME = 200
"""Characters of a name or a text in a record."""

HIGHEST_COUNT = 2**53
"""The highest step or count: what a float holds exactly."""

LARGEST_NUMBER = 1e39
"""The size of the largest number. It is beyond float32, in which training computes."""

HIGHEST_RATE = 1.0001
"""The highest error rate. A mean of ones over groups may exceed 1 by its rounding."""

BOUNDS: dict[str, tuple[float, float]] = {
    "epoch": (-1e9, 1e9),
    "elapsed_s": (0, 1e12),
    "error_rate": (0, HIGHEST_RATE),
    "top5_error_rate": (0, HIGHEST_RATE),
    "num_examples": (0, HIGHEST_COUNT),
}
"""The lowest and the highest value of some numbers of a record."""

_STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

ErrorRate = Annotated[float, Field(ge=0, le=HIGHEST_RATE)]
Count = Annotated[int, Field(ge=0, le=HIGHEST_COUNT)]
Words = Annotated[str, Field(max_length=1000)]


@with_config(_STRICT)
class Measured(TypedDict):
    """What is measured of a model on a split."""

    error_rate: ErrorRate
    top5_error_rate: NotRequired[ErrorRate]
    """Of more than 5 classes."""
    loss: Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
    """Mean cross-entropy over the split, in nats."""
    num_examples: Count


@with_config(_STRICT)
class Evaluation(Measured):
    """The last evaluation of a split in a run."""

    step: Count
    weights: NotRequired[Words]
    """``raw`` or ``ema``."""


@with_config(_STRICT)
class Summary(TypedDict, total=False):
    """``summary.json``: where a run ended. A run that diverged has `status` and `error` alone."""

    run_dir: str
    status: Required[Status]
    error: str
    step: Count
    epoch: Annotated[float, Field(ge=0, le=1e9)]
    total_steps: Count
    num_parameters: Count
    skipped_steps: Count
    val: Evaluation
    test: Evaluation
    best_step: Count | None
    best_split: Words | None
    elapsed_s: Annotated[float, Field(ge=0, le=1e12)]
    """Of the last session."""
    images_per_s: Annotated[float, Field(ge=0, le=1e15)] | None
    """Of training alone; null where no step was timed."""


@with_config(_STRICT)
class Session(TypedDict, total=False):
    """An entry of ``environment.json``: what a run ran on from `start_step` on."""

    start_step: Count
    python: Words
    platform: Words
    versions: dict[Words, Words | None]
    backend: Words
    devices: list[Words]
    """Of all processes."""
    processes: Count
    processor: Words
    git_commit: Words | None
    data: str | None
    """`gnpcli.data.base.DataSpec.digest`; sessions of older versions have none."""
    accepted_data_changes: list[str]
    """What had changed of the data since the last session, where that was accepted."""
    computed_otherwise: list[str]
    """How the session was computed otherwise than ``config.yaml`` says, a key each."""


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


def is_at_end(summary: Summary, max_steps: int | None) -> bool:
    """Return whether nothing is left to do up to `max_steps`; None does all steps."""
    step, total = summary.get("step", 0), summary.get("total_steps", 0)
    stop = total if max_steps is None else min(total, max_steps)
    return is_done(summary, step) and step >= stop


SUMMARY: TypeAdapter[Summary] = TypeAdapter(Summary)
ENVIRONMENT: TypeAdapter[Environment] = TypeAdapter(Environment)
IDENTITY: TypeAdapter[Identity] = TypeAdapter(Identity)


def reason(error: ValidationError) -> str:
    """Return the first thing that is wrong with a file, with the key it is wrong at."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(_shortened(str(part)) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."


def is_record(value: object) -> bool:
    """Return whether a parsed line is a `Record`."""
    if not isinstance(value, dict):
        return False
    step = value.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= HIGHEST_COUNT:
        return False
    for key, item in value.items():  # a loop: logs have millions of values
        if not _fits(key, item):
            return False
    return "split" in value


def _fits(key: str, value: object) -> bool:
    if type(value) is float:  # nearly every value of a log
        low, high = _float_bounds(key)
        return low <= value <= high
    if key in ("split", "weights"):
        return _is_name(value)
    if key == "non_finite":
        return isinstance(value, list) and all(_is_name(name) for name in value)
    if not _is_short_and_printable(key):
        return False
    if value is None:
        return True
    low, high = BOUNDS.get(key, (-math.inf, math.inf))
    return is_number(value) and low <= value <= high


@lru_cache(maxsize=1000)  # a log has the same few names in every line
def _float_bounds(key: str) -> tuple[float, float]:
    """Return the least and the largest float of that name; none lies between where it has none."""
    if key in ("split", "weights", "non_finite") or not _is_short_and_printable(key):
        return math.inf, -math.inf
    low, high = BOUNDS.get(key, (-math.inf, math.inf))
    return max(low, -LARGEST_NUMBER), min(high, LARGEST_NUMBER)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _is_short_and_printable(value)


_NUMPY_HOLDS = 2**63


@lru_cache(maxsize=1000)
def _is_short_and_printable(text: str) -> bool:
    return 0 < len(text) <= LONGEST_NAME and text.isprintable()


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value can be one of a record: a number of at most `LARGEST_NUMBER` in size.

    True and false are no numbers. NaN is none either.
    """
    if isinstance(value, float):
        return abs(value) <= LARGEST_NUMBER
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _NUMPY_HOLDS
