"""The dry run of a table: counted FLOP at a measured rate, and nothing is compiled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from gnpcli.bench.steps import regularized
from gnpcli.cluster import image_flops as counting
from gnpcli.cluster import speeds
from gnpcli.cluster.compiling import counted
from gnpcli.cluster.image_flops import image_flops
from gnpcli.cluster.keeping import keep, kept
from gnpcli.cluster.speeds import SpeedsHere, small_batch
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataInfo
from gnpcli.data.registry import describe_data
from gnpcli.devices.mesh import mesh_over
from gnpcli.devices.process import cache_dir
from gnpcli.models.base import count_parameters, initial_shapes
from gnpcli.recipes.plan import fit
from gnpcli.recipes.presets import resolve
from gnpcli.tables.cells import make_cells
from gnpcli.tables.estimate import Speed, estimate
from gnpcli.tables.spec import load_table
from tests.conftest import Gnp
from tests.tables import NO_CHANGES, TINY

RATE = 1e11


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """Trace as the command does: optax mixes types."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(speeds, "product_rate", lambda config: RATE)


def run(*assignments: str, preset: str | None = None) -> tuple[Resolved, DataInfo]:
    config = resolve(preset, list(assignments))
    info = describe_data(config.data)
    assert info is not None
    return config, info


def check_against_whole_steps(config: Resolved, info: DataInfo, error: float = 0.02) -> None:
    found = image_flops(config, info, lambda text: None)
    config = regularized(config)
    mesh = mesh_over(config, jax.local_devices()[:1])
    for kind, flops in (("plain", found.plain), ("gnp", found.gnp)):
        whole = counted(config, kind, mesh).flops  # type: ignore[arg-type]
        assert flops * config.data.batch_size == pytest.approx(whole, rel=error), kind


def test_flops_of_an_image_are_those_of_whole_steps() -> None:
    check_against_whole_steps(*run())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("assignments", "error"),
    [
        (["gr.gradient=exact"], 0.02),
        (["gr.groups=2", "data.batch_size=64"], 0.02),
        (["train.remat=true"], 0.1),  # not all is computed anew
    ],
)
def test_flops_of_an_image_are_those_of_steps_of_another_kind(
    assignments: list[str], error: float
) -> None:
    check_against_whole_steps(*run(*assignments), error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [
        "vit-ti-cifar10",
        "resnet50-cifar10",
        "wrn-16-4-cifar10",
        "swin-t-cifar10",
        "vgg16-bn-imagenet",
    ],
)
def test_flops_of_an_image_are_those_of_whole_steps_of_every_kind_of_network(preset: str) -> None:
    check_against_whole_steps(*run(preset=preset))


def told(config: Resolved, info: DataInfo) -> list[str]:
    """Return what counting says that it does."""
    said: list[str] = []
    image_flops(config, info, said.append)
    return said


def test_a_network_is_counted_once_for_a_version_of_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, info = run()
    first = image_flops(config, info, lambda text: None)
    assert told(config, info) == []
    assert image_flops(config, info, lambda text: None) == first
    assert told(config.replaced({"gr.r": 0.3, "train.seed": 7}), info) == []
    assert told(config.replaced({"train.remat": True}), info) == ["counting the FLOP of vit-nano"]
    monkeypatch.setattr(counting, "_code", lambda: "other code")
    assert told(config, info) == ["counting the FLOP of vit-nano"]


def test_a_network_of_the_users_own_is_counted_anew() -> None:
    config, info = run("model.name=tests.small:small")
    for _ in range(2):
        assert told(config, info) == ["counting the FLOP of tests.small:small"]
    assert not (cache_dir() / "counts").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_what_is_kept_and_damaged_is_found_out_again(text: str) -> None:
    keep("counts", [1], {"a": 2})
    assert kept("counts", [1]) == {"a": 2}
    assert kept("counts", [2]) == kept("plans", [1]) == {}
    (path,) = (cache_dir() / "counts").iterdir()
    path.write_text(text)
    assert kept("counts", [1]) == {}


@pytest.mark.parametrize("text", ['{"a": 2}', "{}", "{"])
def test_a_count_that_is_kept_otherwise_is_made_anew(text: str) -> None:
    config, info = run()
    told(config, info)
    assert told(config, info) == []
    for path in (cache_dir() / "counts").iterdir():
        path.write_text(text)
    assert told(config, info) == ["counting the FLOP of vit-nano"]


def test_a_model_is_traced_once_for_its_shapes() -> None:
    config, info = run("model.name=tests.small:small")
    model, _ = fit(config, info)
    shape = (info.image_size, info.image_size, info.channels)
    assert initial_shapes(model, shape) is initial_shapes(model, shape)
    larger = count_parameters(model, (16, 16, 1)) - count_parameters(model, shape)
    assert larger > 0


def test_a_dry_run_traces_each_network_once_and_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a dry run compiles a step, or times it")

    monkeypatch.setattr(speeds, "time_steps", refused)
    monkeypatch.setattr("jax.stages.Lowered.compile", refused)
    table = load_table("adam-vs-gr-digits")
    cells = make_cells(
        table, list(table.spec.rows), list(table.spec.columns), [0, 1], NO_CHANGES, tmp_path
    )
    said: list[str] = []
    found = estimate(
        cells, {cell.name: "absent" for cell in cells}, SpeedsHere(said.append, measure=False)
    )
    assert len(found) == len(cells) > 10
    assert said == [
        "measuring a product of matrices in float32",
        "counting the FLOP of vit-nano",
    ]
    for each in found:
        config = each.cell.on_one_device
        flops = image_flops(config, run()[1], said.append)
        images = config.data.batch_size
        steps = each.work.single * flops.plain + each.work.double * flops.gnp
        evaluated = 360 * -(-config.train.epochs // config.train.eval_every_epochs)
        expected = (images * steps + evaluated * flops.plain / 3) / RATE
        assert each.whole_s == each.left_s == pytest.approx(expected)


def test_what_was_measured_on_this_machine_counts_more_than_what_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, info = run()
    timed = Speed(1.0, 2.5, compile_s=9.0, source="measured now")
    monkeypatch.setattr(speeds, "_measured", lambda config, notify: timed)
    quiet = SpeedsHere(lambda text: None, measure=False)
    assert quiet(config, info).source == "counted"
    measuring = SpeedsHere(lambda text: None, measure=True)
    assert measuring(config, info) == timed
    assert measuring.compile_s == 9.0
    later = SpeedsHere(lambda text: None, measure=False)
    assert later(config, info) == Speed(1.0, 2.5, 0.0, "measured before")
    assert (later.compile_s, later.rates) == (0.0, {})
    other = config.replaced({"data.batch_size": 16})
    assert later(other, info).source == "counted"
    monkeypatch.setattr(speeds, "_this_machine", lambda: ["another one"])
    assert SpeedsHere(lambda text: None, measure=False)(config, info).source == "counted"


@pytest.mark.parametrize(
    ("batch", "groups", "microbatches", "devices", "size"),
    [
        (128, 1, 1, 1, 32),
        (16, 1, 1, 1, 16),
        (128, 1, 1, 2, 64),
        (120, 12, 1, 1, 36),
        (96, 3, 6, 2, 72),
    ],
)
def test_the_batch_of_a_measurement_can_be_divided(batch, groups, microbatches, devices, size):
    assignments = [
        f"data.batch_size={batch}",
        f"gr.groups={groups}",
        f"train.accumulate={microbatches}",
        f"mesh.devices={devices}",
    ]
    config = resolve(None, assignments)
    found = small_batch(config, devices)
    assert found == size
    config.replaced({"data.batch_size": found})
    assert found % (devices * max(groups, microbatches)) == 0


def test_a_dry_run_says_what_its_times_rest_on(gnp: Gnp, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = ("reproduce-table", "tiny.yaml", "--out", "out", "--dry-run")
    done = gnp(*command)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"FLOP as counted, at the rate of a product of matrices here \([\d,]+ GFLOP/s in float32\)",
        done.stdout,
    )
    assert "docs/planning.md" in done.stdout
    facts = json.loads(gnp(*command, "--json").stdout)
    assert {cell["from"] for cell in facts["cells"]} == {"counted"}
    assert facts["flops_per_s"]["float32"] > 1e8
    assert not (tmp_path / "out").exists()
    done = gnp("reproduce-table", "tiny.yaml", "--measure")
    assert done.returncode == 2
    assert "--dry-run" in done.stderr
