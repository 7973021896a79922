"""How JAX starts in a process of ours, and what is said where its environment is at fault.

JAX reads its settings from variables when it is imported, and looks for devices when it is first
asked for one. What is wrong with a variable is an error of the user's, not a bug.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from types import TracebackType

from gnpcli import errors
from gnpcli.devices.found import find_accelerators, may_have_tpu
from gnpcli.devices.unused import installed_versions, why_unused
from gnpcli.errors import GnpError

_SEED = "changes what a seed means"
_FAILS = "makes sound programs fail"
_NEEDED: dict[str, tuple[object, str]] = {
    "jax_default_prng_impl": ("threefry2x32", _SEED),
    "jax_threefry_partitionable": (True, _SEED),
    "jax_random_seed_offset": (0, _SEED),
    "jax_numpy_dtype_promotion": ("standard", _FAILS),
    "jax_debug_key_reuse": (False, _FAILS),
    "jax_transfer_guard": (None, _FAILS),
    "jax_transfer_guard_host_to_device": (None, _FAILS),
    "jax_transfer_guard_device_to_device": (None, _FAILS),
    "jax_transfer_guard_device_to_host": (None, _FAILS),
}
"""Settings of JAX that have to be as they are by default, and what another value does."""

_OF_PROGRAMS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_disable_jit",
    "jax_debug_nans",
    "jax_debug_infs",
)
"""Settings that change the programs of a step: processes that compute together share them."""

_HARMLESS_GUARDS = ("allow", "log")
_DEVICE_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES")
_STARTING = ("jax._src.config", "jax._src.xla_bridge")
"""Where JAX reads its settings, and where it looks for devices."""
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu asks the network for where nobody says it, and complains of not finding. A command
sets these variables for itself where there is no TPU.
"""
_PARSE_FLAGS = "from jaxlib import xla_client; xla_client.make_cpu_client()"
_ADVICE_OF_JAX = re.compile(r" \((set JAX_PLATFORMS|you may need)\b.*")
_FLAG_MESSAGE = re.compile(r"(Unknown flags? in XLA_FLAGS: .*|Could not open file .*)")


class StartError(GnpError):
    """JAX cannot start under the variables of its environment, or would not do what is asked."""


def start_jax() -> None:
    """Import JAX and let it find its devices.

    Raises:
        StartError: A variable asks for what would make a run fail, or give other numbers.
        Exception: JAX cannot start; `explain` says why.
    """
    check_xla_flags()
    import jax

    check_settings(jax.config.values)
    jax.local_devices()


def expect_no_tpu() -> None:
    """Keep libtpu quiet on a machine that has it to compile for TPUs, and has none.

    To be called before JAX is imported.
    """
    if find_spec("libtpu") is None or may_have_tpu():
        return
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)


def platform() -> str:
    """Return what JAX computes on: ``cpu``, ``gpu`` or ``tpu``. It has started."""
    import jax

    return str(jax.local_devices()[0].platform)


def check_settings(values: Mapping[str, object]) -> None:
    """Refuse settings under which a run would fail, or give other numbers, without a word.

    Args:
        values: Settings of JAX by name, such as ``jax_enable_x64``. One that this version of JAX
            does not have is as by default.

    Raises:
        StartError: With the variable to unset.
    """
    for name, (needed, what) in _NEEDED.items():
        value = values.get(name, needed)
        is_guard = name.startswith("jax_transfer_guard") and value in _HARMLESS_GUARDS
        if value != needed and not is_guard:
            raise StartError(f"{name.upper()}={value} {what}: unset it")


def settings_of_programs() -> list[str]:
    """Return the settings of JAX, as ``NAME=value``, that give other programs of a step."""
    import jax

    values = jax.config.values
    return [f"{name.upper()}={values[name]}" for name in _OF_PROGRAMS if name in values]


@cache
def check_xla_flags() -> None:
    """Refuse flags that XLA does not know, in a process of its own: XLA aborts the one it is in.

    Raises:
        StartError: With XLA's word.
    """
    if not os.environ.get("XLA_FLAGS"):
        return
    done = subprocess.run(
        [sys.executable, "-c", _PARSE_FLAGS], stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if done.returncode == 0:
        return
    found = _FLAG_MESSAGE.search(done.stderr)
    reason = found[0] if found else "it does not take its flags"
    raise StartError(f"XLA does not start: {reason}; correct or unset {_typed(['XLA_FLAGS'])}")


def explain(error: BaseException) -> tuple[str | None, int]:
    """Return the message of an error for a user, and the exit status, as `errors.explain` does.

    An error with which JAX does not start counts as the user's, too.
    """
    message, status = errors.explain(error)
    if message is None:
        message = start_problem(error)
    return message, status


def start_problem(error: BaseException) -> str | None:
    """Return why JAX cannot start, and what to do; None for any other error."""
    place = _innermost_module(error.__traceback__)
    if place not in _STARTING:
        return None
    text = " ".join(str(error).split())
    if place == "jax._src.config":
        return f"JAX does not start: {text}; correct or unset {_culprits(text)}"
    reason = _ADVICE_OF_JAX.sub("", text) or "no such device is here"
    return no_device(reason)


def no_device(reason: str) -> str:
    """Return what to do where the variables ask for a device that JAX does not find."""
    return (
        f"JAX finds no device for {_typed(_DEVICE_VARIABLES)} ({reason}): "
        f"set JAX_PLATFORMS=cpu or unset it, or {_mend()}"
    )


def _mend() -> str:
    """Return how to install what uses the accelerator of this machine."""
    advice = why_unused(find_accelerators(), installed_versions())
    return "install the jax of your accelerator" if advice is None else advice.mend


def _culprits(text: str) -> str:
    """Return the variables that an error of JAX's settings is about, as they are typed."""
    given = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    named = [name for name in given if name.lower() in text.lower()]
    held = [name for name, value in given.items() if value and value in text]
    return _typed(named or held)


def _typed(names: Iterable[str]) -> str:
    typed = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    return ", ".join(typed) or "the variables JAX_..."


def _innermost_module(trace: TracebackType | None) -> str | None:
    """Return the module in which an error was raised."""
    module = None
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__")
        trace = trace.tb_next
    return module
