"""One file-system event of a process that kills it, or that fails.

The events are counted by a library in C, ``faults.c``, which is preloaded. So it sees the writes
of TensorStore as it sees those of Python. Its counts are those that strace gives.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("faults.c")


@dataclass(frozen=True)
class Fault:
    """What happens at which event below a folder."""

    under: Path
    """Absolute; events elsewhere are not counted."""
    at: int
    """Number of the event, from 1. With 0 nothing happens, and events are counted."""
    do: Literal["kill", "torn"] | int = "kill"
    """``kill`` is SIGKILL in the place of the event. ``torn`` kills after half of a write. A number
    is the errno that the event fails with."""
    kind: Literal["change", "read"] = "change"
    """Whether events that change files are counted, or those that read them."""
    rest: bool = False
    """Whether all later events fail as well."""
    log: Path | None = None
    """Gets a line ``NUMBER CALL PATH`` for each event."""

    def environment(self) -> dict[str, str]:
        """Return the variables that tell a process so."""
        variables = {
            "GNP_FAULT_UNDER": str(self.under),
            "GNP_FAULT_KIND": self.kind,
            "GNP_FAULT_AT": str(self.at),
            "GNP_FAULT_DO": str(self.do),
            "GNP_FAULT_REST": str(int(self.rest)),
        }
        return variables if self.log is None else {**variables, "GNP_FAULT_LOG": str(self.log)}


def build(folder: Path) -> Path | None:
    """Compile the library into `folder`; return None where there is no Linux or no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        return None
    library = folder / "faults.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:  # a compiler without the headers of the C library, or without glibc's calls
        print(f"faults.c does not compile here: {done.stderr[-500:]}", file=sys.stderr)
        return None
    return library
