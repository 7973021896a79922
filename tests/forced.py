"""Code on several devices, which this machine is forced to have."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

from tests.commands import FINDS_SMALL, command_server

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}

UNOPTIMISED = 'import jax; jax.config.update("jax_disable_most_optimizations", True)\n'
"""Compiling is what these programs spend their time on; unoptimised it takes half of it.

Which devices hold what, and what they tell each other, is decided before.
"""


def on_eight_devices(code: str, *arguments: object, optimised: bool = False) -> Any:
    """Run code in a process with eight devices; return the JSON of its last line.

    What is compared bit for bit is `optimised`, as users have it.
    """
    done = command_server().run(
        [*map(str, arguments)],
        cwd=Path.cwd(),
        env={**os.environ, **FINDS_SMALL, **EIGHT},
        timeout=900,
        program=("" if optimised else UNOPTIMISED) + textwrap.dedent(code),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
