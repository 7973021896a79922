"""What keys say together: contradictions, which are refused, and settings that disappoint, which
are warned about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gnpcli.config.schedules import SteppedConfig
from gnpcli.config.schema import GrConfig, RunConfig
from gnpcli.config.section import Section
from gnpcli.errors import ConfigError


def check_together(config: RunConfig) -> RunConfig:
    """Refuse contradictions between keys; fill `gr.warmup_epochs` and sam's alpha, so that nothing
    is left to guess.
    """
    gr, train = config.gr, config.train
    if train.l2 > 0 and config.optimizer.weight_decay > 0:
        raise ConfigError(
            f"train.l2 = {train.l2:g} and optimizer.weight_decay = "
            f"{config.optimizer.weight_decay:g} would decay "
            "twice: set one of them to 0",
            "train.l2",
        )
    if train.evaluate_weights == "ema" and train.ema_decay is None:
        raise ConfigError(
            "train.evaluate_weights: ema needs an average to evaluate: set train.ema_decay (0.999, "
            "say)",
            "train.evaluate_weights",
        )
    schedule = config.schedule
    if isinstance(schedule, SteppedConfig) and not _rises(schedule.boundaries):
        raise ConfigError("schedule.boundaries must rise", "schedule.boundaries")
    mean, std = config.data.mean, config.data.std
    if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
        raise ConfigError(
            "data.mean and data.std go together: give both, a number for each channel", "data.mean"
        )
    if train.init_sha256 is not None and train.init_from is None:
        raise ConfigError(
            "train.init_sha256 is of weights that train.init_from names: set it too",
            "train.init_sha256",
        )
    if config.checkpoint.every_steps is None and config.checkpoint.every_epochs is None:
        raise ConfigError(
            "checkpoint.every_steps and checkpoint.every_epochs are both null: set one",
            "checkpoint",
        )
    _check_which_steps(gr)
    _check_cut(config)
    warmup_epochs = (
        gr.warmup_epochs if gr.warmup_epochs is not None else config.schedule.warmup_epochs
    )
    alpha = gr.alpha if gr.how.alpha is None else gr.how.alpha
    if (gr.alpha or 0) > 0 and not gr.r:
        raise ConfigError(
            f"gr.alpha = {gr.alpha:g} needs a radius: set gr.r > 0 (the papers use gr.r=0.1 with "
            "gr.alpha=0.8)",
            "gr.alpha",
        )
    if gr.r and alpha is None:
        raise ConfigError(
            f"gr.r = {gr.r:g} needs a mixing weight: set gr.alpha (the papers use 0.8)", "gr.r"
        )
    if gr.how.penalises and (gr.r is None or alpha is None):
        raise ConfigError(
            f"gr.strategy: {gr.strategy} needs gr.r and gr.alpha (the papers use gr.r=0.1, "
            "gr.alpha=0.8)",
            "gr.strategy",
        )
    if gr.how.alpha and not gr.r:
        raise ConfigError(
            f"gr.strategy: {gr.strategy} needs gr.r > 0 (SAM's paper uses 0.05)", "gr.strategy"
        )
    if gr.how.warms_up and warmup_epochs == 0:
        raise ConfigError(
            f"gr.strategy: {gr.strategy} has nothing to warm up over: gr.warmup_epochs is 0"
            + ("" if gr.warmup_epochs is not None else " (taken from schedule.warmup_epochs)")
            + "; set gr.warmup_epochs or take gr.strategy=constant",
            "gr.strategy",
        )
    if gr.how.warms_up and gr.r and alpha and warmup_epochs >= train.epochs:
        key = "gr.warmup_epochs" if gr.warmup_epochs is not None else "schedule.warmup_epochs"
        raise ConfigError(
            f"the GR warmup of {warmup_epochs:g} epochs ({key}) leaves none of the {train.epochs} "
            "epochs of training "
            f"(train.epochs) at full strength: set gr.warmup_epochs below {train.epochs}, train "
            "longer, or take "
            "gr.strategy=none",
            key if key == "gr.warmup_epochs" else "gr.strategy",
        )
    return config.model_copy(
        update={"gr": gr.model_copy(update={"warmup_epochs": warmup_epochs, "alpha": alpha})}
    )


def _rises(values: Sequence[float]) -> bool:
    return sorted(set(values)) == list(values)


def _check_which_steps(gr: GrConfig) -> None:
    """Refuse two answers to which steps are penalised, and reuse of what there is not."""
    end = gr.probability if gr.probability_end is None else gr.probability_end
    is_drawn = gr.probability < 1 or end < 1
    if gr.every > 1 and is_drawn:
        raise ConfigError(
            f"gr.every = {gr.every} and gr.probability = {gr.probability:g} both say which steps "
            "are penalised: set "
            "gr.every=1, or gr.probability=1 and gr.probability_end=null",
            "gr.every",
        )
    if gr.between == "reuse" and gr.every == 1:
        raise ConfigError(
            "gr.between: reuse has no steps between to act in with gr.every = 1: set gr.every=5, "
            "say",
            "gr.between",
        )


def _check_cut(config: RunConfig) -> None:
    """Refuse groups and pieces that do not divide the batch or each other; those per device are
    known only later.
    """
    gr, pieces, batch_size = config.gr, config.train.accumulate, config.data.batch_size
    if gr.batch_norm == "synchronised" and pieces > 1:
        raise ConfigError(
            "gr.batch_norm: synchronised needs the whole batch at once, which train.accumulate = "
            f"{pieces} cuts: set "
            "train.accumulate=1, or gr.batch_norm=per-group",
            "train.accumulate",
        )
    if gr.groups == "per-device":
        return
    if pieces % gr.groups and gr.groups % pieces:
        raise ConfigError(
            f"train.accumulate = {pieces} neither divides gr.groups = {gr.groups} nor is a "
            "multiple of it: "
            f"try train.accumulate={gr.groups}",
            "train.accumulate",
        )
    for key, parts in (("gr.groups", gr.groups), ("train.accumulate", pieces)):
        if batch_size % parts:
            near = max(batch_size // parts, 1) * parts
            raise ConfigError(
                f"data.batch_size = {batch_size} is not divisible by {key} = {parts}; try "
                f"data.batch_size={near}",
                key,
            )


def advice(config: RunConfig) -> list[str]:
    """Return warnings about settings that train, but not to what their user hopes for."""
    gr, warmup, epochs = config.gr, config.schedule.warmup_epochs, config.train.epochs
    found = []
    adaptive = config.optimizer.is_adaptive
    if adaptive and warmup > 0 and gr.how.penalises and not gr.how.warms_up and gr.r and gr.alpha:
        found.append(
            f"gr.strategy={gr.strategy} is at full strength during the learning-rate warmup "
            f"({warmup:g} epochs) of an "
            f"adaptive optimizer ({config.optimizer.name}), which arXiv 2406.09723 shows to be "
            "harmful: "
            "try --gr zero-warmup"
        )
    found += [
        f"{key} has no effect with {chosen}: it acts with {needed}"
        for key, needed, chosen in _idle_keys(config)
    ]
    if warmup >= epochs:
        found.append(
            f"the learning-rate warmup ({warmup:g} epochs) is not over when training ends "
            f"({epochs} epochs)"
        )
    return found


_ACT_WITH = (
    ("data", "autoaugment_policy", "augment", ("autoaugment",)),
    ("data", "randaugment_layers", "augment", ("randaugment",)),
    ("data", "randaugment_magnitude", "augment", ("randaugment",)),
    ("data", "mix_alpha", "mix", ("mixup", "cutmix", "mixcut")),
    ("data", "cutout_size", "mix", ("cutout", "mixcut")),
    ("gr", "adaptive_eta", "ascent", ("adaptive",)),
    ("gr", "adapt_biases_and_norms", "ascent", ("adaptive",)),
    ("gr", "reuse_weight", "between", ("reuse",)),
)
"""Section, key, the key that decides whether it acts, and the choices there with which it does."""


def _idle_keys(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Yield (key, choices with which it acts, choice that there is) of keys set to do nothing."""
    for name, key, chooser, needs in _ACT_WITH:
        section: Section = getattr(config, name)
        chosen = getattr(section, chooser)
        if chosen not in needs and getattr(section, key) != type(section).model_fields[key].default:
            needed = " or ".join(f"{name}.{chooser}={choice}" for choice in needs)
            yield f"{name}.{key}", needed, f"{name}.{chooser}={chosen}"
