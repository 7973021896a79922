"""Every campaign, in the size that ``--campaign-size`` names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns import accelerator
from tests.campaigns.__main__ import CAMPAIGNS
from tests.campaigns.campaign import run
from tests.campaigns.lab import Lab
from tests.campaigns.limits import LIMITS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("campaigns")) as lab:
        yield lab


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_every_case_holds(lab: Lab, name: str, request: pytest.FixtureRequest) -> None:
    campaign = CAMPAIGNS[name]
    if campaign.needs_faults and lab.faults is None:
        pytest.skip("it needs Linux and a C compiler")
    report = run(campaign, lab, size=request.config.getoption("--campaign-size"))
    assert report.cases
    assert report.failures == {}


@pytest.mark.parametrize("name", ["log", "runs"])
def test_large_logs_and_many_runs_are_read(lab: Lab, tmp_path: Path, name: str) -> None:
    measured, size = LIMITS[name]
    rows = [*measured(lab, tmp_path, size // 50)]
    assert all(row.peak_mib < 1000 for row in rows)


def test_memory_is_flat_over_the_steps(lab: Lab, tmp_path: Path) -> None:
    measured, _ = LIMITS["steps"]
    early, *_, late = [row.peak_mib for row in measured(lab, tmp_path, 2000)][1:]
    assert late - early < 16


def test_the_measurements_of_an_accelerator_run_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [one for one in accelerator.MEASUREMENTS if "--max-steps" in one.arguments]
    sizes = ("--set", "data.batch_size=16", "--rounds", "2", "--steps", "1", "--json")
    preset = "vit-nano-digits"
    bench = accelerator.Measurement(
        f"bench-{preset}-float32", ("bench", "--preset", preset, *sizes)
    )
    monkeypatch.setattr(accelerator, "MEASUREMENTS", (*runs, bench))
    monkeypatch.setitem(accelerator.MODELS, preset, None)
    assert accelerator.main([str(tmp_path), "--minutes", "0"]) == 0
    report = (tmp_path / "report.md").read_text()
    assert report.count("not reached") == len(runs) + 1
    assert accelerator.main([str(tmp_path), "--minutes", "30"]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "resumed: the same bits" in report
    assert f"gnp bench --preset {preset}" in report
    assert "not reached" not in report
