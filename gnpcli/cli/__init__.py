"""The command line: thin commands that import what is heavy only when they run."""

from __future__ import annotations

from gnpcli.devices.signals import command_signals
from gnpcli.terminal.lasting import keep_output


def main() -> None:
    """Run the command line, whatever becomes of its terminal, until it ends or is interrupted."""
    keep_output()
    with command_signals():
        from gnpcli.cli.app import run  # it takes a while, in which Ctrl-C may come

        run()
