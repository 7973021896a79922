"""Machines that are not here: a root folder with device files, and a driver that answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

SMI = """\
#!{python}
import sys
asked = next(word for word in sys.argv if word.startswith("--query-gpu=")).partition("=")[2]
if "compute_cap" in asked and {is_old}:
    sys.exit("Field 'compute_cap' is not a valid field to query.")
for name, memory, driver, capability in {gpus!r}:
    row = [name, memory, driver, capability]
    print(", ".join(row[: len(asked.split(","))]))
"""

H200 = ("NVIDIA H200", "143771", "580.65.06", "9.0")
V100 = ("Tesla V100-SXM2-16GB", "16384", "580.65.06", "7.0")
A100_535 = ("NVIDIA A100-SXM4-40GB", "40960", "535.129.03", "8.0")


def machine(
    folder: Path,
    files: Sequence[str] = (),
    gpus: Sequence[tuple[str, ...]] | None = None,
    *,
    is_old: bool = False,
) -> dict[str, str]:
    """Make a root folder with `files`, and return the environment that finds its `nvidia-smi`.

    Args:
        folder: The root.
        files: Names below it; ``name=text`` has that text.
        gpus: What `nvidia-smi` lists; None leaves the program out.
        is_old: Whether it does not know compute capabilities.
    """
    for each in files:
        name, _, text = each.partition("=")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    programs = folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    if gpus is not None:
        program = programs / "nvidia-smi"
        program.write_text(SMI.format(python=sys.executable, gpus=[*gpus], is_old=is_old))
        program.chmod(0o755)
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def program(root: Path) -> str:
    """Return Python code that is the command line on a machine with another root folder."""
    return (
        "from pathlib import Path\n"
        "from gnpcli.devices import found\n"
        f"found.ROOT = Path({str(root)!r})\n"
        "from gnpcli.cli import main\n"
        "main()\n"
    )
