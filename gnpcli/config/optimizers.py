"""The optimizers: each is one section of a configuration, with its keys and what they do.

To add one is to write a class and to add a line to `OPTIMIZERS`. Importing this module imports
neither jax nor optax: the methods do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from gnpcli.config.ranges import Amount, Decay, Positive
from gnpcli.config.section import NamedSection

if TYPE_CHECKING:
    import optax


class OptimizerConfig(NamedSection):
    """What turns a gradient into the direction of an update, and its peak learning rate."""

    is_adaptive: ClassVar[bool] = False
    """Whether each parameter has a learning rate of its own; if so, `adaptive_rates` tells it."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: Amount = 0.0
    """Decoupled weight decay: each step also subtracts ``lr * weight_decay * parameter``."""

    def transform(self) -> optax.GradientTransformation:
        """Return the optimizer before decoupled decay and the learning rate.

        What comes out is subtracted, times the learning rate. The transformation counts its updates
        for its own bias correction alone.
        """
        raise NotImplementedError

    def adaptive_rates(self, opt_state: Any) -> Any:
        """Return the adaptive learning rate psi of every parameter, which the last update used.

        The global learning rate is no part of it (arXiv 1908.03265, section 3).

        Args:
            opt_state: State of a chain that `transform` is part of.

        Returns:
            A float32 tree like the parameters.
        """
        raise NotImplementedError


class SgdConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    lr: Positive = 0.1
    """Peak learning rate."""
    momentum: Decay = 0.9
    """Decay of the velocity; 0 is plain gradient descent."""
    nesterov: bool = False
    """Nesterov's look-ahead form of the momentum."""

    def transform(self) -> optax.GradientTransformation:
        """Return ``v = g + momentum * v``; the gradient itself without momentum."""
        import optax

        if not self.momentum:
            return optax.identity()
        return optax.trace(self.momentum, self.nesterov)


class AdamWConfig(OptimizerConfig):
    """AdamW, arXiv 1711.05101."""

    is_adaptive: ClassVar[bool] = True
    b1: Decay = 0.9
    """Decay of the first moment."""
    b2: Decay = 0.999
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""

    def transform(self) -> optax.GradientTransformation:
        """Return ``m / (sqrt(v) + eps)`` of the moments, both corrected for their start at 0."""
        import optax

        return optax.scale_by_adam(self.b1, self.b2, self.eps)

    def adaptive_rates(self, opt_state: Any) -> Any:
        """Return ``psi = 1 / (sqrt(v / (1 - b2^n)) + eps)``; ``1 / eps`` before the first update.

        v is the running mean of squared gradients, and n the updates that it has seen.
        """
        import jax
        import jax.numpy as jnp
        import optax

        updates = jnp.maximum(optax.tree.get(opt_state, "count"), 1).astype(jnp.float32)
        seen = 1 - jnp.asarray(self.b2, jnp.float32) ** updates

        def rate(v: jax.Array) -> jax.Array:
            return 1 / (jnp.sqrt(v.astype(jnp.float32) / seen) + self.eps)

        return jax.tree.map(rate, optax.tree.get(opt_state, "nu"))


class RmsPropConfig(OptimizerConfig):
    """RMSProp with optional momentum."""

    is_adaptive: ClassVar[bool] = True
    decay: Decay = 0.9
    """Decay of the mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the mean square before its root."""
    momentum: Decay = 0.0
    """Decay of the velocity; 0 is none."""
    nesterov: bool = False
    """Nesterov's look-ahead form of the momentum."""

    def transform(self) -> optax.GradientTransformation:
        """Return ``g / sqrt(v + eps)``, and then the momentum."""
        import optax

        scale = optax.scale_by_rms(self.decay, self.eps)
        if not self.momentum:
            return scale
        return optax.chain(scale, optax.trace(self.momentum, self.nesterov))

    def adaptive_rates(self, opt_state: Any) -> Any:
        """Return ``psi = 1 / sqrt(v + eps)``, with v the running mean of squared gradients."""
        import jax
        import jax.numpy as jnp
        import optax

        def rate(v: jax.Array) -> jax.Array:
            return jax.lax.rsqrt(v.astype(jnp.float32) + self.eps)

        return jax.tree.map(rate, optax.tree.get(opt_state, "nu"))


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "sgd": SgdConfig,
    "adamw": AdamWConfig,
    "rmsprop": RmsPropConfig,
}
"""The class of the `optimizer` section by its ``name``."""
