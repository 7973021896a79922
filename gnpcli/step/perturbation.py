"""Configuration to the ball that the perturbation stays in: which parameters move, and which of
them adaptively.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import jax

from gnpcli.config.schema import GrConfig
from gnpcli.errors import ConfigError
from gnpcli.gnp import Scales, perturbation_scales
from gnpcli.step.optimizer import decay_mask


def build_scales(gr: GrConfig) -> Scales | None:
    """Return the T of `gr.ascent` and `gr.perturb` for `gnpcli.gnp.penalize`; None where it is 1
    everywhere.
    """
    if gr.ascent == "l2" and gr.perturb == "all":
        return None

    def scales(params: Any) -> Any:
        adapts = (
            decay_mask(params, biases_and_norms=gr.adapt_biases_and_norms)
            if gr.ascent == "adaptive"
            else None
        )
        return perturbation_scales(
            params, perturbs=perturbed_mask(params, gr.perturb), adapts=adapts, eta=gr.adaptive_eta
        )

    return scales


def count_perturbed(params: Any, gr: GrConfig) -> int:
    """Return how many of the scalars of `params` the perturbation moves; errors are those of
    `perturbed_mask`.
    """
    mask = perturbed_mask(params, gr.perturb)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    return sum(math.prod(leaf.shape) for leaf, moves in pairs if moves)


def perturbed_mask(params: Any, perturb: str) -> Any:
    """Return a tree of bools: which leaves the perturbation moves.

    Args:
        params: Nested dicts of arrays or of their shapes.
        perturb: ``all``; ``norms``: scale and bias of the normalisation layers; ``weights``: all
            but those; anything else is a pattern over the paths (``block_0/ln_1/scale``), in which
            ``*`` stands for any characters.

    Raises:
        ConfigError: It selects no parameter, or all of them without being ``all`` (``gr.perturb``).
    """
    if perturb == "all":
        return jax.tree.map(lambda _: True, params)
    norms = _norm_paths(params)

    def moves(path: str) -> bool:
        match perturb:
            case "norms":
                return path in norms
            case "weights":
                return path not in norms
            case pattern:
                return fnmatchcase(path, pattern)

    mask = jax.tree.map_with_path(lambda path, _: moves(_joined(path)), params)
    chosen = jax.tree.leaves(mask)
    if all(chosen) or not any(chosen):
        what = "every parameter: set gr.perturb=all" if all(chosen) else "no parameter"
        paths = [_joined(path) for path, _ in jax.tree.leaves_with_path(params)]
        some = ", ".join(paths[:: max(1, len(paths) // 4)][:4])
        raise ConfigError(
            f"gr.perturb: '{perturb}' matches {what}; there are {len(paths)}, such as {some}",
            "gr.perturb",
        )
    return mask


def _joined(path: Any) -> str:
    return "/".join(str(entry.key) for entry in path)


def _norm_paths(params: Any) -> set[str]:
    """Return the paths of the parameters of normalisation layers: a scale and a bias, and nothing
    beside them.
    """
    layers: dict[str, set[str]] = {}
    for path, _ in jax.tree.leaves_with_path(params):
        layer, _, name = _joined(path).rpartition("/")
        layers.setdefault(layer, set()).add(name)
    return {
        f"{layer}/{name}"
        for layer, names in layers.items()
        if names == {"scale", "bias"}
        for name in names
    }
