"""Curves, bands over seeds, pictures and the page of a run, from run folders written by hand."""

from __future__ import annotations

import html
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gnpcli.errors import DataError, GnpError
from gnpcli.recipes.presets import preset_names, resolve
from gnpcli.report import page
from gnpcli.report.bands import MAX_POINTS, band, group_runs, named_groups, panels_of
from gnpcli.report.charts import learning_curves, picture, spread_note
from gnpcli.report.formula import formula
from gnpcli.report.metrics import PANELS, Curve, choose_panels, default_panels, present_panels
from gnpcli.report.palette import COLOURS
from gnpcli.report.plot import plot
from gnpcli.report.run_page import run_page, write_report
from gnpcli.report.style import save
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.history import read_histories, read_history
from tests.browser import Browser, needs_browser
from tests.conftest import Gnp, fails

SETTINGS = ["gr.strategy=constant"]


def records(steps: int = 6, *, offset: float = 0.0, every: int = 1) -> list[dict[str, Any]]:
    """A log as the engine writes it: `steps` training records, an evaluation every second one."""
    found = []
    for step in range(every, steps * every + 1, every):
        loss = 2.0 / step + offset
        found.append(
            {
                "step": step,
                "epoch": step / 2,
                "split": "train",
                "loss": loss,
                "cross_entropy": loss,
                "perturbed_loss": loss + 0.1,
                "error_rate": min(1.0, loss / 4),
                "clean_grad_norm": 1 + offset,
                "perturbed_grad_norm": 1.5,
                "grad_cosine": 0.9,
                "grad_norm": 1.2,
                "update_norm": 0.1,
                "lr": 0.01,
                "r": 0.05,
                "alpha": 0.8,
                "images_per_s": None if step == 1 else 100.0,
                "elapsed_s": 10.0 + step,
            }
        )
        if step % (2 * every) == 0:
            found.append(
                {
                    "step": step,
                    "epoch": step / 2,
                    "split": "test",
                    "error_rate": 0.5 / step,
                    "loss": 1.0 / step + offset,
                    "num_examples": 360,
                }
            )
    return found


def make_run(folder: Path, log: list[dict[str, Any]] | None = None, *assignments: str) -> Path:
    RunFolder(folder).create(resolve(None, [*SETTINGS, *assignments]))
    log = records() if log is None else log
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    return folder


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / f"seed{seed}", records(offset=0.1 * seed), f"train.seed={seed}")
        for seed in range(3)
    ]


def test_a_series_is_over_steps_epochs_or_time(tmp_path):
    history = read_history(make_run(tmp_path / "run"))
    steps, x, y = history.series("train", "loss", "step")
    assert (steps.tolist(), x.tolist()) == ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    np.testing.assert_allclose(y, [2, 1, 2 / 3, 0.5, 0.4, 1 / 3])
    assert history.series("test", "loss", "epoch")[1].tolist() == [1, 2, 3]
    assert history.series("train", "loss", "time")[1].tolist() == [11, 12, 13, 14, 15, 16]
    assert history.series("test", "loss", "time")[1].tolist() == [12, 14, 16]
    assert math.isnan(history.series("train", "images_per_s", "step")[2][0])


def test_time_goes_on_where_a_resumed_session_starts_its_clock_again(tmp_path):
    log = records(4)
    for record in log:
        if record["split"] == "train":
            record["elapsed_s"] = {1: 5.0, 2: 7.0, 3: 1.0, 4: 4.0}[record["step"]]
    history = read_history(make_run(tmp_path / "run", log))
    assert history.series("train", "loss", "time")[1].tolist() == [5, 7, 8, 11]


def test_a_band_is_the_mean_over_seeds_and_their_range_or_deviation(seeds):
    (group,) = group_runs(read_histories(seeds))
    assert group.title == "seed0 (3 seeds)"
    single = [2.0 / step for step in range(1, 7)]
    shown = band(group, Curve("train", "loss", "train"), "step", "range")
    assert shown.num_runs == 3
    np.testing.assert_allclose(shown.mean, np.array(single) + 0.1)
    np.testing.assert_allclose(shown.low, single)
    np.testing.assert_allclose(shown.high, np.array(single) + 0.2)
    shown = band(group, Curve("train", "loss", "train"), "step", "std")
    np.testing.assert_allclose(shown.high - shown.mean, np.std([0, 0.1, 0.2], ddof=1))
    assert "lowest to the highest" in spread_note([group], "range")
    assert "standard deviation (n - 1)" in spread_note([group], "std")


def test_a_band_has_the_steps_that_all_runs_have(tmp_path):
    runs = [
        make_run(tmp_path / "long", records(8), "train.seed=0"),
        make_run(
            tmp_path / "short", records(2, every=2), "train.seed=1", "train.log_every_steps=2"
        ),
    ]
    (group,) = group_runs(read_histories(runs))
    shown = band(group, Curve("train", "loss", "train"), "step", "range")
    assert shown.x.tolist() == [2, 4]
    assert shown.mean.tolist() == [1.0, 0.5]
    assert band(group, Curve("val", "loss", "val"), "step", "range") is None


def test_what_is_not_finite_is_a_gap_in_the_mean(tmp_path):
    log = records()
    log[1]["loss"], log[1]["non_finite"] = None, ["loss"]  # of step 2
    runs = [
        make_run(tmp_path / "a", log, "train.seed=0"),
        make_run(tmp_path / "b", None, "train.seed=1"),
    ]
    shown = band(
        group_runs(read_histories(runs))[0], Curve("train", "loss", "train"), "step", "range"
    )
    assert np.flatnonzero(np.isnan(shown.mean)).tolist() == [1]


def test_long_curves_are_averaged_over_equal_stretches(tmp_path):
    count = 5 * MAX_POINTS + 3
    (group,) = group_runs([read_history(make_run(tmp_path / "run", records(count)))])
    shown = band(group, Curve("train", "loss", "train"), "step", "range")
    assert len(shown.x) == MAX_POINTS
    assert shown.x[0] == 3.0  # steps 1 to 5
    np.testing.assert_allclose(shown.mean[0], float(np.mean([2.0 / step for step in range(1, 6)])))


def test_runs_are_put_together_by_all_keys_but_the_seed_and_what_changes_nothing(tmp_path):
    for name, assignments in {
        "a0": [],
        "a1": ["train.seed=1", "data.eval_batch_size=7", "checkpoint.keep=1", "mesh.devices=1"],
        "b0": ["optimizer.lr=0.1"],
        "again": [],
    }.items():
        make_run(tmp_path / name, None, *assignments)
    groups = group_runs(read_histories([tmp_path / name for name in ("a0", "a1", "b0", "again")]))
    assert [[run.folder.name for run in group.runs] for group in groups] == [
        ["a0", "a1"],
        ["b0"],
        ["again"],
    ]
    assert len({group.label for group in groups}) == 3


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([["gr.strategy=none"], ["gr.strategy=sam"]], ["strategy=none", "strategy=sam"]),
        ([[], ["data.name=cifar10"]], ["data=digits", "data=cifar10"]),
        (
            [[], ["optimizer.lr=1", "optimizer.b1=0.5", "data.batch_size=8", "train.epochs=9"]],
            ["run0", "run1"],
        ),
        (
            [[], ["optimizer.lr=1", "data.name=cifar10", "data.batch_size=8", "train.epochs=9"]],
            ["run0, data=digits", "run1, data=cifar10"],
        ),
        ([[]], ["run0"]),
    ],
)
def test_labels_say_what_differs(tmp_path, changes, labels):
    runs = [make_run(tmp_path / f"run{i}", None, *own) for i, own in enumerate(changes)]
    assert [group.label for group in group_runs(read_histories(runs))] == labels


def test_runs_of_several_data_sets_have_no_mean(tmp_path):
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", None, "data.name=cifar10", "train.seed=1"),
    ]
    assert [len(group.runs) for group in group_runs(read_histories(runs))] == [1, 1]
    with pytest.raises(
        DataError, match=r"'mixed' has runs of several data sets \(cifar10, digits\)"
    ):
        named_groups({"mixed": runs})
    carved = make_run(tmp_path / "c", None, "data.validation_fraction=0.1", "train.seed=1")
    with pytest.raises(
        DataError,
        match=r"\(digits \(validation_fraction=0.0\), digits \(validation_fraction=0.1\)\)",
    ):
        named_groups({"mixed": [runs[0], carved]})


def test_every_key_that_the_engine_logs_has_a_place_and_a_new_one_gets_its_own(tmp_path):
    log = records()
    log[0]["sharpness_gap"] = 0.25
    (group,) = group_runs([read_history(make_run(tmp_path / "run", log))])
    panels = panels_of([group])
    assert [panel.name for panel in panels] == [
        "loss",
        "error",
        "objective",
        "norms",
        "cosine",
        "update",
        "lr",
        "r",
        "alpha",
        "speed",
        "sharpness_gap",
    ]
    assert "speed" not in {panel.name for panel in default_panels(panels)}
    assert present_panels({"train": ["step", "epoch", "elapsed_s"]}) == []
    assert [curve.split for curve in panels[0].curves] == ["train", "test"]  # nothing was validated
    assert len({panel.name for panel in PANELS}) == len(PANELS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("los", "there is no metric 'los' - did you mean 'loss'?"),
        ("top5", "these runs have logged no 'top5'"),
        ("grad_cosin", "did you mean 'grad_cosine'?"),
    ],
)
def test_an_unknown_metric_suggests_and_a_missing_one_is_named(seeds, name, message):
    panels = panels_of(group_runs(read_histories(seeds)))
    with pytest.raises(DataError, match=re.escape(message)):
        choose_panels(panels, [name])


def test_a_key_is_a_panel_of_its_own(seeds):
    panels = panels_of(group_runs(read_histories(seeds)))
    norm, error = choose_panels(panels, ["clean_grad_norm", "error_rate"])
    assert [curve.key for curve in norm.curves] == ["clean_grad_norm"]
    assert {curve.split for curve in error.curves} == {"train", "test"}
    assert error.is_percent


def test_pictures_are_the_same_bytes_again(seeds, tmp_path):
    groups = group_runs(read_histories(seeds))
    panels = default_panels(panels_of(groups))[:2]
    for kind, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        paths = [tmp_path / f"{name}{kind}" for name in "ab"]
        for path in paths:
            save(picture(groups, panels, "epoch", "range"), path)
        first, second = (path.read_bytes() for path in paths)
        assert first == second
        assert first.startswith(start)


def test_inline_charts_have_the_numbers_and_follow_the_colours_of_the_page(seeds, tmp_path):
    other = make_run(tmp_path / "other", None, "optimizer.lr=0.5")
    text = learning_curves({"Adam <1>": seeds, "other": [other]})
    assert text.count("<svg xmlns") == 2
    assert "Adam &lt;1&gt; (3 seeds)" in text
    for colour, _ in COLOURS[:2]:
        assert colour in text
        assert not re.search(rf"(?<!, ){colour}", text), "a colour that no page can change"
    charts = [json.loads(html.unescape(data)) for data in re.findall(r'data-chart="([^"]*)"', text)]
    (series,) = [one for one in charts[0]["series"] if one["name"] == "Adam <1> test"]
    np.testing.assert_allclose(series["y"], [0.6, 0.35, 1 / 6 + 0.1], rtol=1e-4)
    np.testing.assert_allclose(series["high"], [0.7, 0.45, 1 / 6 + 0.2], rtol=1e-4)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert learning_curves({}) == ""
    with pytest.raises(DataError, match="did you mean 'error'"):
        learning_curves({"a": seeds}, metrics=["eror"])


class _Balance(HTMLParser):
    """Every element is closed; keeps the attributes that could make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)
        self.addresses += [
            value
            for key, value in attrs
            if key in ("src", "href", "xlink:href", "action", "srcset")
        ]

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def run_with_page(tmp_path: Path) -> tuple[Path, Path]:
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text(
        json.dumps({"status": "finished", "step": 6, "total_steps": 6, "best_step": 4})
    )
    session = {
        "start_step": 0,
        "devices": ["cpu", "cpu"],
        "backend": "cpu",
        "versions": {"jax": "9.9"},
    }
    (run / "environment.json").write_text(json.dumps({"sessions": [session]}))
    (run / "checkpoints" / "4").mkdir(parents=True)
    (run / "checkpoints" / "4" / "data").write_bytes(b"x" * 1_500_000)
    return run, write_report(run, None)


def test_the_page_of_a_run_holds_what_the_run_was_and_fetches_nothing(run_with_page):
    run, path = run_with_page
    assert path == run / "report.html"
    text = path.read_text()
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []
    assert all(address.startswith("#") for address in parser.addresses), parser.addresses
    assert not re.search(r"url\((?!#)|@import|<link|https?://(?!www\.w3\.org/)", text)
    for part in (
        "vit-nano on digits, constant",
        "8.33 %",
        "test error at epoch 3",
        "finished",
        ("λ = α·r = 0.04"),
        "at full strength from the first step",
        "1.5 MB",
        "2 x cpu",
        "jax 9.9",
        "weight_decay",
        "12.50 %",
    ):
        assert part in text, part


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_its_formula(name):
    config = resolve(name)
    text, gr = formula(config), config.gr
    assert ("∇" in text) == (gr.strategy != "none" and bool(gr.r) and bool(gr.alpha))
    assert ("½" in text) == (config.train.l2 > 0)
    assert ("<i>T</i>" in text) == (gr.ascent == "adaptive" and gr.strategy != "none")


def test_a_page_says_what_is_wrong_with_a_run_and_survives_strange_names(tmp_path):
    run = make_run(tmp_path / "<b>run", None, "data.name=folder:<script>alert(1)</script>")
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step": 7, "spl')
    (run / "summary.json").write_text("{not json")
    text = write_report(run, tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;b&gt;run" in text
    assert "The log is damaged: line 10 of" in text
    assert "has not come to an end" in text
    assert "harmful" in text  # constant GR with Adam's warmup


def test_a_diverged_run_says_where(tmp_path):
    log = records(2)
    log[1] |= {"loss": None, "non_finite": ["loss"]}
    run = make_run(tmp_path / "run", log)
    (run / "summary.json").write_text(
        json.dumps({"status": "diverged", "error": "step 2: the loss is nan"})
    )
    text = run_page(read_history(run))
    assert "The run diverged: step 2: the loss is nan" in text
    assert "Step 2 logged values that are not finite: loss." in text


def test_tables_and_titles_are_plain_text():
    assert page.table(("a<", "b"), [["1", "<2>"]], numbers=(1,)) == (
        '<div class="scroll"><table><thead><tr><th>a&lt;</th><th '
        "class=number>b</th></tr></thead><tbody>\n"
        "<tr><td>1</td><td class=number>&lt;2&gt;</td></tr>\n</tbody></table></div>\n"
    )
    assert "<title>a &lt; b</title>" in page.document("a < b", "")


def test_plot_and_report_commands(gnp: Gnp, tmp_path: Path, seeds: list[Path]):
    make_run(tmp_path / "other", None, "data.name=cifar10")
    done = gnp(
        "plot",
        *seeds,
        "other",
        "--out",
        "p.png",
        "--x",
        "step",
        "-m",
        "loss,lr",
        "--metrics",
        "cosine",
    )
    assert done.returncode == 0, done.stderr
    assert "p.png: loss, lr, cosine" in done.stdout
    assert "data=digits (3 seeds): " in done.stdout
    assert "warning: these runs are of several data sets (cifar10, digits)" in done.stderr
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 1000
    with open(tmp_path / "other" / "metrics.jsonl", "ab") as log:
        log.write(b'{"step": 9')
    done = gnp("plot", "other", "--out", "p.svg")
    assert done.returncode == 0, done.stderr
    assert "line 10 of" in done.stderr
    done = gnp("report", "other")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.strip()).is_file()
    fails(gnp("plot", "other", "-m", "los"), "there is no metric 'los' - did you mean 'loss'?")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (plot, {"folders": ["nowhere"]}, "nowhere is not a run folder"),
        (plot, {"folders": ["run", "run/"]}, "is given twice"),
        (plot, {"metrics": ["grad_norms"]}, "no metric 'grad_norms' - did you mean 'grad_norm'?"),
        (plot, {"out": "p.gif"}, "p.gif: the name of a picture ends in .png, .svg, .pdf"),
        (plot, {"out": "there/is/none.png"}, "there is no folder"),
        (plot, {"folders": ["empty"]}, "empty has no metrics yet"),
        (write_report, {"folder": "empty"}, "empty has no metrics yet"),
        (write_report, {"folder": "broken"}, "broken/metrics.jsonl is damaged"),
        (write_report, {"folder": "run", "out": "run"}, "run is a folder"),
        (
            write_report,
            {"folder": "run", "out": "page.txt"},
            "page.txt: the name of a page ends in .html",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    tmp_path, monkeypatch, command, arguments, message
):
    make_run(tmp_path / "run")
    make_run(tmp_path / "empty", [])
    make_run(tmp_path / "broken", [])
    (tmp_path / "broken" / "metrics.jsonl").write_text("\x00\x00\n\n")
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"out": "p.png"}
    if command is plot:
        options |= {
            "folders": ["run"],
            "metrics": [],
            "axis": "step",
            "spread": "range",
            "columns": 3,
            "warn": print,
        }
    else:
        options["out"] = "p.html"
    options |= arguments
    options["out"] = Path(options["out"])
    for key in ("folders", "folder"):
        if key in options:
            options[key] = list(map(Path, options[key])) if key == "folders" else Path(options[key])
    with pytest.raises(GnpError, match=re.escape(message)):
        command(**options)
    assert not [
        path for path in tmp_path.rglob("*") if path.suffix in (".html", ".png", ".txt", ".gif")
    ]


@needs_browser
def test_the_page_in_a_real_browser(run_with_page, tmp_path):
    """Light and dark differ, nothing is fetched, nothing complains, a phone scrolls only down, and
    values show.
    """
    _, path = run_with_page
    with Browser(tmp_path / "profile") as browser:
        grounds: dict[str, tuple[Any, float]] = {}
        for scheme in ("light", "dark"):
            browser.open(path, dark=scheme == "dark")
            pixel = Image.open(io.BytesIO(browser.screenshot())).convert("L").getpixel((3, 3))
            ink = browser.evaluate(
                "getComputedStyle(document.querySelector('.chart svg text')).fill"
            )
            grounds[scheme] = (pixel, sum(map(int, re.findall(r"\d+", ink)[:3])) / 3)
        assert grounds["light"][0] > 240
        assert grounds["light"][1] < 100
        assert grounds["dark"][0] < 40
        assert grounds["dark"][1] > 180
        count = browser.evaluate("document.querySelectorAll('.chart').length")
        assert count == browser.evaluate("document.querySelectorAll('svg[data-chart]').length") >= 9

        browser.evaluate(
            "document.querySelector('svg[data-chart]').scrollIntoView({block: 'center', behavior: "
            "'instant'})"
        )
        box = browser.evaluate(
            "(() => { const b = document.querySelector('svg[data-chart]').getBoundingClientRect();"
            " return [b.x, b.y, b.width, b.height]; })()"
        )
        assert browser.evaluate("document.querySelector('.tip').hidden")
        browser.hover(box[0] + 0.55 * box[2], box[1] + 0.5 * box[3])
        tip = browser.evaluate("document.querySelector('.tip').innerText")
        assert re.search(r"epoch [\d.]+", tip)
        assert re.search(r"test 0\.\d+", tip)
        browser.hover(1, 1)
        assert browser.evaluate("document.querySelector('.tip').hidden")

        browser.open(path, width=360, height=740, mobile=True)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
        browser.send("Emulation.setEmulatedMedia", media="print")
        assert (
            browser.evaluate("getComputedStyle(document.body).backgroundColor")
            == "rgb(255, 255, 255)"
        )
        assert set(browser.requests) == {path.resolve().as_uri()}
        assert browser.complaints == []
