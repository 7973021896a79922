"""Paths as people write them, read in one way everywhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gnpcli.errors import ConfigError


def is_usable(text: str) -> bool:
    """Return whether files and paths can hold a text."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 has half characters
        return False
    return "\0" not in text


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""``gs://bucket/x``, also as ``gs:/bucket/x``, which `Path` makes of it. A drive has one letter."""


def is_url(text: str) -> bool:
    """Return whether a text names something by a scheme, such as ``gs://bucket/x``."""
    return _URL.match(text) is not None


def expanded(text: str | os.PathLike[str], key: str | None = None) -> str:
    """Return a path with ``~`` and ``~user`` as home folders.

    Args:
        text: As typed, or as a file or a variable of the environment has it.
        key: Key of the configuration that it is the value of, for the error.

    Raises:
        ConfigError: It holds a NUL, which no path can, is a URL, or names the home of a user who
            is not there.
    """
    path = os.fspath(text)
    if "\0" in path:
        raise ConfigError(f"{path!r}: a path cannot hold a NUL character", key)
    if is_url(path):
        raise ConfigError(f"{path} is a URL, not a path: {_instead(path)}", key)
    full = os.path.expanduser(path)
    if path.startswith("~") and full == path:
        user = path.partition("/")[0]
        raise ConfigError(
            f"{path}: {user} is the home of no user; a folder of that name is ./{user}", key
        )
    return full


def _instead(url: str) -> str:
    """Return what to give in the place of a URL."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() == "file":
        return f"write /{rest.lstrip('/')}"
    return "copy what is there to this machine, or mount it, and give the path of that"


def expanded_variable(name: str) -> str:
    """Return the path in a variable of the environment; empty where it is not set.

    Raises:
        ConfigError: As `expanded`, with the name of the variable.
    """
    try:
        return expanded(os.environ.get(name, ""))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that `text` means.

    Raises:
        ConfigError: As `expanded`; or it is empty, as a variable of a script that is not set.
    """
    if not os.fspath(text):
        raise ConfigError("the path is empty: give one ('.' is this folder), or leave it out")
    return Path(expanded(text))


def resolved_path(text: str | os.PathLike[str], key: str | None = None) -> Path:
    """Return the path that `text` means, absolute and without symbolic links.

    Raises:
        ConfigError: As `expanded`; or symbolic links lead in a circle.
    """
    path = Path(expanded(text, key))
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links, by the version of Python
        reason = getattr(error, "strerror", None) or "symbolic links lead in a circle"
        raise ConfigError(f"{path}: {reason}", key) from error


def checkpoint_path(text: str | os.PathLike[str]) -> Path:
    """Return `resolved_path` of a folder that holds checkpoints, or a run.

    Raises:
        ConfigError: As `resolved_path`; or it is not UTF-8, and what writes checkpoints takes
            nothing else.
    """
    path = resolved_path(text)
    if not is_usable(str(path)):
        raise ConfigError(
            f"{path}: checkpoints cannot be kept where a name is not UTF-8: take another folder"
        )
    return path
