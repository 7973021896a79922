"""A model from outside the package, as docs/models.md has it, with an option of its own."""

from __future__ import annotations

from pathlib import Path

from gnpcli.config.loader import read_yaml
from tests.conftest import Gnp, fails
from tests.test_readme import OWN_MODEL

SHORT = ("--set", "data.batch_size=64", "--max-steps", "2", "--run-dir", "run")


def test_a_model_of_ones_own_trains_with_an_option_of_its_own(gnp: Gnp, tmp_path: Path):
    (tmp_path / "mynet.py").write_text(OWN_MODEL)
    options = ("--set", "model.name=mynet:small", "--set", "model.kernel_size=5")
    done = gnp("train", *options, *SHORT)
    assert done.returncode == 0, done.stderr
    model = read_yaml(tmp_path / "run" / "config.yaml").values["model"]
    assert model == {"name": "mynet:small", "dropout": 0.1, "kernel_size": 5}
    evaluated = gnp("eval", "run")
    assert evaluated.returncode == 0, evaluated.stderr


def test_an_option_of_ones_own_is_checked(gnp: Gnp, tmp_path: Path):
    (tmp_path / "mynet.py").write_text(OWN_MODEL)
    own = ("train", "--set", "model.name=mynet:small", "--dry-run")
    fails(
        gnp(*own, "--set", "model.kernel_size=large"),
        "--set: model.kernel_size: expected a whole number",
    )
    fails(gnp(*own, "--set", "model.kernel_sise=5"), "did you mean 'model.kernel_size'")
    fails(
        gnp(*own, "--set", "model.stem=cifar"),
        "mynet:small has no option 'stem'; its options are dropout, kernel_size",
    )
    fails(gnp("train", "--set", "model.kernel_size=5", "--dry-run"), "model.kernel_size")
