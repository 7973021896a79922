"""Odd inputs: every command says in a line what is wrong, in little time and memory."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.campaigns import odd
from tests.campaigns.campaign import Campaign, Case, sound
from tests.campaigns.lab import REPOSITORY, Lab
from tests.campaigns.runs import COMMON, train
from tests.commands import Completed
from tests.state_dicts import vit_tensors, write_torch

HOLDS = "The command succeeds, or says in one line what is wrong, within 10 s and 1 GiB."
NUM_SETS, NUM_PRESETS, NUM_TABLES, NUM_LOGS, NUM_WEIGHTS = 4000, 200, 4000, 200, 80
PRESETS = REPOSITORY / "presets"


def _word(*done: Completed) -> str:
    """Return how a case held, from the commands that it ran."""
    return "refused" if any(sound(one).returncode for one in done) else "accepted"


def sets(lab: Lab, numbers: random.Random) -> list[Case]:
    """Odd values of every key."""
    from gnpcli.config.loader import flatten, known_keys
    from gnpcli.recipes.presets import compose

    keys = sorted({*known_keys({}), *flatten(compose("vit-nano-digits"))})
    keys += [
        "",
        ".",
        "model",
        "data",
        "modle.name",
        "model.name.x",
        "train..epochs",
        "é.x",
        "a" * 300,
    ]
    cases = []
    for number in range(NUM_SETS):
        chosen = [
            f"{numbers.choice(keys)}={numbers.choice(odd.VALUES)}"
            for _ in range(numbers.choice((1, 1, 1, 2)))
        ]
        cases.append(Case(f"{number} {' '.join(chosen)[:150]!r}", partial(_set, lab, chosen)))
    return cases


def _set(lab: Lab, assignments: Sequence[str], folder: Path) -> str:
    sets = [part for text in assignments for part in ("--set", text)]
    return _word(lab.quick("train", "--dry-run", *sets, cwd=folder))


def _files(
    number: int,
    numbers: random.Random,
    whole: Sequence[bytes],
    sources: Sequence[Path],
    check: Callable[[bytes, Path], str],
) -> list[Case]:
    """Return cases of `whole` files, and of changed `sources`."""
    cases = [
        Case(f"whole {index} {text[:40]!r}", partial(check, text))
        for index, text in enumerate(whole)
    ]
    for index in range(len(cases), number):
        source = numbers.choice(sources)
        text = source.read_bytes()
        if numbers.random() < 0.75:
            kind, made = "tree", odd.tree(text.decode(), numbers).encode("utf-8", "surrogatepass")
        else:
            kind, made = "bytes", odd.scramble(text, numbers)
        cases.append(Case(f"{kind} {index} of {source.stem}", partial(check, made)))
    return cases


def presets(lab: Lab, numbers: random.Random) -> list[Case]:
    """Odd preset files."""
    whole = [*(text.encode() for text in odd.TEXTS), *odd.BYTES]
    return _files(
        NUM_PRESETS, numbers, whole, sorted(PRESETS.glob("*.yaml")), partial(_preset, lab)
    )


def _preset(lab: Lab, content: bytes, folder: Path) -> str:
    (folder / "p.yaml").write_bytes(content)
    return _word(
        lab.quick("presets", "show", "./p.yaml", cwd=folder),
        lab.quick("train", "--dry-run", "--preset", "p.yaml", cwd=folder),
    )


def tables(lab: Lab, numbers: random.Random) -> list[Case]:
    """Odd table files."""
    whole = [*(text.encode() for text in odd.TEXTS), *odd.BYTES]
    sources = sorted((PRESETS / "tables").glob("*.yaml"))
    return _files(NUM_TABLES, numbers, whole, sources, partial(_table, lab))


def _table(lab: Lab, content: bytes, folder: Path) -> str:
    (folder / "t.yaml").write_bytes(content)
    sound(lab.quick("reproduce-table", "./t.yaml", "--render", "--out", "out", cwd=folder))
    return _word(lab.quick("tables", "show", "./t.yaml", cwd=folder))


def logs(lab: Lab, numbers: random.Random) -> list[Case]:
    """Odd contents of the log, the summary and the environment."""
    run = lab.new_folder() / "run"
    done = train(lab, run, (*COMMON, "train.epochs=2", "data.batch_size=512"))
    assert done is not None
    assert done.returncode == 0, done.stderr
    shutil.rmtree(run / "checkpoints")
    cases = []
    for number in range(NUM_LOGS):
        name = numbers.choice(
            ("metrics.jsonl", "metrics.jsonl", "summary.json", "environment.json")
        )
        text = (run / name).read_text()
        lines = text.splitlines() if name == "metrics.jsonl" else [text]
        values = [json.loads(line) for line in lines]
        if numbers.randrange(4):  # as older versions wrote it: what is odd is read, and judged
            values = [
                {key: value for key, value in line.items() if key != "check"} for line in values
            ]
        content = odd.jsonl(values, numbers)
        if numbers.randrange(10) == 0:
            content = numbers.choice((*odd.BYTES, 100_000 * b"[", 3_000 * b'{"a":'))
        cases.append(Case(f"{number} {name}", partial(_log, lab, run, name, content)))
    return cases


def _log(lab: Lab, run: Path, name: str, content: bytes, folder: Path) -> str:
    shutil.copytree(run, folder / "run")
    shutil.copytree(run, folder / "other")
    (folder / "run" / name).write_bytes(content)
    return _word(
        lab.quick("report", "run", cwd=folder),
        lab.quick("plot", "run", "other", cwd=folder),
        lab.quick("compare", "run", "other", cwd=folder),
        lab.quick("compare", "run", "other", "--json", cwd=folder),
    )


def _huge(header: dict[str, Any]) -> None:
    header["head.weight"]["shape"] = [1 << 40, 1 << 40]


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no header": lambda header: b"",
    "a list": lambda header: b"[]",
    "deep": lambda header: 20_000 * b"[",
    "deep mapping": lambda header: 20_000 * b'{"a":',
    "huge shape": _huge,
    "negative shape": lambda header: header["head.weight"].update(shape=[-1, 3]),
    "fraction": lambda header: header["head.weight"].update(shape=[1.5]),
    "unknown type": lambda header: header["head.weight"].update(dtype="X9"),
    "fp8": lambda header: header["head.bias"].update(dtype="F8_E4M3", shape=[40]),
    "overlap": lambda header: header["head.weight"].update(data_offsets=[0, 2560]),
    "backwards": lambda header: header["head.weight"].update(data_offsets=[2560, 0]),
    "beyond": lambda header: header["head.weight"].update(data_offsets=[0, 1 << 60]),
    "no shape": lambda header: header["head.weight"].pop("shape"),
    "text": lambda header: header.update({"head.weight": "x"}),
    "metadata": lambda header: header.update({"__metadata__": 3}),
    "control": lambda header: header.update({"\x1b[31m": header.pop("head.weight")}),
    "surrogate": lambda header: (
        b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}'
    ),
    "number": lambda header: b'{"a": 1' + 400 * b"0" + b"}",
}
WHOLE = {
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "html": b"<!DOCTYPE html><html></html>",
    "empty": b"",
    "zip": b"PK\x03\x04",
    "empty zip": b"PK\x05\x06" + 18 * b"\0",
    "pickle": b"\x80\x02}q\x00.",
    "long header": b"\xff" * 7 + b"\x7f{",
}


def weights(lab: Lab, numbers: random.Random) -> list[Case]:
    """Odd files of tensors."""
    folder = lab.new_folder()
    tensors = vit_tensors(dim=64, depth=2, patch=2, side=4, channels=3)
    flat = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    write_torch(folder / "whole.pth", tensors)
    pickled = (folder / "whole.pth").read_bytes()
    made = [("whole.safetensors", flat), ("whole.pth", pickled)]
    made += [(f"{name}.bin", content) for name, content in WHOLE.items()]
    made += [
        (f"{name}.safetensors", odd.safetensors_header(change, flat))
        for name, change in HEADERS.items()
    ]
    while len(made) < NUM_WEIGHTS:
        name, content = numbers.choice((("safetensors", flat), ("pth", pickled)))
        made.append((f"scrambled {len(made)}.{name}", odd.scramble(content, numbers)))
    return [Case(name, partial(_weights, lab, name, content)) for name, content in made]


def _weights(lab: Lab, name: str, content: bytes, folder: Path) -> str:
    (folder / name).write_bytes(content)
    return _word(
        lab.quick("import-weights", name, "--model", "vit-nano", "--out", "out", cwd=folder),
    )


CAMPAIGNS = (
    Campaign("fuzz-set", HOLDS, sets, small=150),
    Campaign("fuzz-presets", HOLDS, presets, small=60),
    Campaign("fuzz-tables", HOLDS, tables, small=100),
    Campaign("fuzz-logs", HOLDS, logs, small=20),
    Campaign("fuzz-weights", HOLDS, weights, small=20),
)
