"""Models outside this package: how their names are read, and how their code is imported.

A name is ``module:entry`` for a module on the Python path or in the current folder, or
``FILE:entry`` for a file: ``./mynet.py:small``, ``./mynet:small``, ``/home/me/mynet.py:small``.

Code runs where a person names it: on the command line, or in the call of a program. A file that
names code may come from anybody. Examples are the ``config.yaml`` of a run, a preset and the
description of a checkpoint. Code that only a file names runs where the person trusts it, which
``--trust-code`` and ``GNP_TRUST_CODE=1`` say. To name a module that is imported already runs
nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from gnpcli.config.paths import resolved_path
from gnpcli.devices import start
from gnpcli.devices.start import StartError, start_problem
from gnpcli.errors import ConfigError

TRUST = "GNP_TRUST_CODE"
"""The environment variable that is ``1`` where code may run that only a file names."""

_KEY = "model.name"
_FORMS = "module:entry or ./file.py:entry"
_PACKAGE = Path(__file__).resolve().parents[1]
_ran: set[str] = set()
"""Names of the modules, or of the packages around them, that `note_code` was told of."""


@dataclass(frozen=True)
class OwnModel:
    """Where the entry of a model outside this package is."""

    name: str
    """As written."""
    module: str
    """Full name of the module. A file has one of its own, made of its path."""
    file: Path | None
    """The file, absolute; None where `module` is looked for on the Python path."""
    entry: str
    """Name of the entry in the module."""


def is_own(name: str) -> bool:
    """Return whether a name means a model outside this package, well written or not."""
    return ":" in name or "/" in name


def read_name(name: str) -> OwnModel:
    """Read the name of a model outside this package. No code runs.

    Raises:
        ConfigError: It has none of the two forms, or there is no such file.
    """
    code, colon, entry = name.rpartition(":")
    if not colon:
        raise ConfigError(f"model {name!r} lacks an entry: it is {_FORMS}", _KEY)
    if not code or not entry.isidentifier():
        raise ConfigError(f"model {name!r} is not of the form {_FORMS}", _KEY)
    if "/" in code or code.endswith(".py"):
        file = _file(name, code)
        return OwnModel(name, _module_of(file), file, entry)
    if not all(part.isidentifier() for part in code.split(".")):
        raise ConfigError(
            f"model {name!r}: {code!r} is not the full name of a module, nor a file such as "
            f"./mynet.py",
            _KEY,
        )
    return OwnModel(name, code, None, entry)


def _file(name: str, code: str) -> Path:
    path = resolved_path(code, _KEY)
    for choice in (path, Path(f"{path}.py"), path / "__init__.py"):
        if choice.suffix == ".py" and choice.is_file():
            return choice
    raise ConfigError(f"model {name!r}: there is no file {code.removesuffix('.py')}.py", _KEY)


def _module_of(file: Path) -> str:
    """Return a name that no other module has: ``numpy.py`` must not be taken for NumPy."""
    stem = file.parent.name if file.stem == "__init__" else file.stem
    return f"{stem}@{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def is_trusting() -> bool:
    """Return whether code may run that only a file names."""
    return os.environ.get(TRUST) == "1"


def is_imported(name: str) -> bool:
    """Return whether the module of a model outside this package is imported already."""
    try:
        return read_name(name).module in sys.modules
    except ConfigError:  # an ill-formed name, or a file that is not here
        return False


def refusal(own: OwnModel) -> ConfigError:
    """Return the error that the code of a model may not run, with the file that would."""
    return ConfigError(
        f"model {own.name!r} is code from outside this program: {own.file or _place(own.module)} "
        f"would run; if you trust it, add --trust-code (or set {TRUST}=1)",
        _KEY,
    )


def _place(module: str) -> str:
    """Return what importing a module would run. No package around it is imported to find out."""
    inside = Path(*module.split("."))
    for folder in (*sys.path, os.getcwd()):
        for path in (folder / inside / "__init__.py", folder / inside.with_suffix(".py")):
            if path.is_file():
                return f"module {module} ({path.absolute()})"
    return f"module {module}"


def import_own(own: OwnModel) -> ModuleType:
    """Import the module of a model.

    A module by name is also looked for in the current folder. What a file imports is also looked
    for beside the file.

    Raises:
        ConfigError: There is no such module, or its code fails; with the file and line.
    """
    _search(os.getcwd() if own.file is None else str(own.file.parent))
    note_code(own.module)
    try:
        return importlib.import_module(own.module) if own.file is None else _run_file(own)
    except (Exception, SystemExit) as error:
        problem = start_problem(error)
        if problem is not None:
            raise StartError(problem) from error
        raise ConfigError(
            f"model {own.name!r}: '{own.file or own.module}' cannot be imported: {in_words(error)}",
            _KEY,
        ) from error


def _search(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that it hides no installed module


def _run_file(own: OwnModel) -> ModuleType:
    if own.module in sys.modules:
        return sys.modules[own.module]
    assert own.file is not None
    spec = importlib.util.spec_from_file_location(own.module, own.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own.module] = module  # so that its entries find it by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own.module]
        raise
    return module


def note_code(module: str) -> None:
    """Remember that a module, of this package or not, has the code of a model."""
    package = module.partition(".")[0]
    if package != __package__.partition(".")[0]:
        _ran.add(package)


def explain(error: BaseException) -> tuple[str | None, int]:
    """Return the message of an error for a user, and the exit status, as `start.explain` does.

    What is raised in the code of a model of one's own, or in what that code calls, counts as the
    user's, too.
    """
    message, status = start.explain(error)
    if message is None and _is_in_own_code(error):
        message = f"the code of the model fails: {in_words(error)} (gnp --debug shows more)"
    return message, status


def _is_in_own_code(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")) for frame in frames]
    return any(module.partition(".")[0] in _ran for module in modules)


def in_words(error: BaseException) -> str:
    """Return an error of a person's own code in a line, with the file and line of that code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_of_a_person(frame.filename)]
    place = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    return f"{place}{kind}{_first_line(error)}"


def _first_line(error: BaseException) -> str:
    """Return the first line of an error that has text; those of JAX go on for pages."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), "")


def _is_of_a_person(filename: str) -> bool:
    """Return whether a file is neither of this package nor of Python and what is installed."""
    if filename.startswith("<") or "site-packages" in filename:
        return False
    path, library = Path(filename), Path(os.__file__).parent
    return not path.is_relative_to(_PACKAGE) and not path.is_relative_to(library)
