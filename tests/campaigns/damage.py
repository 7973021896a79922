"""Damaged files: every command notices the damage, or its result is the undamaged one."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.campaigns.campaign import Campaign, Case, Failed, sound
from tests.campaigns.lab import Lab
from tests.campaigns.runs import COMMON, Left, check_same, read, resume, train
from tests.commands import Completed

HOLDS = "The command says what is damaged, or its result is that of the undamaged run, to the bit."
SETTINGS = (
    *COMMON,
    "train.epochs=4",
    "data.batch_size=512",
    "checkpoint.every_steps=2",
    "checkpoint.keep=2",
)
STOPPED = 5
"""Of eight steps. The folder holds saves at 4 and 5, and a whole log of five steps."""

Damage = Callable[[Path, random.Random], object]


def _flip(path: Path, random_numbers: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[random_numbers.randrange(len(content))] ^= 1 << random_numbers.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, random_numbers: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random_numbers.randrange(len(content))])


DAMAGES: dict[str, Damage] = {
    "one bit": _flip,
    "another bit": _flip,
    "a third bit": _flip,
    "cut": _cut,
    "last byte": lambda path, _: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path, _: path.write_bytes(b""),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path, _: path.unlink(),
}
"""What happens to a file that is not empty."""

_VARIES = re.compile(r'"elapsed_s": [0-9.]+|[0-9.]+ (k|M)?B<')


def _resume(lab: Lab, run: Path, wanted: Left) -> str:
    done = resume(lab, run)
    assert done is not None
    if sound(done).returncode:
        return "refused"
    if not _is_noticed(done):
        check_same(wanted, run, done.stderr)
        return "harmless"
    left = read(run)
    last = max(wanted.arrays, key=int)
    if left.arrays.get(last) != wanted.arrays[last]:
        raise Failed(f"the arrays differ in the end\n{done.stderr[-1500:]}")
    return "noticed"


def _is_noticed(done: Completed) -> bool:
    return "warning: " in done.stderr


def _printed(*arguments: str) -> Callable[[Lab, Path], Completed]:
    """Return what runs a command that reads a run and prints JSON."""

    def call(lab: Lab, run: Path) -> Completed:
        return lab.gnp(arguments[0], run, *arguments[1:], cwd=run.parent)

    return call


PRINTED = {
    "eval": _printed("eval", "--json", "--quiet"),
    "inspect": _printed(
        "inspect", "--json", "--quiet", "--examples", "64", "--top", "1", "--resolution", "2"
    ),
}


def _reported(lab: Lab, run: Path) -> Completed:
    done = lab.gnp("report", run, "--out", run.parent / "page.html")
    page = run.parent / "page.html"
    done.stdout = page.read_text().replace(str(run), "RUN") if page.exists() else ""
    return done


def _result(call: Callable[[Lab, Path], Completed], lab: Lab, run: Path, wanted: str) -> str:
    before = _content(run)
    done = sound(call(lab, run))
    if _content(run) != before:
        raise Failed("a command that reads has changed the folder")
    if done.returncode:
        return "refused"
    if _is_noticed(done) or "damaged" in done.stdout or "cut short" in done.stdout:
        return "noticed"
    found = _comparable(done, run)
    if found != wanted:
        raise Failed(f"silently other: {_first_difference(wanted, found)}\n{done.stderr[-500:]}")
    return "harmless"


def _comparable(done: Completed, run: Path) -> str:
    """Return what a command said, without where, how fast, and how large the files are now."""
    return _VARIES.sub("", done.stdout.replace(str(run), "RUN"))


def _first_difference(wanted: str, found: str) -> str:
    length = min(len(wanted), len(found))
    start = next((at for at in range(length) if wanted[at] != found[at]), length)
    start = max(0, start - 60)
    return f"{wanted[start : start + 160]!r} -> {found[start : start + 160]!r}"


def _content(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def stopped(lab: Lab) -> Path:
    """Return a run that stopped before its end."""
    run = lab.new_folder() / "run"
    done = train(lab, run, SETTINGS, more=("--max-steps", STOPPED))
    assert done is not None
    assert done.returncode == 0, done.stderr
    return run


def _cases(lab: Lab, template: Path, check: Callable[[Path], str], seed: int) -> list[Case]:
    """Return a case for each damage of each file of `template`."""
    files = sorted(path.relative_to(template) for path in template.rglob("*") if path.is_file())
    cases = []
    for file in files:
        size = (template / file).stat().st_size
        for name, damage in DAMAGES.items():
            if size == 0 and name != "gone":
                continue
            run = partial(_damaged, template, file, damage, f"{seed} {file} {name}", check)
            cases.append(Case(f"{file}: {name}", run))
    return cases


def _damaged(
    template: Path,
    file: Path,
    damage: Damage,
    seed: str,
    check: Callable[[Path], str],
    folder: Path,
) -> str:
    run = folder / "run"
    shutil.copytree(template, run)
    damage(run / file, random.Random(seed))
    return check(run)


def damage_resume(lab: Lab, random_numbers: random.Random) -> list[Case]:
    """A damaged file, and then ``gnp resume``."""
    template = stopped(lab)
    whole = lab.new_folder() / "run"
    shutil.copytree(template, whole)
    done = resume(lab, whole)
    assert done is not None
    assert done.returncode == 0, done.stderr
    return _cases(lab, template, lambda run: _resume(lab, run, read(whole)), 0)


def damage_read(name: str, call: Callable[[Lab, Path], Completed]):
    """Return what makes the cases of a damaged file and then a command that only reads."""

    def cases(lab: Lab, random_numbers: random.Random) -> list[Case]:
        template = stopped(lab)
        done = call(lab, template)
        assert done.returncode == 0, done.stderr
        wanted = _comparable(done, template)
        return _cases(lab, template, lambda run: _result(call, lab, run, wanted), 0)

    return cases


CAMPAIGNS = (
    Campaign("damage-resume", HOLDS, damage_resume, small=6),
    *(
        Campaign(f"damage-{name}", HOLDS, damage_read(name, call), small=4)
        for name, call in {**PRINTED, "report": _reported}.items()
    ),
)
