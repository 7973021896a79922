"""Which radii are trustworthy, whether the configured one is, and what to type where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gnpcli.config.resolved import Resolved
from gnpcli.devices.process import describe_environment
from gnpcli.measure.fidelity import Deviation, Fidelity, measure_fidelity
from gnpcli.runs.trained import Trained
from gnpcli.terminal.screen import Screen
from gnpcli.terminal.words import rough_percent

_WORST: dict[str, Callable[[list[float]], float]] = {
    "penalty": max,
    "mixed": max,
    "cosine": min,
    "moved": min,
}
"""What the worst of several batches is, by field of `Deviation`."""


def check(
    config: Resolved,
    trained: Trained | None,
    *,
    radii: Sequence[float],
    dtypes: Sequence[str],
    batches: int,
    threshold: float,
    screen: Screen,
    accept_changed_data: bool = False,
) -> dict[str, Any]:
    """Measure the finite difference of a configuration on training batches, and judge it.

    Arguments and errors are those of `gnpcli.measure.fidelity.measure_fidelity`. A radius is
    trustworthy where the error of the penalty's gradient is below `threshold` on every batch.

    Returns:
        JSON-able: `step`, the sizes, `r` and `alpha` (of the configuration; alpha may be the
        default), `batches` with `gradient_norm` and `product_norm` (``||H u||``) of each; and for
        each of `types` its `dtype`, `exact` (the deviation of the exact gradient in that type, at
        the configured r or 0.1; null for float32), `radii` (each with `r`, `is_configured`,
        `is_trustworthy` and the mean and the worst of every field of `Deviation`; null where it is
        not finite), `trustworthy` (the lowest and highest trustworthy radius around the best one,
        null without any), `best` (the radius with the lowest error) and `verdict`, one sentence.
    """
    found = measure_fidelity(
        config,
        trained,
        radii=radii,
        dtypes=dtypes,
        batches=batches,
        screen=screen,
        accept_changed_data=accept_changed_data,
    )
    return {
        "model": config.model.name,
        "dataset": config.data.name,
        "batch_size": config.data.batch_size,
        "step": found.first,
        "r": found.r,
        "alpha": found.alpha,
        "threshold": threshold,
        "batches": found.norms,
        "types": [_judge_type(found, dtype, threshold) for dtype in dtypes],
        "environment": describe_environment(),
    }


def _judge_type(found: Fidelity, dtype: str, threshold: float) -> dict[str, Any]:
    exact = found.exact.get(dtype)
    return {
        "dtype": dtype,
        "exact": None if exact is None else _summary(exact),
        **judge(found.differences[dtype], found.radii, found.r, threshold, dtype),
    }


def _summary(batches: Sequence[Deviation]) -> dict[str, float | None]:
    """Return mean and worst over the batches of every field of `Deviation`.

    Both are null where the field of a batch is not finite.
    """
    found: dict[str, float | None] = {}
    for name, worst_of in _WORST.items():
        values = [float(getattr(deviation, name)) for deviation in batches]
        is_finite = all(map(math.isfinite, values))
        found[name] = sum(values) / len(values) if is_finite else None
        found[f"worst_{name}"] = worst_of(values) if is_finite else None
    return found


class _Sweep(NamedTuple):
    """The worst errors of a compute type over its radii."""

    radii: Sequence[float]
    """Rising."""
    errors: Sequence[float]
    """The largest error over the batches at each radius; infinite where one is not finite."""
    low: int
    """Index of the lowest trustworthy radius around the best one."""
    high: int
    """Index of the highest."""
    best: int
    """Index of the radius with the lowest error."""
    is_trusted: bool
    """Whether any radius is trustworthy."""

    def trusts(self, index: int) -> bool:
        """Return whether the radius at an index is in the trustworthy range."""
        return self.is_trusted and self.low <= index <= self.high


def _sweep(radii: Sequence[float], errors: Sequence[float], threshold: float) -> _Sweep:
    best = min(range(len(radii)), key=errors.__getitem__)
    low = high = best
    while low > 0 and errors[low - 1] <= threshold:
        low -= 1
    while high + 1 < len(radii) and errors[high + 1] <= threshold:
        high += 1
    return _Sweep(radii, errors, low, high, best, errors[best] <= threshold)


def judge(
    batches: Sequence[Sequence[Deviation]],
    radii: Sequence[float],
    r: float | None,
    threshold: float,
    dtype: str,
) -> dict[str, Any]:
    """Say which radii are trustworthy in a compute type, and whether the configured one is.

    Args:
        batches: For each batch the deviation at each of `radii`.
        radii: Rising; they contain `r`.
        r: The configured radius, if there is one.
        threshold: Largest error of the penalty's gradient, as a fraction.
        dtype: Named in the verdict.

    Returns:
        `radii`, `trustworthy`, `best` and `verdict` of a compute type, as `check` says.
    """
    rows = [_summary(column) for column in zip(*batches, strict=True)]
    sweep = _sweep(radii, [_worst_penalty(row) for row in rows], threshold)
    told = [_range(sweep, threshold)]
    if r is not None:
        told.append(_at_configured(sweep, r, threshold))
    return {
        "radii": [
            {
                "r": value,
                "is_configured": value == r,
                "is_trustworthy": sweep.trusts(index),
                **row,
            }
            for index, (value, row) in enumerate(zip(radii, rows, strict=True))
        ],
        "trustworthy": [radii[sweep.low], radii[sweep.high]] if sweep.is_trusted else None,
        "best": radii[sweep.best],
        "verdict": f"{dtype}: {'; '.join(told)}",
    }


def _worst_penalty(row: dict[str, float | None]) -> float:
    worst = row["worst_penalty"]
    return math.inf if worst is None else worst


def _range(sweep: _Sweep, threshold: float) -> str:
    """Say from where to where the finite difference is near the exact gradient."""
    within = f"within {rough_percent(threshold, 6)} of the exact gradient of the penalty"
    if not sweep.is_trusted:
        return f"the finite difference is nowhere {within}"
    low, high = sweep.radii[sweep.low], sweep.radii[sweep.high]
    return f"the finite difference is {within} for r from {low:g} to {high:g}"


def _at_configured(sweep: _Sweep, r: float, threshold: float) -> str:
    """Say how far off the configured radius is, why, and which one to take."""
    at = sweep.radii.index(r)
    error = sweep.errors[at]
    if error <= threshold:
        return f"the configured r = {r:g} is trustworthy (off by {_amount(error)})"
    off = f"the configured r = {r:g} is off by {_amount(error)}"
    if not sweep.is_trusted:
        return f"{off}, {_cause(sweep.radii, sweep.errors, at)}"
    if at < sweep.low:
        return f"{off} by rounding: take r >= {sweep.radii[sweep.low]:g}"
    return f"{off} by curvature: take r <= {sweep.radii[sweep.high]:g}"


def _cause(radii: Sequence[float], errors: Sequence[float], at: int) -> str:
    """Say what makes the error at index `at`, where no radius is trustworthy.

    How the error changes with r below it tells the cause. Curvature grows with r, rounding falls
    with 1/r. Where the loss has kinks, a step crosses a number of them that grows with r. Each
    adds its jump to the gradient in a direction of its own, and the error falls with about
    ``r**-0.5``. The Hessian knows no kinks, so the difference does not approach it.
    """
    below = [index for index in range(at) if radii[index] <= radii[at] / 3]
    if not below or not math.isfinite(errors[at]) or errors[below[-1]] == 0:
        return "too large a step to say why" if at else "and there is no smaller r here to say why"
    before = below[-1]
    slope = math.log(errors[at] / errors[before]) / math.log(radii[at] / radii[before])
    if slope > 0.25:
        return "by curvature"
    if slope < -0.75:
        return "by rounding"
    return (
        "and falls neither with r, as curvature would, nor with 1/r, as rounding would: the loss "
        "has kinks (ReLU, max pooling), which the difference sees and the Hessian does not"
    )


def _amount(error: float) -> str:
    """Return an error in words; 1 is the whole length of the exact gradient."""
    if error < 1:
        return rough_percent(error)
    if math.isinf(error):
        return "infinity"
    return f"{error:.3g} times its length"
