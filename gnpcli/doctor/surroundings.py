"""What there is beside the devices: versions, variables, folders, data sets and the terminal.

Nothing here imports JAX. Each part may fail by itself, as `gnpcli.doctor.examine` has it.
"""

from __future__ import annotations

import locale
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gnpcli import __version__
from gnpcli.devices.process import cache_dir, processor
from gnpcli.devices.start import NO_TPU
from gnpcli.devices.unused import installed_versions
from gnpcli.errors import ConfigError, explain

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "scipy",
    "ml_dtypes",
    "grain",
    "tensorflow_datasets",
    "pillow",
)
_PLUGIN = re.compile(r"(jax[-_]cuda|jax[-_]rocm|libtpu|nvidia[-_](cudnn|nccl)|jax[-_]metal)", re.I)

_PREFIXES = ("JAX_", "XLA_", "GNP_", "CUDA_", "NVIDIA_VISIBLE", "TPU_", "LIBTPU_", "TFDS_")
_NAMES = (
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TF_XLA_FLAGS",
    "XDG_CACHE_HOME",
)
_LOGIN = re.compile(r"(?<=//)[^/@\s]+(?=@)")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|KEY")
HIDDEN = "***"

SHARED_MEMORY = Path("/dev/shm")
"""What worker processes hand images over in."""
OURS = ("compiled programs", "cache")
"""The folders whose size is told: one may empty them."""


def versions() -> dict[str, str | None]:
    """Return the versions of Python, of this program and of what it computes with."""
    found = installed_versions(LIBRARIES)
    return {
        "python": platform.python_version(),
        "gnpcli": __version__,
        **{name: found.get(name) for name in LIBRARIES},
    }


def plugins() -> list[str]:
    """Return what is installed for accelerators, each as ``name version``."""
    found = set()
    for each in metadata.distributions():
        name = each.metadata["Name"] if each.metadata else None
        if name and _PLUGIN.match(name):
            found.add(f"{name} {each.version}")
    return sorted(found)


def system() -> dict[str, str | None]:
    """Return what the processes run under."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "executable": sys.executable,
        "container": _container(Path("/")),
    }


def _container(root: Path) -> str | None:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run" / ".containerenv").exists():
        return "podman"
    return os.environ.get("container")  # noqa: SIM112, systemd's own


def variables(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that act on a run, as ``NAME=value`` without what is secret."""
    return [
        f"{name}={HIDDEN if _SECRET.search(name) else _LOGIN.sub(HIDDEN, value)}"
        for name, value in sorted(environment.items())
        if (name.startswith(_PREFIXES) or name in _NAMES) and NO_TPU.get(name) != value
    ]


def folders() -> list[dict[str, Any]]:
    """Return the folders that are written to: where, how full, and whether it works."""
    places = {
        "compiled programs": _programs,
        "cache": cache_dir,
        "data sets": _prepared,
        "this folder": Path.cwd,
    }
    if SHARED_MEMORY.is_dir():
        places["shared memory"] = lambda: SHARED_MEMORY
    return [_folder(name, find) for name, find in places.items()]


def _programs() -> Path:
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(given) if given else cache_dir() / "xla"


def _prepared() -> Path:
    from gnpcli.data.archives.places import target_dir

    return Path(target_dir(None))


def _folder(name: str, find: Callable[[], Path]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": name,
        "path": None,
        "num_bytes": None,
        "free_bytes": None,
        "problem": None,
    }
    try:
        path = find()
        facts["path"] = str(path)
        facts["problem"] = why_not_writable(path)
        facts["free_bytes"] = shutil.disk_usage(_nearest(path)).free
        facts["num_bytes"] = size_of(path) if name in OURS else None
    except (OSError, ValueError, ConfigError) as error:
        facts["problem"] = explain(error)[0] or str(error)
    return facts


def _nearest(path: Path) -> Path:
    """Return the folder, or the one above it that is there."""
    for place in (path, *path.absolute().parents):
        if place.is_dir():
            return place
    return Path("/")


def why_not_writable(path: Path) -> str | None:
    """Return why no file can be made in a folder, which need not be there; None where it works.

    Nothing is left behind: a folder that is not there is not made.
    """
    for place in (path, *path.absolute().parents):
        if place.is_dir():
            break
        if place.exists() or place.is_symlink():
            return f"{place} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{error.strerror or error}: {place}"
    return None


MOST_FILES = 20_000
"""How many files of a folder are counted: a cache of images may have a million."""


def size_of(path: Path) -> int | None:
    """Return the bytes of the files of a folder; None where there are more than `MOST_FILES`."""
    total = count = 0
    for folder, _, names in os.walk(path):
        count += len(names)
        if count > MOST_FILES:
            return None
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def data_sets(directory: str | None = None) -> list[dict[str, Any]]:
    """Return the data sets that are here, and those whose folder is damaged."""
    from gnpcli.data.registry import list_sources

    return [
        {"name": row.name, "format": row.format, "where": row.where, "problem": row.problem}
        for row in list_sources(directory)
        if row.format or row.problem
    ]


def terminal() -> dict[str, Any]:
    """Return what texts are shown on, and in which encoding."""
    columns = shutil.get_terminal_size().columns
    return {
        "is_terminal": sys.stdout.isatty(),
        "columns": columns,
        "kind": os.environ.get("TERM"),
        "encoding": getattr(sys.stdout, "encoding", None),
        "locale": locale.setlocale(locale.LC_CTYPE),
        "file_names": sys.getfilesystemencoding(),
    }
