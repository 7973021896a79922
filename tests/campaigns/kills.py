"""Kills and failing disks: a run that was disturbed ends like the undisturbed one."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from tests.campaigns.campaign import Campaign, Case, Failed, sound
from tests.campaigns.faults import Fault
from tests.campaigns.lab import Lab
from tests.campaigns.runs import LONG, SHORT, Left, check_same, go_on, read, resume, train
from tests.commands import Completed

SAME = "Parameters, optimizer, log, summary and names of files are those of the undisturbed run."
RANDOM_KILLS = 200
FULL = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EDQUOT": errno.EDQUOT}
UNREADABLE = {
    name: getattr(errno, name) for name in ("EIO", "EACCES", "EMFILE", "ENOMEM", "ESTALE")
}


def undisturbed(lab: Lab, settings: Sequence[str]) -> tuple[Left, float]:
    """Return what the run leaves where nothing disturbs it, and the seconds that it takes.

    It is run twice: the first compiles.
    """
    for _ in range(2):
        folder = lab.new_folder()
        done = train(lab, folder / "run", settings)
        assert done is not None
        assert done.returncode == 0, done.stderr
        left = read(folder / "run")
        seconds = (folder / "run" / "summary.json").stat().st_mtime - folder.stat().st_ctime
        shutil.rmtree(folder)
    return left, seconds


def random_kills(lab: Lab, random_numbers: random.Random) -> list[Case]:
    """A kill at a random moment; up to three more while it goes on."""
    wanted, seconds = undisturbed(lab, LONG)

    def case(number: int) -> Case:
        kills = 1 + number % 4
        moments = [random_numbers.uniform(0, 1.1 * seconds) for _ in range(kills)]
        shown = ", ".join(f"{moment:.2f} s" for moment in moments)
        run = partial(_kill_at, lab, wanted, moments)
        return Case(f"{number}: killed after {shown}", run)

    return [case(number) for number in range(RANDOM_KILLS)]


def _kill_at(lab: Lab, wanted: Left, moments: Sequence[float], folder: Path) -> str:
    run, number = folder / "run", 0
    for moment in moments:
        if (run / "config.yaml").exists():
            done = resume(lab, run, timeout=moment)
        else:
            done = train(lab, run, LONG, timeout=moment)
        if done is not None:
            if sound(done).returncode:
                raise Failed(f"it cannot be continued: {done.stderr[-1500:]}")
            break
        number += 1
    if not (run / "config.yaml").exists() or number == len(moments):
        go_on(lab, run, LONG)
    check_same(wanted, run)
    return f"after {number} kill(s)"


def _events(lab: Lab, what: Literal["train", "resume"], template: Path | None, **more) -> list[str]:
    """Return the file-system events of a command that nothing disturbs, in their order."""
    folder = lab.new_folder()
    fault = Fault(folder, 0, log=lab.folder / f"{folder.name}.log", **more)
    done = _command(lab, what, template, folder, fault)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
    assert fault.log is not None
    return fault.log.read_text().splitlines()


def _command(lab: Lab, what: str, template: Path | None, folder: Path, fault: Fault):
    """Run the command that is disturbed: `train`, or `resume` in a copy of `template`."""
    run = folder / "run"
    if template is not None:
        shutil.copytree(template, run)
    done = train(lab, run, SHORT, fault=fault) if what == "train" else resume(lab, run, fault=fault)
    assert done is not None
    return done


def half_saved(lab: Lab) -> Path:
    """Return a run that was killed in the middle of its second save, with all its leftovers."""
    folder = lab.new_folder()
    events = _events(lab, "train", None)
    names = [number for number, event in enumerate(events, 1) if "/checkpoints/4" in event]
    fault = Fault(folder, names[len(names) // 2])
    done = _command(lab, "train", None, folder, fault)
    assert done.returncode == -9, done.stderr
    return folder / "run"


def event_kills(what: Literal["train", "resume"], do: Literal["kill", "torn"]):
    """Return what makes the cases of a kill at every event of a command."""

    def cases(lab: Lab, random_numbers: random.Random) -> list[Case]:
        wanted, _ = undisturbed(lab, SHORT)
        template = half_saved(lab) if what == "resume" else None
        events = _events(lab, what, template)
        if do == "torn":
            numbers = [number for number, event in enumerate(events, 1) if " write" in event]
        else:
            numbers = [*range(1, len(events) + 1)]
        return [
            Case(
                f"{what} {do} at {events[number - 1]}",
                partial(_kill_event, lab, wanted, what, template, number, do),
            )
            for number in numbers
        ]

    return cases


def _kill_event(
    lab: Lab,
    wanted: Left,
    what: str,
    template: Path | None,
    number: int,
    do: Literal["kill", "torn"],
    folder: Path,
) -> str:
    done = _command(lab, what, template, folder, Fault(folder, number, do))
    is_killed = done.returncode == -9
    if not is_killed and sound(done).returncode:
        raise Failed(f"it failed by itself: {done.stderr[-1500:]}")
    if is_killed:
        go_on(lab, folder / "run", SHORT)
    check_same(wanted, folder / "run")
    return "killed" if is_killed else "had ended before"  # threads order their events anew


def full_disk(lab: Lab, random_numbers: random.Random) -> list[Case]:
    """A disk that is full, or fails, from some event on; later there is space again."""
    wanted, _ = undisturbed(lab, SHORT)
    events = _events(lab, "train", None)
    return [
        Case(
            f"{name} from {event}",
            partial(_fail_writing, lab, wanted, Fault, number, FULL[name], is_kept),
        )
        for number, event in enumerate(events, 1)
        for name, is_kept in (("ENOSPC", True), ("EIO", False))
    ]


def _fail_writing(
    lab: Lab, wanted: Left, fault: type[Fault], number: int, error: int, rest: bool, folder: Path
) -> str:
    done = _command(lab, "train", None, folder, fault(folder, number, error, rest=rest))
    return _go_on_after(done, lab, wanted, folder / "run")


def unreadable(lab: Lab, random_numbers: random.Random) -> list[Case]:
    """A disk that cannot be read for a moment, while a run is continued."""
    wanted, _ = undisturbed(lab, SHORT)
    template = half_saved(lab)
    events = _events(lab, "resume", template, kind="read")
    return [
        Case(
            f"{name} at {event}",
            partial(_fail_reading, lab, wanted, template, number, UNREADABLE[name], is_kept),
        )
        for number, event in enumerate(events, 1)
        for name, is_kept in (
            ("EIO", False),
            ("EMFILE", True),
            (random_numbers.choice(["EACCES", "ENOMEM", "ESTALE"]), True),
        )
    ]


def _fail_reading(
    lab: Lab, wanted: Left, template: Path, number: int, error: int, rest: bool, folder: Path
) -> str:
    fault = Fault(folder, number, error, kind="read", rest=rest)
    done = _command(lab, "resume", template, folder, fault)
    return _go_on_after(done, lab, wanted, folder / "run")


def _go_on_after(done: Completed, lab: Lab, wanted: Left, run: Path) -> str:
    """Continue a run whose disk failed, unless it ended well all the same."""
    if sound(done).returncode == 0:
        check_same(wanted, run, done.stderr)
        return "finished"
    go_on(lab, run, SHORT)
    check_same(wanted, run, done.stderr, may_set_aside=True)
    return "one line, then continued"


CAMPAIGNS = (
    Campaign("random-kills", SAME, random_kills, small=4, full=RANDOM_KILLS),
    Campaign("kill-train", SAME, event_kills("train", "kill"), small=6, needs_faults=True),
    Campaign("kill-resume", SAME, event_kills("resume", "kill"), small=4, needs_faults=True),
    Campaign("torn-write", SAME, event_kills("train", "torn"), small=2, needs_faults=True),
    Campaign("full-disk", SAME, full_disk, small=4, needs_faults=True),
    Campaign("unreadable", SAME, unreadable, small=4, needs_faults=True),
)
