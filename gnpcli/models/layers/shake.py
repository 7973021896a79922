"""Residual branches that shake.

A branch is scaled by one random factor in the forward pass and by another in the backward pass.

Legend: L residual blocks, ``[B, ...]`` a batch of images.

Factors are float32. They are drawn per block and image, for all blocks of a network at once. One
draw instead of L of them compiles 5 s sooner at L = 90, and twice that in a GNP step.

The gradient of such a network is not that of its loss. With `true_gradient` it is: the backward
factors are then the forward ones. The forward factors, and so the outputs, are the same for a key
either way. In eval mode nothing shakes: every factor is the expectation of the forward one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Key

Module = TypeVar("Module", bound=nn.Module)


class Factors(NamedTuple):
    """What branches are multiplied by; ``[L, B]``, or ``[B]`` for one block."""

    forward: Float32[Array, "*blocks B"]
    """Multiplies the values."""
    backward: Float32[Array, "*blocks B"]
    """Multiplies the gradient."""

    def complement(self) -> Factors:
        """Return the factors of the other branch of a convex combination."""
        return Factors(1 - self.forward, 1 - self.backward)


@jax.custom_vjp
def scale(x: Float[Array, " B *image"], factors: Factors) -> Float[Array, " B *image"]:
    """Return ``forward * x``, through which gradients come back multiplied by ``backward``.

    A rule and not ``stop_gradient`` of a difference, so that the values are the forward ones to the
    bit and the derivative of this gradient along a direction (``gr.gradient: exact``) still sees
    how the values move.

    Args:
        x: ``[B, ...]``.
        factors: ``[B]``, rounded to the type of `x`; they get no gradient themselves.
    """
    return x * _per_image(factors.forward, x)


def _scale_forward(x: jax.Array, factors: Factors) -> tuple[jax.Array, jax.Array]:
    # The product again, not `scale`: what an outer forward derivative goes through must not have a
    # reverse rule alone.
    return x * _per_image(factors.forward, x), factors.backward


def _scale_backward(backward: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    return cotangent * _per_image(backward, cotangent), None


scale.defvjp(_scale_forward, _scale_backward)


def _per_image(factor: jax.Array, x: jax.Array) -> jax.Array:
    return factor.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def shake_shake(
    key: Key[Array, ""] | None, blocks: int, batch: int, *, true_gradient: bool
) -> Factors:
    """Draw the shares of the first of two branches, arXiv 1705.07485 section 2: Shake-Shake-Image.

    Forward and backward shares are independent and uniform in ``[0, 1)``; the second branch has
    their complement.

    Args:
        key: None in eval mode, where every share is 1/2.
        blocks: L.
        batch: B.
        true_gradient: See the module.

    Returns:
        Factors ``[L, B]``.
    """
    if key is None:
        share = jnp.full((blocks, batch), 0.5)
        return Factors(share, share)
    forward, backward = jax.random.uniform(key, (2, blocks, batch))
    return Factors(forward, forward if true_gradient else backward)


def shake_drop(
    key: Key[Array, ""] | None, rates: Sequence[float], batch: int, *, true_gradient: bool
) -> Factors:
    """Draw the factors of ShakeDrop, arXiv 1802.02375 equation 6, per image.

    With the probability of its block a branch shakes: its factor is alpha ~ U(-1, 1), and beta ~
    U(0, 1) backwards. Else both are 1.

    Args:
        key: None in eval mode, where the factor is the expectation of the forward one, 1 - rate.
        rates: Probabilities ``1 - p_l`` of the L blocks, in ``[0, 1]``; see `linear_decay`.
        batch: B.
        true_gradient: See the module.

    Returns:
        Factors ``[L, B]``.
    """
    rate = jnp.broadcast_to(jnp.asarray(rates, jnp.float32)[:, None], (len(rates), batch))
    if key is None:
        return Factors(1 - rate, 1 - rate)
    gate, alpha, beta = jax.random.uniform(key, (3, len(rates), batch))
    forward = jnp.where(gate < rate, 2 * alpha - 1, jnp.ones_like(rate))
    backward = jnp.where(gate < rate, beta, jnp.ones_like(rate))
    return Factors(forward, forward if true_gradient else backward)


def clean_pass(module: Module, clean_gradient: str) -> Module | None:
    """Return the network of the clean pass of a GR step; None where it is that of plain training.

    With ``shaken`` the clean gradient is that of plain training, to which GR tends where r or alpha
    tends to 0. The difference of the two gradients is that of one function at two points. With
    ``true``, as in the papers' code, the perturbation follows the loss itself. In a mix, the
    difference of the two gradients then is of the shaking too.

    Args:
        module: With the attribute `true_gradient`.
        clean_gradient: ``shaken`` or ``true``.
    """
    return module.clone(true_gradient=True) if clean_gradient == "true" else None


def linear_decay(last: float, blocks: int) -> tuple[float, ...]:
    """Return the rates of the L blocks by the linear decay rule.

    They rise by ``last / L`` from block to block, up to `last`.
    """
    return tuple(last * (block + 1) / blocks for block in range(blocks))
