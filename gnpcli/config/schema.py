"""The typed configuration tree.

Time is in epochs, rates are per step, sizes are in examples or pixels. Importing this module
imports neither jax nor numpy, so that errors of a configuration are told at once.
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
from gnpcli.config.ranges import (
    Amount,
    Decay,
    Epochs,
    Examples,
    Pixels,
    Positive,
    Share,
    Steps,
    WarmupEpochs,
)
from gnpcli.config.schedules import SCHEDULES, ScheduleConfig
from gnpcli.config.section import Choices, ModelSection, Section, chosen_from, chosen_model
from gnpcli.config.strategies import NONE, STRATEGIES, Strategy
from gnpcli.config.training import TrainConfig

Byte = Annotated[int, Field(ge=0, le=255)]
Placement = Literal["replicated", "sharded"]


class DataConfig(Section):
    """Where the images come from and how they are fed."""

    name: str
    """``digits``, ``cifar10``, ``imagenet``, ``folder:DIR``, ``tfds:NAME`` and others.

    ``gnp data list`` shows them all.
    """
    dir: str | None = None
    """Folder of a named data set. Null looks in the default places of the data set."""
    train_split: str | None = None
    """Splits of a TFDS data set to train on, joined by ``+``.

    For example, SVHN has ``train+extra``. Null takes ``train``.
    """
    test_split: str | None = None
    """Split of a TFDS data set to test on.

    Null takes ``test``, or ``validation`` where there is no ``test``.
    """
    val_labels: str | None = None
    """File that gives the classes of a flat ``val`` folder.

    Null looks for the file names of ImageNet and Tiny-ImageNet.
    """
    batch_size: Examples = 128
    """Training examples per step over all devices.

    The examples that are left at the end of an epoch are dropped: different ones in each epoch.
    """
    eval_batch_size: Examples | None = None
    """The most evaluation examples per step over all devices.

    Null takes `data.batch_size`. The steps are as few as that allows, and of equal size, so that
    hardly anything is padded. No example is ever dropped.
    """
    augment: Literal["none", "crop", "basic", "autoaugment", "randaugment"] = "none"
    """What is done to each training image.

    ``crop`` is a random crop. ``basic`` is a crop and a random left-right flip. The others add a
    policy to ``basic``. The crop of images in memory pads them by reflection and cuts the old size
    back. The crop of streamed images is a random resized crop.
    """
    crop_padding: Pixels | None = None
    """Pixels of reflected border before the crop.

    Null takes an eighth of the image size: 4 at 32 pixels.
    """
    crop_min_area: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest share of a streamed image's area that its random resized crop keeps."""
    autoaugment_policy: Literal["cifar", "svhn", "imagenet"] | None = None
    """Policy of ``autoaugment``.

    Null takes that of the data set: CIFAR's for small images, ImageNet's for streamed ones.
    """
    randaugment_layers: Annotated[int, Field(ge=1, le=100)] = 2
    """Operations that ``randaugment`` applies to an image in turn (N, arXiv 1909.13719)."""
    randaugment_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """Strength of each operation of ``randaugment`` on a scale from 0 to 10 (M)."""
    random_erasing: Share = 0.0
    """Probability that a random rectangle of an image is erased (arXiv 1708.04896).

    The mean colour takes its place.
    """
    mix: Literal["none", "cutout", "mixup", "cutmix", "mixcut"] = "none"
    """What is done to a batch.

    ``cutout`` is arXiv 1708.04552, ``mixup`` is arXiv 1710.09412, and ``cutmix`` is arXiv
    1905.04899. ``mixcut`` is mixup and then cutout.
    """
    mix_alpha: Positive = 1.0
    """Both parameters of the Beta distribution of mixup's and cutmix's coefficients."""
    cutout_size: Pixels | None = None
    """Side of cutout's square in pixels.

    Null takes half the image size: 16 at 32 pixels.
    """
    augment_variant: Literal["paper", "upstream-compat"] = "paper"
    """Whose augmentation this is.

    ``paper`` takes policies at the scale of their papers, and every image has its own draws.
    ``upstream-compat`` does what the GNP papers' code does. Its policies are at ImageNet's scale,
    and a whole batch shares one cutout square and one mixing coefficient.
    """
    image_size: Pixels | None = None
    """Side in pixels to which images are resized.

    Null keeps their own size. For streamed images it takes 224.
    """
    mean: (
        Annotated[list[Annotated[float, Field(ge=-1_000_000, le=1_000_000)]], Field(max_length=16)]
        | None
    ) = None
    """What is subtracted from pixel values in [0, 1], per channel.

    Null takes the mean of the training images. With `train.init_from` it takes the mean of the
    images that those weights were trained on.
    """
    std: Annotated[list[Positive], Field(max_length=16)] | None = None
    """What pixel values are divided by after that, per channel. Null as with `data.mean`."""
    validation_fraction: Decay = 0.0
    """Share of every training class set aside for validation.

    The examples are the same for every seed.
    """
    stream: bool | None = None
    """Whether a folder's images are decoded batch by batch, not once into memory.

    Null does so where they, or `data.image_size`, are larger than 96 pixels.
    """
    placement: Placement = "replicated"
    """Where images in memory lie.

    ``replicated`` keeps a copy of all of them on every device. ``sharded`` gives each device a
    share, and the devices exchange the images of a step. The batches are the same.
    """
    background: Annotated[list[Byte], Field(min_length=3, max_length=3)] | None = None
    """Colour behind transparent pixels: red, green and blue, 0 to 255.

    Null takes white for ``folder:DIR``. Other data sets drop transparency then.
    """
    exif_orientation: bool | None = None
    """Whether photographs are turned upright, as their EXIF says.

    Null does so for ``folder:DIR``, and not for other data sets.
    """
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Processes that decode streamed images.

    0 decodes in threads of the training process. Null takes one process per core.
    """
    unreadable: Literal["error", "skip"] = "error"
    """What happens at a streamed image that cannot be decoded.

    ``error`` stops the run. ``skip`` leaves the image out, with a warning and a count.
    """


def _groups_in_words(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:  # of either arm of the union, which would be two messages
        raise PydanticCustomError(
            "groups", "a whole number from 1 to 1048576, or per-device"
        ) from None


Groups = Annotated[Examples | Literal["per-device"], WrapValidator(_groups_in_words)]


def _known_strategy(name: str) -> str:
    if name not in STRATEGIES:
        raise PydanticCustomError("unknown_choice", "unknown", {"choices": list(STRATEGIES)})
    return name


class GrConfig(Section):
    """Gradient regularization.

    The loss becomes ``L + lambda ||grad L||`` with ``lambda = alpha * r``.
    """

    strategy: Annotated[str, AfterValidator(_known_strategy)] = NONE
    """How r and alpha move during the GR warmup. ``none`` trains plainly, ``sam`` is alpha = 1."""
    r: Amount | None = None
    """Perturbation radius: L2 norm of the step from the parameters to the perturbed point."""
    alpha: Share | None = None
    """Mixing weight of the perturbed gradient, ``lambda / r``; 0 is plain training, 1 is SAM."""
    warmup_epochs: WarmupEpochs | None = None
    """Length of the GR warmup. Null takes `schedule.warmup_epochs`."""
    gradient: Literal["finite-difference", "exact"] = "finite-difference"
    """How the gradient of the penalty is computed.

    ``finite-difference`` takes a second gradient. ``exact`` takes a Hessian-vector product.
    """
    mix: Literal["raw", "unit"] = "raw"
    """How the clean gradient enters the mix.

    ``raw`` is the papers' formula. ``unit`` is the other default of the papers' code: the clean
    gradient is scaled to length 1.
    """
    ascent: Literal["l2", "adaptive"] = "l2"
    """Ball that the perturbation stays in.

    ``l2`` is the ball of the L2 norm. ``adaptive`` stretches it by the size of each weight (ASAM,
    arXiv 2102.11600).
    """
    adaptive_eta: Amount = 0.01
    """Added to the sizes of the weights that ``adaptive`` scales by.

    With it weights of 0 are perturbed too.
    """
    adapt_biases_and_norms: bool = False
    """Whether ``adaptive`` also scales by the sizes of one-dimensional parameters.

    These are biases and the scales of norms.
    """
    perturb: Annotated[str, Field(min_length=1)] = "all"
    """Parameters that are perturbed; the norm is that of their gradient.

    ``all`` means every parameter. ``norms`` means those of the normalisation layers (SAM-ON, arXiv
    2306.04226), and ``weights`` all others. Any other text is a pattern over the paths of the
    parameters, such as ``block_*/kernel``.
    """
    surrogate_gap: Amount = 0.0
    """Weight of the surrogate gap (alpha of GSAM, arXiv 2203.08065).

    It multiplies the component of the clean gradient that is orthogonal to the perturbed gradient,
    and the product is subtracted.
    """
    penalize_l2: bool = True
    """Whether the penalty is on the gradient of the loss with `train.l2` in it.

    Otherwise the gradient of L2 is added afterwards.
    """
    every: Steps = 1
    """Steps from one penalised step to the next; 1 penalises every step.

    After a zero-warmup they are counted from its end.
    """
    between: Literal["plain", "reuse"] = "plain"
    """What the steps between two penalised steps do.

    ``plain`` trains plainly. ``reuse`` adds what the last penalised gradient had beyond the clean
    one (LookSAM, arXiv 2203.02714).
    """
    reuse_weight: Amount = 0.7
    """Weight of the reused component, in lengths of the clean gradient.

    It is LookSAM's alpha, and is multiplied by `gr.alpha`.
    """
    probability: Share = 1.0
    """Probability that a step is penalised and not plain, drawn by seed and step."""
    probability_end: Share | None = None
    """Probability at the last step, reached linearly from the end of the GR warmup.

    Null keeps `gr.probability`.
    """
    groups: Groups = 1
    """Equal parts of the batch that each have a perturbation of their own.

    This is m-sharpness (arXiv 2010.01412). A number acts whatever the number of devices.
    ``per-device`` takes the number of devices at the start, as the papers' code does.
    """
    batch_norm: Literal["per-group", "synchronised"] = "per-group"
    """Whose statistics BatchNorm normalises by.

    ``per-group`` takes those of each group. ``synchronised`` takes those of the whole batch.
    """

    @property
    def how(self) -> Strategy:
        """The strategy that `strategy` names."""
        return STRATEGIES[self.strategy]


class CheckpointConfig(Section):
    """When the state is saved and which saves are kept. The last step is always saved."""

    every_steps: Steps | None = None
    """Steps between two saves. Null saves by epochs only."""
    every_epochs: Epochs | None = 1
    """Epochs between two saves. Null saves by steps only."""
    keep: Steps = 3
    """How many of the latest saves are kept."""
    keep_best: bool = True
    """Whether the save with the lowest error is kept as well.

    That is the validation error where there is a validation split, and else the test error.
    """


Shard = Literal["none", "fsdp"]


class MeshConfig(Section):
    """The devices."""

    devices: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """How many local devices share a batch; it must divide the batch sizes. Null takes all."""
    shard: Shard = "none"
    """Where parameters, their average, the optimizer's state and LookSAM's component lie.

    ``none`` keeps a copy on every device. ``fsdp`` splits them over all devices, and gathers a
    parameter where it is used. Results agree up to rounding.
    """


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
