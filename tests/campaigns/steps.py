"""``python -m tests.campaigns.steps N DIR``: N steps, and the memory held at ten of them."""

from __future__ import annotations

import sys
from pathlib import Path

from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory
from gnpcli.engine.hooks import OnRecord
from gnpcli.engine.train import train
from gnpcli.recipes.presets import resolve
from gnpcli.runs.contents import Record
from tests.campaigns.runs import COMMON

PAGE_BYTES = 4096
STEPS_PER_EPOCH = 44
"""Of the digits in batches of 32."""


def resident() -> int:
    """Return the bytes that this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def main(steps: int, run: Path) -> None:
    """Train, and print a step and the memory held, about ten times."""
    keep_freed_memory()
    keep_compiled_programs()
    every = max(1, steps // 10)
    epochs = -(-steps // STEPS_PER_EPOCH)
    settings = (*COMMON, "data.batch_size=32", f"train.epochs={epochs}", "checkpoint.keep=2")

    def tell(record: Record) -> None:
        if record["split"] == "train" and record["step"] % every == 0:
            print(record["step"], resident(), flush=True)

    hook = OnRecord(every, tell)
    train(resolve(None, settings), run, hooks=[hook], max_steps=steps, quiet=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
