"""Tests that compile for TPUs: where libtpu is, and how a process finds it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def libtpu_folder() -> Path | None:
    """Return the folder that has libtpu: ``GNP_TEST_LIBTPU``, ``.libtpu`` here, or installed."""
    for folder in (os.environ.get("GNP_TEST_LIBTPU", ""), REPOSITORY / ".libtpu"):
        if folder and (Path(folder) / "libtpu" / "__init__.py").is_file():
            return Path(folder)
    found = find_spec("libtpu")
    return Path(found.origin).parents[1] if found is not None and found.origin else None


needs_libtpu = pytest.mark.skipif(
    libtpu_folder() is None, reason="libtpu is not installed: pip install 'gnpcli[plan]'"
)


def with_libtpu(variables: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process that finds libtpu and this checkout."""
    paths = [str(libtpu_folder()), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    joined = os.pathsep.join(path for path in paths if path)
    return {**os.environ, "PYTHONPATH": joined, **(variables or {})}
