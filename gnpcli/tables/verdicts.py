"""What the difference of two columns says of what was published or claimed, in a sentence."""

from __future__ import annotations

from typing import Literal

from gnpcli.tables.schema import Claim
from gnpcli.tables.spec import Table
from gnpcli.tables.statistics import Interval

Verdict = Literal["reproduced", "not reproduced", "not decided", "no claim"]


def judge(
    table: Table,
    row: str,
    pair: tuple[str, str],
    difference: Interval,
    published: float | None,
    claim: Claim | None,
) -> tuple[Verdict, str]:
    """Return a verdict on one comparison, and the sentence that says it.

    What is expected is the sign of the published difference, or else the claim. It is *reproduced*
    if the interval lies on the same side of 0, and *not reproduced* if it lies on the other. It is
    *not decided* if the interval includes 0, or if there is one seed only.

    Args:
        table: For labels and units.
        row: The row.
        pair: Column, and what it is compared with.
        difference: The first less the second.
        published: The published difference; None where there is none.
        claim: What is said about the two without a number.
    """
    found = _found(table, row, pair, difference)
    expected, says = _expected(table, pair, published, claim)
    if difference.half_width is None:
        return "not decided", f"{found} (one seed, no interval; {says}): not decided"
    if not difference.excludes_zero:
        return "not decided", f"{found} ({says}): not decided, the interval includes 0"
    if not expected:
        return "no claim", f"{found} ({says})"
    agrees = (difference.mean < 0) == (expected < 0)
    verdict: Verdict = "reproduced" if agrees else "not reproduced"
    return verdict, f"{found} ({says}): {verdict}"


def _found(table: Table, row: str, pair: tuple[str, str], difference: Interval) -> str:
    """Say which of two columns is better on a row, and by how much."""
    column, against = (table.label("columns", name) for name in pair)
    where = table.label("rows", row)
    if difference.mean == 0:
        return f"{column} and {against} are equal on {where}"
    size = f"{abs(difference.mean):.2f}"
    if difference.half_width is not None:
        size += f" ± {difference.half_width:.2f}"
    verb = "beats" if difference.mean < 0 else "loses to"
    unit = table.spec.metric.kind.difference_unit
    return f"{column} {verb} {against} by {size}{unit} on {where}"


def _expected(
    table: Table, pair: tuple[str, str], published: float | None, claim: Claim | None
) -> tuple[float, str]:
    """Return a number with the sign that is expected, 0 for none, and who expects it."""
    if published:
        return published, f"{published:+.2f} published"
    if claim is None:
        return 0.0, "no published difference to hold it against"
    better = table.label("columns", claim.better)
    sign = -1.0 if claim.better == pair[0] else 1.0
    return sign, f"{claim.source} says {better} is better"
