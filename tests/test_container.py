"""The Dockerfile, as far as it goes without Docker: what it copies, installs and starts."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.commands import REPOSITORY
from tests.conftest import Gnp

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_is_given_what_it_copies_and_runs_a_command_of_ours(gnp: Gnp):
    let_in = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copied = [name for kind, text in dockerfile() if kind == "COPY" for name in text.split()[:-1]]
    assert all((REPOSITORY / name).exists() for name in copied)
    assert [f"!{name}" in let_in for name in copied] == [True] * len(copied)
    instructions = dict(dockerfile())
    assert instructions["ENTRYPOINT"] == '["gnp"]'
    assert instructions["ARG"].removeprefix("ACCELERATOR=") in PROJECT["optional-dependencies"]
    assert gnp(*json.loads(instructions["CMD"]), "--help").returncode == 0


@pytest.mark.slow
def test_what_the_image_copies_is_enough_to_install_it(tmp_path: Path):
    """The line of the Dockerfile, without the wheels of CUDA: they are JAX's."""
    (tmp_path / "in").mkdir()
    for kind, text in dockerfile():
        if kind == "COPY":
            *names, target = text.split()
            for name in names:
                place = tmp_path / "in" / target
                subprocess.run(["cp", "-r", str(REPOSITORY / name), str(place)], check=True)
    (line,) = [text for kind, text in dockerfile() if "pip install" in text]
    words = shlex.split(line)
    assert words[:2] == ["pip", "install"]
    assert words[-1] == ".[${ACCELERATOR}]"
    options = ["--no-deps", "--no-build-isolation", "--target", str(tmp_path / "out")]
    subprocess.run(
        [sys.executable, "-m", *words[:-1], *options, "."],
        cwd=tmp_path / "in",
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert (tmp_path / "out" / "bin" / "gnp").exists()
    assert (tmp_path / "out" / "gnpcli" / "_presets" / "vit-nano-digits.yaml").exists()
