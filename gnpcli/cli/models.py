"""``gnp models``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from rich.table import Table

    from gnpcli.models.registry import Entry

app = typer.Typer(help="The architectures.", no_args_is_help=True)


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the models: family, parameters and work per image at the size that the defaults suit,
    paper, options.
    """
    from gnpcli.models.registry import MODELS

    if as_json:
        _print_json(
            [
                {
                    "name": name,
                    "family": entry.family,
                    "image_size": entry.image_size,
                    "parameters": entry.parameters,
                    "gflop": entry.gflop,
                    "paper": _link(entry),
                    "imports": entry.imports,
                    "options": entry.options,
                }
                for name, entry in MODELS.items()
            ]
        )
        return
    table = _table(
        ("name", "family", "pixels", "parameters", "GFLOP", "paper", "options"), {2, 3, 4}
    )
    for name, entry in MODELS.items():
        size, count, work = str(entry.image_size), f"{entry.parameters:,}", f"{entry.gflop:.3g}"
        table.add_row(
            name, entry.family, size, count, work, f"arXiv {entry.paper}", ", ".join(entry.options)
        )
    _print(table)


@app.command("show")
def show_model(
    name: Annotated[
        str, typer.Argument(help="A model of gnp models list, or module:entry of your own.")
    ],
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", min=1, help="Side of the images in pixels. [default: the model's]"
        ),
    ] = None,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Channels of the images.")] = 3,
    num_classes: Annotated[int, typer.Option("--classes", min=1, help="Number of logits.")] = 10,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="Put layers together below this level of names."),
    ] = None,
    assignments: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Show a model layer by layer: the arrays of each, parameters, and work per image."""
    if strangers := [text for text in assignments if not text.strip().startswith("model.")]:
        raise typer.BadParameter(
            f"'{strangers[0]}': a model has keys model.* only", param_hint="--set"
        )
    from gnpcli.models.registry import build_model, find_model
    from gnpcli.models.summary import group, summarize
    from gnpcli.recipes.presets import resolve_architecture

    config = resolve_architecture(name, assignments)
    entry = find_model(name)
    size = image_size or entry.image_size
    model = build_model(config, num_classes=num_classes, image_size=size, channels=channels)
    summary = summarize(model, (size, size, channels))
    layers = summary.layers if depth is None else group(summary.layers, depth)
    options = config.model_dump(exclude={"name"}, exclude_none=True)
    if as_json:
        from dataclasses import asdict

        facts = {"name": name, "family": entry.family, "paper": _link(entry), "options": options}
        images = {"image_size": size, "channels": channels, "num_classes": num_classes}
        _print_json(
            {**facts, **images, **asdict(summary), "layers": [asdict(layer) for layer in layers]}
        )
        return
    table = _table(("layer", "arrays", "parameters", "statistics"), {2, 3})
    for layer in layers:
        arrays = "  ".join(
            f"{array} {'x'.join(map(str, shape))}" for array, shape in layer.shapes.items()
        )
        table.add_row(
            layer.name,
            arrays,
            f"{layer.parameters:,}",
            f"{layer.statistics:,}" if layer.statistics else "",
        )
    _print(table)
    work = (
        "" if summary.gflop is None else f"; {summary.gflop:.3g} GFLOP a forward pass of an image"
    )
    typer.echo(
        f"{name} ({entry.family}, {_link(entry) or 'no paper'}), images of {size} x {size} x "
        f"{channels}, "
        f"{num_classes} classes: {summary.parameters:,} parameters, {summary.statistics:,} "
        f"statistics{work}"
    )
    if options:
        typer.echo("options: " + " ".join(f"{key}={value}" for key, value in options.items()))


def _link(entry: Entry) -> str | None:
    return f"https://arxiv.org/abs/{entry.paper}" if entry.paper else None


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))


def _table(columns: Sequence[str], numbers: set[int]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = (
            400  # piped output is for other programs: a row is a line, whatever its length
        )
    console.print(table)
