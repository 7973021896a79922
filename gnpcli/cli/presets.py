"""``gnp presets``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gnpcli.cli.options import JsonOption
from gnpcli.cli.output import print_json, print_table, say

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_presets(as_json: JsonOption = False) -> None:
    """List the presets: model, data set, epochs, GR strategy and purpose."""
    from gnpcli.recipes.presets import preset_names

    rows = [_facts(name) for name in preset_names()]
    if as_json:
        print_json(rows)
        return
    texts = [[str(value) for value in row.values()] for row in rows]
    print_table(list(rows[0]), texts, numbers=["epochs"], has_notes=True)


def _facts(name: str) -> dict[str, Any]:
    from gnpcli.recipes.presets import compose, load_preset

    config = compose(name)
    return {
        "name": name,
        "model": config.model.name,
        "dataset": config.data.name,
        "epochs": config.train.epochs,
        "gr": config.gr.strategy,
        "purpose": load_preset(name).purpose,
    }


@app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="Preset name, or a YAML file.")],
) -> None:
    """Print a preset with every key resolved; the output is itself a preset."""
    from gnpcli.config.loader import dump
    from gnpcli.recipes.presets import compose, load_preset

    preset = load_preset(name)
    if preset.purpose:
        say(f"# {preset.name}: {preset.purpose}")
    say(*dump(compose(name)).rstrip("\n").split("\n"))
