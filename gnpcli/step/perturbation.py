"""The ball that the perturbation stays in: which parameters move, and which of them adapt."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import jax
from jax.tree_util import DictKey
from jaxtyping import PyTree

from gnpcli.config.schema import GrConfig
from gnpcli.errors import ConfigError
from gnpcli.gnp import Scales, perturbation_scales
from gnpcli.step.optimizer import decay_mask


def build_scales(gr: GrConfig) -> Scales | None:
    """Return the T of `gr.ascent` and `gr.perturb`, as `gnpcli.gnp.penalize` takes it.

    It is None where T is 1 everywhere.
    """
    if gr.ascent == "l2" and gr.perturb == "all":
        return None

    def scales(params: PyTree) -> PyTree:
        perturbs = perturbed_mask(params, gr.perturb)
        adapts = None
        if gr.ascent == "adaptive":
            adapts = decay_mask(params, biases_and_norms=gr.adapt_biases_and_norms)
        return perturbation_scales(params, perturbs=perturbs, adapts=adapts, eta=gr.adaptive_eta)

    return scales


def count_perturbed(params: PyTree, gr: GrConfig) -> int:
    """Return how many of the scalars of `params` the perturbation moves.

    Raises:
        ConfigError: As of `perturbed_mask`.
    """
    mask = perturbed_mask(params, gr.perturb)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    return sum(math.prod(leaf.shape) for leaf, moves in pairs if moves)


def perturbed_mask(params: PyTree, perturb: str) -> PyTree[bool]:
    """Return a tree of bools: which leaves the perturbation moves.

    Args:
        params: Nested dicts of arrays or of their shapes.
        perturb: ``all``; ``norms``, which are scale and bias of the normalisation layers;
            ``weights``, which are all but those; or a pattern over the paths
            (``block_0/ln_1/scale``), in which ``*`` stands for any characters.

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
    if all(chosen):
        raise _no_choice(perturb, "every parameter: set gr.perturb=all", params)
    if not any(chosen):
        raise _no_choice(perturb, "no parameter", params)
    return mask


def _no_choice(perturb: str, what: str, params: PyTree) -> ConfigError:
    """Return the error for a pattern that matches all or nothing."""
    paths = _paths(params)
    every = max(1, len(paths) // 4)
    some = ", ".join(paths[::every][:4])
    text = f"gr.perturb: '{perturb}' matches {what}; there are {len(paths)}, such as {some}"
    return ConfigError(text, "gr.perturb")


def _joined(path: tuple[DictKey, ...]) -> str:
    return "/".join(str(entry.key) for entry in path)


def _paths(params: PyTree) -> list[str]:
    return [_joined(path) for path, _ in jax.tree.leaves_with_path(params)]


def _norm_paths(params: PyTree) -> set[str]:
    """Return the paths of the parameters of normalisation layers.

    Such a layer has a scale and a bias, and nothing beside them.
    """
    layers: dict[str, set[str]] = {}
    for path in _paths(params):
        layer, _, name = path.rpartition("/")
        layers.setdefault(layer, set()).add(name)
    norms = [layer for layer, names in layers.items() if names == {"scale", "bias"}]
    return {f"{layer}/{name}" for layer in norms for name in ("scale", "bias")}
