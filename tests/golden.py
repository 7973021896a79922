"""Golden values: what a change of the code's shape must not change.

    python -m tests.golden write FILE         # the values of this checkout
    python -m tests.golden check FILE         # this checkout against such a file
    python -m tests.golden compare REVISION   # this checkout against a commit; both run here

The values are, bit for bit, the trained arrays of short runs, and the structure of every JSON
output. Bits are equal on one machine and with one set of versions only, so a comparison runs both
sides. The commands are run as a user would run them, and checkpoints are read with Orbax alone:
nothing here depends on where a module lives.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 20

MODELS: dict[str, dict[str, Any]] = {
    "vit-nano": {},
    "small": {"model.name": "tests.small:small"},
    "wrn-16-4": {"model.name": "wrn-16-4", "data.batch_size": 16},
}
GNP = {"gr.strategy": "constant", "gr.r": 0.05, "gr.alpha": 0.8}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"gr.strategy": "none"},
    "gnp": GNP,
    "exact": {**GNP, "gr.gradient": "exact"},
    "groups": {**GNP, "gr.groups": 4},
    "accumulate": {**GNP, "train.accumulate": 4},
    "looksam": {**GNP, "gr.every": 3, "gr.between": "reuse"},
    "ema": {**GNP, "train.ema_decay": 0.9, "train.evaluate_weights": "ema"},
}
MORE: dict[str, dict[str, Any]] = {
    "sam": {"gr.strategy": "sam", "gr.r": 0.05},
    "lambda-warmup": {**GNP, "gr.strategy": "lambda-warmup", "gr.warmup_epochs": 0.3},
    "r-warmup": {**GNP, "gr.strategy": "r-warmup", "gr.warmup_epochs": 0.3},
    "zero-warmup": {**GNP, "gr.strategy": "zero-warmup", "gr.warmup_epochs": 0.2},
    "probability": {**GNP, "gr.probability": 0.5},
    "asam": {**GNP, "gr.ascent": "adaptive"},
    "norms": {**GNP, "gr.perturb": "norms"},
    "gsam": {**GNP, "gr.surrogate_gap": 0.2},
    "unit": {**GNP, "gr.mix": "unit"},
    "l2": {**GNP, "train.l2": 0.01, "optimizer.weight_decay": 0, "gr.penalize_l2": False},
    "bfloat16": {**GNP, "train.dtype": "bfloat16"},
    "remat": {**GNP, "train.remat": True},
    "sgd": {**GNP, "optimizer.name": "sgd", "schedule.name": "stepped"},
    "rmsprop": {**GNP, "optimizer.name": "rmsprop", "schedule.name": "exponential"},
    "constant-lr": {**GNP, "schedule.name": "constant", "train.label_smoothing": 0.1},
    "augmented": {**GNP, "data.augment": "basic", "data.mix": "mixup"},
}
"""Methods of the small network alone."""


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each training run and what it sets."""
    for model, own in MODELS.items():
        for method, keys in METHODS.items():
            yield f"{model} {method}", {**own, **keys}
    for method, keys in MORE.items():
        yield f"small {method}", {**MODELS["small"], **keys}


SMALL = "--set model.name=tests.small:small"
ONCE = f"{SMALL} --rounds 1 --steps 1"
COMMANDS: dict[str, str] = {
    "train dry run": f"train {SMALL} --max-steps 2 --run-dir run --dry-run",
    "train": f"train {SMALL} --max-steps 2 --run-dir run",
    "resume": "resume run --max-steps 3",
    "second run": f"train {SMALL} --seed 1 --max-steps 2 --run-dir other",
    "eval": "eval run",
    "inspect": "inspect run --examples 64 --top 1 --resolution 2",
    "check": "check run --batches 1 --per-decade 1",
    "compare": "compare run other",
    "presets list": "presets list",
    "models list": "models list",
    "models show": "models show vit-nano",
    "data list": "data list",
    "doctor": "doctor --dtype float32",
    "tables list": "tables list",
    "tables show": "tables show adam-vs-gr-digits",
    "reproduce-table dry run": "reproduce-table adam-vs-gr-digits --dry-run",
    "plan": f"plan --on h100:4 {SMALL} --gr constant --set gr.r=0.1 --set gr.alpha=0.5",
    "plan of a table": "plan adam-vs-gr-digits --on h100:1",
    "bench": f"bench {ONCE}",
    "bench gr": f"bench gr {ONCE}",
    "bench data": f"bench data {ONCE} --variants none,basic",
    "bench telemetry": f"bench telemetry {ONCE}",
    "bench scale": "bench scale --kinds shuffling",
    "bench start": f"bench start {SMALL}",
}
"""Every command with a JSON output, without its ``--json``.

Each finds what it needs in what those before it left.
"""


Run = Callable[[Path, Path, list[str]], str]
"""Runs a command of a checkout in a folder, as `run_gnp` does."""


def run_gnp(tree: Path, folder: Path, arguments: list[str]) -> str:
    """Run a command of the checkout `tree` in `folder`; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", "from gnpcli.cli import main; main()", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree), "GNP_TRUST_CODE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise RuntimeError(f"gnp {' '.join(arguments)}: {done.stderr[-2000:]}")
    return done.stdout


def run_json(tree: Path, folder: Path, arguments: str, run: Run = run_gnp) -> Any:
    """Run a command of the checkout `tree`; return the structure of its JSON output."""
    return structure(json.loads(run(tree, folder, [*arguments.split(), "--json"])))


def structure(value: Any) -> Any:
    """Return a JSON value with its leaves replaced by their types; a list by the structures that
    occur in it.
    """
    match value:
        case dict():
            return {key: structure(inner) for key, inner in value.items()}
        case list():
            different = {json.dumps(structure(inner), sort_keys=True) for inner in value}
            return [json.loads(text) for text in sorted(different)]
        case bool():
            return "bool"
        case int() | float():
            return "number"
    return type(value).__name__


def outline(value: Any) -> dict[str, Any]:
    """Return the keys alone of a JSON value, or of its structure: the part that no machine changes.

    A leaf has none. The elements of a list are taken together.
    """
    if isinstance(value, dict):
        return {key: outline(inner) for key, inner in value.items()}
    together: dict[str, Any] = {}
    for element in value if isinstance(value, list) else ():
        _merge(together, outline(element))
    return together


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, inner in other.items():
        _merge(into.setdefault(key, {}), inner)


def hash_arrays(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of each item of a checkpoint: of the paths, types, shapes and bytes of its
    arrays.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import orbax.checkpoint as ocp

    hashes = {}
    for item in ("model", "ema", "optimizer"):
        if not (checkpoint / item).exists():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Orbax asks on what devices; here it does not matter
            tree = ocp.PyTreeCheckpointer().restore(checkpoint / item)
        digest = hashlib.sha256()
        for path, leaf in sorted(
            (jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
        ):
            is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        hashes[item] = digest.hexdigest()
    return hashes


def collect(tree: Path, only: str = "", *, run: Run = run_gnp) -> dict[str, Any]:
    """Return the golden values of the checkout `tree`, those whose names hold `only`.

    Its commands are run by `run`.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, keys in cases():
            if only not in case:
                continue
            made = folder / case.replace(" ", "-")
            sets = [
                part for key, value in keys.items() for part in ("--set", f"{key}={_yaml(value)}")
            ]
            run(
                tree,
                folder,
                ["train", "--quiet", "--max-steps", str(STEPS), "--run-dir", str(made), *sets],
            )
            found[case] = hash_arrays(made / "checkpoints" / str(STEPS))
            print(
                f"{case}  {' '.join(value[:12] for value in found[case].values())}",
                file=sys.stderr,
                flush=True,
            )
        for command, arguments in COMMANDS.items():
            if only not in f"json {command}":
                continue
            found[f"json {command}"] = run_json(tree, folder, arguments, run)
            print(f"json {command}", file=sys.stderr, flush=True)
    return found


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the names of the values that differ, or that one side lacks."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def compare(revision: str, only: str = "") -> list[str]:
    """Run a commit, and this checkout; return the names of the values that differ."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(tree), revision], cwd=REPOSITORY, check=True
        )
        try:
            return differing(collect(tree, only), collect(REPOSITORY, only))
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(tree)], cwd=REPOSITORY, check=True
            )


def main(arguments: list[str]) -> int:
    """Write or compare; a third argument limits either to the names that hold it."""
    match arguments:
        case ["write", path, *only]:
            Path(path).write_text(json.dumps(collect(REPOSITORY, *only), indent=1, sort_keys=True))
            return 0
        case ["check", path, *only]:
            old = json.loads(Path(path).read_text())
            new = collect(REPOSITORY, *only)
            found = differing({name: value for name, value in old.items() if name in new}, new)
        case ["compare", revision, *only]:
            found = compare(revision, *only)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    print("\n".join(f"differs: {name}" for name in found) or "all equal")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
