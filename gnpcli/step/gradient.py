"""What a train step differentiates: the loss, its penalised gradient, and how a batch is cut for
either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gnpcli.config import GrConfig, TrainConfig
from gnpcli.devices import cpu
from gnpcli.devices.mesh import GROUP, cut_batch, on_mesh, over_groups
from gnpcli.gnp import (
    Scalar,
    accumulate,
    orthogonal_component,
    penalize,
    plain,
    reuse,
    with_gradient,
)
from gnpcli.gnp.trees import half_squared_norm
from gnpcli.models.base import ApplyFn, Model
from gnpcli.models.layers.blocks import rematerialised
from gnpcli.models.layers.dense import batch_statistics_over
from gnpcli.step.losses import cross_entropy, is_outside_top, main_class
from gnpcli.step.optimizer import decay_mask
from gnpcli.step.perturbation import build_scales
from gnpcli.step.schedules import Kind


def make_objective(
    model: Model, train: TrainConfig, gr: GrConfig
) -> Callable[..., tuple[jax.Array, Any]]:
    """Return the loss whose gradient norm is penalised, of one batch.

    Returns:
        ``objective(params, model_state, images, labels, key) -> (loss, (new_model_state,
        measures))``: the mean cross-entropy over the batch (with label smoothing) plus, under
        `gr.penalize_l2`, ``l2 / 2 ||params||^2`` over the parameters that decay; the model in
        training mode, its dropout drawn from `key`. The measures are means over the batch:
        `cross_entropy` (neither smoothing nor L2) and `error_rate` (of mixed images against the
        class with the largest share), float32 scalars.
    """

    def objective(
        params: Any, model_state: Any, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        with rematerialised(train.remat), cpu.storing(key):
            logits, new_model_state = model.apply(params, model_state, images, True, key)
        loss = jnp.mean(cross_entropy(logits, labels, train.label_smoothing))
        if train.l2 and gr.penalize_l2:
            loss = loss + _l2(params, train)
        measures = {
            "cross_entropy": jnp.mean(cross_entropy(logits, labels)),
            "error_rate": jnp.mean(
                is_outside_top(logits, main_class(labels), 1).astype(jnp.float32)
            ),
        }
        return loss, (new_model_state, measures)

    return objective


BATCH, KEY = (2, 3), (4,)
"""Positions of images and labels, and of the random key, in the arguments of an objective."""


def make_value_and_grad(
    model: Model,
    train: TrainConfig,
    gr: GrConfig,
    mesh: Mesh,
    *,
    kind: Kind,
    r: Scalar,
    alpha: Scalar,
) -> Callable[..., Any]:
    """Return the gradient of a train step, of one batch.

    `gr.groups` slices of the batch each have a perturbation of their own, on whichever devices;
    each is cut further where `train.accumulate` asks for more pieces than there are groups, and the
    perturbation is one for the pieces of a group. Steps of one gradient are cut alike, so that
    BatchNorm and dropout do not change with lambda. With one group and one piece nothing is cut.

    Args:
        model: Traced with ``train=True``.
        train: For `label_smoothing`, `l2`, `decay_biases_and_norms` and `accumulate`.
        gr: For everything but the strategy; `groups` is a number.
        mesh: Made for these groups.
        kind: What the step takes. Where `gr.between` is reuse, a gnp step renews the component that
            reuse steps add (of the averages over groups), see `gnpcli.gnp.reuse`.
        r, alpha: As they act in this step; not used in a plain one, and r not in a reuse one.

    Returns:
        ``value_and_grad(params, model_state, component, images, labels, key) -> ((loss,
        (new_model_state, new_component, measures)), grads, metrics)``: loss, state and measures of
        the clean pass, the mixed gradient, and `GnpMetrics`; all are means over the groups (and
        pieces), the norms and the cosine too. `component` is what is reused, like the parameters,
        or an empty dict. Without `gr.penalize_l2` the passes, the component, and the norms and the
        cosine in the metrics, are those of the cross-entropy alone; L2 and its gradient, taken at
        the clean point, are added to both losses and to the gradient at the end.
    """
    groups = cast(int, gr.groups)
    pieces = max(train.accumulate // groups, 1)
    renews = kind == "gnp" and gr.between == "reuse"

    def one_pass(apply: ApplyFn) -> Callable[..., Any]:
        found = jax.value_and_grad(
            make_objective(replace(model, apply=apply), train, gr), has_aux=True
        )
        if pieces > 1:
            found = accumulate(found, BATCH, KEY)
        return with_gradient(found) if renews else found

    value_and_grad = one_pass(model.apply)
    if kind == "gnp":
        value_and_grad = penalize(
            value_and_grad,
            r=r,
            alpha=alpha,
            clean=one_pass(model.clean_apply) if model.clean_apply else None,
            gradient=gr.gradient,
            recompute=pieces > 1,
            mix=gr.mix,
            scales=build_scales(gr),
            surrogate_gap=gr.surrogate_gap,
            has_aux=True,
            with_metrics=True,
        )
    else:
        value_and_grad = plain(value_and_grad, has_aux=True)
    if groups > 1:
        value_and_grad = _grouped(
            value_and_grad, mesh, is_synchronised=gr.batch_norm == "synchronised"
        )

    def of_batch(
        params: Any,
        model_state: Any,
        component: Any,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
    ) -> Any:
        images, labels = cut_batch(mesh, (images, labels), groups, pieces)
        with on_mesh(mesh):
            (loss, aux), grads, metrics = value_and_grad(params, model_state, images, labels, key)
        if renews:
            aux, clean = aux
            component = orthogonal_component(grads, clean)
        if kind == "reuse":
            grads = reuse(grads, component, gr.reuse_weight * alpha)
        if train.l2 and not gr.penalize_l2:
            decay, decay_grads = jax.value_and_grad(_l2)(params, train)
            loss, grads = loss + decay, jax.tree.map(jnp.add, grads, decay_grads)
            metrics = metrics._replace(perturbed_loss=metrics.perturbed_loss + decay)
        new_model_state, measures = aux
        return (loss, (new_model_state, component, measures)), grads, metrics

    return of_batch


def _grouped(
    value_and_grad: Callable[..., Any], mesh: Mesh, *, is_synchronised: bool
) -> Callable[..., Any]:
    """Average over the groups of a batch: one after another, or all of a device at once to share
    their statistics.
    """
    at_once = "slice" if is_synchronised else None
    mean = over_groups(
        accumulate(value_and_grad, BATCH, KEY, axis_name=GROUP, at_once=at_once), mesh, BATCH
    )

    def grouped(*args: Any) -> Any:
        with batch_statistics_over(*((GROUP, at_once) if at_once else ())):
            return mean(*args)

    return grouped


def _l2(params: Any, train: TrainConfig) -> jax.Array:
    mask = decay_mask(params, biases_and_norms=train.decay_biases_and_norms)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    return train.l2 * half_squared_norm([leaf for leaf, decays in pairs if decays])
