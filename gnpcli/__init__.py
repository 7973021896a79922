"""Gradient regularization for image classifiers, in JAX: GNP (arXiv 2202.03599) and its warmups
(arXiv 2406.09723).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "GnpMetrics",
    "__version__",
    "accumulate",
    "gnp_value_and_grad",
    "penalize",
    "perturbation_scales",
]

if TYPE_CHECKING:
    from gnpcli.gnp import GnpMetrics, accumulate, gnp_value_and_grad, penalize, perturbation_scales


def __getattr__(name: str) -> Any:
    # The library's names come from a module that imports jax; the command line imports this package
    # and must not.
    if name in __all__:
        from gnpcli import gnp

        return getattr(gnp, name)
    raise AttributeError(f"module 'gnpcli' has no attribute {name!r}")
