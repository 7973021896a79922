"""Files that pass for weights and are not: one line each, in little memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gnpcli.weights.files import read_tensors
from tests.odd_weights import GOOD, ODD_WEIGHTS, POINTER

MEMORY_BYTES = 2 << 30
"""Of address space: the libraries alone take half of it."""
CPU_S = 60

READ_ALL = f"""
import json, resource, sys
from pathlib import Path
from gnpcli.weights.files import read_tensors
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_S}, {CPU_S}))
for path in map(Path, json.loads(sys.argv[1])):
    try:
        found = f"read: {{sorted(read_tensors(path))}}"
    except Exception as error:
        found = f"{{type(error).__name__}}: {{error}}"
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the reader makes of each file, in a process of its own with limits."""
    paths = {}
    for number, (name, (filename, write)) in enumerate(ODD_WEIGHTS.items()):
        folder = tmp_path_factory.mktemp(f"odd{number}")
        paths[name] = folder / filename
        write(paths[name])
    arguments = json.dumps([*map(str, paths.values())])
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, arguments], capture_output=True, text=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {[*paths][len(found) - 1]}: {done.stderr}"
    return dict(zip(paths, found, strict=True))


def test_there_are_many():
    assert len(ODD_WEIGHTS) >= 80


@pytest.mark.parametrize("name", ODD_WEIGHTS)
def test_an_odd_file_is_one_short_line(told: dict[str, str], name: str):
    kind, _, message = told[name].partition(": ")
    assert kind == "CheckpointError", told[name]
    assert "\n" not in message
    assert len(message) < 800, message
    assert ODD_WEIGHTS[name][0] in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torch: deflated, 256 MB", "compressed or overlapping members"),
        ("torch: members that overlap", "compressed or overlapping members"),
        ("torch: shape of 2**40 and stride 0", "beyond its storage, or is larger"),
        ("torch: pickle of a key 200,000 deep", "a tuple of"),
        ("torch: pickle of a key of 2**50", "a tuple of"),
        ("torch: pickle with a huge place", "kept at place"),
        ("safetensors: type F8_E4M3", "a holds numbers of the type F8_E4M3"),
        ("other: a pointer of Git LFS", "git lfs pull"),
        ("other.safetensors: a pointer of Git LFS", "git lfs pull"),
        ("other: a page of the web", "a page of the web"),
        ("other.safetensors: a page of the web", "a page of the web"),
        ("other: a FIFO", "it is no file"),
    ],
)
def test_what_is_wrong_is_said(told: dict[str, str], name: str, said: str):
    assert said in told[name]


def test_a_sound_file_of_the_same_make_is_read(tmp_path: Path):
    GOOD(tmp_path / "w.pth")
    assert {name: array.tolist() for name, array in read_tensors(tmp_path / "w.pth").items()} == {
        "a": [0.0, 0.0]
    }


def test_a_pointer_in_place_of_weights_ends_a_command_in_one_line(gnp, tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(POINTER)
    done = gnp("train", "--init-from", "w.pth", "--max-steps", 1)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "git lfs pull" in done.stderr
