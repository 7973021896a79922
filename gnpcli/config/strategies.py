"""The strategies of gradient regularization, in one table.

A strategy says how r and alpha move during the GR warmup (arXiv 2406.09723). To add one is to add a
row to `STRATEGIES`: the schedule, the checks, the sentences and the help all read the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Warmup = Callable[[Any, float, float], tuple[Any, Any]]
"""``(w, r, alpha) -> (r, alpha)`` at the share w of the warmup, rising from 0 to 1.

Plain arithmetic: w is a Python number or a traced float32 scalar, and so are the results.
"""


@dataclass(frozen=True)
class Strategy:
    """One strategy of gradient regularization."""

    name: str
    """What ``gr.strategy`` and ``--gr`` call it."""
    help: str
    """What it does, as a phrase, for the documentation of the option."""
    penalises: bool = True
    """Whether any step is penalised; without it the whole run trains plainly."""
    warmup: Warmup | None = None
    """How r and alpha move during the warmup; None keeps them as configured from the first step."""
    is_plain_first: bool = False
    """Whether the steps of the warmup are plain: one gradient each."""
    words: str = ""
    """What happens "for the first N epochs", in the sentence about the objective."""
    alpha: float | None = None
    """The alpha that the strategy means, whatever is configured; None takes `gr.alpha`."""

    @property
    def warms_up(self) -> bool:
        """Whether the strategy needs a GR warmup of more than 0 epochs."""
        return self.warmup is not None or self.is_plain_first


NONE = "none"
"""The strategy that trains plainly, which is the default."""
AT_ONCE = "constant"
"""The strategy of full strength from the first step."""

_TABLE = (
    Strategy(NONE, "trains plainly", penalises=False),
    Strategy(AT_ONCE, "r and alpha at full strength from the first step"),
    Strategy("sam", "as constant, with alpha = 1", alpha=1.0),
    Strategy(
        "lambda-warmup",
        "alpha rises from 0",
        warmup=lambda w, r, alpha: (r, alpha * w),
        words="alpha rising from 0",
    ),
    Strategy(
        "r-warmup",
        "r rises from 0",
        warmup=lambda w, r, alpha: (r * w, alpha),
        words="r rising from 0",
    ),
    Strategy("zero-warmup", "plain steps first", is_plain_first=True, words="plain"),
)

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in _TABLE}
"""Every strategy by its name."""
