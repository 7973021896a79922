"""The objective of a run as a formula for its page."""

from __future__ import annotations

import html

from gnpcli.config.resolved import Resolved
from gnpcli.config.schema import GrConfig
from gnpcli.recipes.wording import objective_in_words

_LOSS = "<i>L</i>(<i>w</i>)"


def formula(config: Resolved) -> str:
    """Return the objective as HTML.

    It is the formula, what its letters are in this run, and the line that `gnp train` prints.
    """
    sentences = html.escape("; ".join(_sentences(config)))
    words = html.escape(objective_in_words(config))
    return (
        f'<div class="formula"><div class="math">{_math(config)}</div>\n<p>{sentences}.</p>'
        f'<p class="sub"><code>{words}</code></p></div>\n'
    )


def _is_penalised(gr: GrConfig) -> bool:
    return gr.how.penalises and bool(gr.r) and bool(gr.alpha)


def _math(config: Resolved) -> str:
    gr, train = config.gr, config.train
    inner = f"{_LOSS} + ½·{train.l2:g}·‖<i>w</i>‖²" if train.l2 else _LOSS
    if not _is_penalised(gr):
        return inner
    gradient = f"∇[{inner}]" if train.l2 and gr.penalize_l2 else f"∇{_LOSS}"
    if gr.ascent == "adaptive":
        gradient = f"<i>T</i>&#8202;{gradient}"
    return f"{inner} + <i>λ</i>·‖{gradient}‖₂"


def _sentences(config: Resolved) -> list[str]:
    """Say what the letters of the formula are, and what acts besides it."""
    gr, train = config.gr, config.train
    told = ["L is the mean cross-entropy"]
    if train.label_smoothing:
        told = [f"L is the mean cross-entropy with label smoothing {train.label_smoothing:g}"]
    if _is_penalised(gr):
        strength = f"λ = α·r = {gr.alpha * gr.r:g} with r = {gr.r:g} and α = {gr.alpha:g}"
        told += [f"{strength}, {_when(gr)}", f"its gradient is taken by {_how(gr)}"]
    if config.optimizer.weight_decay:
        told.append(f"decoupled weight decay {config.optimizer.weight_decay:g} acts besides")
    if train.clip_norm:
        told.append(f"the gradient is clipped to a norm of {train.clip_norm:g}")
    return told


def _when(gr: GrConfig) -> str:
    if not gr.how.warms_up:
        return "at full strength from the first step"
    words = gr.how.words.replace("alpha", "α")
    return f"{words} for the first {gr.warmup_epochs:g} epochs"


def _how(gr: GrConfig) -> str:
    if gr.gradient == "finite-difference":
        return "a second gradient at distance r"
    return "an exact Hessian-vector product"
