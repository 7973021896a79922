"""The typed configuration tree. Time is in epochs, rates are per step, sizes are in examples or
pixels.

Importing this module imports neither jax nor numpy: config errors answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from gnpcli.config.optimizers import OPTIMIZERS, OptimizerConfig
from gnpcli.config.schedules import SCHEDULES, ScheduleConfig
from gnpcli.config.section import Choices, ModelSection, Section, chosen_from, chosen_model
from gnpcli.config.strategies import NONE, STRATEGIES, Strategy
from gnpcli.config.weights import Weights


class DataConfig(Section):
    """Where the images come from and how they are fed."""

    name: str
    """``digits``, ``cifar10``, ``imagenet``, ``folder:DIR``, ``tfds:NAME``, ...; ``gnp data list``
    shows them all.
    """
    dir: str | None = None
    """Folder where a named data set lives; null looks in the default places of the data set."""
    train_split: str | None = None
    """Splits of a TFDS data set to train on, joined by ``+`` (``train+extra`` of SVHN); null takes
    ``train``.
    """
    test_split: str | None = None
    """Split of a TFDS data set to test on; null takes ``test``, or ``validation`` where there is no
    ``test``.
    """
    val_labels: str | None = None
    """File that gives the classes of a flat ``val`` folder; null looks for the ImageNet and
    Tiny-ImageNet names.
    """
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Training examples per step over all devices; the remainder of an epoch is dropped, a
    different one each epoch.
    """
    eval_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Evaluation examples per step over all devices; null takes `batch_size`. No example is ever
    dropped.
    """
    augment: Literal["none", "crop", "basic", "autoaugment", "randaugment"] = "none"
    """``crop``: a random crop; ``basic``: crop and a random left-right flip; the others add a
    policy to ``basic``. In memory the crop reflect-pads and cuts the old size back; streamed it is
    a random resized crop."""
    crop_padding: Annotated[int, Field(ge=1)] | None = None
    """Pixels of reflected border before the crop; null takes an eighth of the image size (4 at 32
    pixels).
    """
    crop_min_area: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest share of a streamed image's area that its random resized crop keeps."""
    autoaugment_policy: Literal["cifar", "svhn", "imagenet"] | None = None
    """Policy of ``autoaugment``; null takes the data set's own (CIFAR's for small images,
    ImageNet's for streamed).
    """
    randaugment_layers: Annotated[int, Field(ge=1)] = 2
    """Operations that ``randaugment`` applies to an image in turn (N, arXiv 1909.13719)."""
    randaugment_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """Strength of each of them on the scale 0 to 10 (M)."""
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability with which a random rectangle of an image is replaced by the mean colour (arXiv
    1708.04896).
    """
    mix: Literal["none", "cutout", "mixup", "cutmix", "mixcut"] = "none"
    """What is done to a batch: cutout (arXiv 1708.04552), mixup (1710.09412), cutmix (1905.04899),
    or mixup and then cutout."""
    mix_alpha: Annotated[float, Field(gt=0)] = 1.0
    """Both parameters of the Beta distribution that the mixing coefficients of mixup and cutmix
    come from.
    """
    cutout_size: Annotated[int, Field(ge=1)] | None = None
    """Side of cutout's square in pixels; null takes half the image size (16 at 32 pixels)."""
    augment_variant: Literal["paper", "upstream-compat"] = "paper"
    """``paper``: policies at their papers' scale, every image with its own draws;
    ``upstream-compat``: what the GNP papers' code does, policies at ImageNet's scale and one cutout
    square and mixing coefficient for a whole batch."""
    image_size: Annotated[int, Field(ge=1)] | None = None
    """Side in pixels to which images are resized; null keeps their own size, or takes 224 for
    streamed images.
    """
    mean: list[float] | None = None
    """Per channel, what is subtracted from pixel values scaled to [0, 1]; null takes the mean of
    the training images, with `train.init_from` that of the images that those weights were trained
    on."""
    std: list[Annotated[float, Field(gt=0)]] | None = None
    """Per channel, what they are then divided by; null as with `mean`."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every training class set aside for validation, the same examples for every seed."""
    stream: bool | None = None
    """Whether a folder's images are decoded batch by batch rather than once into memory; null does
    so where they, or `image_size`, are larger than 96 pixels."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode streamed images; 0 decodes in threads of this process; null takes one
    per core.
    """
    unreadable: Literal["error", "skip"] = "error"
    """What a streamed image that cannot be decoded does: stop the run, or be skipped with a warning
    and a count.
    """


def _groups_in_words(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:  # of either arm of the union, which would be two messages
        raise PydanticCustomError("groups", "a whole number of at least 1, or per-device") from None


Groups = Annotated[
    Annotated[int, Field(ge=1)] | Literal["per-device"], WrapValidator(_groups_in_words)
]


def _known_strategy(name: str) -> str:
    if name not in STRATEGIES:
        raise PydanticCustomError("unknown_choice", "unknown", {"choices": list(STRATEGIES)})
    return name


class GrConfig(Section):
    """Gradient regularization: the loss becomes ``L + lambda ||grad L||`` with ``lambda = alpha *
    r``.
    """

    strategy: Annotated[str, AfterValidator(_known_strategy)] = NONE
    """How r and alpha move during the GR warmup; ``none`` trains plainly, ``sam`` is alpha = 1."""
    r: Annotated[float, Field(ge=0)] | None = None
    """Perturbation radius: L2 norm of the step from the parameters to the perturbed point."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Mixing weight of the perturbed gradient, ``lambda / r``; 0 is plain training, 1 is SAM."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    """Length of the GR warmup; null takes `schedule.warmup_epochs`."""
    gradient: Literal["finite-difference", "exact"] = "finite-difference"
    """How the gradient of the penalty is computed: a second gradient, or a Hessian-vector product.
    """
    mix: Literal["raw", "unit"] = "raw"
    """``raw``: the papers' formula; ``unit``: their code's other default, where the clean gradient
    enters as a unit vector (upstream-compat)."""
    ascent: Literal["l2", "adaptive"] = "l2"
    """Ball that the perturbation stays in: of the L2 norm, or stretched by the size of each weight
    (ASAM, arXiv 2102.11600)."""
    adaptive_eta: Annotated[float, Field(ge=0)] = 0.01
    """Added to the sizes of the weights that ``adaptive`` scales by, so that weights of 0 are
    perturbed too.
    """
    adapt_biases_and_norms: bool = False
    """Whether ``adaptive`` also scales by the sizes of parameters of one dimension (biases, norm
    scales).
    """
    perturb: Annotated[str, Field(min_length=1)] = "all"
    """Parameters that are perturbed, and whose gradient the norm is of: ``all``, ``norms`` (SAM-ON,
    arXiv 2306.04226), ``weights`` (all but the norms), or a pattern such as ``block_*/kernel`` over
    their paths."""
    surrogate_gap: Annotated[float, Field(ge=0)] = 0.0
    """Weight with which the component of the clean gradient orthogonal to the perturbed one is
    subtracted (alpha of GSAM, arXiv 2203.08065)."""
    penalize_l2: bool = True
    """Whether the penalty is on the gradient of the loss with `train.l2` in it; false adds the
    gradient of L2 after.
    """
    every: Annotated[int, Field(ge=1)] = 1
    """Steps from one penalised step to the next; 1 penalises every step (after a zero-warmup,
    counted from its end).
    """
    between: Literal["plain", "reuse"] = "plain"
    """What the steps between do: train plainly, or reuse what the last penalised gradient had
    beyond the clean one (LookSAM, arXiv 2203.02714)."""
    reuse_weight: Annotated[float, Field(ge=0)] = 0.7
    """Weight of the reused component, in lengths of the clean gradient; multiplied by alpha
    (LookSAM's alpha).
    """
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Probability with which a step is penalised rather than plain, drawn by seed and step."""
    probability_end: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability at the last step, reached linearly from the end of the GR warmup on; null keeps
    `probability`.
    """
    groups: Groups = 1
    """Equal parts of the batch that each have a perturbation of their own (m-sharpness, arXiv
    2010.01412), whatever the number of devices; ``per-device`` is their number at the start, as in
    the papers' code."""
    batch_norm: Literal["per-group", "synchronised"] = "per-group"
    """Whether BatchNorm normalises each group by its own statistics or all of them by those of the
    whole batch.
    """

    @property
    def how(self) -> Strategy:
        """The strategy that `strategy` names."""
        return STRATEGIES[self.strategy]


class TrainConfig(Section):
    """The length of training and what acts on the loss and the gradient."""

    epochs: Annotated[int, Field(ge=1)]
    """Passes over the training split."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the initial parameters, the order of the data, augmentation and dropout."""
    init_from: str | None = None
    """Weights to start from instead of random ones: a run, a checkpoint, or a file of tensors; null
    draws them.
    """
    init_sha256: str | None = None
    """SHA-256 of those weights, filled in when training starts; others are refused."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the model; parameters, optimizer, norms and losses stay float32."""
    remat: bool = False
    """Whether the blocks of a network keep their input alone and compute the rest again for the
    gradient: less memory for the activations, about a third more work. On a CPU it saved no memory.
    A VGG has no blocks."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Global L2 norm to which the mixed gradient is clipped; null clips nothing."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Adds ``l2 / 2 * ||parameters||^2`` to the training loss of both passes (or of the clean one
    alone, see `gr.penalize_l2`); refused with `optimizer.weight_decay`."""
    decay_biases_and_norms: bool = False
    """Whether `l2` and `optimizer.weight_decay` also act on parameters of one dimension (biases,
    norm scales).
    """
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes; evaluation never sees it."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does, of either pass: stop the run, or leave this
    one update out.
    """
    max_skips: Annotated[int, Field(ge=1)] = 10
    """Under ``on_nonfinite: skip``, the number of faulty steps in a row that stops the run after
    all.
    """
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the parameters kept beside them (0.9999, say), lower in the
    first steps; null keeps none."""
    evaluate_weights: Weights = "raw"
    """Which weights are evaluated, in training and by default in `gnp eval`, and decide which
    checkpoint is best.
    """
    recalibrate_batches: Annotated[int, Field(ge=1)] = 100
    """Training batches over which BatchNorm statistics are taken anew for the averaged weights
    before an evaluation.
    """
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Pieces into which the batch is cut to save memory, their gradients being averaged;
    `gr.groups`, not this, says how many perturbations there are, and the groups are pieces already.
    """
    log_every_steps: Annotated[int, Field(ge=1)] = 20
    """Steps between two training lines of the log."""
    eval_every_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""


class CheckpointConfig(Section):
    """When the state is saved and which saves are kept. The last step is always saved."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between two saves; null saves by epochs only."""
    every_epochs: Annotated[int, Field(ge=1)] | None = 1
    """Epochs between two saves; null saves by steps only."""
    keep: Annotated[int, Field(ge=1)] = 3
    """How many of the latest saves are kept."""
    keep_best: bool = True
    """Whether the save with the lowest error is kept besides (on validation where there is one,
    else on test).
    """


class MeshConfig(Section):
    """The devices."""

    devices: Annotated[int, Field(ge=1)] | None = None
    """How many local devices share a batch; null takes all. Must divide the batch sizes."""


class RunConfig(Section):
    """A whole run: the trained parameters are a function of this and nothing else."""

    model: SerializeAsAny[Annotated[ModelSection, WrapValidator(chosen_model)]]
    data: DataConfig
    optimizer: SerializeAsAny[Annotated[OptimizerConfig, WrapValidator(chosen_from(OPTIMIZERS))]]
    schedule: SerializeAsAny[Annotated[ScheduleConfig, WrapValidator(chosen_from(SCHEDULES))]]
    gr: GrConfig = GrConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()


NAMED: Mapping[str, Choices] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
"""Sections whose ``name`` chooses their class from a registry."""
