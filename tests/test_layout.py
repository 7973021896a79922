"""The structure itself: what may import what, and that the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gnpcli"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_presets" not in path.parts)
HEAVY = {"jax", "flax", "optax", "orbax", "numpy", "PIL", "tensorboardX", "scipy", "matplotlib"}
CORE = [
    "gnpcli.gnp",
    "gnpcli.step.gradient",
    "gnpcli.step.train",
    "gnpcli.step.schedules",
    "gnpcli.step.losses",
    "gnpcli.step.optimizer",
]
LIGHT = [
    "gnpcli",
    "gnpcli.cli",
    "gnpcli.config",
    "gnpcli.config.loader",
    "gnpcli.recipes.presets",
    "gnpcli.errors",
    "gnpcli.models",
    "gnpcli.data",
    "gnpcli.tables.spec",
    "gnpcli.tables.cells",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
FOLDERS = [
    name for name, path in MODULES.items() if path.name == "__init__.py" and path.parent != PACKAGE
]


def imports(path: Path) -> set[str]:
    """Modules imported at import time (not inside functions or under TYPE_CHECKING), as full dotted names."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.Import(names=names):
                    found.update(alias.name for alias in names)
                case ast.ImportFrom(module=str(module), names=names):
                    found.update(
                        f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module
                        for alias in names
                    )
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    pass
                case ast.If() | ast.Try() | ast.With():
                    visit(node.body)

    visit(ast.parse(path.read_text()).body)
    return found


GRAPH = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}


def test_no_import_cycles():
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for inner in GRAPH[name]:
                walk(inner, (*trail, name))
            done.add(name)

    for name in GRAPH:
        walk(name, ())


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_of_a_folder_do_not_import_its_init(folder):
    for name, path in MODULES.items():
        if name.startswith(f"{folder}."):
            assert folder not in GRAPH[name], path


@pytest.mark.parametrize(
    "leaf",
    [
        "gnpcli.errors",
        "gnpcli.gnp",
        "gnpcli.step.losses",
        "gnpcli.runs.log",
        "gnpcli.devices.process",
    ],
)
def test_leaves_import_nothing_of_ours(leaf):
    inside = [name for name in GRAPH if name == leaf or name.startswith(f"{leaf}.")]
    assert set().union(*(GRAPH[name] for name in inside)) <= set(inside)


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_no_engine_no_presets_and_no_files(name):
    seen, todo = set(), [name]
    while todo:
        current = todo.pop()
        seen.add(current)
        todo += GRAPH[current] - seen
    assert not seen & {
        "gnpcli.engine",
        "gnpcli.recipes.presets",
        "gnpcli.runs.checkpoint",
        "gnpcli.runs.log",
        "gnpcli.data",
        "gnpcli.cli",
    }


def test_only_the_command_line_imports_the_command_line():
    for name, imported in GRAPH.items():
        if not name.startswith("gnpcli.cli"):
            assert not any(target.startswith("gnpcli.cli") for target in imported), name


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}} & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["--version"], 0),
        (["presets", "list"], 0),
        (["models", "list"], 0),
        (["presets", "list", "--json"], 0),
        (["presets", "show", "vit-s-cifar10"], 0),
        (["tables", "list"], 0),
        (["reproduce-table", "nothing"], 1),
        (["train", "--preset", "nothing"], 1),
        (["train", "--set", "optimizer.lrr=1"], 1),
        (["train", "--set", "model.name=vit-huge"], 1),
        (["train", "--dataset", "imagnet"], 1),
        (["train", "--set", "nonsense"], 2),
        (["train", "--nonsense"], 2),
    ],
)
def test_commands_that_train_nothing_import_no_jax(arguments, status):
    code = (
        "import sys\nfrom gnpcli.cli import main\n"
        f"sys.argv = ['gnp', *{arguments!r}]\n"
        "try:\n    main()\n    status = 0\nexcept SystemExit as stop:\n    status = stop.code or 0\n"
        f"heavy = sorted({{m.partition('.')[0] for m in sys.modules}} & {HEAVY!r})\n"
        "assert not heavy, heavy\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
