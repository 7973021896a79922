"""What a configuration will do, said before it is done: the dry run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gnpcli.config import GrConfig, RunConfig

if TYPE_CHECKING:
    from gnpcli.data.base import DataInfo
    from gnpcli.models.base import Model


def objective(config: RunConfig) -> str:
    """Return the training objective as a formula with its numbers.

    >>> from gnpcli.recipes.presets import resolve
    >>> objective(resolve("vit-s-cifar10-zero-warmup"))
    'L + 0.1 ||grad L||  (alpha 1, r 0.1, finite-difference), plain for the first 40 epochs'
    """
    gr, train = config.gr, config.train
    loss = "L" if not train.l2 else f"L + {train.l2 / 2:g} ||w||^2"
    strength = (gr.alpha or 0.0) * (gr.r or 0.0)
    if not gr.how.penalises or strength == 0:
        return loss
    stretch = "T " if gr.ascent == "adaptive" else ""
    inner = "(L + L2)" if train.l2 and gr.penalize_l2 else "L"
    notes = [f"alpha {gr.alpha:g}", f"r {gr.r:g}", gr.gradient, *_variant(config)]
    text = f"{loss} + {strength:g} ||{stretch}grad {inner}||  ({', '.join(notes)})"
    if gr.how.warms_up:
        text += f", {gr.how.words} for the first {gr.warmup_epochs:g} epochs"
    return text + _which_steps(gr)


def count_steps(
    config: RunConfig, steps_per_epoch: int, until: int | None = None
) -> tuple[int, int]:
    """Return how many steps of a run take one gradient (plain, or reusing) and how many the two of
    GNP.

    Args:
        config: The run.
        steps_per_epoch: As `gnpcli.data.feeds.base.steps_per_epoch` says.
        until: Count the steps before this one; None counts all.
    """
    from gnpcli.step.schedules import Horizon, gr_schedule

    horizon = Horizon(steps_per_epoch, config.train.epochs)
    steps = horizon.total_steps if until is None else until
    kinds = gr_schedule(config.gr, horizon, config.train.seed).kinds[:steps]
    double = sum(kind == "gnp" for kind in kinds)
    return len(kinds) - double, double


def _variant(config: RunConfig) -> Iterator[str]:
    """Yield what departs from the papers' gradient of a whole batch."""
    gr = config.gr
    if gr.mix == "unit":
        yield "unit clean gradient"
    if gr.ascent == "adaptive":
        ones = "" if gr.adapt_biases_and_norms else " and 1 for biases and norms"
        yield f"T = |w| + {gr.adaptive_eta:g}{ones}"
    if gr.perturb != "all":
        yield f"perturbing {gr.perturb}"
    if gr.surrogate_gap:
        yield f"surrogate gap {gr.surrogate_gap:g}"
    if gr.groups != 1:
        shared = " with one BatchNorm" if gr.batch_norm == "synchronised" else ""
        size = "" if gr.groups == "per-device" else f" of {config.data.batch_size // gr.groups}"
        yield f"mean over {gr.groups} groups{size}{shared}"


def _which_steps(gr: GrConfig) -> str:
    if gr.every > 1:
        between = (
            f", between them reuse with weight {gr.reuse_weight:g}" if gr.between == "reuse" else ""
        )
        return f", one step in {gr.every}{between}"
    if gr.probability_end is not None:
        return f", with a probability going from {gr.probability:g} to {gr.probability_end:g}"
    return "" if gr.probability == 1 else f", with probability {gr.probability:g}"


def fit(config: RunConfig, data: DataInfo) -> tuple[Model, int]:
    """Build the model of a run and count the steps of an epoch, from the sizes of the data alone.

    Called before images are fetched or decoded, it shows at once what would be wrong with them.

    Raises:
        ConfigError: Model, augmentation or batch size do not fit the data.
    """
    from gnpcli.data.augment.pipeline import check_pipeline
    from gnpcli.data.feeds.base import steps_per_epoch
    from gnpcli.models.registry import build_for

    check_pipeline(config.data, data.image_size, is_streamed=data.is_streamed)
    return build_for(config, data), steps_per_epoch(data.num_train, config.data.batch_size)


def describe(config: RunConfig, run_dir: str) -> list[str]:
    """Return what training `config` would do, a line each: objective, parameters, steps, where
    checkpoints go.

    Sizes come from the data set where it is present and from what is known of it otherwise; no
    image is decoded.

    Raises:
        ConfigError: As `fit`.
    """
    from gnpcli.data.registry import describe_data

    train, checkpoint = config.train, config.checkpoint
    lines = [f"objective    {objective(config)}"]
    if train.init_from is not None:
        lines.append(f"weights      from {train.init_from}")
    data = describe_data(config.data)
    if data is None:
        unknown = f"unknown until {config.data.name} is present"
        lines += [f"parameters   {unknown}", f"steps        {unknown}"]
    else:
        from gnpcli.models.base import count_parameters, parameter_shapes
        from gnpcli.step.perturbation import count_perturbed

        model, steps_per_epoch = fit(config, data)
        image_shape = (data.image_size, data.image_size, data.channels)
        count = count_parameters(model, image_shape)
        perturbed = (
            ""
            if config.gr.perturb == "all"
            else (
                f", {count_perturbed(parameter_shapes(model, image_shape), config.gr):,} of them "
                "perturbed"
            )
        )
        plain, full = count_steps(config, steps_per_epoch)
        steps, are = plain + full, "with one gradient" if config.gr.between == "reuse" else "plain"
        lines += [
            f"parameters   {count:,} ({config.model.name}, {train.dtype}){perturbed}",
            f"data         {data.num_train:,} train, {data.num_validation:,} val, "
            f"{data.num_test:,} test; "
            f"{data.num_classes} classes, {data.image_size} px, {data.channels} channel(s)",
            f"steps        {steps:,} ({steps // train.epochs} an epoch, {train.epochs} epochs), of "
            f"them {plain:,} {are}: {(plain + 2 * full) / steps:.2f} times the gradients of plain "
            "training",
        ]
    when = [
        f"every {number} {unit}"
        for number, unit in (
            (checkpoint.every_steps, "step(s)"),
            (checkpoint.every_epochs, "epoch(s)"),
        )
        if number
    ]
    kept = f"the last {checkpoint.keep}" + (" and the best" if checkpoint.keep_best else "")
    lines.append(f"checkpoints  {run_dir}/checkpoints, {' and '.join(when)}, keeping {kept}")
    return lines
