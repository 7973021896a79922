"""Images in memory, a copy on every device or a share: the same batches, and little traffic.

Cases on several devices run in a process with eight forced host devices.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataInfo, Dataset
from gnpcli.data.registry import can_stream, describe_data
from gnpcli.data.room import bytes_on_each, check_room
from gnpcli.devices.machine import read_machine
from gnpcli.engine.train import train
from gnpcli.errors import DataError
from gnpcli.recipes import wording
from gnpcli.recipes.presets import resolve
from tests.conftest import Gnp
from tests.forced import on_eight_devices
from tests.launch import launch
from tests.test_processes_train import TRAIN, digests, log

ROWS = """
    import re
    import jax, numpy as np
    from jax.sharding import AxisType, Mesh
    from gnpcli.devices.mesh import replicated
    from gnpcli.devices.rows import RowsInOrder, rows_on
    from tests.sharded import collectives

    import json
    axes = ("group", "data")
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), axes, axis_types=(AxisType.Auto,) * 2)
    draws = np.random.default_rng(0)
    found = {"equal": [], "shares": [], "seen once": []}
    for count in (3, 64, 1001):
        table = draws.integers(0, 256, (count, 12), dtype=np.uint8)
        chosen = draws.integers(0, count, 16).astype(np.int32)
        rows = rows_on(mesh, "sharded")
        held = rows.put(table)
        taken = jax.jit(rows.take)
        found["equal"].append(np.array_equal(taken(held, chosen), table[chosen]))
        found["shares"].append([part.data.shape[0] for part in held.addressable_shards])
        text = taken.lower(held, rows.place(chosen)).compile().as_text()
        found[f"traffic {count}"] = collectives(text)
        found[f"moved {count}"] = re.findall(r"= (\\S+)\\{.*? reduce-scatter\\(", text)
        ordered = RowsInOrder(mesh)
        held = ordered.put(table, 16)
        batches = -(-count // 16)
        take = jax.jit(ordered.take)
        got = [np.asarray(take(held, np.int32(index))) for index in range(batches)]
        got = np.concatenate(got)
        same = np.array_equal(got[:count], table) and (got[count:] == table[-1]).all()
        found["seen once"].append(bool(same))
        text = take.lower(held, np.int32(0)).compile().as_text()
        found[f"in order {count}"] = collectives(text)
    print(json.dumps(found))
"""


def test_a_batch_is_gathered_out_of_shares_by_one_exchange_of_its_size():
    found = on_eight_devices(ROWS, optimised=True)
    assert found["equal"] == found["seen once"] == [True] * 3
    assert found["shares"] == [[1] * 8, [8] * 8, [126] * 8]
    for count in (3, 64, 1001):  # whatever the size of the table
        assert found[f"traffic {count}"] == {"reduce-scatter": 1}
        assert found[f"moved {count}"] == ["u8[2,12]"]
        assert found[f"in order {count}"] == {}


COMPARE = """
    import json, sys
    import jax, numpy as np
    from gnpcli.data.registry import load_dataset
    from gnpcli.engine.evaluator import Evaluator
    from tests.sharded import apart, collectives, on_host, trained

    def run(case, placement):
        found = trained(4, *case, f"data.placement={placement}")
        config, parts = found.task.config, found.task.parts
        test = load_dataset(config.data).test
        evaluator = Evaluator(test, found.task.spec, config, parts.model, parts.mesh)
        measured = evaluator(found.state.params, found.state.model_state)
        return found, measured

    out = []
    for case in json.loads(sys.argv[1]):
        (whole, first), (split, second) = run(case, "replicated"), run(case, "sharded")
        texts = ["".join(p.as_text() for p in each.programs) for each in (whole, split)]
        states = on_host(whole.state), on_host(split.state)
        images = split.task.parts.feed.source(0)["images"]
        out.append({
            "equal": jax.tree.all(jax.tree.map(np.array_equal, *states)),
            "apart": apart(states[0].params, states[1].params),
            "moved": apart(states[0].params, whole.start.params),
            "measured": [first, second],
            "programs": len(split.programs),
            "extra": collectives(texts[1]) - collectives(texts[0]),
            "share": images.addressable_shards[0].data.nbytes / images.nbytes,
        })
    print(json.dumps(out))
"""

SMALL = "model.name=tests.small:small"
CASES = [
    [SMALL, "data.augment=basic"],
    [SMALL, "gr.groups=8", "data.mix=mixup"],
    ["mesh.shard=fsdp", "gr.groups=2"],
]


def same_runs(cases: list[list[str]]) -> None:
    """Assert that runs of shares are those of copies, bit for bit, with one exchange a step."""
    for case, found in zip(
        cases, on_eight_devices(COMPARE, json.dumps(cases), optimised=True), strict=True
    ):
        assert found["moved"] > 1e-3, case
        assert found["equal"], (case, found["apart"])
        assert found["measured"][0] == found["measured"][1], case
        assert found["extra"] == {"reduce-scatter": found["programs"]}, (case, found)
        assert found["share"] == 1 / 8, case


@pytest.mark.slow
def test_steps_and_evaluation_are_the_same_bits_wherever_images_lie():
    same_runs(CASES)


SHARDED = ("--set", "data.placement=sharded")


@pytest.mark.slow
def test_two_processes_with_shares_are_the_run_of_copies(tmp_path: Path):
    command = [*TRAIN, "--set", "data.augment=basic", "--json"]
    whole, split = tmp_path / "whole", tmp_path / "split"
    launch([*command, "--run-dir", whole / "run"], whole)
    launch([*command, *SHARDED, "--run-dir", split / "run"], split)
    assert log(split) == log(whole)
    assert digests(split) == digests(whole)


# --- room


def info(**values: Any) -> DataInfo:
    found = describe_data(DataConfig(name="digits"))
    assert found is not None
    return replace(found, **values)


@pytest.fixture
def megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnpcli.devices.memory.device_memory", lambda used=None: 1_000_000)


def test_each_device_has_the_training_images_or_a_share_and_a_share_of_the_others():
    data = info(num_train=100, num_validation=3, num_test=10)
    config = DataConfig(name="digits")
    assert bytes_on_each(config, data, 8) == 64 * (100 + 2)
    assert bytes_on_each(config.replaced({"placement": "sharded"}), data, 8) == 64 * (13 + 2)
    assert bytes_on_each(config, replace(data, is_streamed=True), 8) == 0


@pytest.mark.parametrize(
    ("name", "values", "image_size", "devices", "remedy"),
    [
        ("digits", {}, 64, 8, "set data.placement=sharded (920 kB on each)"),
        ("digits", {}, 64, 1, "take smaller images (data.image_size), or more devices"),
        ("folder:x", {}, 64, 8, "set data.placement=sharded (920 kB on each) or data.stream=true"),
        ("folder:x", {}, 640, 8, "set data.stream=true"),
        ("folder:x", {"placement": "sharded"}, 640, 8, "set data.stream=true"),
    ],
)
@pytest.mark.usefixtures("megabyte")
def test_images_beyond_a_device_are_refused_with_both_sizes(
    name: str, values: dict[str, str], image_size: int, devices: int, remedy: str
):
    config = DataConfig(name=name).replaced(values)
    with pytest.raises(DataError) as caught:
        check_room(config, info(image_size=image_size), devices, can_stream=can_stream(config))
    told = str(caught.value)
    assert told.startswith(f"the images of {name} take "), told
    assert " on each device, which has 1.0 MB: " in told
    assert remedy in told


@pytest.mark.usefixtures("megabyte")
def test_a_share_of_the_images_that_fits_is_not_refused():
    data = info(image_size=64)
    check_room(DataConfig(name="digits", placement="sharded"), data, 8, can_stream=False)
    check_room(DataConfig(name="digits"), replace(data, is_streamed=True), 1, can_stream=True)


def test_where_a_device_says_nothing_nothing_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gnpcli.devices.memory.device_memory", lambda used=None: None)
    check_room(DataConfig(name="digits"), info(image_size=8192), 1, can_stream=False)


@pytest.mark.usefixtures("megabyte")
def test_a_plan_warns_of_images_that_a_run_would_refuse():
    warnings: list[str] = []
    wording.plan_lines(resolve(None, ["data.image_size=64"]), "run", warnings.append)
    (warning,) = warnings
    assert warning.startswith("the images of digits take ")


@pytest.mark.usefixtures("megabyte")
def test_a_run_of_too_many_arrays_is_refused_before_it_begins(tmp_path: Path):
    images, labels = np.zeros((400, 32, 32, 3), np.uint8), np.arange(400) % 2
    data = Dataset.from_arrays(train=(images, labels), test=(images[:2], labels[:2]))
    with pytest.raises(
        DataError, match=r"images of arrays:mine take 1\.2 MB on each device, which"
    ):
        train(resolve(None, []), tmp_path / "run", data=data, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_command_beyond_the_machine_ends_with_one_line(gnp: Gnp, tmp_path: Path):
    """1,797 images of 8,192 pixels a side are 121 GB."""
    done = gnp("train", "--set", "data.image_size=8192", "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the images of digits take" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000\n"}, 5000),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
                "sys/fs/cgroup/memory.max": "7000",
            },
            7000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/pod/x\n",
                "sys/fs/cgroup/memory/pod/x/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "6000\n",
            },
            6000,
        ),
    ],
    ids=["of a group around", "of a container", "of version 1"],
)
def test_the_memory_of_a_machine_is_what_its_control_groups_leave(
    tmp_path: Path, files: dict[str, str], limit: int
):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert read_machine(tmp_path).usable_bytes == limit


def test_a_machine_without_control_groups_has_its_own_memory(tmp_path: Path):
    found = read_machine(tmp_path).usable_bytes
    assert found is not None
    assert found > 10**8
