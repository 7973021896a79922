"""Gradient norm penalty as transforms of functions with the type of `jax.value_and_grad`.

`penalize` turns the value and gradient of a loss into those of its penalised form. `accumulate`
averages such a function over slices of a batch. They compose in either order.

Everything here is pure, and knows nothing of models, data or configurations. Parameters are any
tree of floating point arrays, of any floating point dtype.
"""

from gnpcli.gnp.ascent import Scales, perturbation_scales
from gnpcli.gnp.penalty import GnpMetrics, gnp_value_and_grad, penalize, plain
from gnpcli.gnp.reuse import orthogonal_component, reuse, with_gradient
from gnpcli.gnp.slices import accumulate
from gnpcli.gnp.trees import Scalar, global_norm

__all__ = [
    "GnpMetrics",
    "Scalar",
    "Scales",
    "accumulate",
    "global_norm",
    "gnp_value_and_grad",
    "orthogonal_component",
    "penalize",
    "perturbation_scales",
    "plain",
    "reuse",
    "with_gradient",
]
