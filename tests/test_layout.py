"""The structure itself: which room stands on which, who loads jax, and how calm the code is.

Every import counts: those inside functions and those under ``TYPE_CHECKING`` as well. A name
that is only looked up at run time is as much an arrow of the design as any other.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "gnpcli"
HEAVY = {"jax", "flax", "optax", "orbax", "numpy", "PIL", "tensorboardX", "scipy", "matplotlib"}

LAYERS: list[set[str]] = [
    {"errors", "files", "git_lfs", "keys", "strict_json", "gnp", "terminal"},
    {"config", "locks"},
    {"devices"},
    {"models", "data"},
    {"step"},
    {"recipes"},
    {"runs"},
    {"weights", "report"},
    {"engine"},
    {"measure", "bench", "doctor"},
    {"tables"},
    {"cluster"},
    {"cli"},
]
"""The rooms, floor by floor from the ground up.

An arrow points from a floor to a lower one, or stays in its room.
"""

FLOORS_WITHIN: dict[str, list[set[str]]] = {
    "models": [
        {"base", "layers", "torch", "options", "own"},
        {"family", "drawing"},
        {"families"},
        {"registry", "summary"},
    ],
    "data": [
        {"progress", "statistics", "fingerprint"},
        {"base"},
        {"validation", "changes", "room"},
        {"images", "augment"},
        {"archives", "feeds"},
        {"sources"},
        {"listing"},
        {"registry"},
    ],
}
"""The floors inside the rooms that have rooms of their own."""

LEAVES = {"errors", "files", "git_lfs", "strict_json", "gnp", "terminal"}
"""Rooms that import nothing of ours but errors."""


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_presets" not in path.parts)
MODULES = {module_name(path): path for path in FILES}


def named(node: ast.AST) -> set[str]:
    """Return the dotted names of an import statement, those of modules before those of packages."""
    match node:
        case ast.Import(names=names):
            return {alias.name for alias in names}
        case ast.ImportFrom(module=str(module), names=names):
            full = {f"{module}.{alias.name}" for alias in names}
            return (full & MODULES.keys()) | ({module} if full - MODULES.keys() else set())
    return set()


def every_import(path: Path) -> set[str]:
    """Return all that a file imports anywhere."""
    return set().union(*(named(node) for node in ast.walk(ast.parse(path.read_text()))))


def imports_at_import_time(path: Path) -> set[str]:
    """Return what a file imports when it is imported itself: at its top level, for run time."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    pass
                case ast.If() | ast.Try() | ast.With():
                    visit(node.body)
                case _:
                    found.update(named(node))

    visit(ast.parse(path.read_text()).body)
    return found


@functools.cache
def imported() -> dict[str, set[str]]:
    """Return which other modules each one imports."""
    return {name: (every_import(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    """Return the room of a module, the package itself being no room."""
    return module.split(".")[1] if "." in module else ""


def rooms() -> set[str]:
    return {room(module) for module in MODULES} - {""}


def upward(floors: list[set[str]], arrows: set[tuple[str, str]]) -> list[str]:
    """Return the arrows that do not point to a lower floor."""
    height = {name: number for number, floor in enumerate(floors) for name in floor}
    return sorted(f"{start} -> {end}" for start, end in arrows if height[end] >= height[start])


def test_every_room_has_a_floor():
    assert rooms() == set().union(*LAYERS)


def test_arrows_between_rooms_point_down():
    arrows = {(room(name), room(other)) for name, others in imported().items() for other in others}
    assert (
        upward(LAYERS, {(start, end) for start, end in arrows if start != end and start and end})
        == []
    )


@pytest.mark.parametrize("folder", FLOORS_WITHIN)
def test_arrows_inside_a_room_point_down(folder):
    inner = {name: name.split(".")[2] for name in MODULES if name.startswith(f"gnpcli.{folder}.")}
    assert set(inner.values()) == set().union(*FLOORS_WITHIN[folder])
    arrows = {
        (inner[name], inner[other]) for name in inner for other in imported()[name] & inner.keys()
    }
    assert (
        upward(FLOORS_WITHIN[folder], {(start, end) for start, end in arrows if start != end}) == []
    )


def test_no_import_cycles():
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for inner in imported()[name]:
                walk(inner, (*trail, name))
            done.add(name)

    for name in imported().keys() - {"gnpcli"}:
        walk(name, ())


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_nothing_of_ours(leaf):
    outside = {
        other
        for name, others in imported().items()
        if room(name) == leaf
        for other in others
        if room(other) != leaf
    }
    assert outside <= {"gnpcli.errors"}


def test_files_of_a_folder_do_not_import_its_init():
    folders = {
        name for name, path in MODULES.items() if path.name == "__init__.py" and name != "gnpcli"
    }
    wrong = [
        f"{name} -> {folder}"
        for folder in folders
        for name in MODULES
        if name.startswith(f"{folder}.") and folder in imported()[name]
    ]
    assert wrong == []


def test_only_the_terminal_draws_with_rich():
    found = {
        room(name)
        for name, path in MODULES.items()
        for other in every_import(path)
        if other.partition(".")[0] == "rich"
    }
    assert found == {"terminal"}


@cache
def loads_heavy(name: str) -> bool:
    """Return whether importing a module imports one of `HEAVY`, by what the files say."""
    found = imports_at_import_time(MODULES[name])
    if any(other.partition(".")[0] in HEAVY for other in found):
        return True
    return any(loads_heavy(other) for other in found & MODULES.keys() if other != name)


LIGHT = [
    "gnpcli.cli",
    "gnpcli.config.resolved",
    "gnpcli.recipes.presets",
    "gnpcli.models.registry",
    "gnpcli.data.registry",
    "gnpcli.tables.cells",
]
"""The modules that a command needs before it knows what to do. They load nothing heavy."""


def light_modules() -> list[str]:
    """Return all modules that the modules of `LIGHT` import, and all of the command line."""
    todo = [name for name in MODULES if room(name) in ("cli", "config") or name in LIGHT]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += imports_at_import_time(MODULES[name]) & MODULES.keys()
    return sorted(seen)


def test_light_modules_import_nothing_heavy():
    assert [name for name in light_modules() if loads_heavy(name)] == []


def test_light_modules_load_nothing_heavy_when_they_are_imported():
    code = (
        f"import sys, {', '.join(light_modules())}\n"
        f"print(*sorted({{name.partition('.')[0] for name in sys.modules}} & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FORMAT_SKIPS = 10


def code_lines(tree: ast.Module, text: str) -> set[int]:
    """Return the numbers of the lines that hold code: no blank lines, comments or docstrings."""
    documented: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return {
        number for number, line in lines if line.strip() and not line.strip().startswith("#")
    } - documented


def test_no_generated_page_is_kept():
    """A result keeps what people read and its data; a command makes its page."""
    assert [str(path) for path in (REPOSITORY / "docs").rglob("*.html")] == []


def test_files_are_short():
    long = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > MAX_FILE_LINES} == {}


def test_functions_fit_a_screen():
    long: dict[str, int] = {}
    for name, path in MODULES.items():
        text = path.read_text()
        tree = ast.parse(text)
        code = code_lines(tree, text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = code & set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
                if len(body) > MAX_FUNCTION_LINES:
                    long[f"{name}.{node.name}"] = len(body)
    assert long == {}


def test_the_formatter_is_rarely_told_to_keep_off():
    skips = [
        f"{path}"
        for path in [*FILES, *Path(__file__).parent.glob("*.py")]
        if path != Path(__file__) and "fmt: skip" in path.read_text()
    ]
    count = sum(Path(path).read_text().count("fmt: skip") for path in skips)
    assert count <= MAX_FORMAT_SKIPS, skips


WITHOUT_TRAINING = [
    ("--help", 0),
    ("train --help", 0),
    ("--version", 0),
    ("presets list", 0),
    ("models list", 0),
    ("presets list --json", 0),
    ("presets show vit-s-cifar10", 0),
    ("tables list", 0),
    ("reproduce-table nothing", 1),
    ("train --preset nothing", 1),
    ("train --set optimizer.lrr=1", 1),
    ("train --set model.name=vit-huge", 1),
    ("train --dataset imagnet", 1),
    ("train --set nonsense", 2),
    ("train --nonsense", 2),
]
"""Commands that train nothing, and their status."""

ONE_AFTER_ANOTHER = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from gnpcli.cli import main

found = {{}}
for command in json.loads(sys.argv[1]):
    sys.argv = ["gnp", *command.split()]
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
    heavy = sorted({{name.partition(".")[0] for name in sys.modules}} & {HEAVY!r})
    found[command] = [status, heavy, told.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def light() -> dict[str, tuple[int, list[str], str]]:
    """Return of each command its status, what of `HEAVY` is imported after it, and its output."""
    words = json.dumps([command for command, _ in WITHOUT_TRAINING])
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, list[str], str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("command", "status"), WITHOUT_TRAINING)
def test_commands_that_train_nothing_import_no_jax(light, command, status):
    assert light[command][:2] == [status, []], light[command]
    assert "Traceback" not in light[command][2]


def test_the_architecture_page_names_every_room_on_its_floor():
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    told: dict[str, int] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1].isdigit():
            for name in re.findall(r"`(\w+)(?:/|\.py)`", cells[2]):
                told[name] = int(cells[1])
    assert told == {name: floor for floor, names in enumerate(LAYERS, start=1) for name in names}
