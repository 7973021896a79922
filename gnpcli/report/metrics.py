"""Which keys of ``metrics.jsonl`` share a panel, and how each panel is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gnpcli.errors import DataError, suggest
from gnpcli.runs.contents import HELD_OUT

_NO_CURVES = {"step", "epoch", "split", "elapsed_s", "num_examples", "non_finite", "skips_in_a_row"}
"""Keys of a record that are no metric."""


@dataclass(frozen=True)
class Curve:
    """One metric of one split."""

    split: str
    key: str
    label: str
    """Its name within its panel."""


@dataclass(frozen=True)
class Panel:
    """Curves that share a pair of axes."""

    name: str
    """What chooses it on the command line."""
    title: str
    curves: tuple[Curve, ...]
    is_log: bool = False
    """Whether the y axis is logarithmic, where no value is negative."""
    is_percent: bool = False
    """Whether fractions are shown as percentages."""
    is_extra: bool = False
    """Whether it is drawn only where it is asked for."""


def _train(*labels: tuple[str, str]) -> tuple[Curve, ...]:
    return tuple(Curve("train", key, label) for key, label in labels)


def _everywhere(key: str, train_key: str) -> tuple[Curve, ...]:
    """Return the curve of training, then those of the evaluated splits, which go by `key`."""
    return (Curve("train", train_key, "train"), *_held_out(key))


def _held_out(key: str) -> tuple[Curve, ...]:
    return tuple(Curve(split, key, split) for split in HELD_OUT)


PANELS: tuple[Panel, ...] = (
    Panel("loss", "Cross-entropy", _everywhere("loss", "cross_entropy"), is_log=True),
    Panel(
        "error", "Error (%)", _everywhere("error_rate", "error_rate"), is_log=True, is_percent=True
    ),
    Panel(
        "objective",
        "Training objective",
        _train(("loss", "clean"), ("perturbed_loss", "perturbed")),
        is_log=True,
    ),
    Panel(
        "norms",
        "Gradient norm",
        _train(("clean_grad_norm", "clean"), ("perturbed_grad_norm", "perturbed")),
        is_log=True,
    ),
    Panel("cosine", "Cosine of clean and perturbed gradient", _train(("grad_cosine", "cosine"))),
    Panel("gap", "Surrogate gap (perturbed - clean loss)", _train(("surrogate_gap", "gap"))),
    Panel(
        "update",
        "Mixed gradient and update",
        _train(("grad_norm", "gradient, unclipped"), ("update_norm", "update")),
        is_log=True,
    ),
    Panel("ratio", "Update / gradient", _train(("update_ratio", "ratio")), is_log=True),
    Panel("clip", "Factor of clipping", _train(("clip_ratio", "factor"))),
    Panel(
        "adaptive",
        "Variance of the adaptive learning rate",
        _train(("adaptive_lr_variance", "of psi"), ("adaptive_lr_log_variance", "of ln psi")),
        is_log=True,
    ),
    Panel("lr", "Learning rate", _train(("lr", "lr"))),
    Panel("r", "Perturbation radius r", _train(("r", "r"))),
    Panel("alpha", "Mixing weight alpha", _train(("alpha", "alpha"))),
    Panel("lambda", "Penalty coefficient lambda", _train(("lambda", "lambda"))),
    Panel("skips", "Steps skipped so far", _train(("skipped_steps", "steps")), is_extra=True),
    Panel("top5", "Top-5 error (%)", _held_out("top5_error_rate"), is_percent=True, is_extra=True),
    Panel("speed", "Images per second", _train(("images_per_s", "images/s")), is_extra=True),
)
"""The known ones, in the order in which they are drawn."""


def present_panels(keys: Mapping[str, Iterable[str]]) -> list[Panel]:
    """Return the panels that have something to draw, each with the curves that do.

    Args:
        keys: The keys of each split that some run has logged. A key that no panel knows gets a
            panel of its own.
    """
    logged = {split: list(names) for split, names in keys.items()}
    known = []
    for panel in PANELS:
        curves = tuple(curve for curve in panel.curves if curve.key in logged.get(curve.split, ()))
        if curves:
            known.append(replace(panel, curves=curves))
    return known + _unknown_panels(logged)


def _unknown_panels(logged: Mapping[str, Sequence[str]]) -> list[Panel]:
    """Return a panel for each logged key that no panel of `PANELS` has."""
    known = {(curve.split, curve.key) for panel in PANELS for curve in panel.curves}
    unknown: dict[str, list[Curve]] = {}
    for split, names in logged.items():
        for key in names:
            if (split, key) not in known and key not in _NO_CURVES:
                unknown.setdefault(key, []).append(Curve(split, key, split))
    return [Panel(key, _in_words(key), tuple(curves)) for key, curves in unknown.items()]


def choose_panels(panels: Sequence[Panel], names: Sequence[str]) -> list[Panel]:
    """Return the panels that `names` ask for, in their order.

    Args:
        panels: To choose from.
        names: Of panels, or keys: a key asks for a panel of its curves alone.

    Raises:
        DataError: A name is neither, or no run has logged it. The message suggests a close one.
    """
    by_name = {panel.name: panel for panel in panels}
    for panel in panels:
        for curve in panel.curves:
            by_name.setdefault(curve.key, _panel_of_key(panel, curve.key))
    for name in names:
        if name not in by_name:
            raise _no_panel(name, by_name)
    return [by_name[name] for name in names]


def _panel_of_key(panel: Panel, key: str) -> Panel:
    """Return a panel of one key of `panel` alone."""
    curves = tuple(curve for curve in panel.curves if curve.key == key)
    title = _in_words(key)
    if panel.is_percent:
        title = f"{title} (%)"
    return replace(panel, name=key, title=title, curves=curves)


def _no_panel(name: str, by_name: Mapping[str, Panel]) -> DataError:
    keys = {curve.key for panel in PANELS for curve in panel.curves}
    is_known = name in keys or name in {panel.name for panel in PANELS}
    what = "these runs have logged no" if is_known else "there is no metric"
    there = ", ".join(sorted(by_name))
    return DataError(f"{what} {name!r}{suggest(name, by_name)}; there are {there}")


def _in_words(key: str) -> str:
    return key.replace("_", " ")


MOST_PANELS = 36
"""Drawn where none is asked for. A log from elsewhere may have thousands of metrics."""


def default_panels(panels: Sequence[Panel]) -> list[Panel]:
    """Return the panels that are drawn where none is asked for; `MOST_PANELS` at most."""
    return [panel for panel in panels if not panel.is_extra][:MOST_PANELS]


def not_drawn(panels: Sequence[Panel], drawn: Sequence[Panel]) -> str:
    """Say how many panels are too many to be drawn; empty where none is."""
    wanted = [panel for panel in panels if not panel.is_extra]
    left = len(wanted) - sum(not panel.is_extra for panel in drawn)
    if left <= 0:
        return ""
    return f"{left} more metrics are logged and not drawn: `gnp plot --metrics KEY` draws one"
