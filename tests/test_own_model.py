"""A model from outside the package, as docs/models.md has it, with an option of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gnpcli.config.loader import read_yaml
from gnpcli.errors import ConfigError
from gnpcli.models.own import explain
from gnpcli.models.registry import load_model
from gnpcli.terminal import words
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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, from which nothing stays on the Python path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize(
    "form",
    ["own_a:small", "./own_a.py:small", "./own_a:small", "own_a.py:small", "{here}/own_a.py:small"],
)
def test_a_model_is_named_by_its_module_or_by_its_file(here: Path, form: str):
    (here / "own_a.py").write_text(OWN_MODEL)
    entry = load_model(form.format(here=here))
    assert entry.sizes == {"width": 16}
    assert type(entry.load()).__name__ == "MyFamily"


def test_the_file_of_a_model_is_no_installed_module(here: Path):
    folder = here / "numpy"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"from beside import WIDTH\n{OWN_MODEL}")
    (folder / "beside.py").write_text("WIDTH = 3\n")
    entry = load_model("./numpy:small")
    assert entry.sizes == {"width": 16}
    assert sys.modules["numpy"].__file__ != str(folder / "__init__.py")
    assert entry.load() is load_model(f"{here}/numpy/__init__.py:small").load()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (".:x", "'.' is not the full name of a module, nor a file such as ./mynet.py"),
        ("..net:x", "'..net' is not the full name of a module"),
        ("a b:x", "'a b' is not the full name of a module"),
        ("net:small:x", "'net:small' is not the full name of a module"),
        (":x", "is not of the form module:entry or ./file.py:entry"),
        (":", "is not of the form"),
        ("./net.py:", "is not of the form"),
        ("./net.py:1x", "is not of the form"),
        ("./net.py", "lacks an entry: it is module:entry or ./file.py:entry"),
        ("./none:x", "there is no file ./none.py"),
        ("/:x", "there is no file /"),
        ("~nosuchuser/net.py:x", "~nosuchuser is the home of no user"),
        ("a\0/net.py:x", "a path cannot hold a NUL character"),
        ("nosuchmodule:x", "'nosuchmodule' cannot be imported: No module named 'nosuchmodule'"),
    ],
)
def test_a_name_of_no_model_is_one_line(here: Path, name: str, part: str):
    with pytest.raises(ConfigError) as caught:
        load_model(name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.key == "model.name"


@pytest.mark.parametrize("form", ["{}:x", "./{}.py:x"])
@pytest.mark.parametrize(
    ("module", "text", "part"),
    [
        ("own_syntax", "x = (", "own_syntax.py:1: SyntaxError: '(' was never closed"),
        ("own_name", "\n\nx = lost", "own_name.py:3: NameError: name 'lost' is not defined"),
        ("own_import", "\nimport nosuch", "own_import.py:2: No module named 'nosuch'"),
        ("own_exit", "raise SystemExit(3)", "own_exit.py:1: SystemExit: 3"),
        ("own_null", "x = '\0'", "source code string cannot contain null bytes"),
        ("own_entry", "y = 1", "has no gnpcli.models.registry.Entry named x"),
        (
            "own_family",
            "from gnpcli.models.registry import Entry\nx = Entry('nosuch', {})",
            "nosuch cannot be imported: No module named 'nosuch'",
        ),
    ],
)
def test_code_that_fails_is_one_line_with_its_place(here: Path, form, module, text, part):
    (here / f"{module}.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_model(form.format(module)).load()
    assert part in str(caught.value)


BROKEN = {
    "sizes": ("MyNet(**sizes", "MyNet(width=sizes['depth']", "own.py:30: KeyError: 'depth'"),
    "call": ("nn.relu(", "jnp.zeros(3) @ (", "own.py:23: NameError: name 'jnp' is not defined"),
    "shapes": ("x.reshape(len(x), -1)", "x.reshape(-1, 7)", "own.py:24: TypeError: cannot reshape"),
    "traced": ("nn.relu(", "images.sum() or (", "own.py:23: TracerBoolConversionError: "),
    "classes": ("nn.Dense(self.classes", "nn.Dense(self.classes + 1", "(2, 11), not (2, 10)"),
    "logits": ("return nn.Dense(", "return x, nn.Dense(", "returns a tuple, not (2, 10)"),
    "model": ("return from_linen(", "return (", "not a gnpcli.models.base.Model"),
    "options": (", MyOptions)", ", int)", "no class under gnpcli.models.options.Options"),
}
"""What is wrong in a model of one's own, and what is said."""


@pytest.mark.parametrize(("right", "wrong", "said"), BROKEN.values(), ids=BROKEN)
def test_a_model_that_does_not_run_is_one_line(gnp: Gnp, tmp_path: Path, right, wrong, said):
    assert right in OWN_MODEL
    (tmp_path / "own.py").write_text(OWN_MODEL.replace(right, wrong))
    assert said in fails(gnp("models", "show", "own:small"))


def test_a_bug_of_ours_is_no_failure_of_a_model(here: Path):
    (here / "own_sound.py").write_text(OWN_MODEL)
    load_model("own_sound:small").load()
    with pytest.raises(ValueError, match="format") as caught:
        words.percent("x")  # type: ignore[arg-type]
    trace = caught.value.__traceback__
    assert trace is not None
    # This file counts as a model's code where another test has trained a model of it.
    assert explain(caught.value.with_traceback(trace.tb_next)) == (None, 1)
