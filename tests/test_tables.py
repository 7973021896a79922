"""Tables as data, and what is said about their runs: names, recipes, statistics, verdicts,
deviations, outputs.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from gnpcli.config.loader import differences
from gnpcli.config.resolved import Resolved, settle
from gnpcli.config.schema import RunConfig
from gnpcli.errors import ConfigError
from gnpcli.recipes.plan import count_steps
from gnpcli.recipes.presets import preset_dir
from gnpcli.runs.folder import RunFolder
from gnpcli.tables.cells import check_folders, make_cells, run_dir
from gnpcli.tables.deviations import variant_of
from gnpcli.tables.formats import to_csv, to_dict, to_latex, to_markdown
from gnpcli.tables.metrics import METRICS, MetricKind
from gnpcli.tables.outputs import write_outputs
from gnpcli.tables.report import make_report
from gnpcli.tables.results import collect
from gnpcli.tables.schema import Claim
from gnpcli.tables.shares import shares
from gnpcli.tables.spec import Changes, Table, choose, load_table, table_names
from gnpcli.tables.statistics import Interval, interval, paired, summarize
from gnpcli.tables.verdicts import judge
from tests.browser import Browser, needs_browser
from tests.machines import V100, machine
from tests.shallow import make_shallow
from tests.tables import NO_CHANGES, SMALL, write
from tests.tracing import trace

TABLES = table_names()


def on_one_device(config: RunConfig) -> Resolved:
    return settle(config, lambda: 1)


def pretend(
    table: Table, out: Path, values: dict[tuple[str, int], float], changes: Changes = NO_CHANGES
) -> None:
    """Write run folders of the row ``nano`` as if they had been trained to these errors, in
    percent.
    """
    for (column, seed), value in values.items():
        folder = run_dir(out, "nano", column, seed)
        RunFolder(folder).create(on_one_device(table.resolve("nano", column, seed, changes)))
        result = {"step": 704, "error_rate": value / 100, "loss": 0.1, "num_examples": 360}
        summary = {
            "status": "finished",
            "step": 704,
            "epoch": 16.0,
            "images_per_s": 10.0,
            "test": result,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        lines = [
            {
                "step": 352,
                "epoch": 8.0,
                "split": "train",
                "loss": 0.5,
                "error_rate": 0.1,
                "elapsed_s": 5.0,
            },
            {"step": 352, "epoch": 8.0, "split": "test", "error_rate": value / 200},
            {
                "step": 704,
                "epoch": 16.0,
                "split": "train",
                "loss": 0.2,
                "error_rate": 0.1,
                "elapsed_s": 3.0,
            },
            {"step": 704, "epoch": 16.0, "split": "test", "error_rate": value / 100},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        session = {
            "start_step": 0,
            "python": "3.11",
            "platform": "Linux",
            "devices": ["cpu"],
            "git_commit": "abc",
        }
        session["versions"] = {"jax": "0.10.2"}
        (folder / "environment.json").write_text(json.dumps({"sessions": [session]}))


def told(table: Table, out: Path):
    return collect(table, list(table.spec.rows), list(table.spec.columns), None, out)


# --- the shipped tables


@pytest.mark.parametrize("name", TABLES)
def test_a_shipped_table_resolves_in_every_cell_and_variant(name):
    table = load_table(name)
    text = (preset_dir() / "tables" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert f"gnp reproduce-table {name}" in text
    assert 10 < len(table.spec.purpose) <= 100
    variants: list[str | None] = [*table.spec.variants] or [None]
    for variant in variants:
        cells = make_cells(
            table,
            list(table.spec.rows),
            list(table.spec.columns),
            [0, 1],
            Changes(variant=variant),
            Path("out"),
        )
        assert len(cells) == 2 * len(table.spec.rows) * len(table.spec.columns)
        assert {cell.config.train.seed for cell in cells} == {0, 1}


def traced() -> list[tuple[str, str, str, str | None]]:
    """One cell of each row and variant whose steps the tests of the presets do not trace already,
    and each column.
    """
    cells = []
    for name in TABLES:
        spec = load_table(name).spec
        variants: list[str | None] = [*spec.variants] or [None]
        row = next(iter(spec.rows))
        cells += [(name, row, column, variants[0]) for column in spec.columns]
        cells += [
            (name, row, list(spec.columns)[-1], variant)
            for row in spec.rows
            for variant in variants
        ]
    return list(dict.fromkeys(cells))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row", "column", "variant"), traced())
def test_a_cell_traces_through_both_train_steps(monkeypatch, name, row, column, variant):
    """With a small network: `test_zoo` and `test_presets` trace the deep ones."""
    changes = Changes(variant=variant, assignments=("mesh.devices=1",))
    config = on_one_device(load_table(name).resolve(row, column, 0, changes))
    make_shallow(config.model.name, monkeypatch)
    trace(config)


def test_published_values_are_those_of_the_reference():
    """README of the papers' code; a table has no other published value."""
    table = load_table("adam-vs-gr")
    values = [
        [table.published_value(row, column) for column in table.spec.columns]
        for row in table.spec.rows
    ]
    assert values == [[14.82, 13.92, 13.61], [12.07, 12.40, 10.68], [10.83, 12.36, 9.42]]
    assert all(load_table(name).spec.published is None for name in TABLES if name != "adam-vs-gr")


def test_the_columns_of_adam_vs_gr_are_the_recipes_of_the_papers_code():
    table = load_table("adam-vs-gr")
    adam, constant, zero = (
        table.resolve("vit-s", column, 0, NO_CHANGES) for column in table.spec.columns
    )
    assert differences(adam, constant) == ["gr.strategy: none -> constant"]
    assert (constant.gr.alpha, constant.gr.r, constant.schedule.warmup_epochs) == (0.8, 0.1, 0)
    assert (zero.gr.alpha, zero.gr.r, zero.gr.warmup_epochs, zero.schedule.warmup_epochs) == (
        1.0,
        0.1,
        40,
        40,
    )
    compat = table.resolve("vit-s", "zero-warmup", 0, Changes(variant="upstream-compat"))
    assert differences(zero, compat) == ["gr.groups: 1 -> per-device", "gr.mix: raw -> unit"]


def test_gr_warmups_and_digits_change_nothing_but_the_strategy():
    for name in ("gr-warmups", "adam-vs-gr-digits"):
        table = load_table(name)
        row = next(iter(table.spec.rows))
        first, *others = (
            table.resolve(row, column, 0, NO_CHANGES) for column in table.spec.columns
        )
        for other in others:
            assert [line.partition(":")[0] for line in differences(first, other)] == ["gr.strategy"]


# --- resolving


def test_a_column_goes_over_a_row_over_the_table_and_options_over_all(tmp_path):
    table = write(
        tmp_path,
        SMALL.replace("baseline:", "set: {optimizer: {lr: 0.1}, gr: {r: 0.9}}\nbaseline:").replace(
            "nano: {label: ViT-nano}",
            "nano: {label: ViT-nano, set: {optimizer: {lr: 0.2}, gr: {r: 0.8}}}",
        ),
    )
    config = table.resolve("nano", "zero", 7, NO_CHANGES)
    assert (config.optimizer.lr, config.gr.r, config.train.seed, config.gr.mix) == (
        0.2,
        0.1,
        7,
        "raw",
    )
    changes = Changes("unit", 32, None, None, ("gr.r=0.3",))
    config = table.resolve("nano", "zero", 7, changes)
    assert (config.gr.r, config.gr.mix, config.train.epochs) == (0.3, "unit", 32)


def test_warmups_keep_their_share_of_fewer_epochs(tmp_path):
    table = load_table("adam-vs-gr")
    config = table.resolve("vit-ti", "zero-warmup", 0, Changes(epochs=30))
    assert (config.train.epochs, config.schedule.warmup_epochs, config.gr.warmup_epochs) == (
        30,
        4,
        4,
    )
    assert table.resolve("vit-ti", "adam", 0, Changes(epochs=30)).schedule.warmup_epochs == 0
    assert count_steps(on_one_device(config), 10) == (40, 260)
    assert count_steps(on_one_device(config), 10, until=50) == (40, 10)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "preset: vit-nano-digits",
            "preset: vit-nano-digit",
            r"small\.yaml:3: unknown preset 'vit-nano-digit' - did",
        ),
        (
            "baseline: adam",
            "baseline: adm",
            r"small\.yaml:5: unknown column 'adm' - did you mean 'adam'",
        ),
        (
            "baseline: adam",
            "baselin: adam",
            r"small\.yaml:5: unknown key 'baselin' - did you mean 'baseline'",
        ),
        (
            "label: Adam",
            "labl: Adam",
            r"small\.yaml:10: unknown key 'columns.adam.labl' - did you mean",
        ),
        (
            "strategy: none",
            "strategy: nnone",
            r"small\.yaml:12: gr.strategy: 'nnone' is not one of",
        ),
        ("r: 0.1", "radius: 0.1", r"small\.yaml:15: unknown key 'gr.radius'"),
        ("adam: 4.0", "admm: 4.0", r"small\.yaml:23: unknown column 'admm' - did you mean 'adam'"),
        (
            "adam: 4.0",
            "adam: four",
            r"small\.yaml:23: published.values.nano.adam: expected a number, got 'four'",
        ),
        (
            "variant: unit",
            "variant: unitt",
            r"small\.yaml:21: unknown variant 'unitt' - did you mean 'unit'",
        ),
        *(
            (old, f"{old}, set: {{gr: {value}}}", r":\d+: \w+\.\w+\.set\.gr: expected a section")
            for old in ("label: ViT-nano", "about: the formula")
            for value in ("3", "x", "[]", "[r]", "true")
        ),
        ("seeds: [0, 1, 2]", "seeds: [0, 1, 1]", r"small\.yaml:4: a seed is given twice"),
        ("seeds: [0, 1, 2]", "seeds: []", r"small\.yaml:4: seeds: "),
        ("  nano:", "  Nano!:", r"small\.yaml:7: 'Nano!' must be a name"),
        (
            "gr: {strategy: none}",
            "train: {seed: 3}",
            r"small\.yaml:12: train\.seed is what `seeds` is for",
        ),
        (
            "preset: vit-nano-digits\n",
            "",
            r"small\.yaml:6: the cell of row nano and column adam has no preset",
        ),
        ("title: Small\n", "", r"missing key 'title'"),
        (
            "title: Small",
            "metric: {at: first}\ntitle: Small",
            r"small\.yaml:1: metric\.at: 'first' is not one of",
        ),
        (
            "notes: [a note]",
            "claims: [{better: zero, than: adm, source: x}]",
            r"small\.yaml:25: unknown column 'adm'",
        ),
    ],
)
def test_a_bad_table_is_refused_with_file_and_line(tmp_path, old, new, message):
    assert old in SMALL

    def read_and_resolve() -> None:
        table = write(tmp_path, SMALL.replace(old, new, 1))
        make_cells(
            table, list(table.spec.rows), list(table.spec.columns), [0], NO_CHANGES, tmp_path
        )

    with pytest.raises(ConfigError, match=message):
        read_and_resolve()


def test_a_section_without_keys_changes_nothing(tmp_path):
    old, new = "about: the formula", "about: the formula, set: {gr: , train: }"
    table = write(tmp_path, SMALL.replace(old, new))
    plain = write(tmp_path)
    paper = Changes(variant="paper")
    assert table.resolve("nano", "zero", 0, paper) == plain.resolve("nano", "zero", 0, paper)
    assert variant_of(table, [table.resolve("nano", "zero", 0, paper)]) == "paper"


def test_unknown_names_suggest_close_ones(tmp_path):
    table = write(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown table 'adam-vs-g' - did you mean 'adam-vs-gr'"):
        load_table("adam-vs-g")
    with pytest.raises(
        ConfigError, match=r"--models: table small has no row 'nan' - did you mean 'nano'"
    ):
        choose(table, "rows", "--models", ["nan"])
    with pytest.raises(
        ConfigError, match=r"--columns: table small has no column 'zera' - did you mean 'zero'"
    ):
        choose(table, "columns", "--columns", ["zera"])
    with pytest.raises(
        ConfigError, match=r"table small has no variant 'papr' - did you mean 'paper'"
    ):
        table.variant("papr")
    assert choose(table, "rows", "--models", ["vit-NANO"]) == ["nano"]
    assert choose(table, "columns", "--columns", ["zero", "Adam"]) == ["adam", "zero"]
    assert (table.variant(None), table.variant("unit")) == ("paper", "unit")


def test_options_that_make_two_columns_the_same_run_are_refused(tmp_path):
    table = write(tmp_path)
    with pytest.raises(ConfigError, match="nano adam and nano zero would be the same run"):
        make_cells(
            table,
            ["nano"],
            ["adam", "zero"],
            [0],
            Changes(assignments=("gr.strategy=none", "gr.r=0.1")),
            tmp_path,
        )


def test_a_folder_with_another_configuration_is_refused_with_the_keys(tmp_path):
    table = write(tmp_path)
    pretend(table, tmp_path, {("adam", 0): 4.0, ("adam", 1): 4.0})
    cells = make_cells(table, ["nano"], ["adam", "zero"], [0, 1], NO_CHANGES, tmp_path)
    assert list(check_folders(cells).values()) == ["finished", "absent", "finished", "absent"]
    cells = make_cells(
        table, ["nano"], ["adam"], [0, 1], Changes(assignments=("optimizer.lr=0.5",)), tmp_path
    )
    with pytest.raises(
        ConfigError, match=r"seed0 holds a run with another configuration \(optimizer\.lr: .*--out"
    ):
        check_folders(cells)


def test_a_run_of_groups_per_device_is_the_cell_whatever_their_number(tmp_path):
    table, changes = write(tmp_path), Changes(assignments=("gr.groups=per-device",))
    (cell,) = make_cells(table, ["nano"], ["zero"], [0], changes, tmp_path)
    changed = table.resolve("nano", "zero", 0, Changes(assignments=("gr.groups=2",)))
    RunFolder(cell.run_dir).create(on_one_device(changed))
    assert list(check_folders([cell]).values()) == ["begun"]
    (other,) = make_cells(table, ["nano"], ["zero"], [0], NO_CHANGES, tmp_path)
    with pytest.raises(ConfigError, match=r"gr\.groups: 2 -> 1"):
        check_folders([other])


def test_shares_of_a_machine(monkeypatch, tmp_path):
    assert [(share.environment, share.cpus) for share in shares(1)] == [({}, None)]
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares(2)] == ["4,6", "5"]
    with pytest.raises(ConfigError, match=r"--jobs 4, but there are 3 GPU\(s\)"):
        shares(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", machine(tmp_path, gpus=[V100, V100])["PATH"])
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares(2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert [share.cpus for share in shares(2)] == [[0, 2], [1, 3]]


# --- statistics


def test_intervals_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, t(0.975; 2) = 4.302653, half width 4.302653 /
    sqrt(3) = 2.484138.
    """
    sample, mean = summarize([1.0, 2.0, 3.0]), interval([1.0, 2.0, 3.0])
    assert (sample.n, sample.mean, sample.std) == (3, 2.0, 1.0)
    assert mean.half_width == pytest.approx(2.484138, abs=1e-6)
    assert (mean.low, mean.high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)
    assert not mean.excludes_zero


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_intervals_are_scipys(n):
    rng = np.random.default_rng(n)
    values, against = rng.normal(10, 1, n), rng.normal(9, 2, n)
    one = scipy.stats.ttest_1samp(values, 9.5).confidence_interval(0.95)
    ours = interval((values - 9.5).tolist())
    assert ours.low is not None
    assert ours.high is not None
    assert (ours.low + 9.5, ours.high + 9.5) == pytest.approx((one.low, one.high))
    pair = scipy.stats.ttest_rel(values, against)
    ours = interval(paired(dict(enumerate(values)), dict(enumerate(against))))
    assert (ours.low, ours.high) == pytest.approx(tuple(pair.confidence_interval(0.95)))
    assert ours.excludes_zero == (pair.pvalue < 0.05)
    assert summarize(values.tolist()).std == pytest.approx(np.std(values, ddof=1))


def test_limit_cases_of_statistics():
    assert summarize([3.0]).std is None
    alone = interval([3.0])
    assert (alone.n, alone.mean, alone.half_width, alone.low, alone.high) == (
        1,
        3.0,
        None,
        None,
        None,
    )
    assert not alone.excludes_zero
    equal = interval([0.5, 0.5, 0.5])
    assert (equal.half_width, equal.excludes_zero) == (0.0, True)
    assert not interval([0.0, 0.0]).excludes_zero
    for of_nothing in (summarize, interval):
        with pytest.raises(ValueError, match="no values"):
            of_nothing([])


def test_only_seeds_that_both_columns_have_are_paired():
    assert paired({0: 1.0, 1: 2.0, 3: 4.0}, {3: 1.0, 1: 5.0, 2: 9.0}) == [-3.0, 3.0]


@pytest.mark.parametrize(
    ("difference", "published", "better", "verdict", "sentence"),
    [
        (
            Interval(3, -1.1, 0.4),
            -1.4,
            None,
            "reproduced",
            "zero beats Adam by 1.10 ± 0.40 points on ViT-nano (-1.40 published): reproduced",
        ),
        (
            Interval(3, 1.1, 0.4),
            0.2,
            None,
            "reproduced",
            "zero loses to Adam by 1.10 ± 0.40 points on ViT-nano (+0.20 published): reproduced",
        ),
        (
            Interval(3, 1.1, 0.4),
            -1.4,
            None,
            "not reproduced",
            "zero loses to Adam by 1.10 ± 0.40 points on ViT-nano (-1.40 published): "
            "not reproduced",
        ),
        (
            Interval(3, 1.1, 0.4),
            None,
            "adam",
            "reproduced",
            "zero loses to Adam by 1.10 ± 0.40 points on ViT-nano (a paper says Adam is better): "
            "reproduced",
        ),
        (
            Interval(3, -1.1, 0.4),
            None,
            "adam",
            "not reproduced",
            "zero beats Adam by 1.10 ± 0.40 points on ViT-nano (a paper says Adam is better): not "
            "reproduced",
        ),
        (
            Interval(3, -1.1, 0.4),
            None,
            "zero",
            "reproduced",
            "zero beats Adam by 1.10 ± 0.40 points on ViT-nano (a paper says zero is better): "
            "reproduced",
        ),
        (
            Interval(3, 0.3, 0.3),
            -1.4,
            None,
            "not decided",
            "zero loses to Adam by 0.30 ± 0.30 points on ViT-nano (-1.40 published): "
            "not decided, the interval includes 0",
        ),
        (
            Interval(1, -1.1, None),
            -1.4,
            None,
            "not decided",
            "zero beats Adam by 1.10 points on ViT-nano (one seed, no interval; -1.40 published): "
            "not decided",
        ),
        (
            Interval(3, -1.1, 0.4),
            None,
            None,
            "no claim",
            "zero beats Adam by 1.10 ± 0.40 points on ViT-nano (no published difference to hold it "
            "against)",
        ),
        (
            Interval(3, 0.0, 0.0),
            -1.4,
            None,
            "not decided",
            "zero and Adam are equal on ViT-nano (-1.40 published): not decided, the interval "
            "includes 0",
        ),
    ],
)
def test_verdicts(tmp_path, difference, published, better, verdict, sentence):
    than = "adam" if better == "zero" else "zero"
    claim = Claim(better=better, than=than, source="a paper") if better else None
    assert judge(write(tmp_path), "nano", ("zero", "adam"), difference, published, claim) == (
        verdict,
        sentence,
    )


# --- results


def test_a_result_holds_the_hand_computed_numbers(tmp_path):
    table = write(tmp_path)
    pretend(table, tmp_path, {("adam", 0): 4.0, ("adam", 1): 5.0, ("adam", 2): 6.0})
    pretend(table, tmp_path, {("zero", 0): 2.0, ("zero", 1): 3.5, ("zero", 2): 3.5})
    result = told(table, tmp_path)
    zero = result.cells["nano", "zero"]
    assert (zero.sample.mean, zero.sample.std) == pytest.approx((3.0, math.sqrt(0.75)))
    assert zero.to_published.mean == pytest.approx(0.0)
    (comparison,) = result.comparisons
    # Differences -2, -1.5, -2.5: mean -2, deviation 0.5, half width 4.302653 * 0.5 / sqrt(3).
    assert comparison.difference.mean == pytest.approx(-2.0)
    assert comparison.difference.half_width == pytest.approx(1.242069, abs=1e-6)
    assert (comparison.published, comparison.verdict) == (-1.0, "reproduced")
    assert result.variant == "paper"
    assert result.deviations == ("gr.mix: unit in the recipe, raw here (zero)",)
    assert result.environment == (
        "1 x cpu; Linux; Python 3.11; jax 0.10.2; commit abc (6 session(s))",
    )
    assert [run.training_time_s for run in zero.runs] == [8.0] * 3
    assert json.loads(json.dumps(to_dict(result)))["comparisons"][0]["verdict"] == "reproduced"


def test_a_pair_of_columns_is_compared_once_whichever_way_a_claim_goes(tmp_path):
    claims = "[{better: adam, than: zero, source: x}, {better: big, than: zero, source: y}]"
    more = (
        f"  big:\n    set:\n      gr: {{strategy: constant, r: 0.2}}\nclaims: {claims}\nvariants:"
    )
    table = write(tmp_path, SMALL.replace("variants:", more))
    pretend(
        table,
        tmp_path,
        {(column, seed): 4.0 + seed for column in ("adam", "zero", "big") for seed in (0, 1)},
    )
    result = told(table, tmp_path)
    assert [(c.column, c.against) for c in result.comparisons] == [
        ("zero", "adam"),
        ("big", "adam"),
        ("big", "zero"),
    ]
    assert [c.claim.source if c.claim else None for c in result.comparisons] == ["x", None, "y"]
    json.dumps(to_dict(result))


def test_seeds_that_one_column_lacks_are_left_out_of_the_difference(tmp_path):
    table = write(tmp_path)
    pretend(table, tmp_path, {("adam", 0): 4.0, ("adam", 1): 5.0, ("zero", 1): 3.0})
    (comparison,) = told(table, tmp_path).comparisons
    assert (comparison.difference.n, comparison.difference.mean) == (1, pytest.approx(-2.0))
    assert "one seed, no interval" in comparison.sentence


def test_the_best_evaluation_can_be_the_metric(tmp_path):
    table = write(tmp_path, SMALL.replace("baseline", "metric: {at: best}\nbaseline"))
    pretend(table, tmp_path, {("adam", 0): 4.0})
    assert told(table, tmp_path).cells["nano", "adam"].sample.mean == pytest.approx(2.0)


def test_deviations_name_the_cells_where_they_hold(tmp_path):
    table = write(tmp_path)
    changes = Changes(
        "unit", assignments=("train.dtype=bfloat16", "train.log_every_steps=3", "checkpoint.keep=9")
    )
    pretend(table, tmp_path, {("adam", 0): 4.0, ("zero", 0): 3.0}, changes)
    result = told(table, tmp_path)
    assert result.variant == "unit"
    assert result.deviations == ("train.dtype: float32 in the recipe, bfloat16 here",)


def test_a_copy_of_a_published_data_set_is_told(tmp_path, monkeypatch):
    from gnpcli.tables.copies import data_copies

    table = load_table("adam-vs-gr")
    config = table.resolve("vit-ti", "adam", 0, Changes(data_dir=str(tmp_path / "data")))
    (line,) = data_copies([config])
    assert line == "data: cifar10 is not on this machine now, so that its copy cannot be told"
    (tmp_path / "data" / "cifar10" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cifar10" / "train" / "cat" / "1.jpg").write_bytes(b"")
    assert data_copies([config]) == [
        "data: a copy of cifar10 in a folder of jpg files, re-encoded with losses"
    ]


@pytest.mark.parametrize(
    ("change", "key"),
    [(Changes(epochs=8), "train.epochs"), (Changes(dataset="folder:x"), "data.name")],
)
def test_runs_of_other_data_or_length_are_neither_averaged_nor_compared(tmp_path, change, key):
    table = write(tmp_path)
    pretend(table, tmp_path / "cell", {("adam", 0): 4.0})
    pretend(table, tmp_path / "cell", {("adam", 1): 4.0}, change)
    with pytest.raises(
        ConfigError, match=rf"nano adam: seeds 0 and 1 differ in .*{key}.*: not averaged"
    ):
        told(table, tmp_path / "cell")
    pretend(table, tmp_path / "row", {("adam", 0): 4.0})
    pretend(table, tmp_path / "row", {("zero", 0): 4.0}, change)
    with pytest.raises(
        ConfigError, match=rf"row nano: adam has {key} .*, but zero has .*: they are not compared"
    ):
        told(table, tmp_path / "row")


def test_unfinished_and_damaged_runs_are_said(tmp_path):
    table = write(tmp_path)
    pretend(table, tmp_path, {("adam", 0): 4.0, ("adam", 1): 5.0})
    first, second = (run_dir(tmp_path, "nano", "adam", seed) for seed in (0, 1))
    (first / "summary.json").write_text(
        json.dumps({"status": "diverged", "error": "step 3: the loss is nan"})
    )
    with open(second / "metrics.jsonl", "a") as file:
        file.write('{"step": 70')
    result = told(table, tmp_path)
    assert result.cells["nano", "adam"].values == {1: pytest.approx(5.0)}
    text = to_markdown(make_report(result))
    assert "ViT-nano Adam seed 0: step 3: the loss is nan" in text
    assert re.search(r"line 5 of .* is cut short: the 4 record", text)
    record = {
        "step": 1,
        "epoch": 0.02,
        "split": "train",
        "loss": None,
        "error_rate": 0.9,
        "non_finite": ["loss"],
    }
    (first / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    write_outputs(
        told(table, tmp_path), tmp_path
    )  # a run that diverged at once has nothing to draw
    (second / "summary.json").write_text('{"status": "fin')
    assert told(table, tmp_path).cells["nano", "adam"].sample is None


# --- metrics


MARGIN = MetricKind("margin", "negative margin", is_fraction=False)
"""A metric that this package does not have: a row is all that it takes."""


@pytest.mark.parametrize("kind", [*METRICS.values(), MARGIN], ids=lambda kind: kind.name)
def test_a_metric_is_a_row_that_schema_values_words_and_outputs_read(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(METRICS, kind.name, kind)
    table = write(tmp_path, SMALL.replace("baseline:", f"metric: {{name: {kind.name}}}\nbaseline:"))
    errors = {("adam", 0): 4.0, ("adam", 1): 5.0, ("zero", 0): 3.0, ("zero", 1): 3.5}
    pretend(table, tmp_path, errors)
    for (column, seed), value in errors.items():
        path = run_dir(tmp_path, "nano", column, seed) / "summary.json"
        summary = json.loads(path.read_text())
        summary["test"][kind.name] = value / 8
        path.write_text(json.dumps(summary))
    result = told(table, tmp_path)
    expected = [kind.shown(0.5), kind.shown(0.625)]
    assert list(result.cells["nano", "adam"].values.values()) == expected
    report = make_report(result)
    assert report.about.startswith(f"test {kind.words}{' in %' if kind.is_fraction else ''}, ")
    (comparison,) = result.comparisons
    assert (" points on " in comparison.sentence) == kind.is_fraction
    written = to_dict(result)
    assert written["metric"]["name"] == kind.name
    assert written["unit"] == ("percent" if kind.is_fraction else "")
    assert f"{kind.shown(0.5625):.2f} ±" in to_markdown(report)


def test_a_metric_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    text = SMALL.replace("baseline:", "metric: {name: eror_rate}\nbaseline:")
    with pytest.raises(ConfigError, match=r"'eror_rate' is not one of error_rate, .*'error_rate'"):
        write(tmp_path, text)


# --- outputs


def test_every_output_says_value_published_verdict_and_deviation(tmp_path):
    table = write(tmp_path, SMALL.replace("ViT-nano", "ViT_nano & 100% | x"))
    pretend(
        table, tmp_path, {("adam", 0): 4.0, ("adam", 1): 5.0, ("zero", 0): 3.0, ("zero", 1): 4.0}
    )
    result = told(table, tmp_path)
    report = make_report(result)
    text, latex = to_markdown(report), to_latex(report)
    assert "4.50 ± 0.71 (2) [4.00]" in text
    assert "gr.mix: unit in the recipe, raw here" in text
    for line in [line for line in text.splitlines() if line.startswith("|")]:
        assert line.count("|") in (4, 8), line
    assert (
        r"ViT\_nano \& 100\% | x & 4.50 $\pm$ 0.71 (2) [4.00] & 3.50 $\pm$ 0.71 (2) [3.00] \\"
        in latex
    )
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert [row["column"] for row in rows] == ["adam", "zero"]
    assert (rows[1]["difference"], rows[1]["difference_low"], rows[1]["against"]) == (
        "-1",
        "-1",
        "adam",
    )
    for _, lines in report.lists:
        for line in lines:
            assert f"% {line}" in latex or line in latex


def test_deviations_are_told_even_where_there_are_none(tmp_path):
    table = write(tmp_path, SMALL.partition("variants:")[0])
    pretend(table, tmp_path, {("adam", 0): 4.0})
    headings = dict(make_report(told(table, tmp_path)).lists)
    assert headings["Deviations from the table's own recipe"] == ("none in any key that matters",)
    assert headings["Verdicts"] == ("nothing to compare yet",)


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_offline_and_shows_values_verdicts_deviations_and_curves(tmp_path, dark):
    table = write(tmp_path)
    values = {
        (column, seed): 3.0 + seed + len(column)
        for column in ("adam", "zero")
        for seed in (0, 1, 2)
    }
    pretend(table, tmp_path / "out", values)
    write_outputs(told(table, tmp_path / "out"), tmp_path / "out")
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "out" / "table.html", dark=dark)
        text = browser.evaluate("document.body.innerText")
        assert "8.00 ± 1.00 (3) [4.00]" in text
        assert "zero and Adam are equal on ViT-nano" in text
        assert "gr.mix: unit in the recipe, raw here (zero)" in text
        assert browser.evaluate("document.querySelectorAll('.chart svg').length") >= 1
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        red = int(
            re.findall(r"\d+", browser.evaluate("getComputedStyle(document.body).backgroundColor"))[
                0
            ]
        )
        assert (red < 60) == dark
        assert (len(browser.requests), browser.complaints) == (1, [])
