"""``gnp models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnpcli.cli.options import MOST, MOST_PIXELS, NOTHING_SET, JsonOption, SetOption
from gnpcli.cli.output import print_json, print_table, say, start_measuring
from gnpcli.terminal import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnpcli.models.registry import Entry
    from gnpcli.models.summary import Layer, Summary

app = typer.Typer(no_args_is_help=True)

ModelArgument = Annotated[
    str, typer.Argument(help="A model of gnp models list, or module:entry of your own.")
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        min=1,
        max=MOST_PIXELS,
        help="Side of the images in pixels.",
        show_default="the model's",
    ),
]
ChannelsOption = Annotated[
    int, typer.Option("--channels", min=1, max=1000, help="Channels of the images.")
]
ClassesOption = Annotated[int, typer.Option("--classes", min=1, max=MOST, help="Number of logits.")]
DepthOption = Annotated[
    int | None,
    typer.Option("--depth", min=1, max=1000, help="Put layers together below this level of names."),
]


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the models: family, image size, parameters, work per image, paper and options."""
    from gnpcli.models.registry import MODELS

    if as_json:
        print_json([_facts(name, entry) for name, entry in MODELS.items()])
        return
    header = ("name", "family", "pixels", "parameters", "GFLOP", "paper", "options")
    rows = [_row(name, entry) for name, entry in MODELS.items()]
    print_table(header, rows, numbers=("pixels", "parameters", "GFLOP"), has_notes=True)


def _facts(name: str, entry: Entry) -> dict[str, Any]:
    return {
        "name": name,
        "family": entry.family,
        "image_size": entry.image_size,
        "parameters": entry.parameters,
        "gflop": entry.gflop,
        "paper": _link(entry),
        "imports": entry.imports,
        "options": entry.options.defaults(),
    }


def _row(name: str, entry: Entry) -> list[str]:
    return [
        name,
        entry.family,
        str(entry.image_size),
        words.number(entry.parameters),
        words.number(entry.gflop, ".3g"),
        f"arXiv {entry.paper}",
        ", ".join(entry.options.option_names()),
    ]


@app.command("show")
def show_model(
    name: ModelArgument,
    image_size: ImageSizeOption = None,
    channels: ChannelsOption = 3,
    num_classes: ClassesOption = 10,
    depth: DepthOption = None,
    assignments: SetOption = NOTHING_SET,
    as_json: JsonOption = False,
) -> None:
    """Show a model layer by layer: arrays, parameters, statistics, and work per image."""
    _refuse_other_keys(assignments)
    start_measuring()
    from gnpcli.models.family import Images
    from gnpcli.models.registry import build_model, find_model
    from gnpcli.models.summary import group, summarize
    from gnpcli.recipes.presets import resolve_architecture

    config = resolve_architecture(name, assignments)
    entry = find_model(name)
    size = image_size or entry.image_size
    model = build_model(config, Images(size, channels, num_classes))
    summary = summarize(model, (size, size, channels))
    layers = summary.layers if depth is None else group(summary.layers, depth)
    facts = {
        "name": name,
        "family": entry.family,
        "paper": _link(entry),
        "options": config.model_dump(exclude={"name"}, exclude_none=True),
        "image_size": size,
        "channels": channels,
        "num_classes": num_classes,
    }
    if as_json:
        from dataclasses import asdict

        print_json({**facts, **asdict(summary), "layers": [asdict(layer) for layer in layers]})
    else:
        _print_layers(layers)
        _print_facts(facts, summary)


def _refuse_other_keys(assignments: list[str]) -> None:
    for text in assignments:
        if not text.strip().startswith("model."):
            raise typer.BadParameter(f"'{text}': a model has keys model.* only", param_hint="--set")


def _print_layers(layers: Sequence[Layer]) -> None:
    rows = []
    for layer in layers:
        arrays = [f"{name} {'x'.join(map(str, shape))}" for name, shape in layer.shapes.items()]
        statistics = words.number(layer.statistics) if layer.statistics else ""
        rows.append([layer.name, "  ".join(arrays), words.number(layer.parameters), statistics])
    header = ("layer", "arrays", "parameters", "statistics")
    print_table(header, rows, numbers=("parameters", "statistics"))


def _print_facts(facts: dict[str, Any], summary: Summary) -> None:
    size = facts["image_size"]
    parts = [
        f"{facts['name']} ({facts['family']}, {facts['paper'] or 'no paper'})",
        f"images of {size} x {size} x {facts['channels']}",
        f"{facts['num_classes']} classes: {words.number(summary.parameters)} parameters",
        f"{words.number(summary.statistics)} statistics",
    ]
    if summary.gflop is not None:
        parts.append(f"{summary.gflop:.3g} GFLOP a forward pass of an image")
    say(", ".join(parts))
    if options := facts["options"]:
        say("options: " + " ".join(f"{key}={value}" for key, value in options.items()))


def _link(entry: Entry) -> str | None:
    return f"https://arxiv.org/abs/{entry.paper}" if entry.paper else None
