"""``fashion_mnist``: Fashion-MNIST, 60,000 training and 10,000 test pictures of clothes.

They are 28x28, grey, in 10 classes (H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747). Images are
normalised by the channel statistics of the 60,000 training images.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from gnpcli.data.archives.facts import Example
from gnpcli.data.archives.fetch import Archive
from gnpcli.data.archives.published import PublishedDataset

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
ARCHIVES = {
    "train": (
        Archive(
            f"{ADDRESS}train-images-idx3-ubyte.gz",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        Archive(
            f"{ADDRESS}train-labels-idx1-ubyte.gz",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
    ),
    "test": (
        Archive(
            f"{ADDRESS}t10k-images-idx3-ubyte.gz",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        Archive(
            f"{ADDRESS}t10k-labels-idx1-ubyte.gz",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
}

_MOST_BYTES = 16 + 60_000 * 28 * 28
"""The largest of these files, when it is unpacked."""


def _examples(split: str, paths: Mapping[str, str]) -> Iterator[Example]:
    images, labels = (_read_idx(paths[archive.filename]) for archive in ARCHIVES[split])
    if images.shape != (len(labels), 28, 28) or labels.max(initial=0) > 9:
        raise ValueError(
            f"images {images.shape}, labels {labels.shape} up to {labels.max(initial=0)}"
        )
    for image, label in zip(images, labels.tolist(), strict=True):
        yield {"image": image[..., None], "label": label}


def _read_idx(path: str) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file.

    The file holds two zero bytes, the type (8: uint8), the rank, the sizes (big-endian), the
    values.
    """
    with gzip.open(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError("it inflates to more than the published images")
    if content[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of bytes")
    sizes = struct.unpack_from(f">{content[3]}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


PUBLISHED = PublishedDataset(
    name="fashion_mnist",
    title="Fashion-MNIST",
    class_names=CLASS_NAMES,
    image_size=28,
    channels=1,
    class_counts={"train": (6_000,) * 10, "test": (1_000,) * 10},
    archives=ARCHIVES,
    examples=_examples,
    mean=(0.2860,),
    std=(0.3530,),
)
describe, load = PUBLISHED.describe, PUBLISHED.load
