"""``gnp presets``."""

from __future__ import annotations

from typing import Annotated

import typer

from gnpcli.cli.options import JsonOption

app = typer.Typer(help="The shipped recipes.", no_args_is_help=True)


@app.command("list")
def list_presets(as_json: JsonOption = False) -> None:
    """List the presets: model, data set, epochs, GR and purpose."""
    from gnpcli.recipes.presets import load_preset, preset_names, resolve

    rows = []
    for name in preset_names():
        config = resolve(name)
        rows.append(
            {
                "name": name,
                "model": config.model.name,
                "dataset": config.data.name,
                "epochs": config.train.epochs,
                "gr": config.gr.strategy,
                "purpose": load_preset(name).purpose,
            }
        )
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(
            column, justify="right" if column == "epochs" else "left", no_wrap=column != "purpose"
        )
    for row in rows:
        table.add_row(*map(str, row.values()))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = (
            400  # piped output is for other programs: a row is a line, whatever its length
        )
    console.print(table)


@app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="Preset name, or a YAML file.")],
) -> None:
    """Print a preset with every key resolved; the output is itself a preset."""
    from gnpcli.config.loader import dump
    from gnpcli.recipes.presets import load_preset, resolve

    preset = load_preset(name)
    if preset.purpose:
        typer.echo(f"# {preset.name}: {preset.purpose}")
    typer.echo(dump(resolve(name)), nl=False)
