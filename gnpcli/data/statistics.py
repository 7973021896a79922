"""Mean and standard deviation of images, per channel. NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_CHUNK_IMAGES = 256
"""Images summed at a time: their squares sum to less than 2^24, which float32 counts exactly."""
_CHUNK_VALUES = 1 << 22


def channel_statistics(
    images: npt.NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in units of [0, 1] pixel values.

    The sums are exact integers, so the result does not depend on the order of the images. A
    deviation is at least 1/255: a channel that never changes normalises to 0, and nothing is
    divided by 0.

    Args:
        images: uint8 ``[N, H, W, C]``, N > 0.
    """
    channels = images.shape[-1]
    rows = images.reshape(len(images), -1)
    step = max(1, min(_CHUNK_IMAGES, _CHUNK_VALUES // rows.shape[1]))
    total = np.zeros(rows.shape[1])
    squares = np.zeros(rows.shape[1])
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step].astype(np.float32)
        total += chunk.sum(axis=0)
        chunk *= chunk
        squares += chunk.sum(axis=0)
    pixels = rows.size // channels
    mean = total.reshape(-1, channels).sum(axis=0) / pixels
    mean_square = squares.reshape(-1, channels).sum(axis=0) / pixels
    variance = np.maximum(mean_square - mean**2, 1.0)
    return tuple((mean / 255).tolist()), tuple((np.sqrt(variance) / 255).tolist())
