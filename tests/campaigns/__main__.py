"""``python -m tests.campaigns``: see `tests.campaigns`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.campaigns import damage, fuzz, kills, servers
from tests.campaigns.campaign import Campaign, run
from tests.campaigns.lab import Lab

CAMPAIGNS: dict[str, Campaign] = {
    campaign.name: campaign
    for campaign in (*kills.CAMPAIGNS, *damage.CAMPAIGNS, *fuzz.CAMPAIGNS, *servers.CAMPAIGNS)
}


def main(arguments: list[str]) -> int:
    """Run campaigns; return 1 where a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns")
    parser.add_argument("names", nargs="*", help=f"{', '.join(CAMPAIGNS)}; all without one")
    parser.add_argument("--size", default="small", help="small, full, all or a number of cases")
    parser.add_argument("--only", default="", help="only cases whose names hold this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="gets the folders of failed cases")
    parser.add_argument("--json", type=Path, help="gets a line of JSON for each campaign")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in CAMPAIGNS]
    if unknown:
        parser.error(f"no campaign {', '.join(unknown)}: there are {', '.join(CAMPAIGNS)}")
    has_failed = False
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        for name in given.names or CAMPAIGNS:
            campaign = CAMPAIGNS[name]
            if campaign.needs_faults and lab.faults is None:
                print(f"{name}: skipped, it needs Linux and a C compiler")
                continue
            report = run(
                campaign,
                lab,
                size=given.size,
                only=given.only,
                seed=given.seed,
                keep=given.keep,
                tell=lambda text: print(text, flush=True),
            )
            print(report, flush=True)
            has_failed |= bool(report.failures)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(report.as_json()) + "\n")
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
