"""Tensors of a PyTorch state dict, taken one by one and turned to this package's layouts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from gnpcli.errors import CheckpointError


class StateDict:
    """A state dict of which every tensor has to find its place.

    Args:
        tensors: Arrays of any float type by their PyTorch names; read, never written.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors
        self._left = set(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str) -> np.ndarray:
        """Return one tensor in float32.

        Raises:
            CheckpointError: There is none of that name.
        """
        if name not in self._tensors:
            raise CheckpointError(
                f"the weights have no tensor {name!r}: they are those of another architecture"
            )
        self._left.discard(name)
        return np.asarray(self._tensors[name], np.float32)

    def dense(self, prefix: str) -> dict[str, np.ndarray]:
        """Return a ``Linear`` layer as kernel ``[I, O]`` and bias ``[O]``.

        Its weight is ``[O, I]`` there.
        """
        return {"kernel": self.take(f"{prefix}.weight").T, "bias": self.take(f"{prefix}.bias")}

    def fused(self, *prefixes: str) -> dict[str, np.ndarray]:
        """Return ``Linear`` layers of the same input, side by side.

        The names of the answer are ``qkv_kernel`` and ``qkv_bias``.
        """
        layers = [self.dense(prefix) for prefix in prefixes]
        return {
            f"qkv_{name}": np.concatenate([layer[name] for layer in layers], axis=-1)
            for name in layers[0]
        }

    def head(self, *prefixes: str) -> dict[str, dict[str, np.ndarray]]:
        """Return the classifier as ``{"head": layer}``, or ``{}`` where there is none.

        Args:
            prefixes: Its possible names; the first that is there counts.
        """
        found = [prefix for prefix in prefixes if f"{prefix}.weight" in self]
        return {"head": self.dense(found[0])} if found else {}

    def norm(self, prefix: str) -> dict[str, np.ndarray]:
        """Return a normalisation layer."""
        return {"scale": self.take(f"{prefix}.weight"), "bias": self.take(f"{prefix}.bias")}

    def patches(self, prefix: str) -> dict[str, np.ndarray]:
        """Return a patch convolution as a dense layer on ``[P * P * C]`` pixels.

        Its weight is ``[D, C, P, P]`` there.
        """
        weight = self.take(f"{prefix}.weight")
        return {
            "kernel": weight.transpose(2, 3, 1, 0).reshape(-1, len(weight)),
            "bias": self.take(f"{prefix}.bias"),
        }

    def count(self, prefix: str) -> int:
        """Return how many n there are among the names ``<prefix>.<n>.*``."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        matches = [pattern.match(name) for name in self._tensors]
        return len({match[1] for match in matches if match is not None})

    def finish(self, constants: Iterable[str] = ()) -> None:
        """Check that nothing is left.

        Args:
            constants: Last parts of the names that are no weights.

        Raises:
            CheckpointError: A tensor was not taken.
        """
        skipped = set(constants)
        left = sorted(name for name in self._left if name.rpartition(".")[2] not in skipped)
        if not left:
            return
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise CheckpointError(
            f"the architecture has no place for the tensors {', '.join(left[:3])}{more}"
        )
