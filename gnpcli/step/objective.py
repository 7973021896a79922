"""The loss whose gradient norm is penalised."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key

from gnpcli.config.schema import GrConfig
from gnpcli.config.training import TrainConfig
from gnpcli.devices import cpu
from gnpcli.devices.passes import drawn_anew
from gnpcli.gnp.trees import half_squared_norm
from gnpcli.models.base import Model, Params, State
from gnpcli.models.layers.blocks import rematerialised
from gnpcli.step.losses import Labels, cross_entropy, is_outside_top, main_class
from gnpcli.step.optimizer import decay_mask

Measures = dict[str, Float32[Array, ""]]
"""What a pass tells beside its loss, see `make_objective`."""


@runtime_checkable  # for the checks of signatures in the tests
class Objective(Protocol):
    """The loss of one batch, see `make_objective`."""

    def __call__(
        self,
        params: Params,
        model_state: State,
        images: Float[Array, "B H W C"],
        labels: Labels,
        key: Key[Array, ""],
        /,
    ) -> tuple[Float32[Array, ""], tuple[State, Measures]]:
        """Return ``(loss, (new_model_state, measures))``."""
        ...


def make_objective(model: Model, train: TrainConfig, gr: GrConfig) -> Objective:
    """Return the loss whose gradient norm is penalised, of one batch.

    It is the mean cross-entropy over the batch, with label smoothing. Under `gr.penalize_l2` the
    L2 term ``l2 / 2 ||params||^2`` over the parameters that decay is added. The model is in
    training mode, and its dropout is drawn from the key.

    Returns:
        ``objective(params, model_state, images, labels, key) -> (loss, (new_model_state,
        measures))`` with images ``[B, H, W, C]`` and labels ``[B]`` int32 or ``[B, K]`` float32.
        The measures are means over the batch, float32 scalars: `cross_entropy` (neither smoothing
        nor L2) and `error_rate` (of mixed images against the class with the largest share).
    """

    def objective(
        params: Params,
        model_state: State,
        images: Float[Array, "B H W C"],
        labels: Labels,
        key: Key[Array, ""],
        /,
    ) -> tuple[Float32[Array, ""], tuple[State, Measures]]:
        key = drawn_anew(key, params)
        with rematerialised(train.remat), cpu.storing(key):
            logits, new_model_state = model.apply(params, model_state, images, True, key)
        loss = jnp.mean(cross_entropy(logits, labels, train.label_smoothing))
        if train.l2 and gr.penalize_l2:
            loss = loss + l2_term(params, train)
        is_wrong = is_outside_top(logits, main_class(labels), 1)
        measures = {
            "cross_entropy": jnp.mean(cross_entropy(logits, labels)),
            "error_rate": jnp.mean(is_wrong.astype(jnp.float32)),
        }
        return loss, (new_model_state, measures)

    return objective


def l2_term(params: Params, train: TrainConfig) -> Float32[Array, ""]:
    """Return ``l2 / 2 ||params||^2`` over the parameters that decay."""
    mask = decay_mask(params, biases_and_norms=train.decay_biases_and_norms)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    return train.l2 * half_squared_norm([leaf for leaf, decays in pairs if decays])
