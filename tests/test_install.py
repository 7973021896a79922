"""What is installed: the wheel in a clean environment, with its presets and data, away from the
checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from gnpcli.recipes.presets import preset_names
from gnpcli.tables.spec import table_names
from tests.commands import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(target),
            str(REPOSITORY),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (path,) = target.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_presets_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"gnpcli/_presets/{name}.yaml" for name in preset_names()} <= set(names)
    assert {f"gnpcli/_presets/tables/{name}.yaml" for name in table_names()} <= set(names)
    assert "gnpcli/data/sources/digits.npz" in names
    assert {"gnpcli/report/page.css", "gnpcli/report/page.js"} <= set(names)
    assert "gnpcli/data/sources/digits.LICENSE.txt" in names
    assert all(name.startswith(("gnpcli/", "gnpcli-")) for name in names)
    assert not any("test" in name for name in names)


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path):
    """The dependencies are this environment's, by path; the project itself comes from the wheel
    alone.
    """
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv").rglob("site-packages"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
    )
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    # A plain path line adds the packages there but, unlike being there, does not run its editable
    # installs.
    (site / "dependencies.pth").write_text(dependencies + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def gnp(*arguments: str) -> str:
        done = subprocess.run(
            [
                str(tmp_path / "venv" / "bin" / "python"),
                "-c",
                "from gnpcli.cli import main; main()",
                *arguments,
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "python"), "-c", "import gnpcli; print(gnpcli.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(tmp_path) in where
    assert [row["name"] for row in json.loads(gnp("presets", "list", "--json"))] == preset_names()
    summary = json.loads(
        gnp(
            "train",
            "--set",
            "data.batch_size=256",
            "--max-steps",
            "2",
            "--run-dir",
            "run",
            "--json",
        )
    )
    assert summary["step"] == 2
