"""The largest eigenvalues of a Hessian that is known only by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from gnpcli.errors import ConfigError
from gnpcli.keys import measurement_generator

Vector = npt.NDArray[np.float32]

TOLERANCE = 1e-3
"""Residual, relative to the eigenvalue, at which the iteration ends.

The error of an eigenvalue is of second order in it: about six digits are right where the
eigenvalues are apart.
"""
MAX_RESTARTS = 20


@dataclass(frozen=True)
class Spectrum:
    """The largest eigenvalues, falling."""

    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    """``||H v - eigenvalue v||`` of each unit eigenvector v.

    An eigenvalue of H lies within this distance.
    """
    num_products: int
    """Hessian-vector products that it took."""
    num_missing: int
    """Eigenvalues asked for that did not converge.

    They are smaller than those that did, or lie close together.
    """


def basis_size(top: int, size: int) -> int:
    """Return how many vectors the iteration keeps at a time."""
    return min(size, max(2 * top + 1, 20))


def largest_eigenvalues(
    product: Callable[[Vector], Vector], size: int, *, top: int, seed: int
) -> Spectrum:
    """Return the algebraically largest eigenvalues of a symmetric matrix.

    The method is ARPACK's implicitly restarted Lanczos iteration (SIAM, 1998) in float32, which
    orthogonalises each new vector against its whole basis. It keeps `basis_size` vectors of `size`
    on the host.

    Args:
        product: ``H v`` for float32 ``[size]``.
        size: Rows of H.
        top: How many, at least 1 and below `size`.
        seed: Of the vector that the iteration starts from.

    Raises:
        ConfigError: `top` is not below `size`.
    """
    if not 0 < top < size:
        raise ConfigError(
            f"--top {top}: a model of {size} parameters has at most {size - 1} eigenvalues to look "
            "for"
        )
    calls = 0

    def counted(vector: Vector) -> Vector:
        nonlocal calls
        calls += 1
        return product(np.asarray(vector, np.float32).reshape(-1))

    start = measurement_generator(seed).standard_normal(size).astype(np.float32)
    operator = LinearOperator((size, size), matvec=counted, dtype=np.float32)
    try:
        values, vectors = eigsh(
            operator,
            top,
            which="LA",
            v0=start,
            ncv=basis_size(top, size),
            tol=TOLERANCE,
            maxiter=MAX_RESTARTS,
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(-values)
    residuals = []
    for place in order:
        vector = vectors[:, place]
        difference = counted(vector).astype(np.float64) - values[place] * vector
        residuals.append(float(np.linalg.norm(difference)))
    return Spectrum(tuple(map(float, values[order])), tuple(residuals), calls, top - len(order))
