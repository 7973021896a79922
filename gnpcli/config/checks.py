"""What keys say together.

Contradictions are refused. Settings that train, but not as their user hopes, are warned about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gnpcli.config.schedules import SteppedConfig
from gnpcli.config.schema import GrConfig, RunConfig
from gnpcli.config.section import Section
from gnpcli.config.strategies import AT_ONCE, NONE
from gnpcli.errors import ConfigError


def complete(config: RunConfig) -> RunConfig:
    """Fill `gr.warmup_epochs`, and the alpha that a strategy means."""
    gr = config.gr
    warmup = config.schedule.warmup_epochs if gr.warmup_epochs is None else gr.warmup_epochs
    filled = gr.model_copy(update={"warmup_epochs": warmup, "alpha": _alpha(gr)})
    return config.model_copy(update={"gr": filled})


def _alpha(gr: GrConfig) -> float | None:
    return gr.alpha if gr.how.alpha is None else gr.how.alpha


def check_together(config: RunConfig) -> None:
    """Refuse contradictions between keys, as they were given.

    Raises:
        ConfigError: The first of `CHECKS` that the configuration does not pass.
    """
    for check in CHECKS:
        check(config)


def check_decays_once(config: RunConfig) -> None:
    """Refuse L2 in the loss and decoupled weight decay at once."""
    l2, weight_decay = config.train.l2, config.optimizer.weight_decay
    if l2 > 0 and weight_decay > 0:
        raise ConfigError(
            f"train.l2 = {l2:g} and optimizer.weight_decay = {weight_decay:g} would decay twice: "
            "set one of them to 0",
            "train.l2",
        )


def check_average_exists(config: RunConfig) -> None:
    """Refuse to evaluate averaged weights that are not kept."""
    if config.train.evaluate_weights == "ema" and config.train.ema_decay is None:
        raise ConfigError(
            "train.evaluate_weights: ema needs an average to evaluate: set train.ema_decay (0.999, "
            "say)",
            "train.evaluate_weights",
        )


def check_boundaries_rise(config: RunConfig) -> None:
    """Refuse the boundaries of a stepped schedule in any other order."""
    schedule = config.schedule
    if not isinstance(schedule, SteppedConfig):
        return
    if schedule.boundaries != sorted(set(schedule.boundaries)):
        raise ConfigError("schedule.boundaries must rise", "schedule.boundaries")


def check_mean_and_std(config: RunConfig) -> None:
    """Refuse a mean without a deviation for each of its channels, or the reverse."""
    mean, std = config.data.mean, config.data.std
    if mean is None and std is None:
        return
    if mean is None or std is None or len(mean) != len(std):
        raise ConfigError(
            "data.mean and data.std go together: give both, a number for each channel", "data.mean"
        )


def check_hash_has_weights(config: RunConfig) -> None:
    """Refuse the hash of weights that are not named."""
    if config.train.init_sha256 is not None and config.train.init_from is None:
        raise ConfigError(
            "train.init_sha256 is of weights that train.init_from names: set it too",
            "train.init_sha256",
        )


def check_saves_sometimes(config: RunConfig) -> None:
    """Refuse to save neither by steps nor by epochs."""
    if config.checkpoint.every_steps is None and config.checkpoint.every_epochs is None:
        raise ConfigError(
            "checkpoint.every_steps and checkpoint.every_epochs are both null: set one",
            "checkpoint",
        )


def check_which_steps(config: RunConfig) -> None:
    """Refuse two answers to which steps are penalised."""
    gr = config.gr
    end = gr.probability if gr.probability_end is None else gr.probability_end
    is_drawn = gr.probability < 1 or end < 1
    if gr.every > 1 and is_drawn:
        raise ConfigError(
            f"gr.every = {gr.every} and gr.probability = {gr.probability:g} both say which steps "
            "are penalised: set gr.every=1, or gr.probability=1 and gr.probability_end=null",
            "gr.every",
        )


def check_reuse_has_steps(config: RunConfig) -> None:
    """Refuse reuse in the steps between where there are none."""
    if config.gr.between == "reuse" and config.gr.every == 1:
        raise ConfigError(
            "gr.between: reuse has no steps between to act in with gr.every = 1: set gr.every=5, "
            "say",
            "gr.between",
        )


def check_whole_batch_norm(config: RunConfig) -> None:
    """Refuse one BatchNorm over a batch that is computed in microbatches."""
    count = config.train.accumulate
    if config.gr.batch_norm == "synchronised" and count > 1:
        raise ConfigError(
            "gr.batch_norm: synchronised needs the whole batch at once, which train.accumulate = "
            f"{count} cuts: set train.accumulate=1, or gr.batch_norm=per-group",
            "train.accumulate",
        )


def check_microbatches_fit_groups(config: RunConfig) -> None:
    """Refuse microbatches that neither divide the groups nor are a multiple of them."""
    groups, count = config.gr.groups, config.train.accumulate
    if groups == "per-device":
        return  # known only on a machine, see `gnpcli.config.resolved.settle`
    if count % groups and groups % count:
        raise ConfigError(
            f"train.accumulate = {count} neither divides gr.groups = {groups} nor is a multiple of "
            f"it: try train.accumulate={groups}",
            "train.accumulate",
        )


def check_batch_is_divisible(config: RunConfig) -> None:
    """Refuse a batch that groups or microbatches do not divide."""
    groups, size = config.gr.groups, config.data.batch_size
    if groups == "per-device":
        return
    for key, parts in (("gr.groups", groups), ("train.accumulate", config.train.accumulate)):
        if size % parts:
            near = max(size // parts, 1) * parts
            raise ConfigError(
                f"data.batch_size = {size} is not divisible by {key} = {parts}; try "
                f"data.batch_size={near}",
                key,
            )


def check_alpha_has_a_radius(config: RunConfig) -> None:
    """Refuse a mixing weight without a perturbation."""
    gr = config.gr
    if gr.alpha and not gr.r:
        raise ConfigError(
            f"gr.alpha = {gr.alpha:g} needs a radius: set gr.r > 0 (the papers use gr.r=0.1 with "
            "gr.alpha=0.8)",
            "gr.alpha",
        )


def check_radius_has_an_alpha(config: RunConfig) -> None:
    """Refuse a perturbation without a mixing weight."""
    gr = config.gr
    if gr.r and _alpha(gr) is None:
        raise ConfigError(
            f"gr.r = {gr.r:g} needs a mixing weight: set gr.alpha (the papers use 0.8)", "gr.r"
        )


def check_strategy_has_its_numbers(config: RunConfig) -> None:
    """Refuse a strategy without r or alpha, and one that means an alpha > 0 with r = 0."""
    gr = config.gr
    if not gr.how.penalises:
        return
    if gr.r is None or _alpha(gr) is None:
        raise ConfigError(
            f"gr.strategy: {gr.strategy} needs gr.r and gr.alpha (the papers use gr.r=0.1, "
            "gr.alpha=0.8)",
            "gr.strategy",
        )
    if gr.how.alpha and gr.r == 0:
        raise ConfigError(
            f"gr.strategy: {gr.strategy} needs gr.r > 0 (SAM's paper uses 0.05)", "gr.strategy"
        )


def check_warmup_has_epochs(config: RunConfig) -> None:
    """Refuse a strategy that warms up over 0 epochs."""
    gr = config.gr
    warmup, key = _gr_warmup(config)
    if gr.how.warms_up and warmup == 0:
        source = "" if key == "gr.warmup_epochs" else f" (taken from {key})"
        raise ConfigError(
            f"gr.strategy: {gr.strategy} has nothing to warm up over: gr.warmup_epochs is 0{source}"
            f"; set gr.warmup_epochs or take gr.strategy={AT_ONCE}",
            "gr.strategy",
        )


def check_warmup_ends(config: RunConfig) -> None:
    """Refuse a GR warmup that training does not outlast."""
    gr, epochs = config.gr, config.train.epochs
    warmup, key = _gr_warmup(config)
    if gr.how.warms_up and gr.r and _alpha(gr) and warmup >= epochs:
        raise ConfigError(
            f"the GR warmup of {warmup:g} epochs ({key}) leaves none of the {epochs} epochs of "
            f"training (train.epochs) at full strength: set gr.warmup_epochs below {epochs}, train "
            f"longer, or take gr.strategy={NONE}",
            key if key == "gr.warmup_epochs" else "gr.strategy",
        )


def _gr_warmup(config: RunConfig) -> tuple[float, str]:
    """Return the epochs of the GR warmup, and the key that says so."""
    if config.gr.warmup_epochs is not None:
        return config.gr.warmup_epochs, "gr.warmup_epochs"
    return config.schedule.warmup_epochs, "schedule.warmup_epochs"


CHECKS: tuple[Callable[[RunConfig], None], ...] = (
    check_decays_once,
    check_average_exists,
    check_boundaries_rise,
    check_mean_and_std,
    check_hash_has_weights,
    check_saves_sometimes,
    check_which_steps,
    check_reuse_has_steps,
    check_whole_batch_norm,
    check_microbatches_fit_groups,
    check_batch_is_divisible,
    check_alpha_has_a_radius,
    check_radius_has_an_alpha,
    check_strategy_has_its_numbers,
    check_warmup_has_epochs,
    check_warmup_ends,
)
"""What is refused, in the order in which it is told."""


def advice(config: RunConfig) -> list[str]:
    """Return warnings about settings that train, but not as their user hopes."""
    warmup, epochs = config.schedule.warmup_epochs, config.train.epochs
    found = []
    if _is_strong_in_warmup(config):
        found.append(
            f"gr.strategy={config.gr.strategy} is at full strength during the learning-rate warmup "
            f"({warmup:g} epochs) of an adaptive optimizer ({config.optimizer.name}), which arXiv "
            "2406.09723 shows to be harmful: try --gr zero-warmup"
        )
    found += [
        f"{key} has no effect with {chosen}: it acts with {needed}"
        for key, needed, chosen in _idle_keys(config)
    ]
    found += _strong_decays(config)
    if warmup >= epochs:
        found.append(
            f"the learning-rate warmup ({warmup:g} epochs) is not over when training ends "
            f"({epochs} epochs)"
        )
    return found


def _strong_decays(config: RunConfig) -> Iterator[str]:
    """Yield decays that take away the whole of a weight in a step at the peak learning rate.

    Weight decay is decoupled for every optimizer, and so acts times the learning rate alone. The
    gradient of L2 does so where the optimizer does not rescale it.
    """
    lr = config.optimizer.lr
    decays = [("optimizer.weight_decay", config.optimizer.weight_decay)]
    if not config.optimizer.is_adaptive:
        decays.append(("train.l2", config.train.l2))
    for key, decay in decays:
        if lr * decay >= 1:
            yield (
                f"optimizer.lr * {key} = {lr:g} * {decay:g} = {lr * decay:g}: a step takes away "
                "the whole of each weight or more; the presets have at most 0.002"
            )


def _is_strong_in_warmup(config: RunConfig) -> bool:
    """Return whether GR is at full strength while the rate of an adaptive optimizer warms up."""
    gr = config.gr
    if not config.optimizer.is_adaptive or config.schedule.warmup_epochs == 0:
        return False
    return gr.how.penalises and not gr.how.warms_up and bool(gr.r and gr.alpha)


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
    """Yield (key, choices with which it acts, choice that there is) of keys without effect."""
    for name, key, chooser, needs in _ACT_WITH:
        section: Section = getattr(config, name)
        chosen = getattr(section, chooser)
        is_set = getattr(section, key) != type(section).model_fields[key].default
        if is_set and chosen not in needs:
            needed = " or ".join(f"{name}.{chooser}={choice}" for choice in needs)
            yield f"{name}.{key}", needed, f"{name}.{chooser}={chosen}"
