"""An accelerator that is here and that JAX does not use: why, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import NamedTuple

from gnpcli.devices.found import Found, find_accelerators
from gnpcli.terminal.words import listing

CUDA_13_DRIVER, CUDA_12_DRIVER = 580, 525
"""The oldest drivers, as JAX's installation guide has them."""
CUDA_13_CAPABILITY = 7.5
"""The oldest GPUs that CUDA 13 knows: Turing."""

CUDA_PLUGINS = {"cuda13": "jax-cuda13-plugin", "cuda12": "jax-cuda12-plugin"}
"""What JAX's extras install that find a GPU."""
CUDA_LIBRARIES = {"cuda13": "jax-cuda13-pjrt", "cuda12": "jax-cuda12-pjrt"}
TPU_PLUGIN = "libtpu"
PLUGINS = (*CUDA_PLUGINS.values(), *CUDA_LIBRARIES.values(), TPU_PLUGIN)


class Advice(NamedTuple):
    """What is wrong, and what to do about it."""

    what: str
    mend: str
    needs_jax: bool = False
    """Whether only a JAX that has started shows that it is so."""


def installed_versions(names: tuple[str, ...] = ("jax", "jaxlib", *PLUGINS)) -> dict[str, str]:
    """Return the versions of those of some distributions that are installed."""
    from importlib import metadata  # it takes 20 ms, which every command would pay

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def asks_for_cpu(environment: Mapping[str, str]) -> bool:
    """Return whether a person has chosen the CPU."""
    chosen = environment.get("JAX_PLATFORMS") or environment.get("JAX_PLATFORM_NAME") or ""
    return chosen.partition(",")[0].strip().lower() == "cpu"


def unused_accelerator(platform: str | None) -> str | None:
    """Return a line about an accelerator of this machine that computes nothing; None without one.

    Args:
        platform: What JAX computes on, as `jax.Device.platform` has it. None where JAX has not
            started: then only what is sure without it is told.
    """
    if platform not in (None, "cpu") or asks_for_cpu(os.environ):
        return None
    advice = why_unused(find_accelerators(), installed_versions())
    if advice is None or (platform is None and advice.needs_jax):
        return None
    return f"{advice.what}, so the CPU computes: {advice.mend}"


def why_unused(found: Found, versions: Mapping[str, str]) -> Advice | None:
    """Return why JAX does not see an accelerator that is here; None where there is none.

    Args:
        found: The machine.
        versions: Of `installed_versions`.
    """
    if found.nvidia:
        return _why_no_gpu(found, versions)
    if found.tpu:
        return _why_no_tpu(found, versions)
    return None


def cuda_extra(found: Found) -> str | None:
    """Return which extra of JAX a machine's driver and GPUs can take; None: the driver is too old.

    Where nobody says what the driver is, it is the extra that takes the older ones too.
    """
    known = [gpu.capability for gpu in found.gpus if gpu.capability is not None]
    driver = major(found.driver)
    if driver is not None and driver < CUDA_12_DRIVER:
        return None
    is_new = driver is not None and driver >= CUDA_13_DRIVER
    return "cuda13" if is_new and min(known, default=99.0) >= CUDA_13_CAPABILITY else "cuda12"


def major(version: str | None) -> int | None:
    """Return the first number of a version.

    >>> major("580.65.06"), major(None)
    (580, None)
    """
    found = re.match(r"\d+", version or "")
    return int(found[0]) if found else None


def _why_no_gpu(found: Found, versions: Mapping[str, str]) -> Advice:
    here = _gpus(found)
    extra = cuda_extra(found)
    if extra is None:
        return Advice(
            f"{here} needs a newer driver than {found.driver} for JAX",
            f"install NVIDIA's driver {CUDA_12_DRIVER} or newer ({CUDA_13_DRIVER} for CUDA 13), "
            f"then {install('jax[cuda12]', versions)}",
        )
    have = [name for name, plugin in CUDA_PLUGINS.items() if plugin in versions]
    if not have:
        return Advice(f"{here} is here, and this JAX is for the CPU alone", _jax(extra, versions))
    if "cuda13" in have and extra == "cuda12" and found.driver is not None:
        return Advice(
            f"{here} cannot run CUDA 13 with driver {found.driver}, and this JAX is for CUDA 13",
            f"{uninstall('cuda13')} && {_jax('cuda12', versions)}",
        )
    if len(have) > 1:
        other = next(name for name in have if name != extra)
        return Advice(
            f"{here} is here, and JAX's plugins for CUDA 12 and CUDA 13 are both installed",
            f"{uninstall(other)} && {_jax(extra, versions)}",
        )
    plugin = CUDA_PLUGINS[have[0]]
    if versions[plugin] != versions.get("jaxlib"):
        return Advice(
            f"{here} is here, but {plugin} {versions[plugin]} is not for jaxlib "
            f"{versions.get('jaxlib')}",
            _jax(have[0], versions),
        )
    return Advice(
        f"{here} is here, and {plugin} {versions[plugin]} does not find it",
        "`gnp doctor` says what JAX met",
        needs_jax=True,
    )


def _why_no_tpu(found: Found, versions: Mapping[str, str]) -> Advice:
    shown = ", ".join(found.tpu[:2])
    if TPU_PLUGIN not in versions:
        return Advice(f"a TPU is here ({shown}), and libtpu is missing", _jax("tpu", versions))
    return Advice(
        f"a TPU is here ({shown}), and libtpu {versions[TPU_PLUGIN]} does not find it",
        "end the process that holds it; `gnp doctor` says what JAX met",
        needs_jax=True,
    )


def _gpus(found: Found) -> str:
    names = list(dict.fromkeys(gpu.name for gpu in found.gpus))
    if not names:
        return f"a GPU of NVIDIA ({found.nvidia[0]})"
    many = f"{len(found.gpus)} x " if len(found.gpus) > 1 else ""
    return f"{many}{listing(names)}"


def _jax(extra: str, versions: Mapping[str, str]) -> str:
    return install(f"jax[{extra}]", versions)


def install(requirement: str, versions: Mapping[str, str]) -> str:
    """Return the command that installs an extra of JAX, in the version that is here."""
    pin = f"=={versions['jax']}" if "jax" in versions else ""
    return f'{_pip("install")} "{requirement}{pin}"'


def uninstall(extra: str) -> str:
    """Return the command that removes a plugin for CUDA."""
    return f"{_pip('uninstall')} {CUDA_PLUGINS[extra]} {CUDA_LIBRARIES[extra]}"


def _pip(what: str) -> str:
    """Return how to install with the Python that runs now."""
    is_default = shutil.which("python") == sys.executable
    python = "python" if is_default else shlex.quote(sys.executable)
    if importlib.util.find_spec("pip") is None:
        return f"uv pip {what} --python {python}"
    return f"{python} -m pip {what}{' -y' if what == 'uninstall' else ''}"
