"""Cases, the campaign that runs them, and what it found."""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.campaigns.lab import Lab
from tests.commands import Completed


class Failed(AssertionError):
    """A case that did not hold, and what was seen."""


@dataclass(frozen=True)
class Case:
    """One disturbance."""

    name: str
    """Unique in its campaign; it says what is disturbed."""
    run: Callable[[Path], str]
    """Runs the case in an empty folder; returns how it held, in a word or two.

    Raises `Failed` where it did not hold.
    """


@dataclass(frozen=True)
class Campaign:
    """Many cases of one kind."""

    name: str
    holds: str
    """What every case must show, in one sentence."""
    cases: Callable[[Lab, random.Random], Sequence[Case]]
    """Makes all cases; the random numbers choose what is left open."""
    small: int
    """How many of them CI runs."""
    full: int | None = None
    """How many of them docs/results.md tells of; None is all."""
    needs_faults: bool = False
    """Whether it needs the library that makes file-system events fail."""


@dataclass
class Report:
    """What a campaign found."""

    campaign: str
    holds: str
    cases: int = 0
    of: int = 0
    """How many cases there are."""
    held: dict[str, int] = field(default_factory=dict)
    """How many cases held, by how."""
    failures: dict[str, str] = field(default_factory=dict)
    """What was seen, by the name of the case."""
    seconds: float = 0.0
    seed: int = 0
    load: float = 0.0
    """Processes that wanted a processor, at the end."""
    machine: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return all of it, for a line of JSON."""
        return asdict(self)

    def __str__(self) -> str:
        how = ", ".join(f"{number} {word}" for word, number in sorted(self.held.items()))
        failed = len(self.failures)
        return (
            f"{self.campaign}: {self.cases - failed} of {self.cases} held ({how or 'none'}), "
            f"{failed} failed; {self.of} cases in all, {self.seconds:.0f} s"
        )


def run(
    campaign: Campaign,
    lab: Lab,
    *,
    size: str = "small",
    only: str = "",
    seed: int = 0,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run some cases of a campaign, as many at a time as there are processors.

    Args:
        campaign: The campaign.
        lab: Where the commands run.
        size: ``small``, ``full``, ``all`` or a number of cases.
        only: Takes the cases whose names hold this text.
        seed: Chooses the cases of a size that is not all, and what they leave open.
        keep: Gets the folders of the cases that failed.
        tell: Told of each failure at once.
    """
    start = time.monotonic()
    every = campaign.cases(lab, random.Random(seed))
    matching = [case for case in every if only in case.name]
    chosen = _sample(matching, _number(campaign, size), seed)
    report = Report(campaign.name, campaign.holds, len(chosen), len(every), seed=seed)
    held: Counter[str] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, (how, failure) in zip(
            chosen, pool.map(lambda case: _attempt(case, lab, keep), chosen), strict=True
        ):
            if failure is None:
                held[how] += 1
            else:
                report.failures[case.name] = failure
                tell(f"FAILED {campaign.name}: {case.name}\n{failure}")
    report.held = dict(held)
    report.seconds = time.monotonic() - start
    report.load = os.getloadavg()[0]
    report.machine = f"{platform.platform()}, {os.cpu_count()} cores"
    return report


def _number(campaign: Campaign, size: str) -> int | None:
    """Return how many cases a size means; None means all."""
    named = {"small": campaign.small, "full": campaign.full, "all": None}
    return named[size] if size in named else int(size)


def _sample(cases: list[Case], number: int | None, seed: int) -> list[Case]:
    """Return some of the cases in their order."""
    if number is None or number >= len(cases):
        return cases
    chosen = random.Random(seed).sample(range(len(cases)), number)
    return [cases[index] for index in sorted(chosen)]


def _attempt(case: Case, lab: Lab, keep: Path | None) -> tuple[str, str | None]:
    """Run one case; return how it held, or what was seen."""
    folder = lab.new_folder()
    try:
        return case.run(folder), None
    except Exception as error:  # a case that breaks has not held
        if keep is not None:
            shutil.copytree(folder, keep / _file_name(case.name), dirs_exist_ok=True, symlinks=True)
        return "", str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)[:120]


_RAW = re.compile(
    r"Traceback|^\S+\.py:\d+: \w*Warning: |[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.MULTILINE
)


def sound(done: Completed) -> Completed:
    """Return a command that ended as every command must.

    It succeeded, or it failed with one line and status 1 or 2. No traceback is that, no process
    that a signal ended, no raw warning of a library, and no control character on the screen.

    Raises:
        Failed: It ended otherwise.
    """
    told = done.stderr.splitlines()
    errors = [line for line in told if line.startswith("error: ")]
    usage = done.returncode == 2 and any("Usage:" in line or "Error" in line for line in told)
    is_failure = done.returncode in (1, 2) and (len(errors) == 1 or usage)
    if _RAW.search(done.stderr + done.stdout) or not (done.returncode == 0 or is_failure):
        raise Failed(f"{show(done)}: status {done.returncode}\n{done.stderr[-1500:]}")
    return done


def show(done: Completed) -> str:
    """Return what was typed."""
    return f"gnp {' '.join(map(str, done.args))}"[:300]
