"""A grid that is drawn anew as it changes."""

from __future__ import annotations

from types import TracebackType

from rich.live import Live

from gnpcli.terminal.grid import Grid, draw
from gnpcli.terminal.screen import Screen

REDRAWN_PER_S = 4


class LiveGrid:
    """Keeps a grid at the foot of a terminal; a context manager, which wipes it at its end.

    Elsewhere, and on a quiet screen, `is_shown` is false and it does nothing.
    """

    def __init__(self, screen: Screen):
        self._live: Live | None = None
        if screen.console.is_terminal and not screen.is_quiet:
            self._live = Live(
                console=screen.console, refresh_per_second=REDRAWN_PER_S, transient=True
            )

    @property
    def is_shown(self) -> bool:
        """Whether a person sees the grid."""
        return self._live is not None

    def update(self, grid: Grid) -> None:
        """Show another grid from now on."""
        if self._live is not None:
            self._live.update(draw(grid))

    def __enter__(self) -> LiveGrid:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
