"""The curves there are: which keys of ``metrics.jsonl`` share a panel, and how each is drawn. Names
only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gnpcli.errors import DataError, suggest

EVALUATED = ("val", "test")
"""Splits that are evaluated, beside ``train``, which is logged step by step."""

_NO_CURVES = {"step", "epoch", "split", "elapsed_s", "num_examples", "non_finite", "skips_in_a_row"}


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
    """Whether the values, all positive, span magnitudes."""
    is_percent: bool = False
    """Whether fractions are shown as percentages."""
    is_extra: bool = False
    """Whether it is drawn only where it is asked for."""


def _train(*labels: tuple[str, str]) -> tuple[Curve, ...]:
    return tuple(Curve("train", key, label) for key, label in labels)


def _everywhere(key: str, train_key: str) -> tuple[Curve, ...]:
    return (Curve("train", train_key, "train"), *(Curve(split, key, split) for split in EVALUATED))


PANELS: tuple[Panel, ...] = (
    Panel("loss", "Cross-entropy", _everywhere("loss", "cross_entropy"), is_log=True),
    Panel("error", "Error (%)", _everywhere("error_rate", "error_rate"), is_log=True, is_percent=True),
    Panel("objective", "Training objective", _train(("loss", "clean"), ("perturbed_loss", "perturbed")), is_log=True),
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
    Panel("top5", "Top-5 error (%)", tuple(Curve(split, "top5_error_rate", split) for split in EVALUATED),
          is_percent=True, is_extra=True),
    Panel("speed", "Images per second", _train(("images_per_s", "images/s")), is_extra=True),
)  # fmt: skip
"""The known ones, in the order in which they are drawn."""


def present_panels(keys: dict[str, Iterable[str]]) -> list[Panel]:
    """Return the panels that there is something to draw in, with those of their curves that there
    are.

    Args:
        keys: The keys of each split that some run has logged. Those that no panel knows get a panel
            of their own.
    """
    there = {split: list(names) for split, names in keys.items()}
    panels = [
        replace(panel, curves=curves)
        for panel in PANELS
        if (
            curves := tuple(
                curve for curve in panel.curves if curve.key in there.get(curve.split, ())
            )
        )
    ]
    known = {(curve.split, curve.key) for panel in PANELS for curve in panel.curves}
    unknown: dict[str, list[Curve]] = {}
    for split, names in there.items():
        for key in names:
            if (split, key) not in known and key not in _NO_CURVES:
                unknown.setdefault(key, []).append(Curve(split, key, split))
    return panels + [
        Panel(key, key.replace("_", " "), tuple(curves)) for key, curves in unknown.items()
    ]


def choose_panels(panels: Sequence[Panel], names: Sequence[str]) -> list[Panel]:
    """Return the panels that `names` ask for, in their order: a panel's name, or a key for a panel
    of it alone.

    Raises:
        DataError: A name that is neither, or of which no run has logged anything; a close one is
            suggested.
    """
    by_name = {panel.name: panel for panel in panels}
    for panel in panels:
        for curve in panel.curves:
            alone = tuple(other for other in panel.curves if other.key == curve.key)
            title = f"{curve.key.replace('_', ' ')}{' (%)' if panel.is_percent else ''}"
            by_name.setdefault(curve.key, replace(panel, name=curve.key, title=title, curves=alone))
    for name in names:
        if name not in by_name:
            known = {panel.name for panel in PANELS} | {
                curve.key for panel in PANELS for curve in panel.curves
            }
            what = "these runs have logged no" if name in known else "there is no metric"
            raise DataError(
                f"{what} {name!r}{suggest(name, by_name)}; there are {', '.join(sorted(by_name))}"
            )
    return [by_name[name] for name in names]


def default_panels(panels: Sequence[Panel]) -> list[Panel]:
    """Return the panels that are drawn where none is asked for."""
    return [panel for panel in panels if not panel.is_extra]
