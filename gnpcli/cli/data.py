"""``gnp data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gnpcli.cli.options import DataDirOption, JsonOption, QuietOption
from gnpcli.cli.output import print_json, print_table, say, tell
from gnpcli.cli.preview import preview
from gnpcli.config.paths import user_path
from gnpcli.terminal import words

if TYPE_CHECKING:
    from gnpcli.data.archives.published import Located
    from gnpcli.data.listing import Listing

app = typer.Typer(no_args_is_help=True)

SourceArgument = Annotated[str, typer.Argument(help="A data set of gnp data list.")]
SplitsOption = Annotated[
    str | None,
    typer.Option("--split", help="Splits besides train and test, for example train+extra."),
]
MirrorOption = Annotated[
    str | None,
    typer.Option("--mirror", envvar="GNP_MIRROR", help="Address to fetch the archives from."),
]
ChecksumsOption = Annotated[
    Path | None,
    typer.Option(
        "--checksums",
        envvar="GNP_CHECKSUMS",
        parser=user_path,
        metavar="FILE",
        help="File of sha256sum. Its sums are accepted in place of the published ones.",
    ),
]


@app.command("list")
def list_data(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the data sets: images, classes, format, size, and where they lie."""
    from gnpcli.data.registry import list_sources

    rows = list_sources(data_dir)
    if as_json:
        from dataclasses import asdict

        print_json([asdict(row) for row in rows])
        return
    header = ("name", "images", "classes", "pixels", "format", "on disk", "where")
    numbers = ("images", "classes", "on disk")
    print_table(header, [_row(row) for row in rows], numbers=numbers, has_notes=True)


def _row(row: Listing) -> list[str]:
    counts = (row.splits or {}).values()
    has_size = row.image_size is not None
    return [
        row.name,
        " + ".join(words.number(count) for count in counts),
        str(row.num_classes or ""),
        f"{row.image_size}x{row.image_size}x{row.channels}" if has_size else "",
        row.format or "",
        words.size(row.num_bytes) if row.num_bytes is not None else "",
        row.where or row.problem or _how_to_get(row),
    ]


def _how_to_get(row: Listing) -> str:
    command = f"gnp data prepare {row.name}"
    if row.download_bytes is not None:
        return f"absent; {command} downloads {words.size(row.download_bytes)}"
    if row.format or ":" in row.name:
        return row.about
    return f"absent; {command} tells how to get it"


app.command("preview")(preview)


@app.command("prepare")
def prepare(
    name: SourceArgument,
    data_dir: DataDirOption = None,
    split: SplitsOption = None,
    mirror: MirrorOption = None,
    checksums: ChecksumsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Download a data set and prepare it, unless it is there."""
    from gnpcli.data.archives.fetch import Origin
    from gnpcli.data.registry import prepare_source
    from gnpcli.terminal.console import messages
    from gnpcli.terminal.loading import LoadingDisplay

    origin = Origin.of(mirror, str(checksums) if checksums is not None else None)
    with LoadingDisplay(name, messages(), tell, quiet=quiet) as display:
        found, was_there = prepare_source(name, data_dir, split, origin, display)
    state = "is there already" if was_there else "is prepared"
    say(f"{name} {state}: {_found(found)}")
    say(f"train on it with `{_next_command(name, data_dir)}`")


def _found(found: Located) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in (found.counts or {}).items())
    facts = [found.format]
    if found.num_bytes is not None:
        facts.append(words.size(found.num_bytes))
    return f"{counts} images in {found.path} ({', '.join(facts)})".lstrip()


def _next_command(name: str, data_dir: str | None) -> str:
    """Return a command that trains on the data: with its first preset, and where it lies."""
    import shlex

    preset = _first_preset(name)
    choice = f"--preset {preset}" if preset is not None else f"--dataset {name}"
    place = f" --data-dir {shlex.quote(data_dir)}" if data_dir is not None else ""
    return f"gnp train {choice}{place}"


def _first_preset(dataset: str) -> str | None:
    import contextlib

    from gnpcli.errors import GnpError
    from gnpcli.recipes.presets import compose, preset_names

    for name in preset_names():
        with contextlib.suppress(GnpError):
            if compose(name).data.name == dataset:
                return name
    return None
