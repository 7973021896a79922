"""The section `train` of a configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from gnpcli.config.ranges import Amount, Decay, Epochs, Examples, Positive, Seed, Steps
from gnpcli.config.section import Section
from gnpcli.config.weights import Weights


def _minutes_in_words(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:  # of either arm of the union, which would be two messages
        raise PydanticCustomError("minutes", "minutes") from None


Minutes = Annotated[float, Field(gt=0, le=1_000_000)]
TimeLimitMinutes = Annotated[Minutes | Literal["auto"] | None, WrapValidator(_minutes_in_words)]


class TrainConfig(Section):
    """The length of training and what acts on the loss and the gradient."""

    epochs: Epochs
    """Passes over the training split."""
    seed: Seed = 0
    """Seed of the initial parameters, the order of the data, augmentation and dropout."""
    init_from: str | None = None
    """Weights to start from: a run, a checkpoint, or a file of tensors.

    Null starts from random weights.
    """
    init_sha256: str | None = None
    """SHA-256 of those weights; others are refused. It is filled in at the start."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the model. Parameters, optimizer, norms and losses stay float32."""
    remat: bool = False
    """Whether a block of the network stores its input alone for the gradient.

    The rest is computed again. That saves memory of activations for about a third more work. On a
    CPU it saved no memory. A VGG has no blocks.
    """
    clip_norm: Positive | None = None
    """Global L2 norm to which the mixed gradient is clipped. Null clips nothing."""
    l2: Amount = 0.0
    """Adds ``l2 / 2 * ||parameters||^2`` to the training loss.

    It acts in both passes, or in the clean one alone without `gr.penalize_l2`. It is refused
    together with `optimizer.weight_decay`.
    """
    decay_biases_and_norms: bool = False
    """Whether L2 and weight decay also act on one-dimensional parameters.

    These are biases and the scales of norms.
    """
    label_smoothing: Decay = 0.0
    """Share of the target spread evenly over all classes; evaluation never sees it."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens at a loss or gradient that is not finite, in either pass.

    ``stop`` stops the run. ``skip`` leaves this one update out.
    """
    max_skips: Steps = 10
    """Faulty steps in a row that stop the run under ``on_nonfinite: skip``."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the parameters, such as 0.9999.

    The decay is lower in the first steps. Null keeps no average.
    """
    evaluate_weights: Weights = "raw"
    """Which weights are evaluated in training, and by default in ``gnp eval``.

    They also decide which checkpoint is best.
    """
    recalibrate_batches: Steps = 100
    """Training batches over which BatchNorm statistics are taken again.

    That is done for the averaged weights before an evaluation.
    """
    accumulate: Examples = 1
    """Microbatches into which a batch is cut to save memory.

    Their gradients are averaged. `gr.groups`, not this, is the number of perturbations. A group is
    a microbatch already.
    """
    log_every_steps: Steps = 20
    """Steps between two training lines of the log."""
    eval_every_epochs: Epochs = 1
    """Epochs between two evaluations. The last epoch is always evaluated."""
    time_limit: TimeLimitMinutes = None
    """Minutes after which a command that trains has to have ended, from its call on.

    The run stops early enough to save its state before that. ``auto`` takes the end of the Slurm
    job that it runs in. Null has no limit.
    """
