"""What an evaluation computes grows with the images that it is given.

Cases on several devices run in a process with eight forced host devices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnpcli.config.schema import DataConfig
from gnpcli.data.feeds.base import EvalBatches, eval_batches
from tests import counted
from tests.forced import on_eight_devices

MOST = 256
COUNTS = (1, 12, 256, 257, 300)


@pytest.mark.parametrize("devices", [1, 2, 3, 8, 256])
@pytest.mark.parametrize("most_each", [1, 2, 7, 32, 64, 128])
def test_as_few_batches_as_can_be_hold_hardly_more_than_the_images(
    devices: int, most_each: int
) -> None:
    most = most_each * devices
    config = DataConfig(name="digits", eval_batch_size=most)
    for count in (*range(1, 70), *COUNTS, 999, 1000, 10_000, 50_021):
        number, size = eval_batches(count, config, devices)
        assert size % devices == 0
        assert size <= most
        assert number == -(-count // most)
        share = -(-count // (number * devices))
        assert count <= number * size
        assert size == share * devices or size < share * devices * 17 / 16


def test_a_split_of_nothing_has_no_batch_and_the_training_batch_is_the_usual_most() -> None:
    config = DataConfig(name="digits", batch_size=64)
    assert eval_batches(0, config, 8) == EvalBatches(0, 8)
    assert eval_batches(65, config, 1) == EvalBatches(2, 34)


def check(found: dict[str, Any], padded: dict[str, Any], count: int, devices: int) -> None:
    """Assert that an evaluation computed about `count` rows, to the results of the padded one."""
    assert padded["rows"] == -(-count // MOST) * MOST  # the count counts
    assert count <= found["rows"] < count * 17 / 16 + devices * -(-count // MOST)
    assert found["programs"] == 1
    for name in ("error_rate", "top5_error_rate", "num_examples"):
        assert found[name] == padded[name]
    # The sums within a batch are taken in another order.
    np.testing.assert_allclose(found["loss"], padded["loss"], rtol=2e-6)


@pytest.mark.parametrize("count", COUNTS)
def test_rows_in_memory_are_as_many_as_the_images(count: int) -> None:
    split = counted.in_memory(count)
    check(counted.evaluate(split, MOST), counted.evaluate_padded(split, MOST), count, 1)


@pytest.mark.parametrize("count", [12, 300])
def test_streamed_rows_are_as_many_as_the_images(count: int, tmp_path: Path) -> None:
    files = counted.in_files(counted.in_memory(count), tmp_path / "files")
    check(counted.evaluate(files, MOST), counted.evaluate_padded(files, MOST), count, 1)


ON_EIGHT = """
    import json, sys
    from pathlib import Path
    from tests import counted

    found, folder = [], Path(sys.argv[2])
    for count in json.loads(sys.argv[1]):
        split = counted.in_memory(count)
        for each in (split, counted.in_files(split, folder / str(count))):
            found.append([counted.evaluate(each, 256), counted.evaluate_padded(each, 256)])
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_eight_devices_compute_little_more_than_the_images(tmp_path: Path) -> None:
    found = on_eight_devices(ON_EIGHT, json.dumps(COUNTS), tmp_path, optimised=True)
    counts = [count for count in COUNTS for _ in ("in memory", "streamed")]
    for count, (own, padded) in zip(counts, found, strict=True):
        check(own, padded, count, 8)
