"""What a configuration will do, in words: the dry run, and the first lines of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gnpcli.config.resolved import Resolved
from gnpcli.config.schema import CheckpointConfig, GrConfig
from gnpcli.config.section import UnloadedModel
from gnpcli.errors import DataError
from gnpcli.recipes.plan import count_steps, fit, fit_batches
from gnpcli.recipes.rounding import lost_radius
from gnpcli.terminal import words

if TYPE_CHECKING:
    from gnpcli.data.base import DataInfo
    from gnpcli.models.base import Model

Warn = Callable[[str], None]
"""Told what is doubtful."""


def objective_in_words(config: Resolved) -> str:
    """Return the training objective as a formula with its numbers.

    >>> from gnpcli.recipes.presets import resolve
    >>> objective_in_words(resolve("vit-s-cifar10-zero-warmup"))
    'L + 0.1 ||grad L||  (alpha 1, r 0.1, finite-difference), plain for the first 40 epochs'
    """
    gr, l2 = config.gr, config.train.l2
    loss = f"L + {l2 / 2:g} ||w||^2" if l2 else "L"
    strength = gr.alpha * gr.r
    if not gr.how.penalises or strength == 0:
        return loss
    stretch = "T " if gr.ascent == "adaptive" else ""
    inner = "(L + L2)" if l2 and gr.penalize_l2 else "L"
    notes = ", ".join([f"alpha {gr.alpha:g}", f"r {gr.r:g}", gr.gradient, *_variant(config)])
    penalty = f"{strength:g} ||{stretch}grad {inner}||"
    return f"{loss} + {penalty}  ({notes}){_warmup(config)}{_which_steps(gr)}"


def plan_lines(
    config: Resolved, run_dir: str, warn: Warn, weights: Sequence[str] = ()
) -> list[str]:
    """Return what training would do, a line each.

    The lines are about the objective, the parameters, the data, the memory, the steps and the
    checkpoints. Sizes come from the data set if it is present, and otherwise from what is known of
    it. No image is decoded.

    Args:
        config: The run.
        run_dir: Its folder.
        warn: Told what is doubtful.
        weights: Lines about the weights of ``train.init_from``.

    Raises:
        ConfigError: As `gnpcli.recipes.plan.fit`.
    """
    from gnpcli.data.registry import describe_data

    lines = [f"objective    {objective_in_words(config)}"]
    lines += [f"{'' if index else 'weights':<12} {line}" for index, line in enumerate(weights)]
    data = describe_data(config.data)
    for remark in () if data is None else data.remarks:
        warn(remark)
    if data is None:
        unknown = f"unknown until {config.data.name} is present"
        lines += [f"parameters   {unknown}", f"steps        {unknown}"]
    elif isinstance(config.model, UnloadedModel):
        unknown = f"unknown: the code of {config.model.name} has not run (see --trust-code)"
        lines += [
            f"parameters   {unknown}",
            f"data         {_sizes(data)}",
            f"steps        {_steps(config, fit_batches(config, data))}",
        ]
    else:
        model, steps_per_epoch = fit(config, data)
        _warn_of_rounding(config, model, data, warn)
        lines += [
            f"parameters   {_parameters(config, model, data)}",
            f"data         {_sizes(data)}",
            f"memory       {_memory(config, model, data, warn)}",
            f"steps        {_steps(config, steps_per_epoch)}",
        ]
    lines.append(f"checkpoints  {run_dir}/checkpoints, {_checkpoints(config.checkpoint)}")
    return lines


def _warn_of_rounding(config: Resolved, model: Model, data: DataInfo, warn: Warn) -> None:
    from gnpcli.models.base import parameter_shapes

    shapes = parameter_shapes(model, (data.image_size, data.image_size, data.channels))
    lost = lost_radius(config, shapes)
    if lost is not None:
        warn(lost)


def _memory(config: Resolved, model: Model, data: DataInfo, warn: Warn) -> str:
    from gnpcli.data.registry import can_stream
    from gnpcli.data.room import check_room
    from gnpcli.devices.memory import device_memory
    from gnpcli.devices.mesh import count_devices
    from gnpcli.recipes.memory import step_memory

    devices = config.mesh.devices or count_devices()
    memory = step_memory(config, model, data, devices)
    parts = {
        "state": memory.state,
        "gradients": memory.gradients,
        "activations": memory.activations,
        "images": memory.images,
    }
    listed = ", ".join(f"{words.size(size)} {name}" for name, size in parts.items())
    there = device_memory(devices)
    try:
        check_room(config.data, data, devices, can_stream=can_stream(config.data))
    except DataError as error:  # the run may be for another machine than the one that plans it
        warn(str(error))
        there = None
    if there is not None and memory.total > there:
        warn(
            f"a step needs about {words.size(memory.total)} on each device (an estimate), which "
            f"has {words.size(there)}: lower data.batch_size or raise train.accumulate"
        )
    return f"about {words.size(memory.total)} on each device in a step (an estimate): {listed}"


def _warmup(config: Resolved) -> str:
    gr = config.gr
    if not gr.how.warms_up:
        return ""
    return f", {gr.how.words} for the first {gr.warmup_epochs:g} epochs"


def _variant(config: Resolved) -> Iterator[str]:
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
        size = config.data.batch_size // gr.groups
        yield f"mean over {gr.groups} groups of {size}{shared}"


def _which_steps(gr: GrConfig) -> str:
    if gr.every > 1:
        every = f", one step in {gr.every}"
        if gr.between == "plain":
            return every
        return f"{every}, between them reuse with weight {gr.reuse_weight:g}"
    if gr.probability_end is not None:
        return f", with a probability going from {gr.probability:g} to {gr.probability_end:g}"
    return "" if gr.probability == 1 else f", with probability {gr.probability:g}"


def _parameters(config: Resolved, model: Model, data: DataInfo) -> str:
    from gnpcli.models.base import count_parameters, parameter_shapes
    from gnpcli.step.perturbation import count_perturbed

    image_shape = (data.image_size, data.image_size, data.channels)
    count = count_parameters(model, image_shape)
    text = f"{count:,} ({config.model.name}, {config.train.dtype})"
    if config.gr.perturb == "all":
        return text
    perturbed = count_perturbed(parameter_shapes(model, image_shape), config.gr)
    return f"{text}, {perturbed:,} of them perturbed"


def _sizes(data: DataInfo) -> str:
    images = (
        f"{data.num_train:,} train, {data.num_validation:,} val, {data.num_test:,} test; "
        f"{data.num_classes} classes"
    )
    return f"{images}, {data.image_size} px, {data.channels} channel(s)"


def _steps(config: Resolved, steps_per_epoch: int) -> str:
    epochs = config.train.epochs
    single, double = count_steps(config, steps_per_epoch)
    steps = single + double
    are = "with one gradient" if config.gr.between == "reuse" else "plain"
    cost = (single + 2 * double) / steps
    return (
        f"{steps:,} ({steps // epochs} an epoch, {epochs} epochs), of them {single:,} {are}: "
        f"{cost:.2f} times the gradients of plain training"
    )


def _checkpoints(checkpoint: CheckpointConfig) -> str:
    when = []
    if checkpoint.every_steps:
        when.append(f"every {checkpoint.every_steps} step(s)")
    if checkpoint.every_epochs:
        when.append(f"every {checkpoint.every_epochs} epoch(s)")
    best = " and the best" if checkpoint.keep_best else ""
    return f"{' and '.join(when)}, keeping the last {checkpoint.keep}{best}"
