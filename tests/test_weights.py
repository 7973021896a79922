"""Weights from elsewhere: fitted to a model, imported, trained on; every mismatch named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

from gnpcli.errors import CheckpointError, ConfigError
from gnpcli.locks import FolderInUse, FolderLock
from gnpcli.models.base import HEAD
from gnpcli.models.families import vit
from gnpcli.models.registry import MODELS, model_options
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.location import locate
from gnpcli.runs.trained import open_trained
from gnpcli.terminal.screen import Screen
from gnpcli.weights.fit import fit
from gnpcli.weights.importing import ImportRequest, import_file
from gnpcli.weights.source import read_pretrained
from tests.conftest import fails
from tests.networks import build
from tests.state_dicts import vit_tensors, write_torch

ONE_OF_EACH = sorted({entry.module: name for name, entry in reversed(MODELS.items())}.values())
# Tracing the deepest takes seconds.
TRACED = [
    pytest.param(name, marks=pytest.mark.slow if "pyramidnet" in name else ())
    for name in ONE_OF_EACH
]
IMPORTING = [name for name in ONE_OF_EACH if MODELS[name].imports]


def initial(name, classes=10, image_size=32, **options):
    model = build(name, num_classes=classes, image_size=image_size, **options)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), (image_size, image_size, 3)))


@pytest.mark.parametrize("name", TRACED)
def test_the_head_alone_knows_the_classes(name):
    ten, eleven = (flatten_dict(initial(name, classes)[0]) for classes in (10, 11))
    assert ten.keys() == eleven.keys()
    different = {path for path in ten if ten[path].shape != eleven[path].shape}
    assert (
        different == {(HEAD, "kernel"), (HEAD, "bias")} == {path for path in ten if path[0] == HEAD}
    )


@pytest.mark.parametrize("name", IMPORTING)
def test_a_family_that_imports_says_how(name):
    family = MODELS[name].load()
    params, _ = initial(name)
    facts = family.facts(params)
    assert facts.channels == 3
    assert facts.options.keys() <= set(MODELS[name].options.option_names())
    model_options(name, **facts.options)
    initial(name, image_size=facts.image_size, **facts.options)  # which build
    with pytest.raises(CheckpointError, match="another architecture"):
        family.from_torch({"some.weight": np.zeros(3, np.float32)})


def nano(**sizes):
    params, state = vit.FAMILY.from_torch(vit_tensors(**sizes))
    return params, state


def test_fit_keeps_every_value():
    params, state = nano()
    fitted = fit(params, state, lambda: nano(seed=1), vit.FAMILY.resize)
    assert fitted.notes == []
    jax.tree.map(np.testing.assert_array_equal, fitted.params, params)


def test_fit_starts_a_new_head_and_resizes_positions():
    params, state = nano()
    into = nano(seed=1, classes=7, side=6)
    fitted = fit(params, state, lambda: into, vit.FAMILY.resize)
    assert fitted.notes == [
        "new head for 7 classes: that of the weights is for 10",
        "resized bicubically: positions [1, 17, 64] -> [1, 37, 64]",
    ]
    jax.tree.map(np.testing.assert_array_equal, fitted.params[HEAD], into[0][HEAD])
    resized = fitted.params["positions"]
    np.testing.assert_array_equal(resized[:, 0], params["positions"][:, 0])
    np.testing.assert_allclose(
        resized[:, 1:].mean(1), params["positions"][:, 1:].mean(1), atol=0.02
    )
    others = [key for key in params if key not in (HEAD, "positions")]
    for key in others:
        jax.tree.map(np.testing.assert_array_equal, fitted.params[key], params[key])


def test_fit_starts_a_head_where_there_is_none():
    tensors = {name: array for name, array in vit_tensors().items() if not name.startswith("head")}
    fitted = fit(*vit.FAMILY.from_torch(tensors), lambda: nano(seed=1), vit.FAMILY.resize)
    assert fitted.notes == ["new head for 10 classes: the weights have none"]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"depth": 3}, r"lack block_2\.attention\.out\.bias, .* and \d+ more$"),
        ({"depth": 1}, r"have block_1\.attention\.out\.bias, .* for which there is no place$"),
        ({"mlp": 128}, r"have block_0\.mlp\.(up|down)\.\w+ \[.*256.*\], not \[.*128.*\]$"),
        ({"patch": 4}, r"have patch_embedding\.kernel \[12, 64\], not \[48, 64\]$"),
    ],
)
def test_fit_names_what_does_not_fit(sizes, said):
    params, state = nano()
    with pytest.raises(CheckpointError, match=said):
        fit(params, state, lambda: nano(**sizes), vit.FAMILY.resize)


def test_positions_of_a_family_that_cannot_resize():
    params, state = nano()
    with pytest.raises(CheckpointError, match=r"positions \[1, 17, 64\], not \[1, 26, 64\]"):
        fit(params, state, lambda: nano(side=5), None)


def test_the_hash_is_of_the_weights_not_of_the_file(tmp_path):
    tensors = vit_tensors()
    save_file(tensors, tmp_path / "w.safetensors")
    write_torch(tmp_path / "w.pth", {"state_dict": tensors})
    one, other = (
        read_pretrained(tmp_path / name, "vit-nano", Screen())
        for name in ("w.safetensors", "w.pth")
    )
    assert one.sha256 == other.sha256
    tensors["norm.bias"][3] += 1
    save_file(tensors, tmp_path / "w.safetensors")
    assert read_pretrained(tmp_path / "w.safetensors", "vit-nano", Screen()).sha256 != other.sha256


def test_import_gives_the_same_logits(tmp_path, capsys):
    tensors = vit_tensors()
    save_file(tensors, tmp_path / "w.safetensors")
    request = ImportRequest(
        tmp_path / "w.safetensors", "vit-nano", tmp_path / "out", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    out = import_file(request, Screen())
    assert "10 classes, 8 px, normalised with mean (0.5, 0.5, 0.5)" in capsys.readouterr().err
    trained = open_trained(locate(out), step=None, best=False, screen=Screen())
    assert (trained.spec.mean, trained.spec.std) == ((0.5,) * 3, (0.25,) * 3)
    assert trained.config.model.model_dump()["gelu"] == "exact"
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
    reference = build("vit-nano", image_size=8, patch_size=2, gelu="exact")
    wanted = jax.jit(
        lambda: reference.apply(*vit.FAMILY.from_torch(tensors), images, False, None)[0]
    )()
    got = jax.jit(
        lambda: trained.model.apply(trained.params, trained.model_state, images, False, None)[0]
    )()
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_import_fits_a_data_set_and_tells_of_it(tmp_path, capsys):
    save_file(vit_tensors(classes=3), tmp_path / "w.safetensors")
    request = ImportRequest(
        tmp_path / "w.safetensors", "vit-nano", tmp_path / "out", dataset="cifar10"
    )  # whose sizes are known without its images
    with FolderLock(tmp_path / "out", making="if missing"), pytest.raises(FolderInUse):
        import_file(request, Screen())
    (tmp_path / "out" / "0.orbax-checkpoint-tmp-1").mkdir(parents=True)  # what a kill leaves
    out = import_file(request, Screen())
    assert [path.name for path in out.iterdir()] == ["0"]
    trained = open_trained(locate(out), step=None, best=False, screen=Screen())
    assert (trained.spec.num_classes, trained.spec.image_size, trained.config.data.name) == (
        10,
        32,
        "cifar10",
    )
    told = capsys.readouterr().err
    assert "new head for 10 classes: that of the weights is for 3" in told
    assert "resized bicubically: positions [1, 17, 64] -> [1, 257, 64]" in told
    with pytest.raises(CheckpointError, match="is there already"):
        import_file(ImportRequest(tmp_path / "w.safetensors", "vit-nano", out), Screen())


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"model": "vit-ti"}, CheckpointError, r"do not fit vit-ti: they lack block_"),
        (
            {"model": "wrn-16-4"},
            CheckpointError,
            r"w\.safetensors does not hold the weights of wrn-16-4",
        ),
        (
            {"assignments": ("model.patch_size=4",)},
            CheckpointError,
            r"kernel \[12, 64\], not \[48, 64\]; they are for ",
        ),
        (
            {"assignments": ("model.stem=cifar",)},
            ConfigError,
            r"--set: vit-nano has no option 'stem'",
        ),
        ({"image_size": 9}, ConfigError, r"do not tile images of 9 x 9"),
        ({"mean": (0.5,), "std": (0.5,)}, ConfigError, r"--mean and --std take 3 number"),
        ({"dataset": "tfds:nothing"}, ConfigError, r"give --num-classes and --image-size"),
        ({"dataset": "cifar01"}, ConfigError, r"did you mean 'cifar10'"),
    ],
)
def test_imports_that_do_not_fit(tmp_path, options, kind, said):
    save_file(vit_tensors(), tmp_path / "w.safetensors")
    arguments = {"model": "vit-nano", **options}
    request = ImportRequest(path=tmp_path / "w.safetensors", out=tmp_path / "out", **arguments)
    with pytest.raises(kind, match=said):
        import_file(request, Screen(quiet=True))
    assert not (tmp_path / "out").exists()


def test_families_without_a_state_dict_say_so(tmp_path):
    other = next((name for name in ONE_OF_EACH if not MODELS[name].imports), None)
    if other is None:
        pytest.skip("every registered family can import")
    request = ImportRequest(tmp_path / "w.safetensors", other, tmp_path / "out")
    said = rf"no state dict is known for {other}; the families that have one are .*vit"
    with pytest.raises(ConfigError, match=said):
        import_file(request, Screen())


def images_in(folder):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 128, (8, 8, 3)) + 128 * label
                Image.fromarray(pixels.astype(np.uint8)).save(
                    folder / split / name / f"{index}.png"
                )
    return folder


@pytest.mark.slow
def test_import_weights_command(gnp, tmp_path):
    save_file(vit_tensors(classes=2), tmp_path / "w.safetensors")
    done = gnp("import-weights", "w.safetensors", "--model", "vit-nano", "--out", "ck")
    assert done.returncode == 0, done.stderr
    assert "2 classes, 8 px" in done.stderr
    assert f"gnp train --init-from {tmp_path}/ck" in done.stdout
    done = gnp("eval", "ck", "--dataset", f"folder:{images_in(tmp_path / 'images')}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_examples"] == 8


def test_import_weights_errors(gnp, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"\x80\x02}q\x00.")
    fails(
        gnp("import-weights", "w.bin", "--model", "vit-nano", "--out", "other"),
        "w.bin is a bare pickle",
        "convert",
    )
    fails(
        gnp("import-weights", "w.bin", "--model", "vit-nan", "--out", "other"),
        "did you mean 'vit-nano'?",
    )
    done = gnp(
        "import-weights",
        "w.bin",
        "--model",
        "vit-nano",
        "--out",
        "other",
        "--mean",
        "a",
        "--std",
        "1",
    )
    assert done.returncode == 2
    assert "'a' is not numbers joined by commas" in done.stderr


@pytest.mark.slow
def test_a_run_starts_from_weights_and_needs_their_file_no_more(gnp, tmp_path):
    tensors = vit_tensors(classes=5, side=2)
    save_file(tensors, tmp_path / "w.safetensors")
    images = f"folder:{images_in(tmp_path / 'images')}"
    options = (
        "--dataset",
        images,
        "--epochs",
        4,
        "--set",
        "data.batch_size=8",
        "--set",
        "model.gelu=exact",
    )
    command = ("train", "--init-from", "w.safetensors", *options)
    first = gnp(*command, "--run-dir", "run", "--max-steps", 3)
    assert first.returncode == 0, first.stderr
    assert "new head for 2 classes: that of the weights is for 5" in first.stderr
    assert "resized bicubically: positions [1, 5, 64] -> [1, 17, 64]" in first.stderr
    config = RunFolder(tmp_path / "run").config()
    wanted = read_pretrained(tmp_path / "w.safetensors", "vit-nano", Screen()).sha256
    assert config.train.init_sha256 == wanted
    assert config.data.mean == [0.485, 0.456, 0.406]

    start = open_trained(
        locate(tmp_path / "run" / "checkpoints" / "0"), step=None, best=False, screen=Screen()
    )
    np.testing.assert_array_equal(
        start.params["block_1"]["mlp"]["up"]["kernel"], tensors["blocks.1.mlp.fc1.weight"].T
    )

    fails(gnp(*command, "--run-dir", "run"), "holds this very run already")
    whole = gnp(*command, "--run-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    save_file({**tensors, "cls_token": tensors["cls_token"] + 1}, tmp_path / "w.safetensors")
    fails(
        gnp("train", "--preset", "run/config.yaml", "--run-dir", "again"),
        "other weights than",
        wanted,
    )
    (tmp_path / "w.safetensors").unlink()
    resumed = gnp("resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    ends = [
        open_trained(locate(tmp_path / run), step=None, best=False, screen=Screen()).params
        for run in ("run", "whole")
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)

    # From a run: its weights, its normalisation.
    done = gnp("train", "--init-from", "run", *options, "--run-dir", "next", "--max-steps", 0)
    assert done.returncode == 0, done.stderr
    assert "step 8 of vit-nano on folder:" in done.stderr
    assert RunFolder(tmp_path / "next").config().data.mean == [0.485, 0.456, 0.406]
    started = open_trained(locate(tmp_path / "next"), step=None, best=False, screen=Screen()).params
    jax.tree.map(np.testing.assert_array_equal, started, ends[0])
    fails(
        gnp(
            "train", "--init-from", "run", *options, "--set", "model.patch_size=4", "--run-dir", "x"
        ),
        "do not fit vit-nano: they have patch_embedding.kernel [12, 64], not [48, 64]",
        "they are for model.patch_size=2",
    )
    fails(
        gnp("train", "--init-from", "run", "--run-dir", "x"),
        "normalised for 3 channel(s)",
        "digits have 1",
    )
    fails(
        gnp("train", "--init-from", "nowhere", "--run-dir", "x"),
        "cannot read",
        "nowhere: No such file",
    )
    assert not (tmp_path / "x").exists()
