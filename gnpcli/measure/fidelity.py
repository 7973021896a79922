"""How far the finite difference of a training step is from the exact gradient of the penalty, over
a sweep of radii.

The penalty ``lambda ||grad L||`` has the gradient ``lambda H u`` with ``u = grad L / ||grad L||``
(arXiv 2202.03599, section 3; of an adaptive or partial perturbation u is the direction of
`gnpcli.gnp.ascent`). What trains is a forward difference of two gradients in its place, which errs
twice: by the curvature of the gradient along u, to first order in r, and by the rounding of the two
gradients, which r divides:

    (grad L(w + r u) - grad L(w)) / r  =  H u  +  r/2 d/du (H u)  +  O(r^2)  +  O(eps ||grad L|| /
    r)

(the radius as a trade between the two: Pearlmutter, Neural Computation 6 (1994) 147-160, section
2). The first term is computed here as an independent forward-over-reverse product in float32, the
rest is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gnpcli.config import RunConfig
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.devices.mesh import make_mesh, replicated
from gnpcli.devices.process import describe_environment
from gnpcli.engine.evaluate import check_fit
from gnpcli.engine.loading import load_with_progress, warn_of_skipped
from gnpcli.errors import GnpError
from gnpcli.gnp import Scales, global_norm, gnp_value_and_grad
from gnpcli.gnp.ascent import steepest
from gnpcli.keys import run_keys
from gnpcli.models.registry import build_for
from gnpcli.runs.trained import Trained
from gnpcli.step.batch import step_batch
from gnpcli.step.gradient import make_objective
from gnpcli.step.perturbation import build_scales
from gnpcli.terminal.screen import Screen

DEFAULT_ALPHA = 0.8
"""Mixing weight of the mixed gradient where the configuration has none (the papers' value)."""

Gradient = Literal["finite-difference", "exact"]

Loss = Callable[..., tuple[jax.Array, Any]]
"""``loss(params, *args) -> (loss, aux)``."""


class Exact(NamedTuple):
    """What the approximations of a batch are measured against; trees are as the parameters."""

    gradient: Any
    """``g = grad L(w)``."""
    direction: Any
    """``u``."""
    product: Any
    """``H u``."""
    gradient_norm: jax.Array
    """``||g||``."""
    product_norm: jax.Array
    """``||H u||``."""


class Deviation(NamedTuple):
    """How far a penalty gradient p, of weight alpha = 1, is from ``r H u``; float32 scalars."""

    penalty: jax.Array
    """``||p - r H u|| / ||r H u||``, which equals ``||g_fd - g_exact|| / ||alpha r H u||`` for
    every alpha.
    """
    mixed: jax.Array
    """``alpha ||p - r H u|| / ||g + alpha r H u||``: the same as a share of the whole mixed
    gradient.
    """
    cosine: jax.Array
    """Cosine of the angle between p and ``H u``: 1 where only the length is wrong."""
    moved: jax.Array
    """Share of the parameters that the step ``r u`` changes at all once cast to the compute type.
    """


def exact_products(loss: Loss, scales: Scales | None) -> Callable[..., Exact]:
    """Return a jitted function of ``(params, *args)`` that gives a batch's gradient and
    Hessian-vector product.

    Args:
        loss: Computed in float32.
        scales: Of the perturbation, as in `gnpcli.gnp.penalize`.
    """

    @jax.jit
    def products(params: Any, *args: Any) -> Exact:
        def grad(point: Any) -> Any:
            return jax.grad(loss, has_aux=True)(point, *args)[0]

        with jax.default_matmul_precision(
            "highest"
        ):  # what is called float32 may be TF32 on an accelerator
            gradient = grad(params)
            ray, length = steepest(params, gradient, scales)
            direction = jax.tree.map(lambda leaf: leaf / length, ray)
            product = jax.jvp(grad, (params,), (direction,))[1]
        return Exact(gradient, direction, product, global_norm(gradient), global_norm(product))

    return products


def deviation(
    loss: Loss, dtype: str, gradient: Gradient, scales: Scales | None
) -> Callable[..., Deviation]:
    """Return a jitted function of ``(r, alpha, exact, params, *args)`` that measures
    `gnp_value_and_grad` on a batch.

    Args:
        loss: Computed in `dtype`; takes float32 parameters.
        dtype: Name of the compute type.
        gradient: How the transform computes the penalty's gradient.
        scales: Of the perturbation, as in `exact_products`.
    """

    @jax.jit
    def measure(r: jax.Array, alpha: jax.Array, exact: Exact, params: Any, *args: Any) -> Deviation:
        # At alpha = 1 the mixed gradient is g + p. Both in one program, as in a train step.
        clean = jax.grad(loss, has_aux=True)(params, *args)[0]
        penalised = gnp_value_and_grad(
            loss, r=r, alpha=1.0, gradient=gradient, scales=scales, has_aux=True
        )
        _, whole = penalised(params, *args)
        penalty = jax.tree.map(jnp.subtract, whole, clean)
        distance = global_norm(jax.tree.map(lambda p, h: p - r * h, penalty, exact.product))
        mixed = global_norm(
            jax.tree.map(lambda g, h: g + alpha * r * h, exact.gradient, exact.product)
        )
        along = sum(
            jax.tree.leaves(jax.tree.map(lambda p, h: jnp.sum(p * h), penalty, exact.product))
        )
        moves = jax.tree.map(
            lambda w, u: jnp.mean((w + r * u).astype(dtype) != w.astype(dtype)) * w.size,
            params,
            exact.direction,
        )
        return Deviation(
            distance / (r * exact.product_norm),
            alpha * distance / mixed,
            along / (global_norm(penalty) * exact.product_norm),
            sum(jax.tree.leaves(moves)) / sum(leaf.size for leaf in jax.tree.leaves(params)),
        )

    return measure


def log_spaced(low: float, high: float, per_decade: int, *others: float) -> list[float]:
    """Return radii from `low` to `high`, both included, evenly spaced in the logarithm, and
    `others`, sorted.

    >>> log_spaced(0.01, 1.0, 2, 0.05)
    [0.01, 0.0316, 0.05, 0.1, 0.316, 1.0]
    """
    count = max(round(math.log10(high / low) * per_decade), 1)
    spaced = [low * (high / low) ** (index / count) for index in range(count + 1)]
    return sorted({float(f"{value:.3g}") for value in spaced} | set(others))


def check(
    config: RunConfig,
    trained: Trained | None,
    *,
    radii: Sequence[float],
    dtypes: Sequence[str],
    batches: int,
    threshold: float,
    screen: Screen,
) -> dict[str, Any]:
    """Measure the finite difference of a configuration on batches of its training data.

    The batches, their augmentation and their dropout are those of the next training steps: of the
    first ones for a preset, at its initial parameters, and of those after the checkpoint for a run.
    Both gradients, the exact product and every compute type see the same batch and the same
    dropout.

    Args:
        config: What would train; the perturbation measured is that of its `gr.ascent` and
            `gr.perturb`, one for the whole batch.
        trained: A checkpoint to take parameters and step from; None takes the initial ones.
        radii: Where to measure; the configured r is measured besides.
        dtypes: Compute types; each is compared with the exact product in float32.
        batches: How many training batches; every figure is a mean over them or the worst of them.
        threshold: A radius is trustworthy where the error of the penalty's gradient is below this
            on every batch.
        screen: Told how far the loading is.

    Returns:
        JSON-able: `step`, the sizes, `r` and `alpha` (of the configuration; alpha may be the
        default), `batches` with `gradient_norm` and `product_norm` (``||H u||``) of each; and for
        each of `types` its `dtype`, `exact` (the deviation of the exact gradient in that type, at
        the configured r or 0.1; null for float32), `radii` (each with `r`, `is_configured`,
        `is_trustworthy` and the mean and the worst of every field of `Deviation`; null where it is
        not finite), `trustworthy` (the lowest and highest trustworthy radius around the best one,
        null without any), `best` (the radius with the lowest error) and `verdict`, one sentence.

    Raises:
        GnpError: A batch on which the penalty has no gradient, or where something is not finite.
    """
    mesh = make_mesh(config)
    dataset = load_with_progress(config, screen)
    spec = dataset.spec if trained is None else trained.spec
    check_fit(dataset.spec, spec, config)
    keys = run_keys(config.train.seed)
    feed = make_train_feed(dataset.train, spec, config.data, mesh, key=keys.order, dtype="float32")
    models = {
        dtype: build_for(
            config.model_copy(update={"train": config.train.model_copy(update={"dtype": dtype})}),
            spec,
        )
        for dtype in dict.fromkeys(["float32", *dtypes])
    }
    if trained is None:
        shape = (spec.image_size, spec.image_size, spec.channels)
        init = jax.jit(models["float32"].init, static_argnums=1, out_shardings=replicated(mesh))
        first, (params, model_state) = 0, init(keys.init, shape)
    else:
        first, params, model_state = trained.step, trained.params, trained.model_state

    def loss_in(dtype: str) -> Loss:
        objective = make_objective(models[dtype], config.train, config.gr)

        def loss(
            params: Any, model_state: Any, images: jax.Array, labels: jax.Array, key: jax.Array
        ) -> Any:
            return objective(params, model_state, images.astype(dtype), labels, key)

        return loss

    @jax.jit
    def batch_of(source: Any, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return step_batch(keys.steps, step, feed, source, mesh)

    alpha, r = config.gr.alpha or DEFAULT_ALPHA, config.gr.r or None
    radii = sorted({*radii, *([r] if r else [])})
    scales = build_scales(config.gr)
    products = exact_products(loss_in("float32"), scales)
    differences = {
        dtype: deviation(loss_in(dtype), dtype, "finite-difference", scales) for dtype in dtypes
    }
    # In float32 it would be the product that it is measured against.
    exacts = {
        dtype: deviation(loss_in(dtype), dtype, "exact", scales)
        for dtype in dtypes
        if dtype != "float32"
    }
    found: dict[str, list[list[Deviation]]] = {dtype: [] for dtype in dtypes}
    found_exact: dict[str, list[Deviation]] = {dtype: [] for dtype in exacts}
    norms = []
    try:
        for number in range(batches):
            screen.line(f"batch {number + 1} of {batches}")
            batch = batch_of(feed.source(first + number), jnp.asarray(first + number, jnp.int32))
            exact = products(params, model_state, *batch)
            norms.append(
                {
                    "gradient_norm": float(exact.gradient_norm),
                    "product_norm": float(exact.product_norm),
                }
            )
            if fault := _fault(norms[-1]):
                raise GnpError(
                    f"{fault} on training batch {first + number}: there is nothing to compare"
                )
            at = (exact, params, model_state, *batch)
            for dtype in dtypes:
                found[dtype].append(
                    [jax.device_get(differences[dtype](value, alpha, *at)) for value in radii]
                )
            for dtype in exacts:
                found_exact[dtype].append(jax.device_get(exacts[dtype](r or 0.1, alpha, *at)))
        warn_of_skipped(screen, feed.skipped, "train")
    finally:
        feed.close()
    return {
        "model": config.model.name,
        "dataset": config.data.name,
        "batch_size": config.data.batch_size,
        "step": first,
        "r": r,
        "alpha": alpha,
        "threshold": threshold,
        "batches": norms,
        "types": [
            {
                "dtype": dtype,
                "exact": _summary(found_exact[dtype]) if dtype in exacts else None,
                **judge(found[dtype], radii, r, threshold, dtype),
            }
            for dtype in dtypes
        ],
        "environment": describe_environment(),
    }


def _fault(norms: dict[str, float]) -> str | None:
    for name, what in (
        ("gradient_norm", "the gradient"),
        ("product_norm", "the Hessian-vector product"),
    ):
        if not math.isfinite(norms[name]):
            return f"{what} is not finite"
        if norms[name] == 0:
            return f"{what} is zero"
    return None


def _summary(batches: Sequence[Deviation]) -> dict[str, float | None]:
    """Return mean and worst over the batches of every field of `Deviation`; null where a batch's is
    not finite.
    """
    found: dict[str, float | None] = {}
    for name, worst_of in (("penalty", max), ("mixed", max), ("cosine", min), ("moved", min)):
        values = [float(getattr(deviation, name)) for deviation in batches]
        is_finite = all(map(math.isfinite, values))
        found[name] = sum(values) / len(values) if is_finite else None
        found[f"worst_{name}"] = worst_of(values) if is_finite else None
    return found


def judge(
    batches: Sequence[Sequence[Deviation]],
    radii: Sequence[float],
    r: float | None,
    threshold: float,
    dtype: str,
) -> dict[str, Any]:
    """Say which radii are trustworthy in a compute type, and whether the configured one is; see
    `check`.

    Args:
        batches: For each batch the deviation at each of `radii`.
        radii: Rising; they contain `r`.
        r: The configured radius, if there is one.
        threshold: Largest error of the penalty's gradient, as a fraction.
        dtype: Named in the verdict.
    """
    rows = [_summary(column) for column in zip(*batches, strict=True)]
    worst = [math.inf if row["worst_penalty"] is None else row["worst_penalty"] for row in rows]
    best = low = high = min(range(len(radii)), key=worst.__getitem__)
    while low > 0 and worst[low - 1] <= threshold:
        low -= 1
    while high + 1 < len(radii) and worst[high + 1] <= threshold:
        high += 1
    trustworthy = [radii[low], radii[high]] if worst[best] <= threshold else None
    within = f"within {100 * threshold:g} % of the exact gradient of the penalty"
    if trustworthy:
        verdict = f"the finite difference is {within} for r from {radii[low]:g} to {radii[high]:g}"
    else:
        verdict = f"the finite difference is nowhere {within}"
    if r is not None:
        at = radii.index(r)
        if worst[at] <= threshold:
            verdict += f"; the configured r = {r:g} is trustworthy (off by {_percent(worst[at])})"
        else:
            verdict += f"; the configured r = {r:g} is off by {_percent(worst[at])}"
            if trustworthy and at < low:
                verdict += f" by rounding: take r >= {radii[low]:g}"
            elif trustworthy:
                verdict += f" by curvature: take r <= {radii[high]:g}"
            else:
                verdict += f", {_cause(radii, worst, at)}"
    return {
        "radii": [
            {
                "r": value,
                "is_configured": value == r,
                "is_trustworthy": trustworthy is not None and low <= index <= high,
                **row,
            }
            for index, (value, row) in enumerate(zip(radii, rows, strict=True))
        ],
        "trustworthy": trustworthy,
        "best": radii[best],
        "verdict": f"{dtype}: {verdict}",
    }


def _cause(radii: Sequence[float], errors: Sequence[float], at: int) -> str:
    """Say what makes the error at index `at` from how it moves with r below it, where no radius is
    trustworthy.

    Curvature grows with r, rounding falls with 1/r. Where the loss has kinks, a step crosses a
    number of them that grows with r, each adding its jump to the gradient in a direction of its
    own: the error falls with about ``r**-0.5``, and the Hessian, which knows no kinks, is not what
    the difference approaches.
    """
    below = max((index for index in range(at) if radii[index] <= radii[at] / 3), default=None)
    if below is None or not math.isfinite(errors[at]) or errors[below] == 0:
        return "too large a step to say why" if at else "and there is no smaller r here to say why"
    slope = math.log(errors[at] / errors[below]) / math.log(radii[at] / radii[below])
    if slope > 0.25:
        return "by curvature"
    if slope < -0.75:
        return "by rounding"
    return (
        "and falls neither with r, as curvature would, nor with 1/r, as rounding would: the loss "
        "has kinks (ReLU, max "
        "pooling), which the difference sees and the Hessian does not"
    )


def _percent(error: float) -> str:
    return (
        f"{100 * error:.2g} %"
        if error < 1
        else f"{error:.3g} times its length"
        if error < math.inf
        else "infinity"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the errors of the penalty's gradient over r, both axes logarithmic, as PNG, SVG or PDF.

    A line is the mean over the batches and the band above it reaches to the worst; dotted is the
    configured r, dashed the threshold, grey a slope of one: what an error of first order in r looks
    like.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second to import

    from gnpcli.report.charts import save, style
    from gnpcli.report.palette import COLOURS, MUTED

    with style():
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for (colour, _), kind in zip(COLOURS, result["types"], strict=False):
            rows = [row for row in kind["radii"] if row["penalty"]]
            xs, means = [row["r"] for row in rows], [row["penalty"] for row in rows]
            axes.plot(xs, means, color=colour, marker="o", markersize=3, label=kind["dtype"])
            axes.fill_between(
                xs,
                means,
                [row["worst_penalty"] for row in rows],
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
        rows = [row for row in result["types"][0]["radii"] if row["penalty"]]
        if rows:
            lowest = min(rows, key=lambda row: row["penalty"])
            ends = (lowest["r"], rows[-1]["r"])
            axes.plot(
                ends,
                [3 * lowest["penalty"] * r / lowest["r"] for r in ends],
                color=MUTED,
                lw=0.8,
                label="~ r",
            )
        axes.axhline(
            result["threshold"],
            color=MUTED,
            lw=0.8,
            ls="--",
            label=f"{100 * result['threshold']:g} %",
        )
        if result["r"]:
            axes.axvline(
                result["r"], color=MUTED, lw=0.8, ls=":", label=f"configured r = {result['r']:g}"
            )
        axes.set(
            xscale="log", yscale="log", xlabel="r", ylabel="||p - r H u|| / ||r H u||",
            title=f"{result['model']}, {result['dataset']}, {len(result['batches'])} batches of "
            f"{result['batch_size']} from step {result['step']}",
        )  # fmt: skip
        axes.legend()
        save(figure, path)
