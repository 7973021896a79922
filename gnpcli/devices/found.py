"""Which accelerators a machine has, whether or not JAX can use them. It imports no JAX.

What is found is a function of a root folder and an environment, so that a test can build a machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gnpcli.files import text_if_any

ROOT = Path("/")
"""Where the device files of this machine are."""

NVIDIA_FILES = ("dev/nvidia[0-9]*", "dev/nvidiactl")
"""One of each GPU, and the one that containers may have alone."""
WSL_FILE = "dev/dxg"
"""The GPU of a Windows below Linux, of whichever maker."""
WSL_FOLDER = "usr/lib/wsl/lib"

TPU_FILES = ("dev/accel[0-9]*",)
"""Of TPU v2 to v4."""
VFIO_FILES = ("dev/vfio/[0-9]*",)
"""Of later TPUs, and of every other device that is handed to a virtual machine."""
VENDORS = "sys/bus/pci/devices/*/vendor"
"""Of what is on the PCI bus."""
GOOGLE = "0x1ae0"
TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_NAME")
NO_TPU_HERE = "TPU_SKIP_MDS_QUERY"
"""With it the variables of a TPU describe one that is compiled for, which need not be here."""

HIDDEN = {"CUDA_VISIBLE_DEVICES": ("", "-1", "NoDevFiles"), "NVIDIA_VISIBLE_DEVICES": ("void",)}
"""Variables by which a person hides all GPUs, and their values."""

_ASKED = ("name", "memory.total", "driver_version")
_ASKED_OF_NEW_DRIVERS = (*_ASKED, "compute_cap")
_ANSWERS_WITHIN_S = 20.0
_KERNEL_MODULE = re.compile(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)*)\s")


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver names it."""

    name: str
    memory_bytes: int | None = None
    driver: str | None = None
    capability: float | None = None
    """The compute capability, such as 9.0; an old driver does not say."""


@dataclass(frozen=True)
class Found:
    """What a machine has."""

    nvidia: tuple[str, ...] = ()
    """What shows that there is a GPU of NVIDIA."""
    gpus: tuple[Gpu, ...] = ()
    """What `nvidia-smi` lists; empty where it does not answer."""
    driver: str | None = None
    """The version of NVIDIA's driver; None where nobody says."""
    tpu: tuple[str, ...] = ()
    """What shows that there is a TPU."""


def find_accelerators(
    root: Path | None = None, environment: Mapping[str, str] = os.environ, *, ask: bool = False
) -> Found:
    """Return what a machine has.

    `nvidia-smi` is run only where a device file is, or where it is asked for.

    Args:
        root: The root folder; None takes this machine's.
        environment: Variables. Those that hide a device act.
        ask: Whether to run `nvidia-smi` where no device file is.
    """
    root = ROOT if root is None else root
    tpu = _tpu(root, environment)
    if is_hidden(environment):
        return Found(tpu=tpu)
    nvidia = nvidia_files(root, environment)
    program = _nvidia_smi(root, environment)
    gpus: tuple[Gpu, ...] = ()
    if program is not None and (nvidia or ask):
        gpus = _listed(program, environment)
        nvidia = nvidia or (("nvidia-smi",) if gpus else ())
    driver = next((gpu.driver for gpu in gpus if gpu.driver), None) or _kernel_module(root)
    return Found(nvidia, gpus, driver if nvidia else None, tpu)


def may_have_tpu(root: Path | None = None, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a machine has a TPU, or a device that could be one."""
    root = ROOT if root is None else root
    return bool(_tpu(root, environment) or _files(root, VFIO_FILES))


def is_hidden(environment: Mapping[str, str]) -> bool:
    """Return whether a variable hides the GPUs."""
    return any(environment.get(name) in values for name, values in HIDDEN.items())


def nvidia_files(root: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the device files of NVIDIA below a root folder, as ``/dev/nvidia0``."""
    found = _files(root, NVIDIA_FILES)
    if not found and (root / WSL_FILE).exists() and _nvidia_smi(root, environment):
        return (f"/{WSL_FILE}",)
    gpus = [name for name in found if name != "/dev/nvidiactl"]
    return tuple(gpus or found)


def _tpu(root: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    files = _files(root, TPU_FILES)
    if not files and _has_google_device(root):
        files = _files(root, VFIO_FILES)
    if files or environment.get(NO_TPU_HERE):
        return files
    return tuple(name for name in TPU_VARIABLES if environment.get(name))


def _files(root: Path, patterns: tuple[str, ...]) -> tuple[str, ...]:
    found = [path for pattern in patterns for path in root.glob(pattern)]
    return tuple(sorted(f"/{path.relative_to(root).as_posix()}" for path in found))


def _has_google_device(root: Path) -> bool:
    return any(text_if_any(path).strip() == GOOGLE for path in root.glob(VENDORS))


def _nvidia_smi(root: Path, environment: Mapping[str, str]) -> str | None:
    places = [environment.get("PATH", os.defpath), str(root / WSL_FOLDER)]
    return shutil.which("nvidia-smi", path=os.pathsep.join(places))


def _listed(program: str, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    for asked in (_ASKED_OF_NEW_DRIVERS, _ASKED):
        command = [program, f"--query-gpu={','.join(asked)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(
                command,
                env={**environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_ANSWERS_WITHIN_S,
            )
        except (OSError, subprocess.SubprocessError):
            return ()
        if done.returncode == 0:
            rows = [line.split(",") for line in done.stdout.splitlines()]
            return tuple(_gpu(row) for row in rows if len(row) == len(asked))
    return ()


def _gpu(row: list[str]) -> Gpu:
    name, memory, driver, *more = (text.strip() for text in row)
    mebibytes = _number(memory)
    return Gpu(
        name=name,
        memory_bytes=None if mebibytes is None else int(mebibytes) << 20,
        driver=driver or None,
        capability=_number(more[0]) if more else None,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported]
        return None


def _kernel_module(root: Path) -> str | None:
    found = _KERNEL_MODULE.search(text_if_any(root / "proc" / "driver" / "nvidia" / "version"))
    return found[1] if found else None
