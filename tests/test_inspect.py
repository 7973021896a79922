"""How flat a minimum is: each figure against a computation of its own, on models small enough for a
dense Hessian.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from PIL import Image

from gnpcli.cli.inspect import _told
from gnpcli.data.base import DataSpec, Split
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.train import train
from gnpcli.errors import CheckpointError, ConfigError, DataError
from gnpcli.gnp import global_norm
from gnpcli.measure import hessian
from gnpcli.measure.directions import filter_normalized, random_direction, with_norm
from gnpcli.measure.figures import draw_flatness
from gnpcli.measure.flatness import Plan
from gnpcli.measure.hessian import largest_eigenvalues
from gnpcli.measure.inspection import Inspection, _with_radii, inspect
from gnpcli.measure.landscape import Landscape, Sums
from gnpcli.models.base import Model
from gnpcli.recipes.presets import resolve
from gnpcli.report.style import save
from gnpcli.runs.grouping import by_seed
from gnpcli.runs.log import read_metrics
from gnpcli.step.losses import cross_entropy
from tests.conftest import Gnp, fails
from tests.forced import on_eight_devices

SPEC = DataSpec(
    name="small", class_names=("a", "b", "c"), image_size=4, channels=1, mean=(0.4,), std=(0.3,)
)
SIZE = 16 * 4 + 4 + 4 * 3 + 3


def network() -> Model:
    """A perceptron of 83 parameters, which has no training mode."""

    def init(key: jax.Array, image_shape: Any) -> Any:
        first, second = jax.random.split(key)
        return {
            "hidden": {"kernel": 0.5 * jax.random.normal(first, (16, 4)), "bias": jnp.zeros(4)},
            "head": {"kernel": jax.random.normal(second, (4, 3)), "bias": jnp.ones(3)},
        }, {}

    def apply(params: Any, state: Any, images: jax.Array, train: bool, key: Any) -> Any:
        assert train is False
        x = (
            images.reshape(len(images), 16) @ params["hidden"]["kernel"]
            + params["hidden"]["bias"][None]
        )
        return jnp.tanh(x) @ params["head"]["kernel"] + params["head"]["bias"][None], state

    return Model(init, apply)


def images(count: int) -> Split:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, count).astype(np.int32)
    return Split(rng.integers(0, 256, (count, 4, 4, 1), dtype=np.uint8), labels)


def landscape(batch_size: int = 8, count: int = 37) -> Landscape:
    config = resolve(
        None, [f"data.batch_size={batch_size}", "mesh.devices=1", "train.label_smoothing=0.1"]
    )
    mesh, model = make_mesh(config), network()
    params = model.init(jax.random.key(1), (4, 4, 1))[0]
    return Landscape(Sums(model, mesh), params, {}, images(count), SPEC, config, mesh)


def whole_loss(params: Any, count: int = 37) -> jax.Array:
    """The loss over all images at once."""
    split = images(count)
    pixels = (jnp.asarray(split.images, jnp.float32) / 255 - SPEC.mean[0]) / SPEC.std[0]
    logits, _ = network().apply(params, {}, pixels, False, None)
    return jnp.mean(cross_entropy(logits, jnp.asarray(split.labels)))


def dense_hessian(params: Any) -> np.ndarray:
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.hessian(lambda point: whole_loss(unravel(point)))(flat), np.float64)


@pytest.mark.parametrize("batch_size", [8, 37, 64])
def test_loss_and_gradient_are_those_of_the_whole_subset(batch_size):
    here = landscape(batch_size)
    assert here.num_examples == 37
    np.testing.assert_allclose(here.evaluate()["loss"], whole_loss(here.params), rtol=1e-6)
    for ours, whole in zip(
        jax.tree.leaves(here.gradient()),
        jax.tree.leaves(jax.grad(whole_loss)(here.params)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-7)


def test_the_loss_elsewhere_is_the_loss_of_moved_parameters():
    here = landscape()
    first, second = (random_direction(jax.random.key(seed), here.params) for seed in (0, 1))
    moved = jax.tree.map(lambda w, a, b: w + 0.3 * a - 0.2 * b, here.params, first, second)
    np.testing.assert_allclose(
        here.loss_at(first, second, (0.3, -0.2)), whole_loss(moved), rtol=1e-5
    )


def test_products_and_eigenvalues_are_those_of_the_dense_hessian():
    here = landscape()
    dense = dense_hessian(here.params)
    vector = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    np.testing.assert_allclose(here.hessian_product(vector), dense @ vector, rtol=1e-4, atol=1e-5)
    spectrum = largest_eigenvalues(here.hessian_product, SIZE, top=5, seed=0)
    exact = np.linalg.eigvalsh(dense)[::-1]
    np.testing.assert_allclose(spectrum.eigenvalues, exact[:5], rtol=1e-5)
    assert spectrum.num_missing == 0
    assert all(0 <= residual < 2e-3 * exact[0] for residual in spectrum.residuals)


def test_eigenvalues_are_the_largest_and_lie_within_their_residuals():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    exact = np.concatenate([[-50.0, 7.0, 5.0, 5.0], np.linspace(-1, 1, 56)])
    matrix = (basis * exact) @ basis.T
    spectrum = largest_eigenvalues(lambda v: (matrix @ v).astype(np.float32), 60, top=3, seed=1)
    for value, residual, wanted in zip(
        spectrum.eigenvalues, spectrum.residuals, (7, 5, 5), strict=True
    ):
        assert abs(value - wanted) <= residual + 1e-4
    assert (
        largest_eigenvalues(lambda v: (matrix @ v).astype(np.float32), 60, top=3, seed=1)
        == spectrum
    )


def test_eigenvalues_that_do_not_converge_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(hessian, "MAX_RESTARTS", 1)
    exact = np.linspace(0, 1, 500).astype(np.float32)
    spectrum = largest_eigenvalues(lambda v: exact * v, 500, top=4, seed=0)
    assert spectrum.num_missing == 4 - len(spectrum.eigenvalues) > 0
    with pytest.raises(ConfigError, match="--top 500: a model of 500 parameters"):
        largest_eigenvalues(lambda v: v, 500, top=500, seed=0)


def test_filters_get_the_norms_of_the_network_by_hand():
    params = {
        "dense": jnp.array([[3.0, 0.0], [4.0, 0.0]]),  # filters of norm 5 and 0
        "conv": jnp.arange(2 * 2 * 1 * 2, dtype=jnp.float32).reshape(2, 2, 1, 2),
        "bias": jnp.array([7.0, 8.0]),
    }
    direction = {
        "dense": jnp.array([[1.0, 1.0], [0.0, 1.0]]),
        "conv": jnp.ones((2, 2, 1, 2)),
        "bias": jnp.array([1.0, 1.0]),
    }
    scaled = filter_normalized(direction, params)
    np.testing.assert_allclose(scaled["dense"], [[5.0, 0.0], [0.0, 0.0]])
    even, odd = np.sqrt(0 + 4 + 16 + 36) / 2, np.sqrt(1 + 9 + 25 + 49) / 2
    np.testing.assert_allclose(scaled["conv"][..., 0], np.full((2, 2, 1), even), rtol=1e-6)
    np.testing.assert_allclose(scaled["conv"][..., 1], np.full((2, 2, 1), odd), rtol=1e-6)
    np.testing.assert_array_equal(scaled["bias"], [0.0, 0.0])
    zero = filter_normalized(jax.tree.map(jnp.zeros_like, direction), params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(zero))


def test_filter_normalised_directions_have_the_norms_of_the_filters():
    params = network().init(jax.random.key(0), (4, 4, 1))[0]
    kernels = {name: layer["kernel"] for name, layer in params.items()}
    direction = filter_normalized(random_direction(jax.random.key(5), params), params)
    np.testing.assert_allclose(global_norm(direction), global_norm(kernels), rtol=1e-5)
    scaled = jax.tree.map(lambda leaf: 10 * leaf, params)
    again = filter_normalized(random_direction(jax.random.key(5), scaled), scaled)
    np.testing.assert_allclose(again["head"]["kernel"], 10 * direction["head"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(global_norm(with_norm(direction, 2.5)), 2.5, rtol=1e-6)


@pytest.mark.slow
def test_several_devices_see_the_same_landscape():
    found = on_eight_devices(
        """
        import json, jax, numpy as np
        from gnpcli.measure.landscape import Landscape, Sums
        from gnpcli.recipes.presets import resolve
        from gnpcli.devices.mesh import make_mesh, replicated
        from tests.test_inspect import SIZE, SPEC, images, network
        found = []
        for devices in (1, 8):
            config = resolve(None, ["data.batch_size=8", f"mesh.devices={devices}"])
            mesh, model = make_mesh(config), network()
            params = jax.device_put(model.init(jax.random.key(1), (4, 4, 1))[0], replicated(mesh))
            here = Landscape(Sums(model, mesh), params, {}, images(37), SPEC, config, mesh)
            assert len(here._batches[0][0].sharding.device_set) == devices
            product = here.hessian_product(np.arange(SIZE, dtype=np.float32) / SIZE)
            gradient = jax.tree.leaves(here.gradient())[0]
            found.append([here.evaluate(), product.tolist(), np.asarray(gradient).ravel().tolist()])
        print(json.dumps(found))
        """
    )
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for one, eight in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain run of a few steps, trained to be inspected."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with jax.numpy_dtype_promotion("standard"):
        own = resolve(
            None,
            [
                "gr.strategy=none",
                "data.batch_size=256",
                "mesh.devices=1",
                "train.label_smoothing=0.1",
            ],
        )
        train(own, folder, max_steps=5, quiet=True)
    return folder


def look(paths: list[Path], plan: Plan) -> list[Inspection]:
    return inspect(paths, plan, data_dir=None, step=None, best=False, quiet=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside Orbax, about itself
def test_an_inspection_agrees_with_evaluation_with_taylor_and_with_itself(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    plan = Plan(
        examples=400,
        top=0,
        directions=2,
        resolution=3,
        plane="gradient",
        radii=(1e-3,),
        distances=(0.1,),
        seed=4,
    )
    found = look([run, tmp_path / "copy"], plan)
    assert [one.folder for one in found] == [run, tmp_path / "copy"]
    result = found[0].result
    json.dumps(result)
    assert result["subsets"]["train"]["num_examples"] == 400
    assert result["subsets"]["test"]["num_examples"] == 360
    last = [record for record in read_metrics(run / "metrics.jsonl") if record["split"] == "test"][
        -1
    ]
    assert result["subsets"]["test"]["error_rate"] == last["error_rate"]
    np.testing.assert_allclose(result["subsets"]["test"]["loss"], last["loss"], rtol=1e-5)

    assert result["r"] is None
    (point,) = result[
        "gradient_rise"
    ]  # a small step along the gradient raises the loss by its norm
    assert point["rise"] == pytest.approx(
        1e-3 * result["subsets"]["train"]["gradient_norm"], rel=0.05
    )
    (random,) = result["random_rise"]
    assert random["mean"] == pytest.approx(np.mean(random["rises"]))
    assert random["std"] == pytest.approx(np.std(random["rises"], ddof=1))

    surface = result["surface"]
    assert surface["x"] == [-1e-3, 0.0, 1e-3]
    assert surface["y"] == [-0.5, 0.0, 0.5]
    assert surface["loss"][1][2] == pytest.approx(surface["loss"][1][1] + point["rise"], rel=1e-6)
    assert surface["loss"][1][1] == pytest.approx(result["subsets"]["train"]["loss"], rel=1e-5)

    for key, value in found[1].result.items():
        if key not in ("elapsed_s", "run"):
            assert value == result[key], key
    assert len(by_seed(found)) == 2  # a copy is no second sample
    other = found[1].config.model_copy(
        update={"train": found[1].config.train.model_copy(update={"seed": 1})}
    )
    groups = by_seed([found[0], replace(found[1], config=other)])
    assert [len(group) for group in groups.values()] == [2]
    full = {**result, "eigenvalues": (2.0, 1.0), "residuals": (0.1, 0.1)}
    save(draw_flatness(groups), tmp_path / "groups.png")
    save(
        draw_flatness(
            {label: [replace(one, result=full) for one in own] for label, own in groups.items()}
        ),
        tmp_path / "s.svg",
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_direction_has_more_curvature_than_the_largest_eigenvalue_of_a_trained_model(
    run, tmp_path
):
    """Not the gradient's, by a second difference of the loss along it."""
    plan = Plan(examples=64, top=1, directions=0, plane="none", radii=(0.05,), batch_size=64)
    (found,) = look([run], plan)
    result = found.result
    assert result["num_missing"] == 0
    (point,) = result["gradient_rise"]
    curvature = 2 * (point["rise"] - 0.05 * result["subsets"]["train"]["gradient_norm"]) / 0.05**2
    assert curvature < 1.1 * result["eigenvalues"][0]
    assert result["residuals"][0] < 2e-3 * result["eigenvalues"][0]
    assert result["random_rise"] == []
    save(draw_flatness(by_seed([found])), tmp_path / "bare.png")


def test_radii_are_multiples_of_the_first_r_and_every_run_has_its_own():
    configs = [
        resolve(None, [f"gr.strategy={strategy}", f"gr.r={r}"])
        for strategy, r in (("none", 0.3), ("constant", 0.1), ("constant", 0.02))
    ]
    assert _with_radii(Plan(), configs).radii == pytest.approx((0.02, 0.025, 0.05, 0.1, 0.2, 0.4))
    assert _with_radii(Plan(radii=(1.0,)), configs).radii == (1.0,)
    assert _with_radii(Plan(), configs[:1]).radii == pytest.approx(
        (0.0125, 0.025, 0.05, 0.1, 0.2)
    )  # SAM's


def test_cells_of_the_table():
    assert _told([0.5], ".3g") == "0.5"
    assert _told([1.0, 2.0, 3.0], ".3g") == "2 ± 1"
    assert _told([0.01, 0.03], "%") == "2.00 % ± 1.41 %"
    assert _told(["digits", "digits"], "s") == "digits"
    assert _told([100, 2000], ",d") == "100, 2,000"
    assert _told([None], "g") == "-"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_inspected_is_one_sentence(run, tmp_path):
    with pytest.raises(DataError, match="digits has no val split"):
        look([run], Plan(split="val"))
    with pytest.raises(CheckpointError, match="no such folder"):
        look([tmp_path / "nowhere"], Plan())


@pytest.mark.slow
def test_the_inspect_command(gnp: Gnp, run: Path, tmp_path: Path):
    small = [
        "--examples",
        64,
        "--top",
        1,
        "--directions",
        1,
        "--resolution",
        2,
        "--radii",
        "0.1",
        "--batch-size",
        64,
    ]
    done = gnp("inspect", run, *small, "--out", "i.png")
    assert done.returncode == 0, done.stderr
    for part in (
        "train gradient norm",
        "Hessian eigenvalue 1",
        "rise at 0.1 along the gradient",
        "is right to within",
    ):
        assert part in done.stdout, part
    assert "Hessian-vector products and 9 losses over 64 images: about" in done.stderr
    with Image.open(tmp_path / "i.png") as image:
        assert image.width > 1000
    done = gnp("inspect", run, *small, "--surface", "none", "--json")
    assert [result["run"] for result in json.loads(done.stdout)] == [str(run)]
    assert not done.stderr


def test_bad_options_of_the_inspect_command(gnp: Gnp):
    fails(gnp("inspect", "run", "--out", "nowhere/i.png"), "there is no folder")
    done = gnp("inspect", "run", "--radii", "0.1,-1")
    assert done.returncode == 2
    assert "'-1' is not a distance above 0" in done.stderr
