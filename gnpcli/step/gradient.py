"""The gradient of a train step, and how a batch is cut for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gnpcli.devices.mesh import GROUP, cut_batch, on_mesh, over_groups
from gnpcli.devices.sharding import Layout, constrained
from gnpcli.gnp import (
    GnpMetrics,
    Scalar,
    accumulate,
    orthogonal_component,
    penalize,
    plain,
    reuse,
    with_gradient,
)
from gnpcli.models.base import ApplyFn, Params, State
from gnpcli.models.layers.norm import batch_statistics_over
from gnpcli.step.objective import l2_term, make_objective
from gnpcli.step.parts import Parts
from gnpcli.step.perturbation import build_scales
from gnpcli.step.schedules import StepKind

BATCH, KEY = (2, 3), (4,)
"""Positions of images and labels, and of the random key, in the arguments of an objective."""


class GradientAux(NamedTuple):
    """What a gradient brings along with the loss; of the clean pass."""

    model_state: State
    """New state of the model."""
    component: Params
    """What reuse steps add, a tree like the parameters, or an empty dict."""
    measures: dict[str, jax.Array]
    """See `gnpcli.step.objective.make_objective`."""


class ValueAndGrad(Protocol):
    """Loss and gradient of one batch, see `make_value_and_grad`."""

    def __call__(
        self,
        params: Params,
        model_state: State,
        component: Params,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
        /,
    ) -> tuple[tuple[jax.Array, GradientAux], Params, GnpMetrics]:
        """Return ``((loss, aux), grads, metrics)``."""
        ...


def make_value_and_grad(
    parts: Parts, kind: StepKind, *, r: Scalar, alpha: Scalar, mixes: bool = True
) -> ValueAndGrad:
    """Return loss and gradient of a train step as a function of one batch.

    `gr.groups` slices of the batch have a perturbation each, on whichever devices. Each group is
    cut into microbatches where `train.accumulate` asks for more slices than there are groups; the
    microbatches of a group share its perturbation. Steps of every kind cut the batch alike, so
    that BatchNorm and dropout do not change with lambda. With one group and one microbatch nothing
    is cut.

    Args:
        parts: `feed`, `optimizer` and the two schedules play no part here.
        kind: What the step takes. Where `gr.between` is reuse, a gnp step renews the component that
            reuse steps add (`gnpcli.gnp.reuse`), of the averages over the groups.
        r, alpha: As they act in this step. A plain step uses neither, a reuse step not r.
        mixes: False leaves out of a gnp step what `gr` adds to the papers' formula: a unit-norm
            clean gradient, the surrogate gap and reuse. At ``alpha = 1`` the gradient is then that
            of the perturbed pass.

    Returns:
        ``value_and_grad(params, model_state, component, images, labels, key) -> ((loss, aux),
        grads, metrics)``: loss and `GradientAux` of the clean pass, the mixed gradient, and
        `GnpMetrics`. All are means over groups and microbatches, the norms and the cosine too.
        Without `gr.penalize_l2`, passes, component, norms and cosine are those of the
        cross-entropy alone; L2 is added to both losses, and its gradient at the clean point to
        `grads`.
    """
    train, gr = parts.train, parts.gr
    groups, microbatches = _slices(parts)
    renews = mixes and kind == "gnp" and gr.between == "reuse"
    value_and_grad = _make_passes(parts, kind, r, alpha, mixes=mixes, renews=renews)
    if groups > 1:
        is_synchronised = gr.batch_norm == "synchronised"
        value_and_grad = _grouped(value_and_grad, parts.layout, is_synchronised=is_synchronised)

    def of_batch(
        params: Params,
        model_state: State,
        component: Params,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
        /,
    ) -> tuple[tuple[jax.Array, GradientAux], Params, GnpMetrics]:
        images, labels = cut_batch(parts.mesh, (images, labels), groups, microbatches)
        with on_mesh(parts.mesh):
            (loss, aux), grads, metrics = value_and_grad(params, model_state, images, labels, key)
        grads = constrained(grads, parts.layout.split)
        if renews:
            aux, clean = aux
            clean = constrained(clean, parts.layout.split)
            component = orthogonal_component(grads, clean)
        if kind == "reuse":
            grads = reuse(grads, component, gr.reuse_weight * alpha)
        if train.l2 and not gr.penalize_l2:
            decay, decay_grads = jax.value_and_grad(l2_term)(params, train)
            loss, grads = loss + decay, jax.tree.map(jnp.add, grads, decay_grads)
            metrics = metrics._replace(perturbed_loss=metrics.perturbed_loss + decay)
        new_model_state, measures = aux
        return (loss, GradientAux(new_model_state, component, measures)), grads, metrics

    return of_batch


def _slices(parts: Parts) -> tuple[int, int]:
    """Return the groups of a batch and the microbatches of a group."""
    groups = parts.gr.groups
    return groups, max(parts.train.accumulate // groups, 1)


def _make_passes(
    parts: Parts, kind: StepKind, r: Scalar, alpha: Scalar, *, mixes: bool, renews: bool
) -> Callable[..., Any]:
    """Return value, gradient and metrics of one group, in one pass or in two."""
    model, gr = parts.model, parts.gr
    value_and_grad = _make_pass(parts, model.apply, keeps_gradient=renews)
    if kind != "gnp":
        return plain(value_and_grad, has_aux=True)
    clean = None
    if model.clean_apply is not None:
        clean = _make_pass(parts, model.clean_apply, keeps_gradient=renews)
    _, microbatches = _slices(parts)
    return penalize(
        value_and_grad,
        r=r,
        alpha=alpha,
        clean=clean,
        gradient=gr.gradient,
        recompute=microbatches > 1,
        mix=gr.mix if mixes else "raw",
        scales=build_scales(gr),
        surrogate_gap=gr.surrogate_gap if mixes else 0.0,
        has_aux=True,
        with_metrics=True,
    )


def _make_pass(parts: Parts, apply: ApplyFn, *, keeps_gradient: bool) -> Callable[..., Any]:
    """Return value and gradient of the objective of one group, averaged over its microbatches."""
    objective = make_objective(replace(parts.model, apply=apply), parts.train, parts.gr)
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    _, microbatches = _slices(parts)
    if microbatches > 1:
        value_and_grad = accumulate(value_and_grad, BATCH, KEY)
    return with_gradient(value_and_grad) if keeps_gradient else value_and_grad


def _grouped(
    value_and_grad: Callable[..., Any], layout: Layout, *, is_synchronised: bool
) -> Callable[..., Any]:
    """Average over the groups of a batch.

    They run one after another, or all of a device at once where they share BatchNorm statistics.
    Each has a perturbed point of its own, so that every cluster holds all parameters. One cluster
    needs no mapped axis, and XLA partitions a split state over an axis of one device wrongly.
    """
    at_once = "slice" if is_synchronised else None
    axis = GROUP if layout.mesh.shape[GROUP] > 1 else None
    mean = accumulate(value_and_grad, BATCH, KEY, axis_name=axis, at_once=at_once)
    if axis:
        mean = over_groups(mean, layout.mesh, BATCH)
    axes = [name for name in (axis, at_once) if name] if at_once else []

    def grouped(params: Params, *args: Any) -> Any:
        params = constrained(params, layout.split_in_clusters)
        with batch_statistics_over(*axes):
            return mean(params, *args)

    return grouped
