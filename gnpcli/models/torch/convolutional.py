"""Convolutions and BatchNorm of a PyTorch state dict."""

from __future__ import annotations

import numpy as np

from gnpcli.models.torch.state_dict import StateDict


def conv(weights: StateDict, prefix: str, bias: bool = False) -> dict[str, np.ndarray]:
    """Return a ``Conv2d`` as kernel ``[H, W, I, O]``, and its bias ``[O]`` if it has one.

    Its weight is ``[O, I, H, W]`` there.
    """
    layer = {"kernel": weights.take(f"{prefix}.weight").transpose(2, 3, 1, 0)}
    return {**layer, "bias": weights.take(f"{prefix}.bias")} if bias else layer


def batch_norm(
    weights: StateDict, prefix: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a ``BatchNorm2d`` as its parameters and its running averages."""
    averages = {
        "mean": weights.take(f"{prefix}.running_mean"),
        "var": weights.take(f"{prefix}.running_var"),
    }
    return weights.norm(prefix), averages
