"""What a run asks of a machine that is not here: `gnp plan`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from gnpcli.cluster.chips import Machine, chips, find_machine
from gnpcli.cluster.compiling import _refused, counted
from gnpcli.cluster.costs import COUNTED, Collectives, StepCost, collectives_of, step_time
from gnpcli.cluster.counting import count
from gnpcli.cluster.fitting import CUT, Room, divisible, find_remedies
from gnpcli.cluster.planning import RunPlan, plan_run, sizes_of
from gnpcli.cluster.table_plans import plan_cells
from gnpcli.cluster.topologies import has_libtpu
from gnpcli.config.resolved import Resolved
from gnpcli.devices.mesh import make_mesh
from gnpcli.errors import ConfigError, GnpError
from gnpcli.recipes.presets import resolve
from gnpcli.tables.cells import Cell
from tests.conftest import Gnp, fails
from tests.tpu import needs_libtpu, with_libtpu

SMALL = ("model.name=tests.small:small", "data.batch_size=64")
HALF = (*SMALL, "gr.strategy=constant", "gr.r=0.1", "gr.alpha=0.8", "gr.every=2")
"""Every second step is plain."""


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """Let Optax mix types, as a command does."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def quiet(text: str) -> None:
    pass


def planned(*assignments: str, on: str = "h100:4") -> RunPlan:
    return plan_run(resolve(None, assignments), find_machine(on), quiet)


@pytest.mark.parametrize("name", chips())
def test_a_chip_has_rates_and_says_where_they_stand(name: str):
    chip = chips()[name]
    assert chip.peak.keys() == {"float32", "bfloat16"}
    assert all(rate > 1e13 for rate in chip.peak.values())
    assert min(chip.memory, chip.bandwidth, chip.link) > 1e9
    assert chip.sources
    assert all(source.startswith("https://") for source in chip.sources)


@pytest.mark.parametrize(
    ("text", "count"), [("v5e:4x4", 16), ("v5p:2x2x4", 16), ("h100:8", 8), ("v4:2x2x1", 4)]
)
def test_a_machine_is_named_by_its_chips(text: str, count: int):
    assert find_machine(text).chips == count


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("v9:2x2", "unknown chip 'v9'"),
        ("h1000:2", "did you mean 'h100'?"),
        ("h100", "how many? for example h100:8"),
        ("h100:x", "how many?"),
        ("h100:0", "0 chips"),
        ("v5e:4", "has 2 axes, for example v5e:4x4"),
        ("v5p:4x4", "has 3 axes"),
        ("v5e:998x998", "996,004 chips; TPU v5e has 1 to 256"),
        ("v5e:32x32", "1,024 chips; TPU v5e has 1 to 256"),
        ("v5e:3x5", "there is no TPU slice v5e:3x5: a host has 2x2 chips of it"),
        ("v4:3x2x1", "there is no TPU slice v4:3x2x1"),
        ("v5e:", "has 2 axes"),
        ("v5e:2x2x2", "has 2 axes"),
        ("v5e:0x4", "0 chips"),
        ("h100:-1", "how many?"),
        ("tpu", "unknown chip 'tpu'"),
        ("cpu:2", "cpu is this machine, and takes no number"),
    ],
)
def test_a_machine_that_is_none_is_refused(text: str, part: str):
    with pytest.raises(ConfigError) as found:
        find_machine(text)
    assert part in str(found.value)


def counts_of(function: Any, *shapes: tuple[int, ...]) -> tuple[float, float]:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    found = count(jax.make_jaxpr(function)(*arguments))
    return found.flops, found.bytes


def test_a_product_is_counted_by_its_shapes():
    assert counts_of(lambda a, b: a @ b, (8, 32), (32, 16)) == (
        2 * 8 * 32 * 16,
        4 * (8 * 32 + 32 * 16 + 8 * 16),
    )


def test_what_works_element_by_element_reads_and_writes_once():
    _, moved = counts_of(lambda x, y: jnp.tanh(x) * 2 + y, (100,), (100,))
    assert moved == 4 * 300
    _, summed = counts_of(lambda x: jnp.sum(jnp.exp(x) * x), (100,))
    assert summed == 4 * 101


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=7)[0]

    flops, _ = counts_of(loop, (16, 16))
    assert flops == 7 * 2 * 16**3


@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_a_convolution_costs_two_of_it(stride: int):
    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(convolve(images, kernel) ** 2)

    shapes = ((2, 8, 8, 16), (3, 3, 16, 32))
    forward, _ = counts_of(convolve, *shapes)
    both, _ = counts_of(jax.grad(loss, (0, 1)), *shapes)
    assert both == pytest.approx(3 * forward, rel=0.05)


@pytest.mark.parametrize("kind", ["plain", "gnp"])
def test_flops_are_those_that_the_compiler_counts(kind: Any):
    config = resolve(None, HALF)
    mesh = make_mesh(config.replaced({"mesh.devices": 1}))
    from gnpcli.cluster.topologies import lower_step
    from gnpcli.devices import cpu

    with cpu.tuning(False):
        costs: Any = lower_step(config, kind, mesh).cost_analysis()
    assert counted(config, kind, mesh).flops == pytest.approx(costs["flops"], rel=0.02)


@pytest.mark.parametrize("cut", ["gr.groups=4", "train.accumulate=4"])
def test_a_batch_that_is_cut_costs_as_many_flops(cut: str):
    whole, parts = (
        counted(resolve(None, [*HALF, *cuts]), "gnp", one_device()).flops for cuts in ((), (cut,))
    )
    assert 1 <= parts / whole < 1.15  # what is done to the parameters is done for each part


def test_the_roofline_is_the_longest_part_and_the_links():
    machine = find_machine("a100:2")
    cost = StepCost(
        flops=312e12,
        bytes=2039e9 / 2,
        arguments=0,
        temporaries=0,
        collectives={"all-reduce": Collectives(1, 150_000_000_000)},
    )
    found = step_time(cost, machine, "bfloat16")
    assert (found.compute_s, found.memory_s, found.links_s) == pytest.approx((1, 0.5, 1))
    assert found.total_s == pytest.approx(2)
    assert step_time(cost, machine, "float32").total_s == pytest.approx(3)
    assert step_time(cost, find_machine("a100:1"), "bfloat16").total_s == pytest.approx(1)
    # The two devices of a v4 chip have half of it each.
    chip = find_machine("v4:2x2x1")
    assert step_time(replace(cost, collectives={}), chip, "bfloat16").compute_s == pytest.approx(
        2 * 312 / 275
    )


def test_collectives_are_read_from_a_compiled_program():
    text = """
  %a = (f32[64,32]{0,1:T(8,128)S(1)}, f32[10]{0:T(128)S(1)}) all-reduce(%x, %y), channel_id=6
  %b = bf16[8,16]{1,0} all-gather(%z), dimensions={0}
  %c = (f32[4]{0}, f32[8]{0}) all-gather-start(%w), dimensions={0}
  %d = f32[8]{0} all-gather-done(%c)
"""
    assert collectives_of(text) == {
        "all-reduce": Collectives(1, 4 * (64 * 32 + 10)),
        "all-gather": Collectives(2, 2 * 8 * 16 + 4 * 8),
    }


@pytest.mark.parametrize(
    ("message", "temporaries"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (38.80G) exceeds available HBM (15.75G).",
            38.8 * 2**30,
        ),
        ("Ran out of memory in memory space hbm. Used 20.00M of 15.75G hbm. Exceeded", 20 * 2**20),
    ],
)
def test_a_program_that_is_refused_says_what_it_needs(message: str, temporaries: float):
    config = resolve(None, [*SMALL, "mesh.devices=1"])
    cost = _refused(config, "plain", make_mesh(config), message)
    assert (cost.source, cost.is_too_large) == (COUNTED, True)
    assert cost.memory == pytest.approx(temporaries, rel=0.01)
    assert cost.arguments > 1437 * 64  # the images
    with pytest.raises(GnpError, match="does not compile: something else"):
        _refused(config, "plain", make_mesh(config), "something else\nat length")


def test_a_plan_adds_up():
    plan = planned(*HALF)
    assert plan.work.steps == {"gnp": 176, "plain": 176}
    gnp, plain = plan.costs["gnp"], plan.costs["plain"]
    assert gnp.flops / plain.flops == pytest.approx(2, rel=0.1)
    assert gnp.moved == 2 * plain.moved > 0
    assert plan.fits
    assert plan.remedies == ()
    steps_s = sum(count * plan.times[kind].total_s for kind, count in plan.work.steps.items())
    assert steps_s < 3600 * plan.hours < 1.5 * steps_s
    assert plan.chip_hours == pytest.approx(4 * plan.hours)
    # One chip does four times the work, and talks to nobody.
    alone = planned(*HALF, on="h100:1")
    assert alone.exaflop == pytest.approx(plan.exaflop)
    assert alone.costs["gnp"].flops == pytest.approx(4 * gnp.flops)
    assert alone.costs["gnp"].collectives == {}


WIDE = ("model.name=tests.wide:wide", "data.batch_size=1024", "gr.strategy=none")


def on_little(config: Resolved, memory: float) -> RunPlan:
    machine = find_machine("a100:8")
    little = Machine("little", replace(machine.chip, memory=memory), machine.chips)
    return plan_run(config, little, quiet)


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_would():
    config = resolve(None, WIDE)
    needed = on_little(config, 1e12).memory
    plan = on_little(config, 0.9 * needed)
    assert not plan.fits
    found = {remedy.settings for remedy in plan.remedies}
    assert ("mesh.shard=fsdp",) in found
    for remedy in plan.remedies:
        with_it = resolve(None, [*WIDE, *remedy.settings])
        assert on_little(with_it, 0.9 * needed).fits, remedy
    assert on_little(config, 0.01 * needed).remedies == ()
    assert on_little(config, 0.01 * needed).tried == (
        "mesh.shard",
        "data.placement",
        "train.accumulate",
    )


IN_MEMORY = ("model.name=tests.small:small", "data.name=cifar10", "gr.strategy=none")
"""The images are nearly all of it."""


def test_images_that_do_not_fit_are_to_be_shared_out():
    config = resolve(None, [*IN_MEMORY, "data.batch_size=64"])
    needed = on_little(config, 1e12).memory
    plan = on_little(config, needed / 2)
    assert [remedy.settings for remedy in plan.remedies] == [("data.placement=sharded",)]
    shared = config.replaced(plan.remedies[0].changes)
    assert on_little(shared, needed / 2).fits
    assert on_little(shared, needed / 2).memory == pytest.approx(plan.remedies[0].memory)
    # One device has nobody to share with, and streamed images lie nowhere.
    room = Room(config, sizes_of(config), find_machine("a100:1"), plan.costs["plain"])
    assert divisible(room) == ()
    streamed = replace(room, machine=plan.machine, info=replace(room.info, is_streamed=True))
    assert divisible(streamed) == ("mesh.shard",)


def test_what_a_remedy_does_with_less_is_left_out():
    config = resolve(None, [*IN_MEMORY, "data.batch_size=8192"])
    roomy = on_little(config, 1e12)
    room = Room(config, sizes_of(config), roomy.machine, roomy.costs["plain"])
    for share in (0.9, 0.6, 0.4, 0.2):
        machine = replace(
            room.machine, chip=replace(room.machine.chip, memory=share * roomy.memory)
        )
        found = find_remedies(replace(room, machine=machine))
        assert found
        for remedy in found:
            others = [other for other in found if other is not remedy]
            assert not any(
                other.changes.keys() <= remedy.changes.keys()
                and int(other.changes.get(CUT, 1)) <= int(remedy.changes.get(CUT, 1))
                for other in others
            )


def test_the_largest_batch_is_where_the_memory_ends():
    config = resolve(None, [*SMALL, "gr.strategy=none"])
    needed = on_little(config, 1e12).memory
    largest = on_little(config, needed).largest_batch
    assert largest is not None
    assert largest == pytest.approx(64, abs=8)
    assert on_little(config, needed / 100).largest_batch is None


@pytest.mark.parametrize(
    ("assignments", "on", "part"),
    [
        (SMALL, "h100:3", "not divisible by the 3 devices; try 63, or plan for another number"),
        (SMALL, "h100:128", "128 devices, more than the data.batch_size = 64 images"),
        ((*SMALL, "mesh.devices=2"), "h100:4", "mesh.devices = 2, but h100:4 has 4"),
        ((*SMALL, "train.accumulate=8"), "h100:16", "cannot be sharded evenly"),
    ],
)
def test_a_run_that_a_machine_cannot_take_is_refused(assignments: Any, on: str, part: str):
    with pytest.raises(ConfigError) as found:
        planned(*assignments, on=on)
    assert part in str(found.value)


def test_cells_that_differ_in_numbers_share_their_costs(tmp_path: Path):
    said: list[str] = []
    configs = [resolve(None, [*HALF, f"train.seed={seed}", "gr.r=0.2"]) for seed in (0, 1)]
    cells = [Cell("row", "column", seed, config, tmp_path) for seed, config in enumerate(configs)]
    plans = [plan for _, plan in plan_cells(cells, find_machine("h100:2"), said.append)]
    assert sum("tracing the plain step" in text for text in said) == 1
    assert plans[0].costs == plans[1].costs
    with pytest.raises(ConfigError, match=r"^row column: data\.batch_size = 64 is not divisible"):
        plan_cells(cells, find_machine("h100:3"), said.append)


def test_the_command_tells_a_plan(gnp: Gnp):
    options = ("--on", "h100:2", *(f"--set={assignment}" for assignment in HALF))
    found = json.loads(gnp("plan", *options, "--price", 3, "--json").stdout)
    assert found["money"] == pytest.approx(3 * found["chip_hours"])
    assert {step["source"] for step in found["steps"]} == {COUNTED}
    done = gnp("plan", *options)
    assert done.returncode == 0, done.stderr
    for part in ("fits: ", "largest that fits", "chip-hours", "https://www.nvidia.com/"):
        assert part in done.stdout
    assert re.search(r"^a step +gnp +plain\n(.*\n)*time .* ms .* ms", done.stdout, re.M)
    assert max(map(len, re.split(r"\n\n", done.stdout)[0].splitlines()[1:])) <= 60
    fails(gnp("plan", "vit-ss", "--on", "h100:2"), "unknown preset or table 'vit-ss'")
    assert gnp("plan", "--price", "-1", "--on", "h100:2").returncode == 2
    done = gnp("plan", "--on", "h100:2", "--seeds", "0")
    assert done.returncode == 2
    assert "it is for a table, not a preset" in done.stderr


@pytest.mark.skipif(has_libtpu(), reason="libtpu is installed")
def test_without_libtpu_the_command_says_what_to_install(gnp: Gnp):
    fails(
        gnp("plan", "--on", "v5e:2x2", "--set=model.name=tests.small:small"),
        "libtpu, which compiles for TPUs, is not installed: pip install 'gnpcli[plan]'",
    )


@pytest.mark.slow
def test_a_table_is_planned(gnp: Gnp):
    done = gnp("plan", "adam-vs-gr-digits", "--on", "a100:1", "--price", 1, "--json")
    found = json.loads(done.stdout)
    assert len(found["cells"]) == 18
    assert found["hours"] == pytest.approx(sum(cell["hours"] for cell in found["cells"]))


@pytest.mark.slow
def test_the_plan_of_a_part_of_a_table_is_of_the_cells_that_the_dry_run_has(gnp: Gnp):
    part = ("adam-vs-gr-digits", "--columns", "zero-warmup,adam", "--seeds", "1-2", "--epochs", 2)
    planned, estimated = (
        json.loads(gnp(*command, *part, "--json").stdout)
        for command in (("plan", "--on", "a100:1"), ("reproduce-table", "--dry-run"))
    )
    places = [
        [(cell["row"], cell["column"], cell["seed"]) for cell in found["cells"]]
        for found in (planned, estimated)
    ]
    assert places[0] == places[1]
    assert {seed for _, _, seed in places[0]} == {1, 2}
    for ours, theirs in zip(planned["cells"], estimated["cells"], strict=True):
        counts = {step["kind"]: step["count"] for step in ours["steps"]}
        assert counts.get("plain", 0) == theirs["plain_steps"]
        assert counts.get("gnp", 0) == theirs["gnp_steps"]
    assert planned["hours"] == pytest.approx(sum(cell["hours"] for cell in planned["cells"]))


@pytest.mark.slow
def test_this_cpu_is_measured(gnp: Gnp):
    options = [f"--set={assignment}" for assignment in HALF]
    found = json.loads(gnp("plan", "--on", "cpu", *options, "--json").stdout)
    assert found["machine"]["sources"] == ["measured now"]
    assert found["fits"]
    assert {step["memory_source"] for step in found["steps"]} == {"compiled for this machine"}


@pytest.mark.slow
def test_cells_of_several_types_are_planned_for_this_cpu(gnp: Gnp, tmp_path: Path):
    (tmp_path / "own.yaml").write_text(
        "title: t\npurpose: p\npreset: vit-nano-digits\nseeds: [0]\nbaseline: float32\n"
        "set: {model: {name: 'tests.small:small'}, gr: {strategy: none}}\n"
        "rows: {small: {label: s}}\n"
        "columns:\n"
        "  float32: {label: a, set: {train: {dtype: float32}}}\n"
        "  bfloat16: {label: b, set: {train: {dtype: bfloat16}}}\n"
    )
    done = gnp("plan", tmp_path / "own.yaml", "--on", "cpu", "--trust-code", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["peak_flops_per_s"].keys() == {"float32", "bfloat16"}
    assert len(found["cells"]) == 2


def plan_on_tpu(cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from gnpcli.cli import main; main()", "plan", *options]
    variables = with_libtpu({"GNP_CACHE_DIR": str(cache)})
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=900)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("on", "devices"), [("v5e:2x2", 4), ("v5e:4x8", 32)])
def test_a_step_is_compiled_for_a_tpu_once(tmp_path: Path, on: str, devices: int):
    assignments = [*HALF, "data.batch_size=1024"]  # a TPU fills up the rows of a small batch
    options = ("--on", on, "--json", *(f"--set={assignment}" for assignment in assignments))
    first = plan_on_tpu(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert f"compiling the gnp step for {on}" in first.stderr
    assert "WARNING" not in first.stderr, "libtpu speaks"
    assert found["machine"]["devices"] == devices
    for step in found["steps"]:
        assert step["source"] == step["memory_source"] == "compiled for that machine"
        assert step["collectives"]["all-reduce"]["count"] > 0
        here = counted(resolve(None, assignments), step["kind"], one_device())
        assert 0.5 < step["flops"] * devices / here.flops < 2
    second = plan_on_tpu(tmp_path, *options)
    assert "compiling" not in second.stderr
    assert json.loads(second.stdout) == found


@pytest.mark.slow
def test_what_compiles_ends_with_who_asked():
    code = (
        "import sys, time; from gnpcli.cluster.compiling import _end_with_who_asked; "
        "sys.stdin.readline(); _end_with_who_asked(); print('at work', flush=True); time.sleep(900)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write("{}\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "at work\n"
        assert worker.poll() is None
        worker.stdin.close()
        assert worker.wait(timeout=300) == 1
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


def one_device() -> Mesh:
    return make_mesh(resolve(None, [*HALF, "mesh.devices=1"]))
