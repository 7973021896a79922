"""The two kinds of weights that a run has. Importing this module needs no other package."""

from __future__ import annotations

from typing import Literal

Weights = Literal["raw", "ema"]
"""The trained parameters themselves, or their moving average."""
