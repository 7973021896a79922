"""Every campaign, in the size that ``--campaign-size`` names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.campaigns.__main__ import CAMPAIGNS
from tests.campaigns.campaign import run
from tests.campaigns.lab import Lab

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
